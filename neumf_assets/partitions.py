"""Partitions: each study has its own set of datasets, which grows as data arrives."""

import dagster as dg


def dataset_partitions(study: str) -> dg.DynamicPartitionsDefinition:
    """The datasets of a study, one partition each."""
    return dg.DynamicPartitionsDefinition(name=partitions_name(study))


def partitions_name(study: str) -> str:
    """Name under which the instance keeps a study's datasets."""
    return f"{study}_datasets"
