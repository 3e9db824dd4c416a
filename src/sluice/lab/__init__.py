"""A whole cluster of real parts on one machine, in network namespaces."""
