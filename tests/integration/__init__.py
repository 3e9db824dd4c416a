"""Suites that speak to a running server over real sockets, as clients do."""
