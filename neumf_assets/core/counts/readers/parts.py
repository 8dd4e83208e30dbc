"""Files that are too large for memory, read and stored some cells at a time."""

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
from neumf_assets.core.counts.readers.contents.droplets import UNFILTERED, Droplets
from neumf_assets.core.counts.readers.contents.genes import settle_genes, take_genes
from neumf_assets.core.counts.readers.contents.validate import check_names_of, validated
from neumf_assets.core.counts.readers.delimited import estimated_entries, spill_delimited
from neumf_assets.core.counts.readers.hdf5 import (
    loom_place,
    read_loom,
    read_tenx_v2,
    read_tenx_v3,
    tenx_groups,
    tenx_shape,
)
from neumf_assets.core.counts.readers.market import (
    promised_entries,
    read_market_in_parts,
    spill,
    spilled,
)
from neumf_assets.core.counts.readers.matrix import (
    Names,
    RawMatrix,
    check_dense,
    dense_cells,
    read_vector,
    sparse_from_arrays,
)
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import FILE, CountsWriter
from neumf_assets.core.errors import BadInput

BLOCK_CELLS = 8192
LEAST_CELLS = 1024
SORTED = "parts-"
"""How folders of entries that are sorted into parts begin."""
SORTED_ENTRIES = 1 << 20
LOOKED_AT_CELLS = 64
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


Part = tuple[int, int, sparse.csr_matrix]
"""First cell, cell after the last, and their rows."""


@dataclass(frozen=True)
class Parted:
    """A matrix that can be read some cells at a time.

    Attributes
    ----------
    whole
        The matrix as read, but for its entries.
    entries
        Their number; of a dense matrix an estimate.
    parts
        Gives parts of some cells each, and may use a folder meanwhile.
    """

    whole: RawMatrix
    entries: int
    parts: Callable[[int, Path], Iterable[Part]]

    @property
    def block_cells(self) -> int:
        """Cells of a part: no more than fit into the memory budget."""
        each = BYTES_PER_ENTRY * self.entries / max(1, len(self.whole.cells))
        return min(BLOCK_CELLS, max(LEAST_CELLS, int(memory.budget() / max(1.0, each))))


def anndata_parted(store: Any, given: str, layer: str | None, format_name: str) -> Parted | None:
    """Give the matrix of an AnnData store (an open h5py file or Zarr group); None for a layout that is not known."""
    place, whole = described(store, given, layer, format_name=format_name)
    element = store[place]
    layout = layout_of(element)
    if layout == "dense":
        return _dense(whole, element, given, place, 0)
    if layout not in ("csr", "csc"):
        return None
    shape = shape_of(element, given, place)
    if shape != (len(whole.cells), len(whole.genes)):
        return None  # reading at once tells what is wrong
    if layout == "csr":
        return Parted(whole, _entries(element), lambda block, _: _rows(element, shape, block, given, place))
    return Parted(
        whole,
        _entries(element),
        lambda block, folder: _sorted_columns(element, shape, block, folder, given, place),
    )


def tenx_parted(file: Any, given: str) -> Parted:
    """Give the matrix of an open 10x HDF5 file."""
    groups = tenx_groups(file)
    read = read_tenx_v3 if str(groups[0].name) == "/matrix" else read_tenx_v2
    whole = read(file, given, entries=False)

    def parts(block_cells: int, folder: Path) -> Iterator[Part]:
        streams = [
            _rows(group, tenx_shape(group, given)[::-1], block_cells, given, str(group.name))
            for group in groups
        ]
        for found in zip(*streams, strict=True):
            start, stop, first = found[0]
            X = sparse.hstack([own for _, _, own in found], format="csr") if len(found) > 1 else first
            yield start, stop, X

    return Parted(whole, sum(map(_entries, groups)), parts)


def loom_parted(file: Any, given: str, layer: str | None) -> Parted | None:
    """Give the matrix of an open loom file."""
    place = loom_place(layer)
    whole = read_loom(file, given, layer, entries=False)
    return _dense(whole, file[place], given, place, 1)


def too_large(parted: Parted, given: str, settings: ReadSettings) -> bool:
    """Tell whether a matrix is to be read in parts because it exceeds the memory budget."""
    return _exceeds(parted.entries, parted.block_cells, given, settings)


def market_too_large(root: Path, triple: Triple, given: str, settings: ReadSettings) -> bool:
    """Tell whether a Matrix Market file is to be read in parts, as :func:`too_large`."""
    return _exceeds(promised_entries(root, triple, given), BLOCK_CELLS, given, settings)


def text_too_large(path: Path, given: str, settings: ReadSettings) -> bool:
    """Tell whether a table of text is to be read in parts, as :func:`too_large`."""
    return _exceeds(estimated_entries(path, given), BLOCK_CELLS, given, settings)


def _exceeds(entries: int, block_cells: int, given: str, settings: ReadSettings) -> bool:
    """Decide by the budget; fractions and parts drawn by chance need the whole matrix."""
    needed, what = BYTES_PER_ENTRY * entries, f"Reading {given} at once"
    at_once = [name for name in ("allow_normalised", "max_cells", "max_genes") if getattr(settings, name)]
    if at_once:
        memory.warn_if_exceeds(
            needed, what, f"Without read.{' and read.'.join(at_once)} it is read in parts."
        )
        return False
    return memory.exceeds(needed, what, f"{block_cells} cells are read at a time")


