"""Which cells these are: labels carried over from cells that have them, and lists of marker genes.

Works on an embedding of `core.cells` and on counts; knows nothing of how the embedding came about.
"""
