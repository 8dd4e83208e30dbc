"""How every stage of a study grows with its cells: seconds, peak memory, bytes read and written.

A study of two simulated datasets goes through the stages as the pipeline computes them, each in a process of
its own, so that its peak memory is its own. Few epochs: cost per epoch is what grows.

``NEUMF_SCALE_DIR`` names a folder that keeps the data and each stage's result: a run that was broken off goes
on there, and what is done is not repeated. ``NEUMF_SCALE_CELLS`` (as ``10000,100000``) chooses other sizes,
``NEUMF_SCALE_ARMS`` (as ``liger,ineumf``) other arms, ``NEUMF_MEMORY`` (2GiB where it is not set) the budget.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.stages import StagedStudy
from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.stage import Stage, digest
from neumf_assets.core import memory
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.study import simulate_chunks
from neumf_assets.core.measure import measured
from neumf_assets.study.settings import ARMS, StudySettings

GENES = 2000
CHUNK = 8192
SIZES = {True: (2_000, 8_000), False: (10_000, 100_000, 1_000_000)}
DATASETS = ("ctrl", "stim")
EPOCHS = {"epochs": 2, "pretrain_epochs": 2, "fusion_epochs": 1}
BUDGET = "2GiB"
ADDED = ("seconds", "processor_seconds", "read_mib", "written_mib", "disk_read_mib", "disk_written_mib")
"""Figures that add up over the stages; of peak memory the largest counts."""


def study_settings(inbox: Path) -> StudySettings:
    """Return the default study, with few epochs and without repeats of one piece of work."""
    return StudySettings.model_validate(
        {
            "name": "scale",
            "inbox": str(inbox),
            "arms": os.environ.get("NEUMF_SCALE_ARMS", ",".join(ARMS)).split(","),
            "model": {"n_genes": GENES, "threads": harness.cores(), **EPOCHS},
            "evaluation": {"epochs": 2},
            "dense": {"dtype": "float16"},
            "liger": {"n_genes": GENES, "k": 20, "epochs": 2, "iterations": 5, "restarts": 1},
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
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        writers: dict[str, CountsWriter] = {}
        for chunk in simulate_chunks(simulated, CHUNK):
            if chunk.name not in writers:
                writers[chunk.name] = stack.enter_context(CountsWriter(folder / f"{chunk.name}.h5ad"))
            writers[chunk.name].add(chunk.counts)
    return {}


def compute(root: Path, path: str, dataset: str | None) -> dict[str, float]:
    """Compute and store one stage as the pipeline does."""
    staged = StagedStudy(study_settings(root / "inbox"), DATASETS, root)
    staged.compute_one(staged.declared(path), dataset)
    return {}


def _measured(function: str, *arguments: Any) -> dict[str, float]:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    torch.set_num_threads(harness.cores())
    before = _spent()
    with measured() as cost:
        globals()[function](*arguments)
    spent = {name: value - before[name] for name, value in _spent().items()}
    return {
        "seconds": harness.significant(cost.seconds),
        "processor_seconds": harness.significant(spent.pop("processor_seconds")),
        "peak_mib": round(cost.peak_mib),
        **{name: round(value) for name, value in spent.items()},
    }


def _spent() -> dict[str, float]:
    """Return processor seconds of this process and its children, and the MiB that it has read and written.

    ``read`` and ``written`` are what it asked the system for, ``disk_…`` what reached the disk: the system
    serves much of the reading from memory.
    """
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {"processor_seconds": sum(one.ru_utime + one.ru_stime for one in usage)}
    fields = {"rchar": "read", "wchar": "written", "read_bytes": "disk_read", "write_bytes": "disk_written"}
    with contextlib.suppress(OSError):
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        found |= {f"{name}_mib": int(lines[field]) / 2**20 for field, name in fields.items()}
    return found


def in_child(*call: Any) -> dict[str, float]:
    """Measure a call of this module in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, *call).result()


