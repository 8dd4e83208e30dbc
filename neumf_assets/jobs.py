"""Jobs of a study: ``ingest``, ``train``, ``integrate``, ``everything``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from neumf_assets.assets.stage import Stage
from neumf_assets.settings import StudySettings

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def study_jobs(study: StudySettings, declared: Sequence[Stage]) -> list[UnresolvedAssetJobDefinition]:
    """The study's jobs; the first two run for one dataset or, as backfills, for many."""
    own = [item for item in declared if item.per_dataset]
    return [
        _job(study, "ingest", [i for i in own if i.group == "ingest"], "Read, check and filter datasets."),
        _job(
            study, "train", own, "Everything that belongs to one dataset, from its file to the dense matrix."
        ),
        _job(
            study,
            "integrate",
            [i for i in declared if not i.per_dataset],
            "Everything that needs all datasets: arms, clusters, maps, comparison, report.",
        ),
        _job(study, "everything", declared, "All of the study, for one dataset."),
    ]


def job_name(study: str, what: str) -> str:
    """Name of a study's job."""
    return f"{study}_{what}"


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
