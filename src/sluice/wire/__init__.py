"""HTTP as the OCI Distribution Specification uses it, parsed and rendered. PURE: no I/O, no clock."""
