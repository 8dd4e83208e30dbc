"""All stages of a study, upstream first."""

from collections.abc import Sequence

from neumf_assets.assets import components, gene_space, ingest, integrate, model
from neumf_assets.assets.arms import common_stages
from neumf_assets.assets.report.stages import report_stages
from neumf_assets.assets.stage import Stage
from neumf_assets.core.errors import BadSettings
from neumf_assets.study.settings import ARMS, StudySettings

PER_DATASET = frozenset(item.path for item in (*ingest.STAGES, *model.STAGES))
"""Stages with one artifact for each dataset; the others have one for the study."""

ARM_STAGES = {**components.STAGES, **integrate.STAGES}
"""What each arm computes up to its embedding; two arms may share a stage."""


def stages(study: StudySettings) -> list[Stage]:
    """The stages that a study's settings ask for, in an order in which they can be computed."""
    arms = [arm for arm in ARMS if arm in study.arms]
    own = [
        gene_space.gene_space,
        integrate.shared_genes,
        *dict.fromkeys(item for arm in arms for item in ARM_STAGES[arm]),
    ]
    if sweeps(study):
        own.append(integrate.liger_sweep)
    common = [item for arm in arms for item in common_stages(arm)]
    return [*ingest.STAGES, *model.STAGES, *own, *common, *report_stages(study.arms, sweeps(study))]


def sweeps(study: StudySettings) -> bool:
    """Whether the study asks for LIGER with other numbers of factors or other lambdas."""
    return "liger" in study.arms and bool(study.sweep.k or study.sweep.lam)


def check_requests(study: StudySettings, where: str) -> None:
    """Refuse a request for something that is neither an asset nor a group of the study.

    Raises
    ------
    BadSettings
        Naming the place of the settings, the wrong name and those that are known.
    """
    everything = study.model_copy(update={"arms": ARMS})
    known = {name for item in stages(everything) for name in (item.path, item.group)}
    if unknown := sorted(set(study.requests) - known):
        raise BadSettings(
            f"{where}: requests names {unknown[0]!r}, which is neither an asset nor a group. "
            f"Known here: {', '.join(sorted(known))}."
        )


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
