"""The code location: from the settings of studies to what Dagster shows of them.

Imports every room but `commands`.
"""

import warnings
from pathlib import Path

import dagster as dg

from neumf_assets.core.errors import NeumfError
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
        loaded = [_part(tree, path.parent) for path in sorted(tree.defs_module_path.glob("*/defs.yaml"))]
    return dg.Definitions.merge(*loaded, dg.Definitions(executor=executor()))


def _part(tree: dg.ComponentTree, folder: Path) -> dg.Definitions:
    """The definitions of one folder of ``defs/``; what is wrong with it is shown in its place."""
    from neumf_assets.definitions.broken import broken_study
    from neumf_assets.definitions.component import without_tree

    try:
        return tree.build_defs(folder)
    except Exception as error:  # whatever it is, the other studies go on
        try:
            # Dagster reads all files before it loads one: what it refuses may stand in another folder
            return without_tree(folder / "defs.yaml")
        except Exception as own:
            return broken_study(
                folder.name, folder / "defs.yaml", own if isinstance(own, NeumfError) else error
            )
