"""``neumf-assets backfill``: datasets of a study materialised again, as a Dagster backfill that the UI shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.core.errors import BadSettings, NeumfError
from neumf_assets.dagster_internals import loaded_here
from neumf_assets.definitions.jobs import assets_of_job
from neumf_assets.definitions.studies import all_studies
from neumf_assets.home import Home
from neumf_assets.intake.quarantine import Quarantine
from neumf_assets.study.names import partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import find_sources

JOBS = ("ingest", "train", "everything")

_HEARTBEAT_SECONDS = 120


def backfill(name: str, datasets: Sequence[str] | None, job: str) -> int:
    """Launch a backfill and say where to follow it; returns the exit status."""
    home = Home.from_environment()
    home.prepare()
    home.announce()
    study = all_studies(home).named(name)
    with dg.DagsterInstance.get() as instance:
        chosen = choose_datasets(study, instance, datasets)
        found = launch_backfill(study, instance, chosen, job)
        print(f"Backfill {found}: job {job} of study {name} for {', '.join(chosen)}.")
        if not _daemon_runs(instance):
            print("Nothing starts before the Dagster daemon runs: start it with neumf-assets ui.")
    return 0


def choose_datasets(
    study: StudySettings, instance: dg.DagsterInstance, wanted: Sequence[str] | None
) -> list[str]:
    """The datasets to work on, all made partitions of the study.

    By default those of the study, and what lies in its inbox and is not refused; a refused one can be asked
    for by name.

    Raises
    ------
    BadSettings
        If one is unknown, or there is none.
    """
    known = set(instance.get_dynamic_partitions(partitions_name(study.name)))
    inbox = {item.name: item for item in find_sources(study).datasets}
    if wanted and (unknown := sorted(set(wanted) - known - set(inbox))):
        raise BadSettings(
            f"{', '.join(unknown)}: no dataset of study {study.name}. Known: "
            f"{', '.join(sorted(known | set(inbox))) or 'none'}."
        )
    quarantine = Quarantine(study)
    usable = {name for name, item in inbox.items() if not quarantine.holds(name, item.identity)}
    chosen = sorted(wanted or known | usable)
    if not chosen:
        raise BadSettings(f"Study {study.name} has no dataset. Put files into its inbox.")
    instance.add_dynamic_partitions(partitions_name(study.name), chosen)
    return chosen


def launch_backfill(
    study: StudySettings, instance: dg.DagsterInstance, datasets: Sequence[str], job: str
) -> str:
    """Ask Dagster for a backfill through the same interface as the UI; returns its id.

    Raises
    ------
    NeumfError
        If Dagster refuses, with its reason.
    """
    from dagster_graphql.cli import execute_query
    from dagster_graphql.client.query import LAUNCH_PARTITION_BACKFILL_MUTATION

    keys = [{"path": [study.name, *item.name]} for item in assets_of_job(stages(study), job)]
    parameters = {
        "assetSelection": keys,
        "partitionNames": list(datasets),
        "title": f"{study.name}: {job}",
        "tags": [{"key": "study", "value": study.name}],
    }
    with loaded_here(instance) as workspace:
        answer: dict[str, Any] = execute_query(
            workspace, LAUNCH_PARTITION_BACKFILL_MUTATION, {"backfillParams": parameters}
        )
    result = (answer.get("data") or {}).get("launchPartitionBackfill") or {}
    if "backfillId" not in result:
        raise NeumfError(f"Dagster refuses the backfill: {result.get('message') or answer.get('errors')}")
    return str(result["backfillId"])


def _daemon_runs(instance: dg.DagsterInstance) -> bool:
    beats = instance.get_daemon_heartbeats().values()
    return any(time.time() - beat.timestamp < _HEARTBEAT_SECONDS for beat in beats)
