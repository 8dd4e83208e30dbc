"""The NeuMF tower of a block of cells x genes, forward and backward in one pass through the CPU's caches."""
