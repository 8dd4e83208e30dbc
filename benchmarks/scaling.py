"""How training time and memory of the default NeuMF grow with cells and with genes.

Every size runs in a process of its own, so its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

EPOCHS = 2


def train_once(cells: int, genes: int) -> dict[str, float]:
    """Train on simulated counts; return seconds of an epoch, non-zeros, and peak memory before and after."""
    torch.set_num_threads(harness.cores())
    counts = harness.simulated_counts(cells, genes)
    before = harness.peak_rss_mib()
    settings = NeuMFSettings(n_genes=None, epochs=EPOCHS, pretrain="none", patience=None)
    model = fit(
        counts,
        settings,
        gene_names=np.arange(genes).astype(np.str_),
        cell_names=np.arange(cells).astype(np.str_),
    )
    return {
        "nonzeros": counts.nnz,
        "seconds_per_epoch": min(float(row["seconds"]) for row in model.history),
        "peak_rss_mib": harness.peak_rss_mib(),
        "peak_rss_before_training_mib": before,
    }


def measure(cells: int, genes: int) -> dict[str, Any]:
    """Return the row of one size, measured in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(train_once, cells, genes).result()
    rate = cells * genes / found["seconds_per_epoch"]
    row = {"cells": cells, "genes": genes, "pairs_per_second": harness.significant(rate), **found}
    row["seconds_per_epoch"] = harness.significant(found["seconds_per_epoch"])
    harness.say(row)
    return row


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of log value over log size: 1 where the cost grows in proportion."""
    return harness.significant(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 3)


def main(quick: bool = False) -> dict[str, Any]:
    base = 500 if quick else 2000
    steps = (1, 2) if quick else (1, 2, 4, 8)
    by_cells = [measure(base * n, 1000) for n in steps]
    by_genes = [measure(base, 1000 * n) for n in steps[1:]]
    by_genes = [by_cells[0], *by_genes]
    return {
        "title": "scaling of training in cells and genes (simulated counts, 95 % zeros)",
        "rows": by_cells + by_genes[1:],
        "ratios": {
            f"exponent of {what} in {axis}": exponent([r[axis] for r in rows], [r[what] for r in rows])
            for axis, rows in (("cells", by_cells), ("genes", by_genes))
            for what in ("seconds_per_epoch", "peak_rss_mib")
        },
        "notes": [
            "Peak memory holds the interpreter with torch (about 400 MiB), the simulator and the counts."
        ],
    }


if __name__ == "__main__":
    harness.script(main)
