"""The nouns of the OCI specifications. PURE: no I/O, no clock."""
