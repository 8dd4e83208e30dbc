"""HDF5 files: opening them safely, telling the formats apart, and the two of 10x and loom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from neumf_assets.core.counts.readers.contents.names import symbols_and_accessions
from neumf_assets.core.counts.readers.matrix import (
    Names,
    RawMatrix,
    check_dense,
    check_names,
    dense_to_csr,
    read_vector,
    sparse_from_arrays,
)
from neumf_assets.core.counts.readers.probe import NOT_READ, missing_filter, plugins, trouble
from neumf_assets.core.errors import BadInput

LOOM_MAIN = "matrix"
"""Name of the main matrix of a loom file."""
_CELL_NAMES = ("CellID", "obs_names", "cell_names", "barcode", "Barcode", "barcodes", "cell_id", "cell")
AGAIN = "Copy or export it again"
_MAGIC = b"\x89HDF\r\n\x1a\n"
_ALWAYS_FINE = 1 << 25
_DENSEST = 2000
"""No compressor in use packs counts or names more than about this tightly."""


@contextmanager
def opened(path: Path, given: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Whatever the HDF5 library finds wrong later, while the file is being read, is turned into `BadInput`
    too: a damaged file can fail at any access.
    """
    with path.open("rb") as head:
        magic = head.read(len(_MAGIC))
    if not magic:
        raise BadInput(given, "", "the file is empty", AGAIN)
    if magic != _MAGIC:
        raise BadInput(given, "", "is not an HDF5 file", "Check the ending; copy or export it again")
    if found := trouble(path):
        raise _damaged(given, found)
    plugins()
    try:
        with h5py.File(path, "r") as file:
            check_sizes(file, path.stat().st_size, given)
            yield file
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # h5py and anndata raise nearly every kind on damaged files
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise _damaged(given, reason) from error


def _damaged(given: str, reason: str) -> BadInput:
    if "truncated" in reason:
        return BadInput(given, "", "the file is cut short", AGAIN)
    return BadInput(given, "", f"the file is damaged or incomplete ({reason})", AGAIN)


