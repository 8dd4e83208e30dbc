"""LIGER's scaled counts of a dataset that stays on disk: read, normalised and scaled when they are used."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from neumf_assets.core import memory
from neumf_assets.core.counts.stored import StackedCounts
from neumf_assets.core.liger.chain import factorise
from neumf_assets.core.liger.inmf.matrices import ChunkedMatrix
from neumf_assets.core.liger.inmf.online import online_inmf
from neumf_assets.core.liger.inmf.sharded import inmf_by_workers
from neumf_assets.core.liger.inmf.solver import INMFResult
from neumf_assets.core.liger.preprocess import GeneStatistics, inverse, scaled
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.neumf.large.cell_files import CountFiles
from neumf_assets.core.processes import Launch
from neumf_assets.core.progress import Progress, silent
from neumf_assets.core.store import remove_left

PIECE_CELLS = 256
BYTES_PER_ENTRY = 44
"""Peak memory for each non-zero in memory: counts, scaled counts, and these by rows and by columns."""
SHARE_BYTES_PER_ENTRY = 24
"""The same in a worker, of its own cells: as read, by rows and by columns."""
SCALED = "scaled-"
"""How folders of scaled counts begin."""


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

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Return the cells from ``start`` to ``stop``."""
        return scaled(self.counts.rows(start, stop), self._cells[start:stop], self._genes)

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
    machines: int = 1,
    folder: Path | None = None,
) -> INMFResult:
    """Factorise datasets on disk: in memory where they fit into the budget, else online, batch by batch.

    With ``launch``, what is not learnt online by the study's wish is factorised by ``settings.workers`` processes on
    so many ``machines``, which read and write in ``folder``
    (:func:`~neumf_assets.core.liger.inmf.sharded.inmf_by_workers`). Above the budget each gets its cells from disk, as
    long as its share fits.
    """
    entries, cells = sum(data.nnz for data in datasets), sum(data.shape[0] for data in datasets)
    by_workers = launch is not None and not settings.online
    needed, share = BYTES_PER_ENTRY * entries, SHARE_BYTES_PER_ENTRY * entries // machines
    if by_workers and machines == 1:  # their shares lie beside the whole
        needed += share
    what = f"Integrative factorisation of {cells} cells"
    if needed <= memory.budget():
        whole = [data.whole() for data in datasets]
        if launch is not None and by_workers:
            return inmf_by_workers(whole, settings, launch, folder=folder, progress=progress)
        return factorise(whole, settings, device=device, progress=progress)
    if launch is not None and by_workers and share <= memory.budget():
        memory.exceeds(needed, what, f"{settings.workers} processes get their cells from disk")
        with _on_disk(datasets, folder) as mapped:
            return inmf_by_workers(mapped, settings, launch, folder=folder, progress=progress)
    online = f"it learns online, from batches of {settings.batch_cells} cells that are read from disk"
    if by_workers:
        online += f", in one process instead of {settings.workers}"
    memory.exceeds(needed, what, online)
    _check_batch(datasets, settings)
    matrices, orders = zip(*(data.batches(settings.batch_cells, device) for data in datasets), strict=True)
    result = online_inmf(matrices, settings, device=device, progress=progress)
    H = [h[np.argsort(order)] for h, order in zip(result.H, orders, strict=True)]
    return replace(result, H=H)


@contextmanager
def _on_disk(datasets: Sequence[StoredScaled], folder: Path | None) -> Iterator[list[sp.csr_matrix]]:
    """Write scaled counts to files; give them as matrices that are read where they are used."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left(folder, SCALED)
    with tempfile.TemporaryDirectory(prefix=SCALED, dir=folder) as name:
        places = [Path(name) / str(number) for number in range(len(datasets))]
        yield [
            CountFiles(place, data, np.arange(data.shape[1])).mapped()
            for place, data in zip(places, datasets, strict=True)
        ]


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
