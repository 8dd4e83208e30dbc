"""Cells in an embedding: neighbour graphs, clusters, maps and scores."""
