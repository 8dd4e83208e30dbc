"""The science as a library: nothing below this package imports Dagster."""
