"""Droplet count data with known truth: means, factors and labels.

Imports numpy, scipy and AnnData; of the package only `core`'s errors and settings.
"""
