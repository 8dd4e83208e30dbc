"""LIGER's scaled counts of a dataset that stays on disk: read, normalised and scaled when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from neumf_assets.core import memory
from neumf_assets.core.counts.stored import StackedCounts
from neumf_assets.core.liger.chain import factorise
from neumf_assets.core.liger.inmf import INMFResult
from neumf_assets.core.liger.matrices import ChunkedMatrix
from neumf_assets.core.liger.online import online_inmf
from neumf_assets.core.liger.preprocess import GeneStatistics, inverse, scaled
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.liger.sharded import inmf_by_workers
from neumf_assets.core.neumf.parallel import Launch
from neumf_assets.core.progress import Progress, silent

PIECE_CELLS = 256
BYTES_PER_ENTRY = 44
"""Peak memory for each non-zero in memory: counts, scaled counts, and these by rows and by columns."""


class StoredScaled:
    """The scaled counts of one dataset over LIGER's genes, on disk.

    Parameters
    ----------
    counts
        The dataset with those genes.
    statistics
        Of all genes of the same cells.
    columns
        Positions of those genes among all.

    Attributes
    ----------
    nnz
        Number of entries.
    """

    def __init__(self, counts: StackedCounts, statistics: GeneStatistics, columns: NDArray[np.intp]) -> None:
        self.counts, self.shape = counts, counts.shape
        self.nnz = int(statistics.seen[columns].sum())
        self._cells = statistics.cell_factors.astype(np.float32)
        self._genes = inverse(statistics.rms[columns]).astype(np.float32)

    def __getitem__(self, cells: NDArray[np.intp]) -> sp.csr_matrix:
        """Return some cells, given in ascending order."""
        return scaled(self.counts.take(cells), self._cells[cells], self._genes)

    def whole(self) -> sp.csr_matrix:
        """Return all cells; those of other genes are never in memory all at once."""
        return scaled(self.counts.take(np.arange(self.shape[0])), self._cells, self._genes)

    def batches(self, batch_cells: int, device: str) -> tuple[ChunkedMatrix, NDArray[np.intp]]:
        """Return mini-batches for online learning, and the cells in their order.

        Each is a mixture: pieces of consecutive cells from all over the dataset, so that few reads suffice.
        """
        order = batch_pieces(self.shape[0], batch_cells)

        def chunks() -> Iterator[sp.csr_matrix]:
            return (self[cells] for cells in order)

        return ChunkedMatrix(chunks, device), np.concatenate(order)


def factorise_stored(
    datasets: Sequence[StoredScaled],
    settings: LigerSettings,
    *,
    device: str = "cpu",
    progress: Progress = silent,
    launch: Launch | None = None,
    folder: Path | None = None,
) -> INMFResult:
    """Factorise datasets on disk: in memory where they fit into the budget, else online, batch by batch.

    With ``launch``, what fits and is not learnt online is factorised by ``settings.workers`` processes, which read
    and write in ``folder`` (:func:`~neumf_assets.core.liger.sharded.inmf_by_workers`).
    """
    needed = BYTES_PER_ENTRY * sum(data.nnz for data in datasets)
    cells = sum(data.shape[0] for data in datasets)
    online = f"it learns online, from batches of {settings.batch_cells} cells that are read from disk"
    if launch is not None:
        online += f", in one process instead of {settings.workers}"
    if not memory.exceeds(needed, f"Integrative factorisation of {cells} cells", online):
        if launch is not None and not settings.online:
            whole = [data.whole() for data in datasets]
            return inmf_by_workers(whole, settings, launch, folder=folder, progress=progress)
        return factorise([data.whole() for data in datasets], settings, device=device, progress=progress)
    _check_batch(datasets, settings)
    matrices, orders = zip(*(data.batches(settings.batch_cells, device) for data in datasets), strict=True)
    result = online_inmf(matrices, settings, device=device, progress=progress)
    H = [h[np.argsort(order)] for h, order in zip(result.H, orders, strict=True)]
    return replace(result, H=H)


def readable(
    datasets: Sequence[StoredScaled], settings: LigerSettings, *, device: str = "cpu"
) -> list[sp.csr_matrix | ChunkedMatrix]:
    """Return datasets as all of iNMF takes them: in memory where they fit into the budget, else read in batches.

    The order of the cells is another then.
    """
    needed = BYTES_PER_ENTRY * sum(data.nnz for data in datasets)
    batches = f"batches of {settings.batch_cells} cells are read from disk in every iteration"
    if not memory.exceeds(needed, "Repeated factorisation", batches):
        return [data.whole() for data in datasets]
    _check_batch(datasets, settings)
    return [data.batches(settings.batch_cells, device)[0] for data in datasets]


def _check_batch(datasets: Sequence[StoredScaled], settings: LigerSettings) -> None:
    """Warn where the largest batch exceeds the budget."""
    largest = max(min(settings.batch_cells, data.shape[0]) * data.nnz / data.shape[0] for data in datasets)
    memory.warn_if_exceeds(
        round(BYTES_PER_ENTRY * largest),
        f"A batch of {settings.batch_cells} cells",
        "Set liger.batch_cells lower; the factors change a little.",
    )


def batch_pieces(n_cells: int, batch_cells: int) -> list[NDArray[np.intp]]:
    """Return the cells of each mini-batch, ascending: every so-manyth piece of consecutive cells."""
    number = max(1, -(-n_cells // batch_cells))
    piece = max(1, min(PIECE_CELLS, batch_cells // 8))
    owner = np.arange(n_cells) // piece % number
    return [np.flatnonzero(owner == batch) for batch in range(number)]
