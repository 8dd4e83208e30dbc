"""Scaled matrices as iNMF sees them: two products with thin factors, on sparse, dense or stored data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError


class Block(Protocol):
    """Some rows of a scaled matrix X."""

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """Return ``(X right)ᵀ``, k × rows, contiguous; ``right`` is genes × k."""

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """Return ``left X``, k × genes; ``left`` is k × rows."""


class ScaledMatrix(Protocol):
    """Non-negative cells × genes matrix of one dataset, read in blocks of rows."""

    n_cells: int
    n_genes: int
    total: float
    sum_squares: float

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield rows and block, in ascending order; may be called any number of times."""


class SparseMatrix:
    """A CSR matrix kept whole, as rows and as columns (8 bytes each per non-zero), in float32.

    Parameters
    ----------
    matrix
        Cells × genes, non-negative, finite. Its float32 data are shared, not copied.
    device
        Where the products are computed.
    """

    def __init__(self, matrix: sp.csr_matrix, device: str | torch.device = "cpu") -> None:
        matrix = sp.csr_matrix(matrix)
        check_values(matrix.data)
        self.n_cells, self.n_genes = matrix.shape
        self.total = float(matrix.data.sum(dtype=np.float64))
        self.sum_squares = float(np.einsum("i,i->", matrix.data, matrix.data, dtype=np.float64))
        self._rows = _csr_tensor(matrix, device)
        self._columns = _csr_tensor(matrix.T.tocsr(), device)

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield the whole matrix as one block."""
        yield slice(0, self.n_cells), self

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """Return ``(X right)ᵀ``."""
        return (self._rows @ right).T.contiguous()

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """Return ``left X``."""
        return (self._columns @ left.T.contiguous()).T.contiguous()


class ChunkedMatrix:
    """A matrix that is never whole in memory: read again, chunk by chunk, in every pass.

    Parameters
    ----------
    chunks
        Called for every pass; gives scaled CSR chunks (cells × genes), always the same and in the same order.
        For online learning each chunk should hold a mixture of cells.
    device
        Where the products are computed.

    Raises
    ------
    NeumfError
        No chunk, or chunks with different genes. Making the object takes one pass.
    """

    def __init__(
        self, chunks: Callable[[], Iterable[sp.csr_matrix]], device: str | torch.device = "cpu"
    ) -> None:
        self._chunks, self._device = chunks, device
        self.n_cells, self.total, self.sum_squares = 0, 0.0, 0.0
        genes = set()
        for chunk in chunks():
            check_values(chunk.data)
            genes.add(chunk.shape[1])
            self.n_cells += chunk.shape[0]
            self.total += float(chunk.data.sum(dtype=np.float64))
            self.sum_squares += float(np.einsum("i,i->", chunk.data, chunk.data, dtype=np.float64))
        if len(genes) != 1:
            raise NeumfError(f"The chunks of a dataset must have the same genes; they have {sorted(genes)}.")
        self.n_genes = genes.pop()

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Read the chunks again."""
        start = 0
        for chunk in self._chunks():
            found = [(slice(start, start + chunk.shape[0]), SparseMatrix(chunk, self._device))]
            start += chunk.shape[0]
            del chunk  # or what is suspended here would keep it until the next one is asked for
            yield found.pop()


class DenseMatrix:
    """A dense matrix that is scaled on the fly, so that the source is neither changed nor copied.

    Parameters
    ----------
    source
        Cells × genes; whatever gives rows by ``source[start:stop]`` (array, memory map, Zarr array).
        Only ``block_cells`` rows of it are read at a time.
    genes
        Columns to use.
    row_factor, column_factor
        X = source[:, genes] × row_factor × column_factor; lengths cells and ``len(genes)``.
    total, sum_squares
        Sums of the entries of X and of their squares.
    """

    def __init__(
        self,
        source: Any,
        genes: NDArray[np.intp],
        row_factor: NDArray[np.float32],
        column_factor: NDArray[np.float32],
        total: float,
        sum_squares: float,
        *,
        block_cells: int = 5000,
        device: str | torch.device = "cpu",
    ) -> None:
        self.n_cells, self.n_genes = int(source.shape[0]), genes.size
        self.total, self.sum_squares = total, sum_squares
        self._source, self._genes, self._block_cells, self._device = source, genes, block_cells, device
        self._all_genes = np.array_equal(genes, np.arange(source.shape[1]))
        self._row_factor = torch.from_numpy(row_factor.astype(np.float32)).to(device)
        self._column_factor = torch.from_numpy(column_factor.astype(np.float32)).to(device)
        self._kept: list[tuple[slice, Block]] | None = None

    @property
    def bytes(self) -> int:
        """What its columns take in memory."""
        return 4 * self.n_cells * self.n_genes

    def keep(self) -> None:
        """Keep in memory what is read from now on: iNMF goes over all cells a hundred times and more."""
        self._kept = self._kept or []

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield ``block_cells`` rows at a time."""
        if self._kept == []:
            self._kept = list(self._read())
        yield from self._kept if self._kept is not None else self._read()

    def _read(self) -> Iterator[tuple[slice, Block]]:
        for start in range(0, self.n_cells, self._block_cells):
            rows = slice(start, min(start + self._block_cells, self.n_cells))
            values = np.asarray(self._source[rows], dtype=np.float32)
            if not self._all_genes:
                values = values[:, self._genes]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                block = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
            yield rows, _DenseBlock(block, self._row_factor[rows], self._column_factor)


class _DenseBlock:
    def __init__(self, values: torch.Tensor, row_factor: torch.Tensor, column_factor: torch.Tensor) -> None:
        self._values, self._row_factor, self._column_factor = values, row_factor, column_factor

    def times(self, right: torch.Tensor) -> torch.Tensor:
        product = (right * self._column_factor[:, None]).T @ self._values.T
        return product * self._row_factor

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        return ((left * self._row_factor) @ self._values) * self._column_factor


def as_scaled(matrix: ScaledMatrix | sp.csr_matrix, device: str | torch.device) -> ScaledMatrix:
    """Give a CSR matrix the form that iNMF reads; leave other forms as they are."""
    return SparseMatrix(matrix, device) if sp.issparse(matrix) else matrix


def check_values(values: NDArray[Any]) -> None:
    """Refuse values that are negative or not finite.

    Raises
    ------
    NeumfError
        A value is negative, NaN or infinite.
    """
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        raise NeumfError("LIGER needs non-negative, finite values; a matrix holds others.")


def _csr_tensor(matrix: sp.csr_matrix, device: str | torch.device) -> torch.Tensor:
    matrix.sort_indices()
    # 32-bit positions are read faster; they suffice up to 2³¹ non-zeros
    position = np.int32 if matrix.nnz < 2**31 else np.int64
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(position, copy=False)),
            torch.from_numpy(matrix.indices.astype(position, copy=False)),
            torch.from_numpy(matrix.data.astype(np.float32, copy=False)),
            size=matrix.shape,
        ).to(device)
