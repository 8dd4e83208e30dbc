"""From counts to what training needs: held-out entries, starting biases, the number of dimensions, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.dimensions import FEWEST, MOST, MOST_TOGETHER, significant_axes
from neumf_assets.core.neumf.genes import Part, RowSource, gene_totals, members_of
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import HeldOut, SparseCounts
from neumf_assets.core.neumf.training.state import Data

GMF_SIZE_CELLS = 20_000
"""The number of significant axes is found on a sample of so many cells."""


def with_gmf_size(
    settings: NeuMFSettings, take: Callable[[NDArray[np.intp]], csr_matrix], dataset: NDArray[np.intp]
) -> NeuMFSettings:
    """Return the settings with ``gmf_size`` found from the counts where it is not set.

    ``take`` returns the counts of some cells, given in ascending order.
    """
    if settings.gmf_size is not None:
        return settings
    most = MOST_TOGETHER if np.unique(dataset).size > 1 else MOST
    if settings.kind == "mlp":
        return settings.model_copy(update={"gmf_size": FEWEST})
    cells = np.arange(dataset.size)
    if cells.size > GMF_SIZE_CELLS:
        drawn = np.random.default_rng([settings.seed, 4]).permutation(cells)[:GMF_SIZE_CELLS]
        cells = np.sort(drawn)
    found = significant_axes(take(cells), dataset[cells], most)
    return settings.model_copy(update={"gmf_size": max(found, FEWEST)})


@contextmanager
def torch_session(settings: NeuMFSettings) -> Iterator[None]:
    """Use the settings' threads, and leave torch's own threads and random state as they were."""
    with torch.random.fork_rng(), torch_threads(settings.threads or torch.get_num_threads()):
        yield


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch's operations use this many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(
    counts: csr_matrix,
    factors: NDArray[np.float32],
    dataset: NDArray[np.intp],
    settings: NeuMFSettings,
    device: torch.device,
) -> Data:
    """Bring the counts to the device, draw the held-out entries and compute the genes' starting biases."""
    return describe(counts, factors, dataset, settings, device, SparseCounts(counts, device))


def describe(
    counts: csr_matrix | RowSource,
    factors: NDArray[np.float32],
    dataset: NDArray[np.intp],
    settings: NeuMFSettings,
    device: torch.device,
    trained: SparseCounts,
) -> Data:
    """Return what training needs to know besides the counts ``trained``, from ``counts`` read in blocks."""
    observed = settings.objective == "bce"
    parts = [Part(counts, own) for own in members_of(dataset)]
    totals = [gene_totals(part, observed=observed) for part in parts]
    bias = [
        _mean_score(total, factors[part.cells], settings) for total, part in zip(totals, parts, strict=True)
    ]
    whole = np.sum([gene_totals(part) for part in parts] if observed else totals, axis=0)
    return Data(
        settings=settings,
        counts=trained,
        log_size=torch.as_tensor(np.log(factors), device=device),
        dataset=dataset,
        held_out=HeldOut.draw(whole, dataset, settings, device),
        gene_bias=torch.as_tensor(np.stack(bias), dtype=torch.float32),
        device=device,
    )


def _mean_score(
    total: NDArray[np.float64], factors: NDArray[np.float32], settings: NeuMFSettings
) -> NDArray[np.float64]:
    """Return each gene's score at which the model predicts its mean (or its share of cells, for ``bce``).

    ``total`` is the gene's sum, for ``bce`` the number of its cells.
    """
    if settings.objective == "bce":
        share = (total + 0.5) / (factors.size + 1)
        return np.log(share / (1 - share))
    if settings.objective == "bpr" or settings.link == "exp":
        return np.log((total + 0.1) / factors.sum())
    mean = (total + (0.0 if settings.link == "identity" else 0.1)) / factors.sum()
    return mean if settings.link == "identity" else mean + np.log(-np.expm1(-mean))
