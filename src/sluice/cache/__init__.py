"""The caching core: what is held is served from the store, what is not is fetched once for everybody who asks."""
