"""Run requests for what is out of date, for schedules."""

from collections.abc import Sequence

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.stage import Stage
from neumf_assets.home import Home
from neumf_assets.partitions import partitions_name
from neumf_assets.plan import plan
from neumf_assets.settings import StudySettings
from neumf_assets.sources import find_sources, source_digests


def out_of_date_requests(study: StudySettings, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """One run for each dataset that has something out of date.

    The study's own assets follow by their automation conditions once the datasets are done; a run is asked
    for them here only when nothing but they is out of date (after a change of their settings).
    """
    store = Home.from_environment().store()
    known = set(instance.get_dynamic_partitions(partitions_name(study.name)))
    digests = source_digests(study, store, find_sources(study).datasets)
    current = plan(study, stages(study), {n: d for n, d in digests.items() if n in known}, store)
    requests = [
        dg.RunRequest(partition_key=name, asset_selection=_keys(study, items))
        for name, items in current.datasets.items()
        if items
    ]
    if not requests and current.study:
        return [dg.RunRequest(asset_selection=_keys(study, current.study))]
    return requests


def _keys(study: StudySettings, items: Sequence[Stage]) -> list[dg.AssetKey]:
    return [dg.AssetKey([study.name, *item.name]) for item in items]
