"""Small counts of known truth that the tests of the trainer share."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

SMALL = NeuMFSettings(
    gmf_size=4,
    mlp_size=3,
    tower=(6, 4),
    n_genes=None,
    epochs=6,
    pretrain_epochs=4,
    fusion_epochs=3,
    block_cells=16,
    weight_decay=2.0,
    threads=1,
)


def low_rank(
    cells: int = 120, genes: int = 40, seed: int = 0, shift: float = 0.0, n_datasets: int = 1
) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Return counts, true means and dataset indices; ``shift`` moves genes 0-4 in every dataset but the first."""
    rng = np.random.default_rng(seed)
    score = 0.8 * rng.normal(size=(cells, 3)) @ rng.normal(size=(3, genes)) - 0.7
    dataset = np.arange(cells) % n_datasets
    score[:, :5] += shift * (dataset > 0)[:, None]
    means = np.exp(score + rng.normal(0, 0.3, (cells, 1)))
    return csr_matrix(rng.poisson(means).astype(np.int32)), means, dataset


def train(counts: csr_matrix, settings: NeuMFSettings = SMALL, **options: Any) -> NeuMFModel:
    """Train with names ``c0, c1, ...`` and ``g0, g1, ...``."""
    return fit(
        counts,
        settings,
        gene_names=[f"g{i}" for i in range(counts.shape[1])],
        cell_names=[f"c{i}" for i in range(counts.shape[0])],
        **options,
    )


def changed(**changes: Any) -> NeuMFSettings:
    """Return ``SMALL`` with changes, validated."""
    return NeuMFSettings(**(SMALL.model_dump() | changes))
