"""The client for remote registries, against real servers on loopback."""
