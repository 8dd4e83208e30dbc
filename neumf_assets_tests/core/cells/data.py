"""Small simulated embeddings and counts with known truth."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


@dataclass(frozen=True)
class Blobs:
    embedding: np.ndarray
    labels: np.ndarray
    dataset: np.ndarray


def blobs(n_types: int = 4, per_type: int = 60, dims: int = 8, shift: float = 0.0, seed: int = 0) -> Blobs:
    """Well separated cell types; every other cell belongs to dataset b, moved by ``shift`` along one axis."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_types), per_type)
    centres = 10 * np.eye(dims)[:n_types]
    dataset = np.arange(len(labels)) % 2
    points = centres[labels] + rng.normal(0, 0.5, (len(labels), dims))
    points[:, -1] += shift * dataset
    return Blobs(
        points.astype(np.float32), np.array([f"type {i}" for i in labels]), np.array(["a", "b"])[dataset]
    )


def noise(n: int = 600, dims: int = 8, seed: int = 0) -> Blobs:
    """Cells without any structure, with labels and datasets drawn at random."""
    rng = np.random.default_rng(seed)
    return Blobs(
        rng.normal(size=(n, dims)).astype(np.float32),
        rng.choice(["x", "y", "z"], n),
        rng.choice(["a", "b"], n),
    )


def simulated_counts(
    n_cells: int = 300, n_genes: int = 200, n_types: int = 3, markers: int = 8, seed: int = 0
) -> tuple[ad.AnnData, list[list[str]]]:
    """Poisson counts in which gene block t is eight times higher in type t; also the names of those genes."""
    rng = np.random.default_rng(seed)
    types = rng.integers(n_types, size=n_cells)
    mean = np.tile(rng.gamma(1.0, 0.4, n_genes) + 0.05, (n_cells, 1))
    for t in range(n_types):
        block = slice(t * markers, (t + 1) * markers)
        mean[types == t, block] *= 8
    counts = rng.poisson(mean * rng.gamma(20, 1 / 20, n_cells)[:, None]).astype(np.int32)
    genes = [f"GENE{g}" for g in range(n_genes)]
    data = ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical([f"t{t}" for t in types])}, index=[f"c{i}" for i in range(n_cells)]
        ),
        var=pd.DataFrame({"original_name": genes}, index=genes),
    )
    return data, [genes[t * markers : (t + 1) * markers] for t in range(n_types)]
