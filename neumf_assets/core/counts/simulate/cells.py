"""Cells of a simulated dataset and their counts, drawn in blocks that a seed stands for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from neumf_assets.core.counts.simulate.genes import GeneTruth
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.streams import CELLS, DATASET, Floats, Ints, stream

BLOCK = 512  # cells per seed; changing it changes the data that a seed stands for


def negative_binomial(rng: np.random.Generator, mean: Floats, theta: Floats) -> sparse.csr_matrix:
    """Draw sparse negative-binomial counts.

    Most entries are zero, which one uniform number decides; the others are found by inverting the
    distribution function step by step, and where the mean is large by a gamma-Poisson mixture. This is exact.

    Parameters
    ----------
    rng
        Source of random numbers.
    mean
        Cells × genes, positive.
    theta
        Size per gene, ``var = mean + mean^2 / theta``.

    Returns
    -------
    Cells × genes, CSR int32, sorted indices.
    """
    uniform = rng.random(mean.shape)
    zero = np.exp(-theta * np.log1p(mean / theta))
    large = mean > 20.0
    cells, genes = np.nonzero((uniform > zero) | large)
    mu, size, is_large = mean[cells, genes], theta[genes], large[cells, genes]
    counts = np.zeros(len(cells), dtype=np.int32)
    counts[is_large] = rng.poisson(rng.gamma(size[is_large], mu[is_large] / size[is_large]))
    small = ~is_large
    counts[small] = _invert(uniform[cells, genes][small], mu[small], size[small])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=mean.shape[0]))])
    drawn = sparse.csr_matrix((counts, genes.astype(np.int32), indptr), shape=mean.shape)
    drawn.eliminate_zeros()  # a large mean can give a zero as well
    return drawn


def _invert(uniform: Floats, mean: Floats, theta: Floats) -> npt.NDArray[np.int32]:
    """Smallest k whose distribution function is at least ``uniform``, given that it isn't 0."""
    counts = np.zeros(len(uniform), dtype=np.int32)
    odds = mean / (mean + theta)
    probability = np.exp(-theta * np.log1p(mean / theta))
    cumulative = probability.copy()
    open_ = np.arange(len(uniform))
    k = 0
    while len(open_):
        k += 1
        probability *= (k - 1 + theta) / k * odds
        cumulative += probability
        counts[open_] = k
        # the second condition ends the search where rounding keeps the sum below 1
        on = (uniform > cumulative) & (probability > 1e-17)
        open_, uniform, theta, odds = open_[on], uniform[on], theta[on], odds[on]
        probability, cumulative = probability[on], cumulative[on]
    return counts


def draw_block(
    settings: SimulatorSettings,
    dataset: SimulatedDatasetSettings,
    truth: GeneTruth,
    index: int,
    block: int,
) -> tuple[Ints, Floats, Floats, sparse.csr_matrix]:
    """Types, factors, library sizes and counts of the cells of a block."""
    rng = stream(settings, CELLS, index, block)
    cells = min(BLOCK, dataset.cells - block * BLOCK)
    types, factors, library = draw_cells(rng, settings, dataset, truth, cells)
    factors = with_library(factors, library, truth)
    return types, factors, library, negative_binomial(rng, np.exp(factors @ truth.factors.T), truth.theta)


def draw_cells(
    rng: np.random.Generator,
    settings: SimulatorSettings,
    dataset: SimulatedDatasetSettings,
    truth: GeneTruth,
    cells: int,
) -> tuple[Ints, Floats, Floats]:
    """Types, factors (without the library column) and library sizes of ``cells`` new cells."""
    names = list(settings.cell_types)
    types = rng.choice(len(names), size=cells, p=_composition(settings, dataset))
    factors = np.zeros((cells, len(truth.factor_names)))
    column = {name: i for i, name in enumerate(truth.factor_names)}
    factors[:, column["abundance"]] = 1.0
    factors[:, column[f"batch {dataset.name}"]] = 1.0
    factors[:, column["mitochondrial"]] = rng.normal(0.0, 0.4, cells)
    for number in range(settings.variable_programs):
        factors[:, column[f"variable {number + 1}"]] = rng.normal(size=cells)
    for code, name in enumerate(names):
        own = types == code
        for program in (name, *settings.cell_types[name]):
            factors[own, column[f"program: {program}"]] = 1.0
        if dataset.condition == "stimulated":
            factors[own, column["response"]] = truth.response_scale[name]
            factors[own, column[f"response in {name}"]] = 1.0
    sd = dataset.library_log_sd
    library = dataset.library_mean * np.exp(rng.normal(-0.5 * sd**2, sd, cells))
    return types, factors, library


def with_library(factors: Floats, library: Floats, truth: GeneTruth) -> Floats:
    """Set the library column so that each cell's means sum to its library size."""
    column = truth.factor_names.index("library")
    filled = factors.copy()
    filled[:, column] = 0.0
    totals = np.exp(filled @ truth.factors.T).sum(axis=1)
    filled[:, column] = np.log(library / totals)
    return filled


def _composition(settings: SimulatorSettings, dataset: SimulatedDatasetSettings) -> Floats:
    """Shares of the cell types in a dataset: falling with the rank, a little different in each."""
    rng = stream(settings, DATASET, settings.datasets.index(dataset))
    expected = 1.0 / (2.0 + np.arange(len(settings.cell_types)))
    shares = rng.dirichlet(expected / expected.sum() * settings.composition_concentration)
    shares[[name in dataset.missing_types for name in settings.cell_types]] = 0.0
    return shares / shares.sum()
