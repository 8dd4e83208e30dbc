"""Counts that stay on disk: an h5ad file read some cells at a time, and several of them as one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from neumf_assets.core.counts.store import FILE
from neumf_assets.core.errors import NeumfError

BLOCK_CELLS = 8192
NEAR_CELLS = 64


class StoredCounts:
    """The counts of one dataset on disk; only the cells that are asked for are read.

    Parameters
    ----------
    folder
        What :func:`~neumf_assets.core.counts.store.save_counts` wrote to.
    renamed
        Names that genes have in the study, by the name in the dataset, where these differ.

    Attributes
    ----------
    shape
        Cells x genes.
    nnz
        Number of stored entries.
    """

    def __init__(self, folder: str | Path, renamed: Mapping[str, str] | None = None) -> None:
        self._file = h5py.File(Path(folder) / FILE, "r")
        self._renamed = renamed or {}
        matrix = self._file["X"]
        self._data, self._indices = matrix["data"], matrix["indices"]
        self._indptr = matrix["indptr"][...].astype(np.int64)
        self.shape: tuple[int, int] = (int(matrix.attrs["shape"][0]), int(matrix.attrs["shape"][1]))
        self.nnz = int(self._indptr[-1])

    def __enter__(self) -> StoredCounts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The cells: their names and labels."""
        return ad.io.read_elem(self._file["obs"])

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes: their names."""
        table: pd.DataFrame = ad.io.read_elem(self._file["var"])
        if self._renamed:
            table.index = pd.Index([self._renamed.get(str(name), str(name)) for name in table.index])
        return table

    @cached_property
    def uns(self) -> dict[str, Any]:
        """What else is known of the dataset: where it came from."""
        return dict(ad.io.read_elem(self._file["uns"]))

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes."""
        return self.var.index

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries."""
        return self._data.dtype

    @property
    def whole(self) -> bool:
        """Whether the entries are counts, and not values that a study let in by ``read.allow_normalised``."""
        return self.dtype.kind in "iu"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of entries of each cell."""
        return np.diff(self._indptr)

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Read the cells from ``start`` to ``stop``."""
        indptr = self._indptr[start : stop + 1]
        entries = slice(int(indptr[0]), int(indptr[-1]))
        positions = (indptr - indptr[0]).astype(
            np.int32 if entries.stop - entries.start < 2**31 else np.int64
        )
        parts = (self._data[entries], self._indices[entries], positions)
        return csr_matrix(parts, shape=(indptr.size - 1, self.shape[1]), copy=False)


class CountsInMemory:
    """Counts in memory, read as those on disk are.

    Attributes
    ----------
    shape
        Cells x genes.
    lengths
        Number of entries of each cell.
    """

    def __init__(self, X: csr_matrix, var_names: pd.Index | None = None) -> None:
        self._X = X if X.has_sorted_indices else X.sorted_indices()
        self.shape, self.dtype, self.lengths = X.shape, X.dtype, np.diff(self._X.indptr)
        self.var_names = pd.RangeIndex(X.shape[1]) if var_names is None else var_names

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Take the cells from ``start`` to ``stop``."""
        return self._X[start:stop]


def is_measured(column: pd.Series) -> bool:
    """Whether a column of cells holds numbers, and no labels."""
    return bool(pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))


@dataclass(frozen=True)
class StackedCounts:
    """Several datasets, or a part of their genes, as one matrix that stays on disk.

    Parameters
    ----------
    parts
        The datasets.
    columns
        Columns of each that are used, all of the same length.
    genes
        Their names.
    """

    parts: Sequence[StoredCounts]
    columns: Sequence[NDArray[np.intp]]
    genes: list[str]

    @classmethod
    def of(cls, parts: Mapping[str, StoredCounts], genes: Sequence[str] | None = None) -> StackedCounts:
        """Stack the cells of all datasets over ``genes``, or over those that all have (order of the first).

        Raises
        ------
        NeumfError
            If a gene is missing from a dataset, or they have none in common.
        """
        names = [pd.Index(part.var.index) for part in parts.values()]
        if genes is None:
            shared = np.logical_and.reduce([names[0].isin(own) for own in names])
            genes = names[0][shared].tolist()
        columns = [own.get_indexer(list(genes)) for own in names]
        if not len(genes) or any((own < 0).any() for own in columns):
            raise NeumfError(f"The datasets {', '.join(parts)} do not share the genes. Name genes alike.")
        return cls(list(parts.values()), columns, list(genes))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Cells x genes."""
        return sum(part.shape[0] for part in self.parts), self.columns[0].size

    @property
    def nnz(self) -> int:
        """Number of stored entries of all genes."""
        return sum(part.nnz for part in self.parts)

    @property
    def whole(self) -> bool:
        """Whether the entries of all datasets are counts."""
        return all(part.whole for part in self.parts)

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Read the cells from ``start`` to ``stop``, counted over all datasets."""
        found, first = [], 0
        for part, columns in zip(self.parts, self.columns, strict=True):
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            first += part.shape[0]
            if low < high:
                block = part.rows(low, high)
                same = np.array_equal(columns, np.arange(part.shape[1]))
                found.append(block if same else block[:, columns])
        return found[0] if len(found) == 1 else vstack(found, format="csr")

    def __getitem__(self, cells: slice) -> csr_matrix:
        """Read a slice of the cells."""
        start, stop, _ = cells.indices(self.shape[0])
        return self.rows(start, stop)

    def take(self, cells: NDArray[np.intp]) -> csr_matrix:
        """Read some cells, given in ascending order; those that lie close together at once."""
        edges = [0, *(np.flatnonzero(np.diff(cells) > NEAR_CELLS) + 1).tolist(), cells.size]
        found = []
        for first, last in pairwise(edges):
            own = cells[first:last]
            if not own.size:
                continue
            for part in np.split(own, np.arange(BLOCK_CELLS, own.size, BLOCK_CELLS)):
                block = self.rows(int(part[0]), int(part[-1]) + 1)
                found.append(block if block.shape[0] == part.size else block[part - part[0]])
        return vstack(found, format="csr") if found else csr_matrix((0, self.shape[1]), dtype=np.int32)


@dataclass(frozen=True)
class SomeCells:
    """Some cells of a dataset on disk.

    Parameters
    ----------
    counts
        The dataset.
    cells
        Positions of the cells, ascending.
    described
        What is known of these cells, in their order, instead of what the counts say.
    """

    counts: StoredCounts
    cells: NDArray[np.intp]
    described: pd.DataFrame | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Cells x genes."""
        return self.cells.size, self.counts.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries."""
        return self.counts.dtype

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The cells: their names and labels."""
        return self.counts.obs.iloc[self.cells] if self.described is None else self.described

    @property
    def var(self) -> pd.DataFrame:
        """The genes: their names."""
        return self.counts.var

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes."""
        return self.var.index

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Read the cells from ``start`` to ``stop``, counted among these."""
        return StackedCounts.of({"": self.counts}).take(self.cells[start:stop])
