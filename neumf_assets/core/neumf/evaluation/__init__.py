"""Judges a NeuMF on counts it has not seen, beside the baselines it has to beat.

Imports `training` and what is beside the rooms in `core.neumf`.
"""
