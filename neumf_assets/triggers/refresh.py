"""Run requests for what is out of date, for schedules."""

from collections.abc import Sequence

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.stage import Stage
from neumf_assets.freshness.plan import STANDS_FOR, plan
from neumf_assets.freshness.reuse import REUSE_TAG
from neumf_assets.home import Home
from neumf_assets.intake.in_use import digests_in_use
from neumf_assets.intake.left_out import left_out
from neumf_assets.study.names import partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import find_sources

_MODEL = "ineumf/model"
RETRAIN_TAG = "neumf/retrain"
"""Tag of runs that train the integrative model anew, whatever the study's ``update`` says."""


def out_of_date_requests(study: StudySettings, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """One run for each dataset that has something out of date.

    The study's own assets follow by their automation conditions once the datasets are done; a run is asked
    for them here only when nothing but they is out of date (after a change of their settings).

    Dagster wants a key for each of several runs of one tick. It compares keys within a tick only, so what is
    still out of date at the next one is asked for again.
    """
    store = Home.from_environment().store()
    known = instance.get_dynamic_partitions(partitions_name(study.name))
    digests = digests_in_use(study, store, known, find_sources(study).datasets)
    current = plan(study, stages(study), digests, store, left_out(study, store, known))
    requests = [
        dg.RunRequest(
            run_key=name,
            partition_key=name,
            asset_selection=_keys(study, items),
            tags={REUSE_TAG: "true"},
        )
        for name, items in current.datasets.items()
        if items
    ]
    if not requests and digests and current.study:
        return [dg.RunRequest(asset_selection=_keys(study, current.study), tags={REUSE_TAG: "true"})]
    return requests


def retrain_requests(study: StudySettings) -> list[dg.RunRequest]:
    """A run that trains the integrative model anew, with what follows from it; none where it was trained."""
    artifact = Home.from_environment().store().find((study.name, *_MODEL.split("/")))
    if artifact is None or STANDS_FOR not in artifact.manifest.figures:
        return []
    return [
        dg.RunRequest(
            asset_selection=_keys(study, _downstream(stages(study), _MODEL)), tags={RETRAIN_TAG: "true"}
        )
    ]


def _downstream(declared: Sequence[Stage], root: str) -> list[Stage]:
    found = {root}
    for item in declared:  # upstream first
        if found & set(item.inputs):
            found.add(item.path)
    return [item for item in declared if item.path in found]


def _keys(study: StudySettings, items: Sequence[Stage]) -> list[dg.AssetKey]:
    return [dg.AssetKey([study.name, *item.name]) for item in items]
