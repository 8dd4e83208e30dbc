"""Jobs of a study: ``ingest``, ``train``, ``integrate``, ``everything``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from neumf_assets.assets.stage import Stage
from neumf_assets.study.names import job_name
from neumf_assets.study.settings import StudySettings

if TYPE_CHECKING:
    from neumf_assets.dagster_internals import UnresolvedAssetJobDefinition


_DESCRIPTIONS = {
    "ingest": "Read, check and filter datasets.",
    "train": "Everything that belongs to one dataset, from its file to the dense matrix.",
    "integrate": "Everything that needs all datasets: arms, clusters, maps, comparison, report.",
    "everything": "All of the study, for one dataset.",
}


def study_jobs(study: StudySettings, declared: Sequence[Stage]) -> list[UnresolvedAssetJobDefinition]:
    """The study's jobs; ``ingest`` and ``train`` run for one dataset or, as backfills, for many."""
    return [_job(study, name, assets_of_job(declared, name), text) for name, text in _DESCRIPTIONS.items()]


def assets_of_job(declared: Sequence[Stage], job: str) -> list[Stage]:
    """The stages that a job materialises."""
    if job == "everything":
        return list(declared)
    if job == "integrate":
        return [item for item in declared if not item.per_dataset]
    return [item for item in declared if item.per_dataset and (job == "train" or item.group == "ingest")]


def _job(
    study: StudySettings, what: str, stages: Sequence[Stage], description: str
) -> UnresolvedAssetJobDefinition:
    keys = [dg.AssetKey([study.name, *item.name]) for item in stages]
    return dg.define_asset_job(
        job_name(study.name, what),
        selection=dg.AssetSelection.assets(*keys),
        description=description,
        tags={"study": study.name},
    )
