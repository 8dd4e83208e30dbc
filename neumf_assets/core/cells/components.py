"""Principal components of log-normalised counts: what every other embedding is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError

TARGET_SUM = 1e4
BLOCK_CELLS = 2000


class Rows(Protocol):
    """Counts of which some cells are read at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells x genes."""
        ...

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Read the cells from ``start`` to ``stop``."""
        ...


@dataclass(frozen=True)
class Components:
    """Principal components of cells.

    Parameters
    ----------
    genes
        Names of the genes.
    loadings
        Genes x components, orthonormal columns; float32.
    mean
        Of each gene's log-normalised counts, float32.
    embedding
        Cells x components, around the mean of all cells; float32.
    variance
        Share of the genes' variance that each component has.
    """

    genes: tuple[str, ...]
    loadings: NDArray[np.float32]
    mean: NDArray[np.float32]
    embedding: NDArray[np.float32]
    variance: NDArray[np.float64]

    def save(self, folder: Path) -> None:
        """Write ``components.npz``."""
        np.savez(
            folder / "components.npz",
            genes=np.asarray(self.genes, dtype=np.str_),
            loadings=self.loadings,
            mean=self.mean,
            embedding=self.embedding,
            variance=self.variance,
        )

    @classmethod
    def load(cls, folder: Path) -> Components:
        """Read what :meth:`save` wrote."""
        with np.load(folder / "components.npz", allow_pickle=False) as found:
            return cls(
                tuple(map(str, found["genes"])),
                *(found[name] for name in ("loadings", "mean", "embedding", "variance")),
            )


def principal_components(
    counts: Rows,
    names: list[str],
    genes: NDArray[np.intp],
    n_components: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Components:
    """Find the principal components of ``log(1 + counts / total x 10,000)`` over some genes, in two passes.

    Exact, from the genes' covariances in float64, so that no more than some thousand cells are in memory. The genes
    are centred and not scaled, as is usual in the field. Of its two signs a component has the one that makes its
    largest loading positive.

    Parameters
    ----------
    counts
        Of all cells and of all genes that count for their totals.
    names
        Names of the genes of ``counts``.
    genes
        Positions of those to use.
    n_components
        At most so many; no more than there are cells or genes less one.
    progress
        Told after every block of cells.

    Raises
    ------
    NeumfError
        There are fewer than two cells or genes.
    """
    n_cells, n_genes = counts.shape[0], len(genes)
    if min(n_cells, n_genes) < 2:
        raise NeumfError(f"Principal components take two cells and genes; there are {n_cells} and {n_genes}.")
    blocks = [(start, min(start + BLOCK_CELLS, n_cells)) for start in range(0, n_cells, BLOCK_CELLS)]
    total, squares = np.zeros(n_genes), np.zeros((n_genes, n_genes))
    for done, (start, stop) in enumerate(blocks, start=1):
        block = _logged(counts.rows(start, stop), genes).toarray()
        total += block.sum(axis=0, dtype=np.float64)
        squares += block.T @ block
        progress(done, 2 * len(blocks))
    mean = total / n_cells
    covariance = squares / n_cells - np.outer(mean, mean)
    size = min(n_components, n_cells - 1, n_genes - 1)
    values, loadings = _largest(covariance, size)
    embedding = np.empty((n_cells, size), np.float32)
    for done, (start, stop) in enumerate(blocks, start=1):
        embedding[start:stop] = _logged(counts.rows(start, stop), genes) @ loadings - mean @ loadings
        progress(len(blocks) + done, 2 * len(blocks))
    everything = max(float(np.trace(covariance)), np.finfo(float).tiny)
    return Components(
        tuple(names[gene] for gene in genes),
        loadings.astype(np.float32),
        mean.astype(np.float32),
        embedding,
        np.maximum(values, 0) / everything,
    )


def _logged(block: sp.csr_matrix, genes: NDArray[np.intp]) -> sp.csr_matrix:
    totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(TARGET_SUM, totals, out=np.zeros_like(totals), where=totals > 0)
    used = block[:, genes].astype(np.float64)
    used.data = np.log1p(used.data * np.repeat(scale, np.diff(used.indptr)))
    return used


def _largest(covariance: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest eigenvalues, descending, and their vectors with the sign that is agreed on."""
    from scipy.linalg import eigh

    genes = len(covariance)
    values, vectors = eigh(covariance, subset_by_index=[genes - size, genes - 1])
    vectors = vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(size)]
    return values[::-1], vectors * np.where(largest < 0, -1.0, 1.0)
