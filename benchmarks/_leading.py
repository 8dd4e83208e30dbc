"""One small training by two workers: what the process does that calls and waits (see ``worker_kills``)."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from neumf_assets.core.liger.inmf.sharded import inmf_by_workers
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.neumf.large.parallel import ParallelTraining
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.processes import Launch, LocalProcesses
from neumf_assets.core.progress import Progress
from neumf_assets.core.ray_workers import INMF, NEUMF, RayWorkers

WORKERS = 2
_NEUMF = NeuMFSettings(
    gmf_size=4,
    mlp_size=3,
    tower=(6, 4),
    n_genes=None,
    pretrain="gmf",
    pretrain_epochs=80,
    fusion_epochs=80,
    block_cells=16,
    threads=1,
    checkpoint_seconds=0.0,
)
_INMF = LigerSettings(k=4, lam=1.0, iterations=400, restarts=2, trial_iterations=20, tol=0, workers=WORKERS)


def lead(model: str, address: str | None, folder: Path, attempt: int) -> None:
    """Train, and publish the result: ``result.npz``, and a line in ``published`` for each time.

    Parameters
    ----------
    model
        ``NeuMF`` or ``iNMF``.
    address
        Of a Ray cluster; ``None``: processes of this machine.
    folder
        ``training`` is for the workers, ``told-N`` gets a line for every epoch that attempt ``N`` is told of.
    attempt
        Number of this attempt.
    """
    with (folder / "log").open("a") as log, (folder / f"told-{attempt}").open("w", buffering=1) as told:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        torch.set_num_threads(1)
        module = INMF if model == "iNMF" else NEUMF
        launch: Launch = LocalProcesses(module, threads=1)
        if address is not None:
            launch = RayWorkers(address=address, module=module)
        train = _neumf if model == "NeuMF" else _inmf
        arrays = train(launch, folder / "training", partial(_tell, told))
        np.savez(folder / "unfinished.npz", **arrays)
        (folder / "unfinished.npz").replace(folder / "result.npz")
        with (folder / "published").open("a") as published:
            published.write(f"{attempt}\n")


def _tell(told: TextIO, stage: str, done: int, total: int, **figures: float) -> None:
    told.write(json.dumps([stage, done]) + "\n")


def _neumf(launch: Launch, folder: Path, progress: Progress) -> dict[str, NDArray[np.generic]]:
    counts = _counts(120, 40, seed=0)
    model = fit(
        counts,
        _NEUMF,
        gene_names=[f"g{gene}" for gene in range(counts.shape[1])],
        cell_names=[f"c{cell}" for cell in range(counts.shape[0])],
        progress=progress,
        checkpoint_dir=folder,
        training=ParallelTraining(WORKERS, launch),
    )
    arrays = {name: table.numpy() for name, table in model.tables.items()}
    return {**arrays, "losses": np.array([row["train_loss"] for row in model.history])}


def _inmf(launch: Launch, folder: Path, progress: Progress) -> dict[str, NDArray[np.generic]]:
    result = inmf_by_workers(
        [_counts(183, 30, seed=0), _counts(120, 30, seed=1)],
        _INMF,
        launch,
        folder=folder,
        progress=progress,
        checkpoint_seconds=0.0,
    )
    arrays: dict[str, NDArray[np.generic]] = {"W": result.W, "objective": result.objective}
    arrays |= {f"V{number}": v for number, v in enumerate(result.V)}
    return arrays | {f"H{number}": h for number, h in enumerate(result.H)}


def _counts(cells: int, genes: int, seed: int) -> csr_matrix:
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 1.0, (cells, 4)) @ rng.gamma(0.5, 1.0, (4, genes))
    return csr_matrix(rng.poisson(means).astype(np.float32))
