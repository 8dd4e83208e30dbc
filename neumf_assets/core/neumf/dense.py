"""The dense matrix that a model predicts, streamed to disk as an AnnData-Zarr store in row blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr
from numpy.typing import DTypeLike, NDArray

CHUNK_ENTRIES = 1 << 20


def write_blocks(
    folder: Path,
    blocks: Iterator[tuple[slice, NDArray[np.float32]]],
    cell_names: NDArray[np.str_],
    gene_names: NDArray[np.str_],
    *,
    chunk_cells: int,
    dtype: DTypeLike = np.float32,
    original_names: Sequence[str] | None = None,
) -> None:
    """Write a cells x genes matrix block by block; only one block is in memory.

    The store is what ``anndata.read_zarr`` reads (Zarr version 3): ``X`` with chunks of whole rows, names in
    ``obs_names`` and ``var_names``, names before they were made unique in ``var["original_name"]``.

    Parameters
    ----------
    folder
        The store; replaced if it is there.
    blocks
        (rows, values) in ascending order, cut at multiples of ``chunk_cells``.
    cell_names, gene_names
        Names of rows and columns.
    chunk_cells
        Rows of a chunk.
    dtype
        Type of the entries on disk.
    original_names
        Names of the columns as the source has them, where they are known.
    """
    known = {} if original_names is None else {"original_name": np.asarray(original_names, dtype=object)}
    var = pd.DataFrame(known, index=gene_names)
    names = anndata.AnnData(obs=pd.DataFrame(index=cell_names), var=var)
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        anndata.io.write_elem(group, "/", names)
    matrix = group.create_array(
        "X",
        shape=(cell_names.size, gene_names.size),
        chunks=(chunk_cells, gene_names.size),
        dtype=np.dtype(dtype),
    )
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for rows, values in blocks:
        matrix[rows] = values.astype(dtype, copy=False)


def open_dense(folder: Path) -> tuple[zarr.Array, NDArray[np.str_], NDArray[np.str_]]:
    """Return the matrix (read from disk only where it is sliced), cell names and gene names."""
    group = zarr.open_group(str(folder), mode="r")
    matrix = group["X"]
    assert isinstance(matrix, zarr.Array)
    names = [np.asarray(anndata.io.read_elem(group[axis]).index, dtype=np.str_) for axis in ("obs", "var")]
    return matrix, names[0], names[1]


def rows_per_chunk(n_genes: int) -> int:
    """Return the rows of a chunk: about 4 MiB of float32."""
    return max(1, CHUNK_ENTRIES // max(n_genes, 1))
