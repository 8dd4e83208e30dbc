"""What a NeuMF has to beat: predicted means from the gene means, an SVD and KL-NMF.

Every baseline takes the train part of thinned counts and each cell's size factor, and yields its predicted
means as (rows, block), so that no dense matrix of all cells exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Block = tuple[slice, NDArray[np.float32]]
FitPredict = Callable[[csr_matrix, NDArray[np.floating]], Iterator[Block]]

LOWEST_MEAN = 1e-8
LOWEST_SVD_MEAN = 1e-3
BLOCK_ENTRIES = 1_048_576


def constant(train: csr_matrix, factors: NDArray[np.floating]) -> Iterator[Block]:
    """Yield the mean of all entries for every entry: what any model must beat to have learnt anything.

    Parameters
    ----------
    train
        Cells x genes.
    factors
        Not used.
    """
    mean = train.sum(dtype=np.float64) / (train.shape[0] * train.shape[1])
    yield from _products(np.ones((factors.size, 1)), np.full((1, train.shape[1]), mean), LOWEST_MEAN)


def gene_mean(train: csr_matrix, factors: NDArray[np.floating]) -> Iterator[Block]:
    """Yield each gene's mean times the cell's size factor: the fit of a Poisson model without structure.

    Parameters
    ----------
    train
        Cells x genes.
    factors
        Size factor of each cell.
    """
    total = np.asarray(train.sum(axis=0), np.float64).ravel()
    yield from _products(factors[:, None] / factors.sum(), total[None, :], LOWEST_MEAN)


def svd_log1p(
    train: csr_matrix, factors: NDArray[np.floating], n_components: int = 20, seed: int = 0
) -> Iterator[Block]:
    """Yield ``expm1`` of the truncated SVD of log1p size-normalised counts, times the size factor.

    A linear reconstruction can fall below zero; normalised means are at least 0.001 then (the deviance hardly
    depends on it: 0.1893, 0.1876, 0.1863 at 0.0001, 0.001, 0.01 on the control cells of Kang et al. 2018).

    Parameters
    ----------
    train
        Cells x genes.
    factors
        Size factor of each cell.
    n_components
        Rank.
    seed
        Seed of the randomised SVD (Halko et al. 2011).
    """
    from sklearn.utils.extmath import randomized_svd

    logged = normalise(train, factors)
    np.log1p(logged.data, out=logged.data)
    rank = min(n_components, *logged.shape)
    left, singular, right = randomized_svd(logged, rank, random_state=seed)

    def to_means(block: NDArray[np.floating], rows: slice) -> NDArray[np.floating]:
        return np.maximum(np.expm1(block), LOWEST_SVD_MEAN) * factors[rows, None]

    yield from _products(left * singular, right, LOWEST_MEAN, to_means)


def kl_nmf(
    train: csr_matrix,
    factors: NDArray[np.floating],
    n_components: int = 20,
    max_iterations: int = 200,
    seed: int = 0,
    on: Literal["counts", "normalised"] = "counts",
) -> Iterator[Block]:
    """Yield the reconstruction by KL-NMF (Lee and Seung 2001; scikit-learn's multiplicative updates).

    Parameters
    ----------
    train
        Cells x genes.
    factors
        Size factor of each cell.
    n_components
        Number of factors.
    max_iterations
        At most this many updates; scikit-learn's tolerance of 1e-4 usually ends it after 100 to 200.
    seed
        Seed of the starting values (``nndsvda``).
    on
        ``counts``: factorise the counts themselves, the maximum-likelihood Poisson factorisation and the
        stronger baseline. ``normalised``: factorise counts over size factors and scale back.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    values = (normalise(train, factors) if on == "normalised" else train).astype(np.float32)
    model = NMF(
        min(n_components, *train.shape),
        init="nndsvda",
        solver="mu",
        beta_loss="kullback-leibler",
        max_iter=max_iterations,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        loadings = model.fit_transform(values)
    if on == "normalised":
        loadings = loadings * factors[:, None]
    yield from _products(loadings, model.components_, LOWEST_MEAN)


def normalise(counts: csr_matrix, factors: NDArray[np.floating]) -> csr_matrix:
    """Return the counts over their cell's size factor."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    return csr_matrix((counts.data / factors[rows], counts.indices, counts.indptr), shape=counts.shape)


def _products(
    left: NDArray[np.floating],
    right: NDArray[np.floating],
    lowest: float,
    finish: Callable[[NDArray[np.floating], slice], NDArray[np.floating]] | None = None,
) -> Iterator[Block]:
    """Yield the blocks of ``left @ right``, finished and at least ``lowest``."""
    step = max(1, BLOCK_ENTRIES // max(right.shape[1], 1))
    for start in range(0, left.shape[0], step):
        rows = slice(start, min(start + step, left.shape[0]))
        block = left[rows] @ right
        if finish is not None:
            block = finish(block, rows)
        yield rows, np.maximum(block, lowest).astype(np.float32)
