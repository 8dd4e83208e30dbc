"""Training of what one process cannot hold or should not do alone: cells in files, several processes, Ray.

Imports `training` and what is beside the rooms in `core.neumf`.
"""
