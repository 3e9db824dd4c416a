"""The registry server: requests in, contracts called, responses out."""
