"""How every stage of a study grows with its cells: seconds, peak memory, bytes read and written.

A study of two simulated datasets goes through the stages as the pipeline computes them, each in a process of
its own, so that its peak memory is its own. Few epochs: cost per epoch is what grows.
``NEUMF_SCALE_CELLS`` (as ``10000,100000``) chooses other sizes, ``NEUMF_SCALE_DIR`` the folder of the data,
``NEUMF_MEMORY`` the budget.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from neumf_assets.assets.catalogue import PER_DATASET, stages
from neumf_assets.assets.stage import Stage, Step
from neumf_assets.core.counts.simulate import simulate_chunks
from neumf_assets.core.counts.simulate_settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.measure import measured
from neumf_assets.core.store import Draft, Store
from neumf_assets.settings import StudySettings

GENES = 2000
CHUNK = 8192
SIZES = {True: (2_000, 8_000), False: (10_000, 100_000, 1_000_000)}
DATASETS = ("ctrl", "stim")
EPOCHS = {"epochs": 2, "pretrain_epochs": 2, "fusion_epochs": 1}


def study_settings(inbox: Path) -> StudySettings:
    """Return the default study, with few epochs and without repeats of one piece of work."""
    return StudySettings.model_validate(
        {
            "name": "scale",
            "inbox": str(inbox),
            "arms": ["liger", "ineumf"],
            "model": {"n_genes": GENES, "threads": harness.cores(), **EPOCHS},
            "evaluation": {"epochs": 2},
            "liger": {"n_genes": GENES, "k": 20, "epochs": 2, "iterations": 10, "restarts": 1},
            "ineumf": {"kind": "gmf", "gmf_size": 20, "n_genes": GENES, "epochs": 2},
            "umap": {"sample": 5_000},
            "clusters": {"methods": ["leiden"], "resolutions": [0.4], "seeds": [0]},
        }
    )


def simulated_inbox(folder: Path, cells: int) -> dict[str, float]:
    """Write two datasets of half the cells each, chunk by chunk."""
    from neumf_assets.core.counts.store import CountsWriter

    simulated = SimulatorSettings(
        datasets=tuple(
            SimulatedDatasetSettings(
                name=name, cells=cells // 2, condition=condition, library_mean=0.08 * GENES
            )
            for name, condition in zip(DATASETS, ("control", "stimulated"), strict=True)
        ),
        genes=GENES,
    )
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        writers: dict[str, CountsWriter] = {}
        for chunk in simulate_chunks(simulated, CHUNK):
            if chunk.name not in writers:
                writers[chunk.name] = stack.enter_context(CountsWriter(folder / f"{chunk.name}.h5ad"))
            writers[chunk.name].add(chunk.counts)
    return {}


def compute(root: Path, path: str, dataset: str | None) -> dict[str, float]:
    """Compute and store one stage as the pipeline does."""
    study = study_settings(root / "inbox")
    declared = {item.path: item for item in stages(study)}[path]
    store = Store(root / "storage")
    step = Step(
        study=study,
        inputs={
            name: inputs_of(store, name, dataset if declared.per_dataset else None)
            for name in declared.inputs
        },
        dataset=dataset,
        scratch=root / "scratch" / path / (dataset or "study"),
    )
    begin = time.perf_counter()
    product = declared.compute(step)
    key = ("scale", *declared.name, *([dataset] if dataset else []))
    spent = {"seconds": time.perf_counter() - begin, "peak_memory_mib": 0.0}
    figures = json.loads(json.dumps(product.figures | spent, default=str))
    draft = Draft(fingerprint=path, figures=figures)
    store.publish(key, lambda folder: product.save(folder) and None, draft)
    return {}


def inputs_of(store: Store, name: str, dataset: str | None) -> Any:
    """Return the stored input of a stage: of its dataset, of every dataset, or of the study."""
    if name not in PER_DATASET:
        return store.get(("scale", *name.split("/")))
    if dataset:
        return store.get(("scale", *name.split("/"), dataset))
    return {each: store.get(("scale", *name.split("/"), each)) for each in DATASETS}


def _measured(function: str, *arguments: Any) -> dict[str, float]:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    torch.set_num_threads(harness.cores())
    before = _moved()
    with measured() as cost:
        globals()[function](*arguments)
    after = _moved()
    return {
        "seconds": harness.significant(cost.seconds),
        "peak_mib": round(cost.peak_mib),
        "read_mib": round((after[0] - before[0]) / 2**20),
        "written_mib": round((after[1] - before[1]) / 2**20),
    }


def _moved() -> tuple[int, int]:
    """Return the bytes that this process has asked the system to read and to write."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return 0, 0
    return int(fields["rchar"]), int(fields["wchar"])


def in_child(*call: Any) -> dict[str, float]:
    """Measure a call of this module in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, *call).result()


def measure(cells: int, only: set[str] | None = None) -> list[dict[str, Any]]:
    """Return one row for each stage of a study of ``cells`` cells."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="neumf-scale-", dir=os.environ.get("NEUMF_SCALE_DIR")) as name:
        root = Path(name)
        work: list[tuple[str, int, tuple[Any, ...]]] = [
            ("simulate", cells, ("simulated_inbox", root / "inbox", cells))
        ]
        for item in stages(study_settings(root / "inbox")):
            work += [(item.path, *one) for one in calls(root, item, cells)]
        for path, size, call in work:
            try:
                found: dict[str, Any] = in_child(*call)
            except Exception as error:  # a stage that fails is a row of the result
                found = {"failed": f"{type(error).__name__}: {error}"[:200]}
            rows.append({"stage": path, "cells": size, **found})
            harness.say(rows[-1])
    return rows


def calls(root: Path, item: Stage, cells: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the cells and the call of each artifact of a stage; of a stage by dataset the first is shown."""
    if not item.per_dataset:
        return [(cells, ("compute", root, item.path, None))]
    return [(cells // 2, ("compute", root, item.path, name)) for name in DATASETS]


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the slope of log seconds and log peak memory over log cells of every stage."""
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage and "failed" not in row]
        cells = [row["cells"] for row in own]
        if len(set(cells)) < 2:
            continue
        for what in ("seconds", "peak_mib"):
            slope = np.polyfit(np.log(cells), np.log([row[what] for row in own]), 1)[0]
            found[f"exponent of {what} in cells: {stage}"] = harness.significant(float(slope), 3)
    return found


def main(quick: bool = False) -> dict[str, Any]:
    wanted = os.environ.get("NEUMF_SCALE_CELLS")
    sizes = tuple(map(int, wanted.split(","))) if wanted else SIZES[quick]
    rows = [row for cells in sizes for row in measure(cells)]
    return {
        "title": f"a whole study of two datasets of {GENES} genes, by cells",
        "rows": rows,
        "ratios": exponents(rows),
        "notes": ["Peak memory holds the interpreter with the libraries of the stage (300 to 600 MiB)."],
    }


if __name__ == "__main__":
    harness.script(main)
