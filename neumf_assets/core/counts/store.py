"""Counts on disk: ``counts.h5ad`` in a folder, written atomically."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pandas.api.types import union_categoricals

FILE = "counts.h5ad"
CHUNK = 1 << 16


def text_that_all_read() -> AbstractContextManager[None]:
    """Let AnnData write text as every version of it reads it, whichever version of pandas holds it.

    The text of pandas 3 would else be stored with a mask of what is missing, which AnnData before 0.11 and
    readers of other make do not know.
    """
    return ad.settings.override(allow_write_nullable_strings=False)


def save_counts(adata: ad.AnnData, folder: str | Path) -> Path:
    """Write counts to ``folder/counts.h5ad``.

    The file appears under its name only when it is complete; one that was there before stays until then.

    Parameters
    ----------
    adata
        Counts as `read_counts` or `filter_counts` give them.
    folder
        Local folder; made if missing.

    Returns
    -------
    pathlib.Path
        The file.
    """
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        with text_that_all_read():
            adata.write_h5ad(temporary, compression="lzf", convert_strings_to_categoricals=False)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def load_counts(folder: str | Path, backed: bool = False) -> ad.AnnData:
    """Load what `save_counts` wrote.

    Parameters
    ----------
    folder
        The folder it was written to.
    backed
        Leave ``X`` on disk and read parts of it as they are asked for.
    """
    return ad.read_h5ad(Path(folder) / FILE, backed="r" if backed else None)


class SparseWriter:
    """Writes a CSR matrix into an HDF5 group as AnnData does, some rows at a time.

    Parameters
    ----------
    group
        An empty group.
    dtype
        Type of the entries.
    compression
        HDF5 filter.
    """

    def __init__(self, group: h5py.Group, dtype: np.dtype, compression: str | None) -> None:
        self._group, self._entries = group, 0
        self._lengths: list[np.ndarray] = []
        for name, kind in (("data", dtype), ("indices", np.dtype(np.int32))):
            group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(CHUNK,), compression=compression)

    def add(self, rows: sp.csr_matrix) -> None:
        """Append rows."""
        for name, values in (("data", rows.data), ("indices", rows.indices)):
            column = self._group[name]
            column.resize((self._entries + rows.nnz,))
            column[self._entries :] = values
        self._entries += rows.nnz
        self._lengths.append(np.diff(rows.indptr))

    def finish(self, n_columns: int) -> None:
        """Write what tells the rows apart."""
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths), dtype=np.int64)])
        if self._entries < 2**31:  # SciPy wants the type of the indices
            indptr = indptr.astype(np.int32)
        self._group.create_dataset("indptr", data=indptr)
        self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        self._group.attrs["shape"] = (indptr.size - 1, n_columns)


class CountsWriter:
    """Writes an h5ad file of counts part by part, so that no more than a part is in memory.

    Parameters
    ----------
    path
        The file; it appears under its name only when all parts are in it.
    compression
        HDF5 filter of the matrix.
    """

    def __init__(self, path: str | Path, compression: str | None = "lzf") -> None:
        self.path, self._compression = Path(path), compression
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file = h5py.File(self._temporary, "w")
        self._obs: list[pd.DataFrame] = []
        self._first: ad.AnnData | None = None
        self._matrix: SparseWriter

    def __enter__(self) -> CountsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._first is not None:
                self._finish(self._first)
            self._file.close()
            if kind is None and self._first is not None:
                with self._temporary.open("rb") as file:
                    os.fsync(file.fileno())
                self._temporary.replace(self.path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def add(self, part: ad.AnnData) -> None:
        """Append cells; all parts have the same genes, and ``uns`` is that of the first."""
        if self._first is None:
            self._first = ad.AnnData(var=part.var, uns=dict(part.uns))
            self._matrix = SparseWriter(self._file.create_group("X"), part.X.dtype, self._compression)
        elif part.n_vars != self._first.n_vars:
            raise ValueError(f"a part with {part.n_vars} genes, after parts with {self._first.n_vars}")
        self._matrix.add(part.X)
        self._obs.append(part.obs)

    def _finish(self, first: ad.AnnData) -> None:
        self._matrix.finish(first.n_vars)
        for name in self._obs[0].columns:
            if isinstance(self._obs[0][name].dtype, pd.CategoricalDtype):
                same = union_categoricals([part[name] for part in self._obs])
                offsets = np.cumsum([0, *map(len, self._obs)])
                for part, start in zip(self._obs, offsets, strict=False):
                    part[name] = same[start : start + len(part)]
        whole = ad.AnnData(obs=pd.concat(self._obs), var=first.var, uns=dict(first.uns))
        with text_that_all_read():
            for name in ("obs", "var"):
                ad.io.write_elem(self._file, name, getattr(whole, name))
            ad.io.write_elem(self._file, "uns", dict(whole.uns))
        for name in ("obsm", "varm", "obsp", "varp", "layers"):
            ad.io.write_elem(self._file, name, {})
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
