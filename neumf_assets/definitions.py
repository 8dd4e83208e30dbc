"""The code location: every study under ``defs/``, and the executor that runs them."""

import os
import warnings
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
    import neumf_assets.defs

    # Not load_from_defs_folder, which wants a pyproject.toml above the package: an installed wheel has none.
    tree = dg.ComponentTree.from_module(neumf_assets.defs, project_root=Path(__file__).parents[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # both come from Dagster's own loading of components
        warnings.simplefilter("ignore", dg.PreviewWarning)
        loaded = tree.build_defs()
    return dg.Definitions.merge(loaded, dg.Definitions(executor=executor()))
