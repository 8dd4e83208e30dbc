"""The one form that all readers lead to, and the refusal of whatever cannot be brought into it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.genes.accessions import stable_ids
from neumf_assets.core.counts.readers.matrix import Names, RawMatrix, slices
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.errors import BadInput

_LARGEST = np.iinfo(np.int32).max
_SAME_TOTAL = 1e-3
NOISE = 1e-6
"""Rounding of float32, about ten times over, relative to the value."""
HINT = "whole_numbers_in"
"""Note of a reader: which other matrix of the file holds whole numbers."""


def validated(raw: RawMatrix, file: str, settings: ReadSettings) -> ad.AnnData:
    """Check a matrix and bring it into the form that everything after the readers relies on.

    Parameters
    ----------
    raw
        The matrix as read.
    file
        Path or URL for messages.
    settings
        ``allow_normalised`` decides about values that are no whole numbers.

    Returns
    -------
    anndata.AnnData
        ``X``: CSR, cells × genes, sorted, without stored zeros; int32, or float32 where
        ``allow_normalised`` let fractions in. ``obs_names`` and ``var_names`` unique;
        ``var["original_name"]`` as in the file, and what is known of ``gene_symbol``, ``gene_id`` (accession
        without version) and ``gene_id_original`` (as in the file, where it is another).

    Raises
    ------
    BadInput
        On an empty matrix, names that are missing or (cells) repeated, and entries that are negative, not
        finite, not whole, or too large.
    """
    cells, genes = raw.X.shape
    if not cells or not genes:
        raise BadInput(file, "", f"holds {cells} cells and {genes} genes", "Export it again with both")
    check_names_of(raw.cells, raw.genes, file)
    X = _tidy(raw.X)
    _refuse_entries(X, raw, file)
    _round_noise(X)
    if settings.round_values and X.dtype.kind == "f":
        X.data = np.rint(X.data)
        X.eliminate_zeros()
    if _is_whole(X.data):
        _refuse_large(X, raw, file)
        X.data = X.data.astype(np.int32, copy=False)
    elif settings.allow_normalised:
        X.data = X.data.astype(np.float32, copy=False)
    else:
        raise _not_counts(X, raw, file)
    var = pd.DataFrame({"original_name": raw.genes}, index=pd.Index(raw.genes, dtype=object))
    for name, values in gene_columns(raw.genes, raw.gene_ids).items():
        var[name] = values
    obs = pd.DataFrame(index=pd.Index(raw.cells, dtype=object))
    adata = ad.AnnData(X=X, obs=obs)
    adata.var = _unique(var)
    return adata


def gene_columns(genes: Names, gene_ids: Names | None) -> dict[str, Names]:
    """Columns on the identity of genes, as far as it is known: ``gene_id``, ``gene_id_original``, ``gene_symbol``."""
    by_name = stable_ids(genes)
    stable = by_name if gene_ids is None else stable_ids(gene_ids)
    stable = np.where(stable == "", by_name, stable)
    given = np.where(stable != "", genes, "") if gene_ids is None else gene_ids
    columns = {}
    if (stable != "").any():
        columns["gene_id"] = stable
    if (given != stable).any():
        columns["gene_id_original"] = given
    symbols = np.where(by_name != "", "", genes)
    if (symbols != "").any():
        columns["gene_symbol"] = symbols
    return columns


def _unique(var: pd.DataFrame) -> pd.DataFrame:
    if not var.index.is_unique:
        var.index = ad.utils.make_index_unique(var.index)
    return var


def check_names_of(cells: Names, genes: Names, file: str) -> None:
    """Refuse cells and genes without a name, and cells with the same one.

    Raises
    ------
    BadInput
        Then.
    """
    _check_cells(cells, file)
    _check_genes(genes, file)


def _check_cells(names: Names, file: str) -> None:
    index = pd.Index(names)
    mend = "Give every cell its own name, for example by adding the sample to the barcode"
    empty = index == ""
    if empty.any():
        raise BadInput(file, f"cell {int(empty.argmax()) + 1}", "has no name", mend)
    repeated = index.duplicated()
    if repeated.any():
        second = int(repeated.argmax())
        first = int((index == index[second]).argmax())
        raise BadInput(
            file, f"cells {first + 1} and {second + 1}", f"both are called {index[second]!r}", mend
        )


def _check_genes(names: Names, file: str) -> None:
    empty = pd.Index(names) == ""
    if empty.any():
        raise BadInput(file, f"gene {int(empty.argmax()) + 1}", "has no name", "Name it, or take it out")


def _tidy(X: sparse.csr_matrix) -> sparse.csr_matrix:
    if X.dtype.kind == "b":
        X = X.astype(np.int32)
    elif X.dtype == np.float16:
        X = X.astype(np.float32)
    if not X.has_canonical_format:
        X = X.astype(np.float64 if X.dtype.kind == "f" else np.int64)  # sums may not fit the file's type
        X.sum_duplicates()
    X.eliminate_zeros()
    return X


def _refuse_entries(X: sparse.csr_matrix, raw: RawMatrix, file: str) -> None:
    """Refuse negative and infinite entries and such that are no number."""
    if X.dtype.kind == "u":
        return
    for part in slices(X.nnz):
        data = X.data[part]
        good = data > 0
        if X.dtype.kind == "f":
            good &= np.isfinite(data)
        if good.all():
            continue
        at = part.start + int(np.argmin(good))
        value = X.data[at]
        kind = (
            "is not a number (NaN)"
            if np.isnan(value)
            else "is infinite"
            if np.isinf(value)
            else "is negative"
        )
        raise BadInput(
            file,
            _where(X, at, raw),
            f"the entry {value:g} {kind}" if np.isfinite(value) else f"the entry {kind}",
            _layer_hint(raw)
            or "Counts are whole numbers from 0 up: export the raw counts, and put 0 where nothing was seen",
        )


def _refuse_large(X: sparse.csr_matrix, raw: RawMatrix, file: str) -> None:
    if X.nnz and X.data.max() > _LARGEST:
        at = int(X.data.argmax())
        raise BadInput(
            file,
            _where(X, at, raw),
            f"the entry {X.data[at]:.0f} is larger than {_LARGEST}, the largest that can be stored",
            "This is no count: export the raw counts",
        )


def _where(X: sparse.csr_matrix, at: int, raw: RawMatrix) -> str:
    cell = int(np.searchsorted(X.indptr, at, side="right")) - 1
    return raw.place(cell, int(X.indices[at]))


def _is_whole(data: NDArray[np.generic]) -> bool:
    if data.dtype.kind in "iu":
        return True
    return all(bool((np.rint(data[part]) == data[part]).all()) for part in slices(len(data)))


def _not_counts(X: sparse.csr_matrix, raw: RawMatrix, file: str) -> BadInput:
    """Say what the values look like: normalised, log-normalised, or fractional counts."""
    fractional = np.rint(X.data) != X.data
    at = int(fractional.argmax())
    with np.errstate(over="ignore"):
        back = sparse.csr_matrix((np.expm1(X.data.astype(np.float64)), X.indices, X.indptr), shape=X.shape)
    total, log_total = _common_total(X), _common_total(back)
    if total:
        kind = f"the values are normalised (every cell adds up to {total:g})"
    elif log_total:
        kind = f"the values are log-normalised (every cell adds up to {log_total:g} after expm1)"
    else:
        kind = f"{fractional.mean():.1%} of the values are no whole numbers"
    fractions = "" if total or log_total else ", set round_values: true to round them (of SoupX and its like)"
    return BadInput(
        file,
        _where(X, at, raw),
        f"the entry is {X.data[at]:.9g}: {kind}",
        (_layer_hint(raw) or "Give the raw counts") + fractions + ", or set allow_normalised: true",
    )


def _layer_hint(raw: RawMatrix) -> str:
    """The mend where another matrix of the file holds whole numbers."""
    hint = str(raw.notes.get(HINT, ""))
    return f"Set layer: {hint}, which holds whole numbers" if hint else ""


def _round_noise(X: sparse.csr_matrix) -> None:
    """Take values that differ from whole numbers by rounding for these numbers, where all values do."""
    if X.dtype.kind != "f" or _is_whole(X.data):
        return
    rounded = np.rint(X.data)
    if (np.abs(X.data - rounded) <= NOISE * np.maximum(rounded, 1)).all():
        X.data = rounded


def _common_total(X: sparse.csr_matrix) -> float:
    """Return the total that all cells with counts share; 0 when they differ."""
    totals = np.asarray(X.sum(axis=1), dtype=np.float64).ravel()
    totals = totals[totals > 0]
    if len(totals) < 2 or not np.isfinite(totals).all():
        return 0.0
    middle = float(np.median(totals))
    return middle if np.abs(totals / middle - 1).max() < _SAME_TOTAL else 0.0
