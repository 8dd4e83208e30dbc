"""Dagster data assets for single-cell RNA-seq."""
