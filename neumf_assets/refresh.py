"""Run requests for what is out of date, for schedules."""

from collections.abc import Iterable, Sequence

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.stage import Stage
from neumf_assets.core.counts.discover import DatasetFile
from neumf_assets.core.store import Store
from neumf_assets.home import Home
from neumf_assets.partitions import partitions_name
from neumf_assets.plan import STANDS_FOR, plan
from neumf_assets.quarantine import Quarantine
from neumf_assets.reuse import REUSE_TAG
from neumf_assets.schedules import RETRAIN_TAG
from neumf_assets.settings import StudySettings
from neumf_assets.sources import find_sources, source_digests

_MODEL = "ineumf/model"


def out_of_date_requests(study: StudySettings, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """One run for each dataset that has something out of date.

    The study's own assets follow by their automation conditions once the datasets are done; a run is asked
    for them here only when nothing but they is out of date (after a change of their settings).
    """
    store = Home.from_environment().store()
    known = instance.get_dynamic_partitions(partitions_name(study.name))
    digests = digests_in_use(study, store, known, find_sources(study).datasets)
    current = plan(study, stages(study), digests, store)
    requests = [
        dg.RunRequest(partition_key=name, asset_selection=_keys(study, items), tags={REUSE_TAG: "true"})
        for name, items in current.datasets.items()
        if items
    ]
    if not requests and digests and current.study:
        return [dg.RunRequest(asset_selection=_keys(study, current.study), tags={REUSE_TAG: "true"})]
    return requests


def digests_in_use(
    study: StudySettings, store: Store, known: Iterable[str], datasets: Sequence[DatasetFile]
) -> dict[str, str]:
    """Digest of the source that each dataset of the study should be made from.

    That of its file; where the file is gone or refused, that of the version which stays in use.

    Parameters
    ----------
    known
        The datasets that belong to the study: its partitions.
    datasets
        What lies in the inbox.
    """
    quarantine = Quarantine(study)
    names = set(known)
    usable = [
        item for item in datasets if item.name in names and not quarantine.holds(item.name, item.identity)
    ]
    digests = source_digests(study, store, usable)
    for name in sorted(names - set(digests)):
        artifact = store.find((study.name, "raw_counts", name))
        if artifact is not None:
            digests[name] = str(artifact.manifest.inputs["source"])
    return digests


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