def store_in_parts(
    parted: Parted, given: str, settings: ReadSettings, folder: Path, finish: Finish
) -> Stored:
    """Check and store a matrix block by block; the result is that of reading it at once.

    Parameters
    ----------
    parted
        The matrix.
    given
        Path or URL for messages.
    settings
        As for reading at once.
    folder
        Where ``counts.h5ad`` is written.
    finish
        Gives labels and provenance.

    Raises
    ------
    BadInput
        As reading at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SORTED, dir=folder) as scratch:
        parts = parted.parts(parted.block_cells, Path(scratch))
        return _stored(parted.whole, parts, given, settings, folder, finish)


def _entries(element: Any) -> int:
    return int(element["data"].shape[0])


def _rows(element: Any, shape: tuple[int, int], block_cells: int, given: str, place: str) -> Iterator[Part]:
    """Read compressed rows."""
    cells, genes = shape
    indptr = read_vector(element["indptr"], given, f"{place}/indptr").astype(np.int64)
    _check_pointers(indptr, cells, element, given, place)
    for start in range(0, cells, block_cells):
        stop = min(start + block_cells, cells)
        entries = slice(int(indptr[start]), int(indptr[stop]))
        data, indices = (np.asarray(element[name][entries]) for name in ("data", "indices"))
        pointers = indptr[start : stop + 1] - indptr[start]
        yield start, stop, sparse_from_arrays(data, indices, pointers, stop - start, genes, given, place)


def _sorted_columns(
    element: Any, shape: tuple[int, int], block_cells: int, folder: Path, given: str, place: str
) -> Iterator[Part]:
    """Read compressed columns, whose entries are first sorted into files of some cells each."""
    cells, genes = shape
    indptr = read_vector(element["indptr"], given, f"{place}/indptr").astype(np.int64)
    _check_pointers(indptr, genes, element, given, place)
    for first in range(0, int(indptr[-1]), SORTED_ENTRIES):
        own = slice(first, min(first + SORTED_ENTRIES, int(indptr[-1])))
        of_cells = np.asarray(element["indices"][own])
        if of_cells.min() < 0 or of_cells.max() >= cells:
            problem = f"an index of the sparse matrix lies outside 0 to {cells - 1}"
            raise BadInput(given, place, problem, "The file is damaged: export it again")
        of_genes = np.searchsorted(indptr, np.arange(own.start, own.stop), side="right") - 1
        spill(np.column_stack([of_genes + 1, of_cells + 1, element["data"][own]]), True, block_cells, folder)
    yield from spilled(folder, shape, block_cells)


def _dense(whole: RawMatrix, array: Any, given: str, place: str, axis: int) -> Parted | None:
    """Read a dense array whose cells lie along ``axis``."""
    shape = check_dense(array, given, place)
    cells, genes = shape[axis], shape[1 - axis]
    if (cells, genes) != (len(whole.cells), len(whole.genes)):
        return None  # reading at once tells what is wrong

    def parts(block_cells: int, folder: Path) -> Iterator[Part]:
        for start in range(0, cells, block_cells):
            stop = min(start + block_cells, cells)
            yield start, stop, dense_cells(array, start, stop, axis)

    looked_at = min(cells, LOOKED_AT_CELLS)
    share = dense_cells(array, 0, looked_at, axis).nnz / max(1, looked_at * genes)
    return Parted(whole, round(share * cells * genes), parts)


def store_text_in_parts(
    path: Path, given: str, settings: ReadSettings, labelled: Names | None, folder: Path, finish: Finish
) -> Stored:
    """Check and store a table of text block by block, as :func:`store_in_parts` does.

    ``labelled`` are the cells that are named in the labels file, where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SORTED, dir=folder) as name:
        scratch = Path(name)
        whole, element, genes_first = spill_delimited(path, given, settings.orientation, labelled, scratch)
        shape = (len(whole.cells), len(whole.genes))
        if genes_first:
            parts = _sorted_columns(element, shape, BLOCK_CELLS, scratch, given, "")
        else:
            parts = _rows(element, shape, BLOCK_CELLS, given, "")
        return _stored(whole, parts, given, settings, folder, finish)


def store_market_in_parts(
    root: Path, triple: Triple, given: str, settings: ReadSettings, folder: Path, finish: Finish
) -> Stored:
    """Check and store a Matrix Market matrix block by block, as :func:`store_in_parts` does.

    The entries, which may come in any order, are first sorted into files of some cells each in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SORTED, dir=folder) as scratch:
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
    kept = settle_genes(whole, given)
    check_names_of(whole.cells, whole.genes, given)
    obs, provenance = finish(whole)
    nonzero, total, droplets = 0, 0.0, Droplets()
    folder.mkdir(parents=True, exist_ok=True)
    with CountsWriter(folder / FILE) as writer:
        for start, stop, X in parts:
            part = validated(_cut(whole, take_genes(X, kept), start, stop), given, settings)
            part.obs = obs.iloc[start:stop]
            part.uns["provenance"] = provenance
            writer.add(part)
            droplets.add(part.X)
            nonzero += part.X.nnz
            total += float(part.X.data.sum(dtype=np.float64))
    droplets.say(given)
    if droplets.background:
        provenance = {**provenance, UNFILTERED: droplets.background}
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
        header_rows=whole.header_rows + (start if whole.rows == "cells" else 0),
        header_columns=whole.header_columns + (start if whole.rows == "genes" else 0),
        gene_ids=whole.gene_ids,
        gene_positions=whole.gene_positions,
        notes=whole.notes,
    )
