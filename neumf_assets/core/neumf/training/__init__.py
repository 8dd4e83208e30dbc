"""The one trainer: what a step sees and does, the loop, its schedule, what stops it.

Imports what is beside the rooms in `core.neumf`; knows neither files of cells nor processes.
"""
