"""Counts in long format: one row for each entry that is not zero, in Parquet.

``long.parquet``: ``cell`` and ``gene`` (dictionary-encoded), ``cell_id`` and ``gene_id`` (UInt32, positions
in the lookup tables), ``expression`` (Int32 counts, Float32 otherwise); sorted by cell, then gene.
``cells.parquet`` and ``genes.parquet``: one row for each cell and gene, those without entries included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from neumf_assets.core.counts.stored import CountsInMemory, StoredCounts

LONG, CELLS, GENES = "long.parquet", "cells.parquet", "genes.parquet"
ROW_GROUP = 1 << 19
"""Entries per row group: large enough to compress well, small enough for a scan to skip most of a file."""
_RESERVED_CELL = ("cell_id", "cell", "total", "genes_seen")


def write_long(adata: ad.AnnData | StoredCounts, folder: str | Path) -> int:
    """Write counts in long format.

    Streams: no more than one row group is in memory, beside the matrix itself where it is given as such. Each
    file appears under its name only when it is complete, ``long.parquet`` last.

    Parameters
    ----------
    adata
        Counts, cells × genes, CSR, or on disk.
    folder
        Local folder; made if missing.

    Returns
    -------
    int
        Number of rows of ``long.parquet``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = adata if isinstance(adata, StoredCounts) else CountsInMemory(adata.X)
    indptr = np.concatenate([[0], np.cumsum(counts.lengths)])
    totals = np.zeros(adata.shape[0], np.int64 if counts.dtype.kind in "iu" else np.float64)
    _write_table(_gene_table(adata), folder / GENES)
    cells, genes = (pa.array(names, pa.string()) for names in (adata.obs_names, adata.var_names))
    schema = _schema(counts.dtype)
    temporary = _temporary(folder / LONG)
    try:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=["cell", "gene"],
            dictionary_pagesize_limit=1 << 24,
            write_statistics=["cell_id", "gene_id", "expression"],
            sorting_columns=[pq.SortingColumn(2), pq.SortingColumn(3)],
        ) as writer:
            for first, last in _cell_blocks(indptr):
                rows = counts.rows(first, last)
                totals[first:last] = np.asarray(rows.sum(axis=1)).ravel()
                block = _block(rows, cells, genes, first, schema)
                writer.write_table(block, row_group_size=block.num_rows)
        _write_table(_cell_table(adata, totals, counts.lengths), folder / CELLS)
        _publish(temporary, folder / LONG)
    finally:
        temporary.unlink(missing_ok=True)
    return int(indptr[-1])


def read_long(folder: str | Path) -> pl.LazyFrame:
    """Scan ``long.parquet`` lazily: filters on ``cell_id`` skip whole row groups."""
    return pl.scan_parquet(Path(folder) / LONG)


def long_to_csr(folder: str | Path) -> tuple[sparse.csr_matrix, list[str], list[str]]:
    """Rebuild the matrix from the long format.

    Returns
    -------
    tuple
        CSR matrix (cells × genes, in the type of ``expression``), names of the cells, names of the genes.
    """
    folder = Path(folder)
    cells = pl.read_parquet(folder / CELLS, columns=["cell"])["cell"].to_list()
    genes = pl.read_parquet(folder / GENES, columns=["gene"])["gene"].to_list()
    entries = read_long(folder).select("cell_id", "gene_id", "expression").collect()
    lengths = np.bincount(entries["cell_id"].to_numpy(), minlength=len(cells))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    parts = (entries["expression"].to_numpy(), entries["gene_id"].to_numpy().astype(np.int32), indptr)
    return sparse.csr_matrix(parts, shape=(len(cells), len(genes))), cells, genes


def _schema(dtype: np.dtype) -> pa.Schema:
    names = pa.dictionary(pa.int32(), pa.string())
    value = pa.int32() if dtype.kind in "iu" else pa.float32()
    fields = {
        "cell": names,
        "gene": names,
        "cell_id": pa.uint32(),
        "gene_id": pa.uint32(),
        "expression": value,
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def _cell_blocks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut the cells into runs of about `ROW_GROUP` entries, whole cells each."""
    wanted = np.arange(ROW_GROUP, int(indptr[-1]) + ROW_GROUP, ROW_GROUP)
    cuts = np.minimum(np.searchsorted(indptr, wanted, side="left"), len(indptr) - 1)
    borders = np.unique(np.concatenate([[0], cuts]))
    yield from zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)


def _block(X: sparse.csr_matrix, cells: pa.Array, genes: pa.Array, first: int, schema: pa.Schema) -> pa.Table:
    within = np.repeat(np.arange(X.shape[0], dtype=np.int32), np.diff(X.indptr))
    gene_ids = X.indices.astype(np.int32, copy=False)
    columns = [
        # Only the block's own cells go into its dictionary, or each row group would carry them all.
        pa.DictionaryArray.from_arrays(pa.array(within), cells.slice(first, X.shape[0])),
        pa.DictionaryArray.from_arrays(pa.array(gene_ids), genes),
        pa.array((within + np.uint32(first)).astype(np.uint32)),
        pa.array(gene_ids.astype(np.uint32)),
        pa.array(X.data, schema.field("expression").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cell_table(adata: ad.AnnData | StoredCounts, totals: np.ndarray, lengths: np.ndarray) -> pl.DataFrame:
    labels = {
        name: pl.Series(
            adata.obs[name].astype(object).where(adata.obs[name].notna(), None).to_list(), strict=False
        )
        for name in map(str, adata.obs.columns)
        if name not in _RESERVED_CELL
    }
    return pl.DataFrame(
        {
            "cell_id": np.arange(len(adata.obs), dtype=np.uint32),
            "cell": pl.Series(adata.obs_names.to_list(), dtype=pl.String),
            "total": totals,
            "genes_seen": lengths.astype(np.uint32),
            **labels,
        }
    )


def _gene_table(adata: ad.AnnData | StoredCounts) -> pl.DataFrame:
    columns = {
        "gene_id": np.arange(len(adata.var), dtype=np.uint32),
        "gene": pl.Series(adata.var_names.to_list(), dtype=pl.String),
    }
    for source, name in (
        ("original_name", "original_name"),
        ("gene_id", "accession"),
        ("gene_symbol", "symbol"),
    ):
        if source in adata.var:
            columns[name] = pl.Series(adata.var[source].astype(str).to_list(), dtype=pl.String)
    return pl.DataFrame(columns)


def _write_table(table: pl.DataFrame, target: Path) -> None:
    temporary = _temporary(target)
    try:
        table.write_parquet(temporary, compression="zstd")
        _publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _publish(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
