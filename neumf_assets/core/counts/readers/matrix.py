"""What every reader hands over before validation, and the pieces that several readers share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.errors import BadInput

Names = NDArray[np.object_]
BLOCK_BYTES = 1 << 25
"""Dense matrices are turned into sparse ones in blocks of rows of about this size."""
_SLICE = 1 << 24


@dataclass
class RawMatrix:
    """A matrix as read: cells × genes, not yet validated.

    Attributes
    ----------
    X
        CSR, cells × genes, of the type in the file.
    cells, genes
        Names as in the file.
    format
        Name of the file format.
    rows
        What the rows of the file are: places in messages are given as the user sees them.
    header_rows, header_columns
        Rows and columns that come before the first value in the file.
    gene_ids
        Accessions, where the file has them beside the symbols.
    feature_types
        What each feature is, where the file tells and others than genes are still among them.
    gene_positions
        Place of each gene among the features of the file; None: all are there.
    obs
        Candidates for labels that lie in the file itself.
    notes
        More for the provenance.
    """

    X: sparse.csr_matrix
    cells: Names
    genes: Names
    format: str
    rows: Literal["genes", "cells"] = "cells"
    header_rows: int = 0
    header_columns: int = 0
    gene_ids: Names | None = None
    feature_types: Names | None = None
    gene_positions: NDArray[np.intp] | None = None
    obs: pd.DataFrame | None = None
    notes: dict[str, str | int | float] = field(default_factory=dict)

    def place(self, cell: int, gene: int) -> str:
        """Name the row and the column of an entry as they are counted in the file, from 1."""
        file_gene = gene if self.gene_positions is None else int(self.gene_positions[gene])
        named_cell, named_gene = f"cell {self.cells[cell]!r}", f"gene {self.genes[gene]!r}"
        if self.rows == "cells":
            row, column, in_row, in_column = cell, file_gene, named_cell, named_gene
        else:
            row, column, in_row, in_column = file_gene, cell, named_gene, named_cell
        row, column = row + 1 + self.header_rows, column + 1 + self.header_columns
        return f"row {row} ({in_row}), column {column} ({in_column})"


def check_names(names: Any, count: int, what: str, file: str) -> Names:
    """Return names as an array of text; `BadInput` unless there are ``count`` of them."""
    array = np.asarray(names, dtype=object)
    if array.ndim != 1 or len(array) != count:
        raise BadInput(
            file,
            what,
            f"there are {len(array) if array.ndim else 0} names, but the matrix holds {count} {what}",
            "The files come from different runs, or one is cut short: export them again together",
        )
    return array


def sparse_from_arrays(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    major: int,
    minor: int,
    file: str,
    place: str,
) -> sparse.csr_matrix:
    """Compressed rows from their three arrays (major × minor), each index checked.

    Raises
    ------
    BadInput
        When the arrays contradict each other or point outside the matrix.
    """
    mend = "The file is damaged: export it again"
    if len(indptr) != major + 1 or len(data) != len(indices):
        raise BadInput(file, place, "the parts of the sparse matrix have contradicting lengths", mend)
    if indptr[0] != 0 or indptr[-1] != len(data) or np.any(indptr[1:] < indptr[:-1]):
        raise BadInput(file, place, "the row pointers of the sparse matrix are not in order", mend)
    if len(indices) and (indices.min() < 0 or indices.max() >= minor):
        raise BadInput(file, place, f"an index of the sparse matrix lies outside 0 to {minor - 1}", mend)
    small = max(len(data), minor, major) < 2**31
    index_type = np.int32 if small else np.int64
    matrix = sparse.csr_matrix((major, minor), dtype=data.dtype)
    matrix.data = data
    matrix.indices = indices.astype(index_type, copy=False)
    matrix.indptr = indptr.astype(index_type, copy=False)
    return matrix


def read_vector(array: Any, file: str, place: str) -> NDArray[Any]:
    """Read a one-dimensional numeric array of an HDF5 or Zarr store.

    Raises
    ------
    BadInput
        When it is not one-dimensional or not numeric.
    """
    _check_numbers(array, 1, "list", file, place)
    return np.asarray(array[...])


def dense_to_csr(array: Any, file: str, place: str) -> sparse.csr_matrix:
    """Read a dense two-dimensional array of an HDF5 or Zarr store in blocks of rows; zeros are dropped.

    Memory: one block of about `BLOCK_BYTES` beside the sparse result.
    """
    rows, columns = check_dense(array, file, place)
    if not rows:
        return sparse.csr_matrix((rows, columns), dtype=array.dtype)
    return dense_cells(array, 0, rows, axis=0)


def dense_cells(array: Any, start: int, stop: int, axis: int) -> sparse.csr_matrix:
    """Read some cells of a dense array whose cells lie along ``axis``, as cells × genes, in blocks."""
    height = max(1, BLOCK_BYTES // max(1, array.shape[1 - axis] * array.dtype.itemsize))
    chunk = array.chunks[axis] if array.chunks else 1
    height = max(chunk, height // chunk * chunk)
    blocks = []
    for first in range(start, stop, height):
        cells = slice(first, min(first + height, stop))
        blocks.append(sparse.csr_matrix(array[cells] if axis == 0 else array[:, cells].T))
    return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")


def check_dense(array: Any, file: str, place: str) -> tuple[int, int]:
    """Return the shape of a dense two-dimensional array of numbers; `BadInput` where it is none."""
    _check_numbers(array, 2, "matrix", file, place)
    return int(array.shape[0]), int(array.shape[1])


def _check_numbers(array: Any, ndim: int, kind: str, file: str, place: str) -> None:
    if array.ndim != ndim or array.dtype.kind not in "iufb":
        found = f"holds {array.dtype} of shape {array.shape}, not a {kind} of numbers"
        raise BadInput(file, place, found, "Export it again")


def slices(length: int) -> Iterator[slice]:
    """Slices that walk over ``length`` entries without large temporaries."""
    for start in range(0, length, _SLICE):
        yield slice(start, min(start + _SLICE, length))
