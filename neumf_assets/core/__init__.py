"""The science, usable as a library on AnnData.

Imports nothing of the other rooms, and never Dagster.
"""
