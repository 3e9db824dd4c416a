"""The durable store: content-addressed files and a SQLite index."""
