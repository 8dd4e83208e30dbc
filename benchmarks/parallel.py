"""Two worker processes against one, one thread each: speed, and what they send in a step.

Speed is that of the quickest epoch, so that what else the machine does counts little. Each worker is a process of
its own, the one alone too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import harness
from neumf_assets.core.neumf.parallel import LocalProcesses, ParallelTraining
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.train import fit

KINDS = ("gmf", "neumf")


def train_by(workers: int, cells: int, genes: int, kind: str, epochs: int) -> tuple[float, ParallelTraining]:
    """Train on simulated counts; return pairs per second of the quickest epoch, and the training."""
    settings = NeuMFSettings(
        kind=kind,
        n_genes=None,
        epochs=epochs,
        pretrain="none",
        validation_share=0.0,
        block_cells=256,
        threads=1,
    )
    training = ParallelTraining(workers, LocalProcesses(restarts=0, threads=1))
    model = fit(
        harness.simulated_counts(cells, genes),
        settings,
        gene_names=np.arange(genes).astype(np.str_),
        cell_names=np.arange(cells).astype(np.str_),
        training=training,
    )
    return max(float(row["pairs_per_second"]) for row in model.history), training


def main(quick: bool = False) -> dict[str, Any]:
    genes, epochs = (400, 3) if quick else (2000, 5)
    rows = []
    for kind in KINDS:
        for cells in (1000, 4000) if quick else (4000, 16_000):
            one, _ = train_by(1, cells, genes, kind, epochs)
            two, training = train_by(2, cells, genes, kind, epochs)
            row = {
                "kind": kind,
                "cells": cells,
                "genes": genes,
                "one_pairs_per_second": harness.significant(one),
                "two_pairs_per_second": harness.significant(two),
                "speed_up": harness.significant(two / one, 3),
                "summed_bytes_per_step": training.traffic.bytes_per_step,
            }
            harness.say(row)
            rows.append(row)
    return {
        "title": "data-parallel training, two workers against one, one thread each (simulated counts)",
        "rows": rows,
        "ratios": {f"speed-up, {row['kind']}, {row['cells']} cells": row["speed_up"] for row in rows},
        "notes": [
            "Bytes per step are those of the tensors that are summed; each of n workers sends 2 (n - 1) / n "
            "times as many."
        ],
    }


if __name__ == "__main__":
    harness.script(main)
