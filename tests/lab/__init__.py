"""The laboratory: its parts, and the whole cluster on one machine."""
