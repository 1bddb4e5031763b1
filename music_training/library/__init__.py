"""Where audio comes from and how it becomes training data: sources, catalogue, segments, manifests."""
