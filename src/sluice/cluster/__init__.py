"""The cluster's documents: what the controller says and the nodes read. One model on both sides."""
