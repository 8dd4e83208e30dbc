"""The code location: from the settings of studies to what Dagster shows of them.

Imports every room but `commands`.
"""

import warnings
from pathlib import Path

import dagster as dg

from neumf_assets.running.executors import executor


@dg.definitions
def defs() -> dg.Definitions:
    """All studies: those in ``defs/`` and those registered below ``NEUMF_HOME``."""
    import neumf_assets.defs

    # Not load_from_defs_folder, which wants a pyproject.toml above the package: an installed wheel has none.
    tree = dg.ComponentTree.from_module(neumf_assets.defs, project_root=Path(__file__).parents[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # both come from Dagster's own loading of components
        warnings.simplefilter("ignore", dg.PreviewWarning)
        loaded = tree.build_defs()
    return dg.Definitions.merge(loaded, dg.Definitions(executor=executor()))