def check_sizes(group: h5py.Group, stored: int, given: str) -> None:
    """Refuse data sets that claim to be far larger than the file, before memory is asked for.

    Raises
    ------
    BadInput
        Also on data kept outside the file, which a copied file would not carry along.
    """

    def check(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if name.split("/")[0] not in NOT_READ and (missing := missing_filter(item)):
            raise BadInput(
                given,
                name,
                f"is compressed by a plugin of HDF5 that is not there ({missing})",
                "Install it (pip install hdf5plugin), or write the file again with gzip",
            )
        if item.external or item.is_virtual:
            raise BadInput(given, name, "keeps its values in another file", "Export it into one file")
        claimed = max(math.prod(item.chunks or (0,)) * item.dtype.itemsize, item.nbytes or 0)
        if claimed > max(_ALWAYS_FINE, _DENSEST * stored):
            sizes = f"{claimed / 2**30:.1f} GiB in a file of {stored / 2**20:.1f} MiB"
            raise BadInput(given, name, f"claims {sizes}", AGAIN)

    group.visititems(check)


def kind_of(file: h5py.File) -> str:
    """Tell the format of an open HDF5 file: ``h5ad``, ``10x v3``, ``10x v2``, ``loom`` or "" (none)."""
    if "obs" in file and "var" in file and any(name in file for name in ("X", "layers", "raw")):
        return "h5ad"
    matrix = file.get("matrix")
    if isinstance(matrix, h5py.Group) and "features" in matrix:
        return "10x v3"
    if isinstance(matrix, h5py.Dataset) and "row_attrs" in file and "col_attrs" in file:
        return "loom"
    return "10x v2" if _genomes(file) else ""


def read_tenx_v3(file: h5py.File, given: str, *, entries: bool = True) -> RawMatrix:
    """Read Cell Ranger's HDF5 format of version 3 and later, with or without the entries of the matrix.

    Raises
    ------
    BadInput
        When parts are missing or contradict each other.
    """
    group, features = file["matrix"], file["matrix/features"]
    raw = _tenx_matrix(group, given, entries)
    raw.genes = check_names(text(features["name"], given), raw.X.shape[1], "genes", given)
    raw.gene_ids = check_names(text(features["id"], given), raw.X.shape[1], "genes", given)
    raw.format = "10x HDF5 v3"
    if "feature_type" in features:
        raw.feature_types = check_names(text(features["feature_type"], given), raw.X.shape[1], "genes", given)
    return raw


def read_tenx_v2(file: h5py.File, given: str, *, entries: bool = True) -> RawMatrix:
    """Read Cell Ranger's HDF5 format of version 2: one group per genome, joined along the genes.

    With or without the entries of the matrix.

    Raises
    ------
    BadInput
        When parts are missing or contradict each other.
    """
    parts = []
    for group in tenx_groups(file):
        raw = _tenx_matrix(group, given, entries)
        raw.genes = check_names(text(group["gene_names"], given), raw.X.shape[1], "genes", given)
        raw.gene_ids = check_names(text(group["genes"], given), raw.X.shape[1], "genes", given)
        parts.append(raw)
    first = parts[0]
    if any(not np.array_equal(first.cells, other.cells) for other in parts[1:]):
        raise BadInput(
            given, "barcodes", "the genomes hold different cells", "Export one file for each genome"
        )
    return RawMatrix(
        X=sparse.hstack([part.X for part in parts], format="csr") if len(parts) > 1 else first.X,
        cells=first.cells,
        genes=np.concatenate([part.genes for part in parts]),
        format="10x HDF5 v2",
        rows="genes",
        gene_ids=np.concatenate([part.gene_ids for part in parts if part.gene_ids is not None]),
        notes={
            "orientation": "genes_by_cells",
            "genomes": ", ".join(_genomes(file)),
        },
    )


def tenx_groups(file: h5py.File) -> list[h5py.Group]:
    """The matrices of a 10x file, which share their cells: one, or in version 2 one for each genome."""
    matrix = file.get("matrix")
    return [matrix] if isinstance(matrix, h5py.Group) else [file[genome] for genome in _genomes(file)]


def tenx_shape(group: h5py.Group, given: str) -> tuple[int, int]:
    """Return genes and cells of a matrix of a 10x file.

    Raises
    ------
    BadInput
        When parts of it are missing.
    """
    place = str(group.name)
    missing = {"barcodes", "data", "indices", "indptr", "shape"} - set(group)
    if missing:
        raise BadInput(given, place, f"{min(missing)} is missing", AGAIN)
    shape = read_vector(group["shape"], given, f"{place}/shape")
    if len(shape) != 2 or (shape < 0).any():
        raise BadInput(given, f"{place}/shape", "is not a number of genes and of cells", AGAIN)
    return int(shape[0]), int(shape[1])


def read_loom(file: h5py.File, given: str, layer: str | None, *, entries: bool = True) -> RawMatrix:
    """Read a loom file: genes × cells, dense, in blocks of rows; with or without the entries of the matrix.

    Raises
    ------
    BadInput
        When the layer or the names are missing, or contradict the matrix.
    """
    if layer and f"layers/{layer}" not in file:
        there = ", ".join(map(repr, file.get("layers", {}))) or "none"
        raise BadInput(
            given, "layers", f"there is no layer {layer!r} (there are: {there})", "Correct the setting"
        )
    place = loom_place(layer)
    if entries:
        matrix = dense_to_csr(file[place], given, place).T.tocsr()
    else:
        matrix = sparse.csr_matrix(check_dense(file[place], given, place)[::-1], dtype=np.int32)
    cell_names = _cell_names(file["col_attrs"], given)
    gene_names, accessions = _gene_names(file["row_attrs"], given)
    columns = {
        name: text(values, given)
        for name, values in file["col_attrs"].items()
        if isinstance(values, h5py.Dataset) and values.shape == (matrix.shape[0],) and _is_text(values)
    }
    return RawMatrix(
        X=matrix,
        cells=check_names(cell_names, matrix.shape[0], "cells", given),
        genes=check_names(gene_names, matrix.shape[1], "genes", given),
        format="loom",
        rows="genes",
        gene_ids=None if accessions is None else check_names(accessions, matrix.shape[1], "genes", given),
        obs=pd.DataFrame(columns),
        notes={"orientation": "genes_by_cells", "layer": layer or LOOM_MAIN},
    )


def loom_matrices(file: h5py.File) -> dict[str, Any]:
    """Return the matrices of a loom file: ``matrix``, and the layers by name."""
    return {LOOM_MAIN: file["matrix"], **{str(name): layer for name, layer in file.get("layers", {}).items()}}


def loom_place(layer: str | None) -> str:
    """Where a layer of a loom file lies."""
    return f"layers/{layer}" if layer else LOOM_MAIN


def text(values: h5py.Dataset, given: str) -> Names:
    """Read a list of names.

    Raises
    ------
    BadInput
        When it is no list of text.
    """
    if not isinstance(values, h5py.Dataset) or values.ndim != 1 or not _is_text(values):
        raise BadInput(given, str(values.name), "is no list of names", AGAIN)
    return np.asarray(values.asstr("utf-8")[...], dtype=object)


def _is_text(values: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(values.dtype) is not None


def _genomes(file: h5py.File) -> list[str]:
    wanted = {"barcodes", "genes", "gene_names", "data", "indices", "indptr"}
    return sorted(name for name, item in file.items() if isinstance(item, h5py.Group) and wanted <= set(item))


def _tenx_matrix(group: h5py.Group, given: str, entries: bool) -> RawMatrix:
    place, (genes, cells) = str(group.name), tenx_shape(group, given)
    if entries:
        vectors = [
            read_vector(group[name], given, f"{place}/{name}") for name in ("data", "indices", "indptr")
        ]
        matrix = sparse_from_arrays(vectors[0], vectors[1], vectors[2], cells, genes, given, place)
    else:
        matrix = sparse.csr_matrix((cells, genes), dtype=np.int32)
    return RawMatrix(
        X=matrix,
        cells=check_names(text(group["barcodes"], given), cells, "cells", given),
        genes=np.empty(0, dtype=object),
        format="10x HDF5",
        rows="genes",
        notes={"orientation": "genes_by_cells"},
    )


def _cell_names(group: Any, given: str) -> Names:
    """Names of cells; numbers may be names too."""
    for name in _CELL_NAMES:
        if name in group:
            values = group[name]
            return (
                text(values, given)
                if _is_text(values)
                else np.asarray(values[...]).astype(str).astype(object)
            )
    raise _nameless(group, given, _CELL_NAMES)


def _gene_names(group: Any, given: str) -> tuple[Names, Names | None]:
    """Symbols of genes, and their accessions where there are any."""
    columns = {
        name: text(values, given)
        for name, values in group.items()
        if isinstance(values, h5py.Dataset) and values.ndim == 1 and _is_text(values)
    }
    try:
        return symbols_and_accessions(columns.pop("Gene", None), columns)
    except LookupError:
        raise _nameless(group, given, ("Gene", "Accession", "gene_name", "gene_id")) from None


def _nameless(group: Any, given: str, wanted: tuple[str, ...]) -> BadInput:
    return BadInput(
        given,
        str(group.name),
        f"holds no names, as {', '.join(wanted)}",
        f"Add the names as {wanted[0]!r} and write it again",
    )
