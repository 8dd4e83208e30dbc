"""Cells on disk and for other tools: the arms' stores, the integrated h5ad, exports.

Imports `core.counts` and what is beside the rooms in `core.cells`.
"""
