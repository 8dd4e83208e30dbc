"""Scores of an embedding and its clusters, and which arm they speak for.

Imports what is beside the rooms in `core.cells`.
"""
