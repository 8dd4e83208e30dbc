"""What ``operations`` measures in fresh processes of their own: one part, one JSON document.

Nothing here imports torch before a study needs it, so that a process is as large as Dagster's own would be.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    "anndata",
    "pyarrow.parquet",
    "scipy.sparse",
    "sklearn.neighbors",
    "sklearn.decomposition",
    "torch",
    "igraph",
    "umap",
    "zarr",
    "matplotlib.pyplot",
)


def load(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Load the code location as a code server does."""
    begin = time.perf_counter()
    import dagster  # noqa: F401

    imported = time.perf_counter()
    from neumf_assets.definitions import defs

    repository = defs().get_repository_def()
    return {
        "dagster": imported - begin,
        "definitions": time.perf_counter() - imported,
        "assets": len(repository.assets_defs_by_key),
    }


def overhead(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Run a study as ``neumf-assets run`` does, all libraries imported first."""
    begin = time.perf_counter()
    from neumf_assets.commands.run import run_study
    from neumf_assets.home import Home

    dagster = time.perf_counter()
    for name in LIBRARIES:
        __import__(name)
    libraries = time.perf_counter()
    status = run_study(wanted["study"], None)
    ended = time.perf_counter()
    store = Home.from_environment().store()
    manifests = [
        artifact.manifest
        for path in sorted(Path(store.root).rglob("manifest.json"))
        if (artifact := store.find(path.parent.relative_to(store.root).parts)) is not None
    ]
    return {
        "status": status,
        "import_dagster": dagster - begin,
        "import_libraries": libraries - dagster,
        "seconds_run": ended - libraries,
        "seconds_in_assets": sum(float(one.figures["seconds"]) for one in manifests),
        "materialisations": len(manifests),
    }


def ticks(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Tick the arrival sensor over an inbox of many files.

    Memory is what the process holds more than after loading its definitions, at its highest.
    """
    import dagster as dg

    from neumf_assets.core.measure import measured
    from neumf_assets.definitions import defs
    from neumf_assets.study.names import partitions_name

    name = wanted["study"]
    repository = defs().get_repository_def()
    sensor = repository.get_sensor_def(f"{name}_arrivals")
    rows: list[dict[str, Any]] = []
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        idle = _rss_mib()
        cursor: str | None = None

        def tick(what: str) -> dict[str, Any]:
            nonlocal cursor
            context = dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=repository)
            with measured() as cost:
                result = sensor(context)
            cursor = context.cursor
            requests = 0
            if isinstance(result, dg.SensorResult):
                requests = len(result.run_requests or [])
                for change in result.dynamic_partitions_requests or []:
                    instance.add_dynamic_partitions(partitions_name(name), list(change.partition_keys))
            row = {"what": what, "seconds": cost.seconds, "more_mib": cost.peak_mib - idle, "runs": requests}
            rows.append(row)
            return row

        tick("first tick of a burst")
        tick("second tick of the burst")
        while tick("further tick of the burst")["runs"]:
            pass
        for _ in range(3):
            tick("steady tick")
        # In a process of its own: reading files takes libraries that a sensor does without.
        finish = json.dumps({"part": "finish", "study": name, "refused": wanted["refused"]})
        subprocess.run([sys.executable, __file__, finish], check=True, stdout=subprocess.DEVNULL)
        for _ in range(3):
            tick("steady tick, some files refused")
        cursor = None
        tick("first tick of a sensor started late")
        tick("second tick of a sensor started late: all is done already")
        tick("steady tick afterwards")
    return {"idle_mib": idle, "ticks": rows, "cursor_kib": len(cursor or "") / 1024}


def _rss_mib() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def finish(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Make the store and the quarantine what they are when every dataset has been processed."""
    from neumf_assets.assets.catalogue import stages
    from neumf_assets.core.store import Draft
    from neumf_assets.definitions.studies import all_studies
    from neumf_assets.home import Home
    from neumf_assets.intake.quarantine import Quarantine, Refusal
    from neumf_assets.study.sources import dataset_digest, find_sources

    study = all_studies(Home.from_environment()).named(wanted["study"])
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # what is made here need not last
    store, quarantine = Home.from_environment().store(), Quarantine(study)
    declared = [item for item in stages(study) if item.per_dataset]
    for number, item in enumerate(find_sources(study).datasets):
        if number < int(wanted["refused"]):
            code, reason = declared[0].code_version(study), f"{item.path}, line 2: 'x' is no number"
            quarantine.add(Refusal(item.name, reason, item.identity, "raw_counts", code))
            continue
        known: dict[str, str] = {}
        for one in declared:
            inputs = {name: known[name] for name in one.inputs} or {"source": dataset_digest(item)}
            known[one.path] = one.fingerprint(study, inputs)
            draft = Draft(known[one.path], inputs=inputs, figures={"identity": item.identity})
            store.publish((study.name, *one.name, item.name), _write_a_line, draft)
    return {}


def _write_a_line(folder: Path) -> None:
    (folder / "line.txt").write_text("made by a benchmark")


def partitions(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Tell an instance of so many materialised datasets, and evaluate the automation as its daemon does."""
    import dagster as dg
    from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
    from dagster._core.definitions.automation_tick_evaluation_context import AutomationTickEvaluationContext

    from neumf_assets.assets.catalogue import stages
    from neumf_assets.core.measure import measured
    from neumf_assets.definitions.studies import all_studies
    from neumf_assets.definitions.study import study_definitions
    from neumf_assets.home import Home
    from neumf_assets.study.names import partitions_name

    study = all_studies(Home.from_environment()).named(wanted["study"])
    definitions, declared = study_definitions(study), stages(study)
    names = [f"d{number:04d}" for number in range(int(wanted["partitions"]))]
    with dg.DagsterInstance.get() as instance:
        begin = time.perf_counter()
        instance.add_dynamic_partitions(partitions_name(study.name), names)
        for item in declared:
            for name in names if item.per_dataset else [None]:
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(
                        asset_key=[study.name, *item.name],
                        partition=name,
                        metadata={"cells": 1000, "seconds": 1.5},
                        tags={"dagster/data_version": f"{item.path}-{name}"},
                    )
                )
        told = time.perf_counter() - begin
        idle, evaluations, cursor = _rss_mib(), [], AssetDaemonCursor.empty()
        for number, what in enumerate(("first", "second", "steady")):
            with measured() as cost:
                tick = AutomationTickEvaluationContext(
                    evaluation_id=number,
                    instance=instance,
                    asset_graph=definitions.resolve_asset_graph(),
                    cursor=cursor,
                    materialize_run_tags={},
                    observe_run_tags={},
                    auto_observe_asset_keys=set(),
                    asset_selection=dg.AssetSelection.groups(study.name),
                    logger=logging.getLogger("benchmark"),
                    emit_backfills=True,
                )
                _, cursor, _ = tick.evaluate()
            evaluations.append({"what": what, "seconds": cost.seconds, "more_mib": cost.peak_mib - idle})
    return {"seconds_to_tell": told, "events": len(names) * 6, "idle_mib": idle, "evaluations": evaluations}


PARTS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    one.__name__: one for one in (load, overhead, ticks, finish, partitions)
}


def main(arguments: Iterable[str]) -> None:
    """Do what the JSON document among the arguments asks for."""
    (text,) = arguments
    wanted = json.loads(text)
    answer = sys.stdout
    sys.stdout = sys.stderr  # what a run shows is not the answer
    found = PARTS[wanted["part"]](wanted)
    print(json.dumps(found), file=answer)


if __name__ == "__main__":
    main(sys.argv[1:])
