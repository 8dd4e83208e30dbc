"""Runs that nobody asked for by hand keep a result that would come out the same.

A file that is uploaded again unchanged starts a run, since only reading it tells. From there on, fingerprints
say that nothing would change, and the version there is stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from neumf_assets.assets.stage import CheckOutcome, Stage
from neumf_assets.core.store import Artifact
from neumf_assets.freshness.plan import is_current
from neumf_assets.study.settings import StudySettings

REUSE_TAG = "neumf/reuse"
"""Tag of runs that keep what is up to date; without it every asset of a run is computed anew."""

CHECKS = "checks"


@dataclass(frozen=True)
class Unchanged:
    """Stands for a product where the stored version stays."""

    artifact: Artifact


def reusable(
    declared: Stage,
    study: StudySettings,
    context: dg.AssetExecutionContext,
    fingerprints: Mapping[str, Any],
    stored: Artifact | None,
) -> bool:
    """Whether the stored version is what this run would make, and the run is one that may keep it."""
    if not declared.inputs or stored is None or context.run.tags.get(REUSE_TAG) != "true":
        return False
    return CHECKS in stored.manifest.figures and is_current(
        stored, declared.fingerprint(study, fingerprints), study
    )


def kept_outcomes(stored: Artifact) -> list[CheckOutcome]:
    """The outcomes of the checks when the stored version was made."""
    return [CheckOutcome(**outcome) for outcome in stored.manifest.figures[CHECKS]]


def kept_metadata(context: dg.AssetExecutionContext, partition: str | None) -> dict[str, Any]:
    """The metadata of the materialisation that stays in force, so that the UI goes on showing it."""
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=context.asset_key, asset_partitions=None if partition is None else [partition]
        ),
        limit=1,
    ).records
    event = records[0].asset_materialization if records else None
    metadata: dict[str, Any] = {} if event is None else dict(event.metadata)
    return {**metadata, "unchanged": "Inputs, settings and code are the same: nothing was computed."}
