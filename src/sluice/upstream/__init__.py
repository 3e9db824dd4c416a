"""The client for remote registries: everything that Sluice asks of an upstream goes through ``registry``."""