def measure(root: Path, cells: int) -> list[dict[str, Any]]:
    """Return one row for each stage of a study of ``cells`` cells; what ``root`` has a row of is not repeated.

    The rows are in ``root/rows``, one file each. Once all stages have succeeded the data are removed.
    """
    study = study_settings(root / "inbox")
    described = study.model_dump(mode="json", exclude={"inbox"})
    key = digest([cells, described, memory.budget(), GENES])[:12]
    work: list[tuple[str, int, tuple[Any, ...]]] = [
        ("simulate", cells, ("simulated_inbox", root / "inbox", cells))
    ]
    for item in stages(study):
        work += [(item.path, *one) for one in calls(root, item, cells)]
    rows = []
    for number, (path, size, call) in enumerate(work):
        name = "-".join([f"{number:02d}", path.replace("/", "-"), *filter(None, call[3:])])
        rows.append(row_of(root / "rows" / key / f"{name}.json", path, size, call))
        harness.say(rows[-1])
        if "failed" in rows[-1]:
            return rows
    for folder in ("inbox", "storage", "scratch"):
        shutil.rmtree(root / folder, ignore_errors=True)
    return rows


def row_of(file: Path, path: str, cells: int, call: tuple[Any, ...]) -> dict[str, Any]:
    """Return the row of one piece of work from its file, or do it and write the file."""
    if file.exists():
        return json.loads(file.read_text())
    row: dict[str, Any] = {"stage": path, "cells": cells}
    try:
        row |= in_child(*call)
    except Exception as error:  # a stage that fails is a row of the result, and tried again the next time
        return row | {"failed": f"{type(error).__name__}: {error}"[:200]}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(row))
    partial.replace(file)
    return row


def calls(root: Path, item: Stage, cells: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the cells and the call of each artifact of a stage; of a stage by dataset the first is shown."""
    if not item.per_dataset:
        return [(cells, ("compute", root, item.path, None))]
    return [(cells // 2, ("compute", root, item.path, name)) for name in DATASETS]


def totals(rows: list[dict[str, Any]], cells: int) -> dict[str, Any]:
    """Return the row of a whole study: sums over its stages, the largest peak, and what a cell costs."""
    whole: dict[str, Any] = {"stage": "whole study", "cells": cells}
    for name in ADDED:
        whole[name] = harness.significant(sum(row.get(name, 0) for row in rows))
    whole["peak_mib"] = max(row.get("peak_mib", 0) for row in rows)
    whole["microseconds_per_cell"] = harness.significant(1e6 * whole["seconds"] / cells)
    failed = [row["stage"] for row in rows if "failed" in row]
    return whole | ({"failed": f"at {failed[0]}"} if failed else {})


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the slope of log seconds and log peak memory over log cells of every stage and of the whole."""
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


def growth(wholes: list[dict[str, Any]]) -> dict[str, float]:
    """Return by how much the time of a cell and the peak memory grow from each size to the next."""
    found = {}
    sound = [row for row in wholes if "failed" not in row]
    for i, small in enumerate(sound):
        for large in sound[i + 1 :]:
            sizes = f"from {small['cells']:,} to {large['cells']:,} cells"
            for what, name in (("microseconds_per_cell", "time of a cell"), ("peak_mib", "peak memory")):
                found[f"{name} {sizes}, times"] = harness.significant(large[what] / small[what], 3)
    return found


@contextlib.contextmanager
def folder_of_data() -> Iterator[Path]:
    """Give the folder of ``NEUMF_SCALE_DIR``, which stays, or one that goes."""
    if given := os.environ.get("NEUMF_SCALE_DIR"):
        yield Path(given).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="neumf-scale-") as name:
        yield Path(name)


def main(quick: bool = False) -> dict[str, Any]:
    os.environ.setdefault(memory.VARIABLE, BUDGET)
    wanted = os.environ.get("NEUMF_SCALE_CELLS")
    sizes = tuple(map(int, wanted.split(","))) if wanted else SIZES[quick]
    rows, wholes = [], []
    with folder_of_data() as folder:
        for cells in sizes:
            own = measure(folder / f"{cells}-cells", cells)
            wholes.append(totals(own, cells))
            harness.say(wholes[-1])
            rows += own
    return {
        "title": f"a whole study of two datasets of {GENES} genes, by cells",
        "rows": [*rows, *wholes],
        "ratios": growth(wholes) | exponents([*rows, *wholes]),
        "notes": [
            "Peak memory holds the interpreter with the libraries of the stage (300 to 600 MiB).",
            f"The budget {memory.VARIABLE} was {memory.readable(memory.budget())}.",
        ],
    }


if __name__ == "__main__":
    harness.script(main)
