"""Names under which Dagster keeps what belongs to a study: its partitions, its jobs."""

import dagster as dg


def dataset_partitions(study: str) -> dg.DynamicPartitionsDefinition:
    """The datasets of a study, one partition each."""
    return dg.DynamicPartitionsDefinition(name=partitions_name(study))


def partitions_name(study: str) -> str:
    """Name under which the instance keeps a study's datasets."""
    return f"{study}_datasets"


def job_name(study: str, what: str) -> str:
    """Name of a study's job."""
    return f"{study}_{what}"
