"""Facts about a network without running it: cost on paper, the exported graph, channel groups."""
