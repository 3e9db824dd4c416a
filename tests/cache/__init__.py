"""The caching core: policy, fills, pull-through."""
