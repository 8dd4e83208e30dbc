"""AnnData and Matrix Market files that are too large for memory, read and stored some cells at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from neumf_assets.core import memory
from neumf_assets.core.counts.discover import Triple
from neumf_assets.core.counts.readers.anndata_files import described, layout_of, shape_of
from neumf_assets.core.counts.readers.market import promised_entries, read_market_in_parts
from neumf_assets.core.counts.readers.matrix import RawMatrix, read_vector, sparse_from_arrays
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import FILE, CountsWriter
from neumf_assets.core.counts.validate import check_names_of, validated
from neumf_assets.core.errors import BadInput

BLOCK_CELLS = 8192
BYTES_PER_ENTRY = 40
"""Peak memory of reading for each non-zero: as in the file, as checked, and what is needed to check it."""

Finish = Callable[[RawMatrix], tuple[pd.DataFrame, dict[str, Any]]]
"""Takes a matrix's description (without entries) and gives labels of all cells and provenance."""


@dataclass(frozen=True)
class Stored:
    """What was stored.

    Attributes
    ----------
    shape
        Cells × genes.
    nonzero, total_counts
        Number and sum of the entries.
    provenance
        Where they came from.
    """

    shape: tuple[int, int]
    nonzero: int
    total_counts: float
    provenance: dict[str, Any]


def too_large(store: Any, given: str, settings: ReadSettings) -> bool:
    """Tell whether an AnnData store is to be read in parts: rows of a sparse matrix that exceed the budget.

    Other layouts, fractions and parts drawn by chance need the whole matrix.
    """
    if _needs_all(settings):
        return False
    place, _ = described(store, given, settings.layer)[:2]
    if layout_of(store[place]) != "csr":
        return False
    return _exceeds(int(store[place]["data"].shape[0]), given)


def market_too_large(root: Path, triple: Triple, given: str, settings: ReadSettings) -> bool:
    """Tell whether a Matrix Market file is to be read in parts, as :func:`too_large`."""
    return not _needs_all(settings) and _exceeds(promised_entries(root, triple, given), given)


def _needs_all(settings: ReadSettings) -> bool:
    return bool(settings.allow_normalised or settings.max_cells or settings.max_genes)


def _exceeds(entries: int, given: str) -> bool:
    return memory.exceeds(
        BYTES_PER_ENTRY * entries, f"Reading {given} at once", f"{BLOCK_CELLS} cells are read at a time"
    )


def store_in_parts(
    store: Any, given: str, settings: ReadSettings, format_name: str, folder: Path, finish: Finish
) -> Stored:
    """Check and store the matrix of an AnnData file block by block; the result is that of reading it at once.

    Parameters
    ----------
    store
        An open h5py file or Zarr group.
    given
        Path or URL for messages.
    settings
        ``layer`` is used.
    format_name
        For the provenance.
    folder
        Where ``counts.h5ad`` is written.
    finish
        Gives labels and provenance.

    Raises
    ------
    BadInput
        As reading at once.
    """
    place, whole = described(store, given, settings.layer, format_name=format_name)
    element = store[place]
    cells, genes = shape_of(element, given, place)
    indptr = read_vector(element["indptr"], given, f"{place}/indptr").astype(np.int64)
    _check_pointers(indptr, cells, element, given, place)

    def parts() -> Iterator[tuple[int, int, sparse.csr_matrix]]:
        for start in range(0, cells, BLOCK_CELLS):
            stop = min(start + BLOCK_CELLS, cells)
            entries = slice(int(indptr[start]), int(indptr[stop]))
            data, indices = (np.asarray(element[name][entries]) for name in ("data", "indices"))
            pointers = indptr[start : stop + 1] - indptr[start]
            X = sparse_from_arrays(data, indices, pointers, stop - start, genes, given, place)
            yield start, stop, X

    return _stored(whole, parts(), given, settings, folder, finish)


def store_market_in_parts(
    root: Path, triple: Triple, given: str, settings: ReadSettings, folder: Path, finish: Finish
) -> Stored:
    """Check and store a Matrix Market matrix block by block, as :func:`store_in_parts` does.

    The entries, which may come in any order, are first sorted into files of some cells each in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="market-", dir=folder) as scratch:
        whole, parts = read_market_in_parts(
            root, triple, given, settings.orientation, BLOCK_CELLS, Path(scratch)
        )
        return _stored(whole, parts, given, settings, folder, finish)


def _stored(
    whole: RawMatrix,
    parts: Iterable[tuple[int, int, sparse.csr_matrix]],
    given: str,
    settings: ReadSettings,
    folder: Path,
    finish: Finish,
) -> Stored:
    check_names_of(whole.cells, whole.genes, given)
    obs, provenance = finish(whole)
    nonzero, total = 0, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with CountsWriter(folder / FILE) as writer:
        for start, stop, X in parts:
            part = validated(_cut(whole, X, start, stop), given, settings)
            part.obs = obs.iloc[start:stop]
            part.uns["provenance"] = provenance
            writer.add(part)
            nonzero += part.X.nnz
            total += float(part.X.data.sum(dtype=np.float64))
    return Stored((len(whole.cells), len(whole.genes)), nonzero, total, provenance)


def _check_pointers(indptr: np.ndarray, cells: int, element: Any, given: str, place: str) -> None:
    stored = int(element["data"].shape[0])
    sound = len(indptr) == cells + 1 and indptr[0] == 0 and indptr[-1] == stored
    if not sound or (np.diff(indptr) < 0).any() or element["indices"].shape[0] != stored:
        raise BadInput(
            given,
            place,
            "the parts of the sparse matrix have contradicting lengths",
            "The file is damaged: export it again",
        )


def _cut(whole: RawMatrix, X: Any, start: int, stop: int) -> RawMatrix:
    """Give some cells of a matrix; places in messages are those in the whole."""
    return RawMatrix(
        X=X,
        cells=whole.cells[start:stop],
        genes=whole.genes,
        format=whole.format,
        rows=whole.rows,
        header_rows=start if whole.rows == "cells" else 0,
        header_columns=start if whole.rows == "genes" else 0,
        gene_ids=whole.gene_ids,
        notes=whole.notes,
    )
