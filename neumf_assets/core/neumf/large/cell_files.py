"""What grows with the cells while a model is trained, kept on disk: their counts and their embeddings."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.neumf.genes import RowSource, blocks
from neumf_assets.core.neumf.training.checks import check_values
from neumf_assets.core.neumf.training.optimiser import RowAdam

_HASH_BYTES = 1 << 22


class CountFiles:
    """Some genes of counts as three plain files, of which windows of cells are read.

    Parameters
    ----------
    folder
        Where the files are.
    counts
        Cells x genes, read once, in blocks.
    genes
        Columns to keep, ascending.
    """

    def __init__(self, folder: Path, counts: csr_matrix | RowSource, genes: NDArray[np.intp]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.shape = (counts.shape[0], genes.size)
        self.n_cells, self.n_genes = self.shape
        self._data, self._indices = folder / "counts.data", folder / "counts.indices"
        self.indptr = np.zeros(self.n_cells + 1, np.int64)
        every = genes.size == counts.shape[1]
        with self._data.open("wb") as data, self._indices.open("wb") as indices:
            for rows, block in blocks(counts):
                check_values(block.data)
                used = block if every else block[:, genes]
                used.data.astype(np.float32, copy=False).tofile(data)
                used.indices.astype(np.int32, copy=False).tofile(indices)
                self.indptr[rows.start + 1 : rows.stop + 1] = self.indptr[rows.start] + used.indptr[1:]

    @property
    def sha256(self) -> str:
        """The hash that :func:`~neumf_assets.core.neumf.checkpoint.data_hash` gives the same matrix."""
        digest = hashlib.sha256(repr(self.shape).encode())
        digest.update(self.indptr.data)
        for path in (self._indices, self._data):
            with path.open("rb") as file:
                while part := file.read(_HASH_BYTES):
                    digest.update(part)
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Read the cells from ``start`` to ``stop``."""
        return self.of(np.arange(start, stop))

    def of(self, cells: NDArray[np.intp]) -> csr_matrix:
        """Read some cells, given in ascending order; consecutive ones at once."""
        lengths = np.diff(self.indptr)[cells]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        data, indices = np.empty(indptr[-1], np.float32), np.empty(indptr[-1], np.int32)
        with self._data.open("rb") as values, self._indices.open("rb") as columns:
            for first, last in _runs(cells):
                begin, place = int(self.indptr[cells[first]]) * 4, slice(indptr[first], indptr[last])
                for file, target in ((values, data), (columns, indices)):
                    file.seek(begin)
                    file.readinto(target[place].data)
        return csr_matrix((data, indices, indptr), shape=(cells.size, self.n_genes))

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return int(self.indptr[-1])

    def mapped(self) -> csr_matrix:
        """Return all cells, read from the files where they are used."""
        data, indices = (
            np.memmap(path, kind, mode="c") if self.nnz else np.empty(0, kind)
            for path, kind in ((self._data, np.float32), (self._indices, np.int32))
        )
        return csr_matrix((data, indices, self.indptr), shape=self.shape)

    def remove(self) -> None:
        """Remove the files."""
        for path in (self._data, self._indices):
            path.unlink(missing_ok=True)


class EmbeddingFile:
    """The cells' rows of the table with their Adam state, one record for each cell.

    Read and written piece by piece rather than mapped: pages of a mapping count as the process's memory.

    Parameters
    ----------
    path
        The file; made anew.
    n_cells, columns
        Shape of the table.
    """

    def __init__(self, path: Path, n_cells: int, columns: int) -> None:
        self.path, self.n_cells, self.columns = path, n_cells, columns
        self._width = 3 * columns + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(4 * n_cells * self._width)

    def table(self, cells: NDArray[np.intp]) -> Tensor:
        """Return the embeddings of some cells, given in ascending order."""
        return torch.from_numpy(np.ascontiguousarray(self._read(cells)[:, : self.columns]))

    def set_table(self, cells: NDArray[np.intp], table: Tensor) -> None:
        """Replace the embeddings of some cells; their state starts anew."""
        record = np.zeros((cells.size, self._width), np.float32)
        record[:, : self.columns] = table.cpu().numpy()
        self._write(cells, record)

    def read(self, cells: NDArray[np.intp], device: torch.device) -> RowAdam:
        """Return the embeddings of some cells with their state, as a table of these cells alone."""
        record = torch.from_numpy(self._read(cells))
        parts = record.split([self.columns, self.columns, self.columns, 1], dim=1)
        table, *state = (part.contiguous().to(device) for part in parts)
        adam = RowAdam(table)
        adam.first, adam.second, adam.steps = state
        return adam

    def write(self, cells: NDArray[np.intp], adam: RowAdam) -> None:
        """Put back what :meth:`read` gave."""
        record = torch.cat([adam.table, adam.first, adam.second, adam.steps], dim=1)
        self._write(cells, record.cpu().numpy())

    def _read(self, cells: NDArray[np.intp]) -> NDArray[np.float32]:
        record = np.empty((cells.size, self._width), np.float32)
        with self.path.open("rb") as file:
            for first, last in _runs(cells):
                file.seek(4 * self._width * int(cells[first]))
                file.readinto(record[first:last].data)
        return record

    def _write(self, cells: NDArray[np.intp], record: NDArray[np.float32]) -> None:
        with self.path.open("r+b") as file:
            for first, last in _runs(cells):
                file.seek(4 * self._width * int(cells[first]))
                file.write(record[first:last].data)

    def save(self, path: Path) -> None:
        """Copy all records to another file."""
        shutil.copyfile(self.path, path)

    def load(self, path: Path) -> None:
        """Take all records from another file."""
        shutil.copyfile(path, self.path)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _runs(cells: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Cut ascending positions into runs without a gap: where each begins and ends."""
    edges = np.flatnonzero(np.diff(cells, prepend=-2, append=-2) != 1)
    yield from pairwise(edges.tolist())
