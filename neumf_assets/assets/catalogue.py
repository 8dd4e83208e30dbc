"""All stages of a study, upstream first."""

from collections.abc import Sequence

from neumf_assets.assets import ingest, integrate, model
from neumf_assets.assets.arms import common_stages
from neumf_assets.assets.report import report_stages
from neumf_assets.assets.stage import Stage
from neumf_assets.settings import ARMS, StudySettings

PER_DATASET = frozenset(item.path for item in (*ingest.STAGES, *model.STAGES))
"""Stages with one artifact for each dataset; the others have one for the study."""


def stages(study: StudySettings) -> list[Stage]:
    """The stages that a study's settings ask for, in an order in which they can be computed."""
    arms = [arm for arm in ARMS if arm in study.arms]
    own = [integrate.shared_genes, *(item for arm in arms for item in integrate.STAGES[arm])]
    if sweeps(study):
        own.append(integrate.liger_sweep)
    common = [item for arm in arms for item in common_stages(arm)]
    return [*ingest.STAGES, *model.STAGES, *own, *common, *report_stages(study.arms, sweeps(study))]


def sweeps(study: StudySettings) -> bool:
    """Whether the study asks for LIGER with other numbers of factors or other lambdas."""
    return "liger" in study.arms and bool(study.sweep.k or study.sweep.lam)


def direct_inputs(declared: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """The inputs of each stage, by its path, that none of its other inputs depends on already.

    These are the edges that Dagster is told of: they order the work and make it stale just as all of them
    would, and a person can read the graph.
    """
    above: dict[str, frozenset[str]] = {}
    direct: dict[str, tuple[str, ...]] = {}
    for item in declared:
        implied = frozenset().union(*(above[name] for name in item.inputs))
        above[item.path] = implied.union(item.inputs)
        direct[item.path] = tuple(name for name in item.inputs if name not in implied)
    return direct
