"""Real servers and conformance functions for tests, ours and our users'."""
