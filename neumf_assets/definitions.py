"""The code location: every study under ``defs/``, and the executor that runs them."""

import os
from pathlib import Path

import dagster as dg

from neumf_assets.core.errors import BadSettings

EXECUTORS = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}


def executor() -> dg.ExecutorDefinition:
    """The executor named by ``NEUMF_EXECUTOR``.

    In one process, steps of a run share what they imported, and a run is one process of its own anyway.
    """
    name = os.environ.get("NEUMF_EXECUTOR") or "in_process"
    if name not in EXECUTORS:
        raise BadSettings(f"NEUMF_EXECUTOR is {name!r}; set it to one of {', '.join(EXECUTORS)}.")
    return EXECUTORS[name]


@dg.definitions
def defs() -> dg.Definitions:
    """All studies: those in ``defs/`` and those registered below ``NEUMF_HOME``."""
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(loaded, dg.Definitions(executor=executor()))
