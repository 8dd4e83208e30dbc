"""Held-out counts of several datasets under one integrative model: what does each dataset's part predict?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.evaluation.heldout import WITHOUT_MEANS, lowest_mean
from neumf_assets.core.neumf.evaluation.scorers import HeldOutDeviance
from neumf_assets.core.neumf.evaluation.thinning import thin
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.progress import Progress, silent

BLOCK_CELLS = 256


def evaluate_together(
    counts: csr_matrix,
    dataset: NDArray[np.intp],
    settings: NeuMFSettings,
    *,
    gene_names: NDArray[np.str_] | list[str],
    dataset_names: list[str],
    train_share: float = 0.8,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, float]:
    """Train one model on a thinned part of the counts of all datasets; return each dataset's held-out deviance.

    Parameters
    ----------
    counts
        Raw counts of all datasets, cells x genes.
    dataset
        Dataset index of each cell.
    settings
        The model; its objective must predict counts.
    gene_names, dataset_names
        Names of columns and datasets.
    train_share, seed
        Share of the molecules to train on, and what draws them; as :func:`thinning.thin`.
    device, progress
        As for :func:`neumf_assets.core.neumf.training.fit.fit`.

    Returns
    -------
    Mean Poisson deviance of the test part over the model's genes, by dataset name.

    Raises
    ------
    BadSettings
        Where the model predicts no counts, or names, datasets and counts do not belong together.
    """
    if settings.objective in WITHOUT_MEANS:
        raise BadSettings(f"objective: {settings.objective} predicts no counts; choose poisson, nb or mse")
    thinned = thin(counts.tocsr(), train_share, seed)
    model = fit(
        thinned.train,
        settings,
        gene_names=gene_names,
        cell_names=np.arange(counts.shape[0]).astype(np.str_),
        dataset=dataset,
        dataset_names=dataset_names,
        device=device,
        progress=progress,
    )
    found = {}
    for number, name in enumerate(dataset_names):
        cells = np.flatnonzero(dataset == number)
        deviance = HeldOutDeviance(thinned.test[cells][:, model.gene_positions], thinned.ratio)
        for start in range(0, cells.size, BLOCK_CELLS):
            rows = slice(start, min(start + BLOCK_CELLS, cells.size))
            deviance.add(rows, np.maximum(model.predict(cells[rows]), lowest_mean(settings)))
        found[name] = deviance.value
    return found
