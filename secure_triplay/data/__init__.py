"""Records, manifests and partitions."""
