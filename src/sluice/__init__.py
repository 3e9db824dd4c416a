"""Sluice: a container image registry for clusters."""

__version__ = "0.1.0"
