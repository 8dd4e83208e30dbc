"""Two workers against one, one thread each, as processes and on Ray: speed, and what they send in a step.

Speed is that of the quickest epoch, so that what else the machine does counts little. Each worker is a process of
its own, the one alone too. On Ray they are Ray Train's, on a cluster of two nodes with one processor each, all on
this machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import harness
from neumf_assets.core.neumf.large.parallel import ParallelTraining
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.processes import Launch, LocalProcesses
from neumf_assets.core.ray_workers import NEUMF, RayWorkers

KINDS = ("gmf", "neumf")
CASES = ((16_000, 256), (4000, 1024), (16_000, 1024))
"""Cells, and how many of them all workers together take in a step: with more, sums are rarer."""
QUICK_CASES = ((1000, 256), (4000, 256))


def train_by(
    workers: int,
    cells: int,
    genes: int,
    kind: str,
    epochs: int,
    launch: Launch | None = None,
    step_cells: int = 256,
) -> tuple[float, ParallelTraining]:
    """Train on simulated counts; return pairs per second of the quickest epoch, and the training.

    ``launch`` says where workers run; by default as processes of this machine.
    """
    settings = NeuMFSettings(
        kind=kind,
        n_genes=None,
        epochs=epochs,
        pretrain="none",
        validation_share=0.0,
        block_cells=step_cells,
        gmf_size=32,
        threads=1,
    )
    training = ParallelTraining(workers, launch or LocalProcesses(NEUMF, restarts=0, threads=1))
    model = fit(
        harness.simulated_counts(cells, genes),
        settings,
        gene_names=np.arange(genes).astype(np.str_),
        cell_names=np.arange(cells).astype(np.str_),
        training=training,
    )
    return max(float(row["pairs_per_second"]) for row in model.history), training


def launches() -> Iterator[tuple[str, Launch]]:
    """Yield the ways to run workers; on Ray where it is installed."""
    yield "processes", LocalProcesses(NEUMF, restarts=0, threads=1)
    if importlib.util.find_spec("ray"):
        from neumf_assets_tests.ray_cluster import two_nodes

        with two_nodes() as cluster:
            yield "Ray, two nodes", RayWorkers(restarts=0, address=cluster.address)


def main(quick: bool = False) -> dict[str, Any]:
    genes, epochs = (400, 3) if quick else (2000, 5)
    rows = []
    for where, launch in launches():
        for kind in KINDS:
            for cells, step_cells in QUICK_CASES if quick else CASES:
                one, _ = train_by(1, cells, genes, kind, epochs, launch, step_cells)
                two, training = train_by(2, cells, genes, kind, epochs, launch, step_cells)
                row = {
                    "workers": where,
                    "kind": kind,
                    "cells": cells,
                    "cells_of_a_step": step_cells,
                    "genes": genes,
                    "one_pairs_per_second": harness.significant(one),
                    "two_pairs_per_second": harness.significant(two),
                    "speed_up": harness.significant(two / one, 3),
                    "summed_bytes_per_step": training.traffic.bytes_per_step,
                }
                harness.say(row)
                rows.append(row)
    ratios = {
        f"speed-up, {row['workers']}, {row['kind']}, {row['cells']} cells, {row['cells_of_a_step']} in a step": row[
            "speed_up"
        ]
        for row in rows
    }
    return {
        "title": "data-parallel training, two workers against one, one thread each (simulated counts)",
        "rows": rows,
        "ratios": ratios,
        "skipped": {} if importlib.util.find_spec("ray") else {"Ray": "not installed"},
        "notes": [
            "Bytes per step are those of the tensors that are summed; each of n workers sends 2 (n - 1) / n "
            "times as many."
        ],
    }


if __name__ == "__main__":
    harness.script(main)
