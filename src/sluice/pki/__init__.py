"""Certificates: a CA of our own, leaves, renewal."""
