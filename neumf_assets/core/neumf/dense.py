"""The dense matrix that a model predicts, streamed to disk as an AnnData-Zarr store in row blocks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from neumf_assets.core.counts.store import text_that_all_read

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
    ``obs_names`` and ``var_names``, names before they were made unique in ``var["original_name"]``. Chunks are
    not compressed: zstd takes an eighth off predicted means in float32, and three times as long as predicting
    them.

    Parameters
    ----------
    folder
        The store; replaced if it is there.
    blocks
        (rows, values) in ascending order, a chunk each.
    cell_names, gene_names
        Names of rows and columns.
    chunk_cells
        Rows of a chunk.
    dtype
        Type of the entries on disk; what it cannot hold becomes the largest number that it can.
    original_names
        Names of the columns as the source has them, where they are known.
    """
    shape, kind = (cell_names.size, gene_names.size), np.dtype(dtype)
    known = {} if original_names is None else {"original_name": np.asarray(original_names, dtype=object)}
    var = pd.DataFrame(known, index=gene_names)
    described = _described(shape, kind, cell_names, var, chunk_cells)
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in described.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    matrix = zarr.open_group(str(folder), mode="r")["X"]
    assert isinstance(matrix, zarr.Array)
    largest = np.finfo(kind).max
    for rows, values in blocks:
        file = folder / "X" / matrix.metadata.encode_chunk_key((rows.start // chunk_cells, 0))
        if kind.itemsize < values.itemsize:  # a mean above float16's 65,504 would become infinite
            values = values.clip(-largest, largest)
        _write_chunk(file, values.astype(kind.newbyteorder("<"), copy=False), chunk_cells)


def _described(
    shape: tuple[int, int],
    dtype: np.dtype,
    cell_names: NDArray[np.str_],
    var: pd.DataFrame,
    chunk_cells: int,
) -> dict[str, bytes]:
    """Return the files of a store whose matrix has no chunks yet.

    They are made in memory: made on disk, each of their many small writes waits for another thread.
    """
    files: dict[str, Buffer] = {}
    group = zarr.open_group(MemoryStore(files), mode="w", zarr_format=3)
    names = anndata.AnnData(obs=pd.DataFrame(index=cell_names), var=var)
    with text_that_all_read(), anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(group, "/", names)
    matrix = group.create_array(
        "X", shape=shape, chunks=(chunk_cells, shape[1]), dtype=dtype, compressors=None
    )
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return {name: content.to_bytes() for name, content in files.items()}


def _write_chunk(file: Path, values: NDArray[np.floating], chunk_cells: int) -> None:
    """Write a chunk's bytes as they are; assigned through zarr they are copied and looked over three times."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb", buffering=0) as stream:
        np.ascontiguousarray(values).tofile(stream)
        stream.truncate(
            chunk_cells * values.shape[1] * values.itemsize
        )  # the last chunk is filled up with zeros


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
