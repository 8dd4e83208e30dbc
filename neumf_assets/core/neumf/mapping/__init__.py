"""New cells on a trained model: its genes and its tower stay, only what is new is learnt.

Imports `training` and what is beside the rooms in `core.neumf`.
"""
