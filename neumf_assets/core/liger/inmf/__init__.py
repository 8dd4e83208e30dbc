"""Integrative non-negative matrix factorization: matrices, solvers, several processes, choice of k and lambda.

Imports numpy, scipy and torch; of the package `core.neumf.large` for its processes.
"""
