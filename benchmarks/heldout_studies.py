"""Held-out deviance of NeuMF, GMF and KL-NMF on every dataset of the real studies and on simulated counts.

All at their default budgets, mean of three seeds (of the split and of the model), on the 2,000 most
overdispersed genes of at most 3,000 cells, as the evaluation of a study judges them. In the end the default
NeuMF on all genes of one dataset, in a process of its own, with its peak memory.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from benchmarks import harness
from benchmarks.heldout import SEEDS, fits, score, split_of
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

MAX_CELLS = 3000
METHODS = ("KL-NMF of normalised counts, 20", "GMF", "NeuMF")


def datasets(quick: bool) -> dict[str, csr_matrix]:
    """Return the counts of each dataset by name: of the real studies that are there, and simulated."""
    found = {"simulated": harness.simulated_counts(400 if quick else 1600, 2000)}
    for study, datasets in () if quick else harness.real_studies():
        found |= {f"{study}/{name}": csr_matrix(counts.X) for name, counts in datasets.items()}
    return found


def judged(counts: csr_matrix) -> csr_matrix:
    """Return at most ``MAX_CELLS`` cells, drawn by chance."""
    if counts.shape[0] <= MAX_CELLS:
        return counts
    return counts[np.sort(np.random.default_rng(0).permutation(counts.shape[0])[:MAX_CELLS])]


def row_of(name: str, counts: csr_matrix, quick: bool) -> dict[str, Any]:
    """Return the held-out deviance of each method, its mean over seeds."""
    seeds = SEEDS[:1] if quick else SEEDS
    splits = {seed: split_of(judged(counts), seed) for seed in seeds}
    row: dict[str, Any] = {"dataset": name}
    for method in METHODS:
        budget = [score(*splits[seed], fits(quick, seed)[method][-1][1], extra=[]) for seed in seeds]
        deviance, seconds, _ = np.mean(budget, axis=0)
        row |= {method: round(float(deviance), 4), f"{method}, seconds": harness.significant(seconds, 3)}
    harness.say(row)
    return row


def train_all_genes(quick: bool) -> dict[str, float]:
    """Train the default NeuMF on all genes; return seconds, epochs, losses and peak memory."""
    torch.set_num_threads(harness.cores())
    counts, _ = harness.control_counts()
    counts = counts[:400] if quick else counts
    before = harness.peak_rss_mib()
    changes = {"epochs": 2, "pretrain_epochs": 2, "fusion_epochs": 1} if quick else {}
    model = fit(
        counts,
        NeuMFSettings(n_genes=None, **changes),
        gene_names=np.arange(counts.shape[1]).astype(np.str_),
        cell_names=np.arange(counts.shape[0]).astype(np.str_),
    )
    return {
        "genes": counts.shape[1],
        "seconds": harness.significant(sum(float(row["seconds"]) for row in model.history), 3),
        "epochs": len(model.history),
        "validation_loss": round(float(model.history[-1]["validation_loss"]), 5),
        "validation_loss_five_epochs_before": round(
            float(model.history[max(-6, -len(model.history))]["validation_loss"]), 5
        ),
        "peak_rss_mib": harness.peak_rss_mib(),
        "peak_rss_before_training_mib": before,
    }


def main(quick: bool = False) -> dict[str, Any]:
    rows = [row_of(name, counts, quick) for name, counts in datasets(quick).items()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        whole = pool.submit(train_all_genes, quick).result()
    _, source = harness.control_counts()
    return {
        "title": "held-out deviance by dataset (2,000 genes, thinned 80/20, mean of seeds; lower is better)",
        "rows": [*rows, {"dataset": f"training only, all genes: {source}", **whole}],
        "skipped": {} if quick else harness.absent_studies(),
        "notes": ["Seconds are training and prediction of one seed."],
    }


if __name__ == "__main__":
    harness.script(main)
