"""AnnData on disk: h5ad and Zarr, which hold the same elements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from neumf_assets.core.counts.readers.contents.layers import looks_counted
from neumf_assets.core.counts.readers.contents.names import symbols_and_accessions
from neumf_assets.core.counts.readers.hdf5 import AGAIN
from neumf_assets.core.counts.readers.matrix import (
    Names,
    RawMatrix,
    check_names,
    dense_to_csr,
    read_vector,
    sparse_from_arrays,
)
from neumf_assets.core.errors import BadInput

MAIN = "X"
"""Name of the main matrix of an AnnData store."""
_LARGE_ENOUGH = 1 << 25
_DENSEST = 2000


def read_anndata(store: Any, given: str, layer: str | None, format_name: str) -> RawMatrix:
    """Read one matrix of an AnnData store with the names and columns of its cells.

    Only what is needed is read: a file may hold much more than fits in memory.

    Parameters
    ----------
    store
        An open h5py file or Zarr group.
    given
        Path or URL for messages.
    layer
        None for ``X``, ``"raw"`` for ``raw.X``, else the name of a layer.
    format_name
        For the provenance.

    Raises
    ------
    BadInput
        When the matrix is missing or contradicts its names.
    """
    place, raw = described(store, given, layer, format_name=format_name)
    raw.X = _matrix(store[place], given, place)
    check_names(raw.cells, raw.X.shape[0], "cells", given)
    check_names(raw.genes, raw.X.shape[1], "genes", given)
    return raw


def described(store: Any, given: str, layer: str | None, *, format_name: str = "") -> tuple[str, RawMatrix]:
    """Return where the matrix lies in an AnnData store, and all that is known of it but its entries.

    Raises
    ------
    BadInput
        When it is missing.
    """
    place, genes_place = _places(store, given, layer)
    obs, var = _frame(store, "obs", given), _frame(store, genes_place, given)
    notes: dict[str, str | int | float] = {"orientation": "cells_by_genes", "layer": layer or MAIN}
    if whole := _whole_numbers_elsewhere(store, place):
        notes["whole_numbers_in"] = whole
    names, accessions = _gene_names(var)
    types = next((var[name] for name in ("feature_types", "feature_type") if name in var.columns), None)
    return place, RawMatrix(
        X=sparse.csr_matrix((len(obs), len(var)), dtype=np.int32),
        cells=check_names(obs.index.astype(str), len(obs), "cells", given),
        genes=check_names(names, len(var), "genes", given),
        format=format_name,
        gene_ids=accessions,
        feature_types=None if types is None else _texts(types),
        obs=obs,
        notes=notes,
    )


@contextmanager
def opened_zarr(path: Path, given: str) -> Iterator[Any]:
    """Open a Zarr store (format 2 or 3); whatever goes wrong while it is read becomes `BadInput`."""
    import zarr

    _check_metadata(path, given)
    try:
        yield zarr.open_group(str(path), mode="r", use_consolidated=False)
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # Zarr and its codecs raise nearly every kind on damaged stores
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise BadInput(given, "", f"the Zarr store is damaged or incomplete ({reason})", AGAIN) from error


def _check_metadata(path: Path, given: str) -> None:
    """Refuse codecs that would unpickle, and arrays that claim to be far larger than the store."""
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    for file in sorted([*path.rglob(".zarray"), *path.rglob("zarr.json")]):
        place = file.relative_to(path).as_posix()
        try:
            metadata = json.loads(file.read_bytes())
        except ValueError as error:
            raise BadInput(given, place, "is no JSON", AGAIN) from error
        if not isinstance(metadata, dict):
            raise BadInput(given, place, "is not the metadata of an array or group", AGAIN)
        if "pickle" in json.dumps({**metadata, "attributes": None, "consolidated_metadata": None}).lower():
            raise BadInput(given, place, "is pickled, which is never loaded", "Write the store with anndata")
        shape = metadata.get("shape", [])
        sizes = shape if isinstance(shape, list) else [shape]
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise BadInput(given, place, f"the shape {shape!r} is none", AGAIN)
        entries = float(np.prod([float(size) for size in sizes])) if sizes else 1.0
        if entries * 8 > max(_LARGE_ENOUGH, _DENSEST * stored):
            raise BadInput(
                given, place, f"claims {entries:.3g} entries in a store of {stored / 2**20:.1f} MiB", AGAIN
            )


def _places(store: Any, given: str, layer: str | None) -> tuple[str, str]:
    """Where the matrix lies and where its genes are described."""
    place, genes = {None: (MAIN, "var"), "raw": ("raw/X", "raw/var")}.get(layer, (f"layers/{layer}", "var"))
    if place in store and genes in store:
        return place, genes
    there = ", ".join(map(repr, _other_matrices(store))) or "none"
    raise BadInput(
        given,
        place,
        f"is missing (other matrices: {there})",
        "Correct layer in the settings, or export it again",
    )


def _frame(store: Any, place: str, given: str) -> pd.DataFrame:
    element = store[place]
    if getattr(element, "dtype", None) is not None and element.dtype.names:
        return _former_frame(store, element, place)
    frame = ad.io.read_elem(element)
    if not isinstance(frame, pd.DataFrame):
        raise BadInput(given, place, "is not a table as anndata writes it", "Open and write it with anndata")
    return frame


def _former_frame(store: Any, element: Any, place: str) -> pd.DataFrame:
    """Read a table as anndata before 0.7 wrote it: one array of records, categories beside it in ``uns``."""
    records = element[...]
    columns: dict[str, Any] = {}
    for name in records.dtype.names:
        values = records[name]
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8").astype(object)
        categories = f"uns/{name}_categories"
        if place.endswith("obs") and categories in store and values.dtype.kind in "iu":
            levels = np.char.decode(np.asarray(store[categories][...], dtype="S"), "utf-8").astype(object)
            values = pd.Categorical.from_codes(values, pd.Index(levels).astype(str))
        columns[name] = values
    index = next((name for name in ("index", "_index") if name in columns), records.dtype.names[0])
    names = pd.Index(np.asarray(columns.pop(index), dtype=object))
    return pd.DataFrame(columns, index=names)


def _gene_names(var: pd.DataFrame) -> tuple[Names, Names | None]:
    """Names and accessions; the names from before anndata or an earlier reading made them unique come first."""
    columns = {str(name): _texts(var[name]) for name in var.columns if _is_text(var[name])}
    if "original_name" in columns:
        ids = (columns.get(name) for name in ("gene_id_original", "gene_id", "gene_ids"))
        return columns["original_name"], next((found for found in ids if found is not None), None)
    return symbols_and_accessions(var.index.astype(str).to_numpy(dtype=object), columns)


def _is_text(column: pd.Series) -> bool:
    kind = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    return kind is np.dtype(object) or bool(pd.api.types.is_string_dtype(kind))


def _texts(column: pd.Series) -> Names:
    return column.astype(object).where(column.notna().to_numpy(), "").astype(str).to_numpy(dtype=object)


def _matrix(element: Any, given: str, place: str) -> sparse.csr_matrix:
    if hasattr(element, "ndim"):
        return dense_to_csr(element, given, place)
    layout, (rows, columns) = layout_of(element), shape_of(element, given, place)
    vectors = [read_vector(element[name], given, f"{place}/{name}") for name in ("data", "indices", "indptr")]
    major, minor = (rows, columns) if layout == "csr" else (columns, rows)
    compressed = sparse_from_arrays(vectors[0], vectors[1], vectors[2], major, minor, given, place)
    return compressed if layout == "csr" else compressed.T.tocsr()


def layout_of(element: Any) -> str:
    """Return ``csr``, ``csc``, ``dense``, or what else an element says that it is."""
    if hasattr(element, "ndim"):
        return "dense"
    encoding = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", ""))
    return str(encoding).removesuffix("_matrix")


def shape_of(element: Any, given: str, place: str) -> tuple[int, int]:
    """Return cells and genes of a sparse element.

    Raises
    ------
    BadInput
        When it is no sparse matrix.
    """
    shape, layout = element.attrs.get("shape", element.attrs.get("h5sparse_shape", ())), layout_of(element)
    if layout not in ("csr", "csc") or len(shape) != 2:
        raise BadInput(given, place, f"is no matrix that can be read ({layout!r})", "Save it as CSR or dense")
    return int(shape[0]), int(shape[1])


def matrices(store: Any) -> dict[str, Any]:
    """Return the elements of a store that may be matrices: ``X``, ``raw`` (raw.X), and the layers by name."""
    main = {MAIN: store[MAIN]} if MAIN in store else {}
    return main | {name: store[place] for name, place in _other_matrices(store).items()}


def _whole_numbers_elsewhere(store: Any, place: str) -> str:
    """Name another matrix of the store that holds whole numbers, for the mend of a normalised one."""
    others = (name for name, other in _other_matrices(store).items() if other != place)
    return next((name for name in others if looks_counted(store[_other_matrices(store)[name]])), "")


def _other_matrices(store: Any) -> dict[str, str]:
    """Matrices beside ``X``: name of the layer to its place."""
    raw = {"raw": "raw/X"} if "raw/X" in store else {}
    return raw | {str(name): f"layers/{name}" for name in store.get("layers", ())}
