"""Matrix Market folders: Cell Ranger v2 and v3, STARsolo, and the prefixed triples of GEO.

The matrix is read here and not by SciPy, whose reader (1.17) runs past the end of a damaged last line.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.discover import Triple
from neumf_assets.core.counts.readers.matrix import Names, RawMatrix, check_names
from neumf_assets.core.counts.readers.text import (
    NEWLINE,
    Bytes,
    Positions,
    line_blocks,
    numbers,
    other_numbers,
)
from neumf_assets.core.counts.settings import Orientation
from neumf_assets.core.errors import BadInput

_AGAIN = "Copy or export it again"
# fmt: off
_HEADERS = {
    "", "x", "v1", "v2", "v3", "id", "name", "names", "gene", "genes", "gene_id", "gene_ids", "gene_name", "gene_names",
    "gene_symbol", "symbol", "feature", "features", "feature_type", "feature_types", "ensembl", "ensembl_id",
    "barcode", "barcodes", "cell", "cells", "cell_id", "index", "type",
}
# fmt: on
"""How columns of tables of names may be called, where these have a header."""
_ENTRY = np.dtype([("cell", np.int32), ("gene", np.int32), ("value", np.float64)])
_SPACE = ord(" ")
_MOST_DIGITS = 19


@dataclass(frozen=True)
class _Header:
    """Sizes of a matrix as its header gives them, and the length of that header."""

    rows: int
    columns: int
    entries: int
    length: int
    lines: int


def read_market(root: Path, triple: Triple, given: str, orientation: Orientation) -> RawMatrix:
    """Read a Matrix Market matrix with its barcodes and features.

    Parameters
    ----------
    root
        Folder that the names in ``triple`` are relative to.
    triple
        Names of matrix, barcodes and features; each plain or gzipped (recognised by content).
    given
        Path or URL for messages.
    orientation
        Decides only when there are as many genes as cells; ``auto`` then means genes × cells, as 10x writes
        it.

    Returns
    -------
    RawMatrix
        With the features' types, where they have some.

    Raises
    ------
    BadInput
        When the three do not fit together, or one is damaged.
    """
    tables = _Tables(root, triple, given)
    entries = _Entries(root / triple.matrix, tables.matrix_file)
    matrix = _matrix(entries)
    genes_first = tables.genes_first(matrix.shape, orientation)
    return tables.raw(sparse.csr_matrix(matrix.T if genes_first else matrix), genes_first)


def promised_entries(root: Path, triple: Triple, given: str) -> int:
    """Return how many entries the header of a matrix promises.

    Raises
    ------
    BadInput
        When it has no sound header.
    """
    return _Entries(root / triple.matrix, _file(given, triple.matrix)).header.entries


def read_market_in_parts(
    root: Path, triple: Triple, given: str, orientation: Orientation, block_cells: int, folder: Path
) -> tuple[RawMatrix, Iterator[tuple[int, int, sparse.csr_matrix]]]:
    """Read a Matrix Market matrix, whose entries may come in any order, some cells at a time.

    Parameters
    ----------
    root, triple, given, orientation
        As :func:`read_market`.
    block_cells
        Cells of a part.
    folder
        Takes the entries, sorted into parts, 16 bytes each; what a part was read from is removed.

    Returns
    -------
    tuple
        The matrix without its entries; first cell, cell after the last, and rows of each part.

    Raises
    ------
    BadInput
        As :func:`read_market`, before any part is given.
    """
    tables = _Tables(root, triple, given)
    entries = _Entries(root / triple.matrix, tables.matrix_file)
    shape = (entries.header.rows, entries.header.columns)
    genes_first = tables.genes_first(shape, orientation)
    n_cells, n_genes = shape[::-1] if genes_first else shape
    for block in entries:
        spill(block, genes_first, block_cells, folder)
    whole = tables.raw(sparse.csr_matrix((n_cells, n_genes), dtype=np.float64), genes_first)
    return whole, spilled(folder, (n_cells, n_genes), block_cells)


def spilled(
    folder: Path, shape: tuple[int, int], block_cells: int
) -> Iterator[tuple[int, int, sparse.csr_matrix]]:
    """Give first cell, cell after the last, and rows of each part that :func:`spill` wrote, and remove its file."""
    n_cells, n_genes = shape
    for start in range(0, n_cells, block_cells):
        stop, path = min(start + block_cells, n_cells), folder / f"{start // block_cells}"
        own = np.fromfile(path, _ENTRY) if path.exists() else np.empty(0, _ENTRY)
        path.unlink(missing_ok=True)
        places = (own["cell"] - start, own["gene"])
        yield start, stop, sparse.csr_matrix((own["value"], places), (stop - start, n_genes))


def spill(block: NDArray[np.float64], genes_first: bool, block_cells: int, folder: Path) -> None:
    """Append each entry (row, column from 1, value) to the file of its part of the cells."""
    own = np.empty(len(block), _ENTRY)
    own["gene"], own["cell"] = (block[:, :2] if genes_first else block[:, 1::-1]).T - 1
    own["value"] = block[:, 2]
    part = own["cell"] // block_cells
    own, part = own[order := np.argsort(part, kind="stable")], part[order]
    for piece in np.split(own, np.flatnonzero(np.diff(part)) + 1):
        if piece.size:
            with (folder / f"{piece['cell'][0] // block_cells}").open("ab") as file:
                piece.tofile(file)


class _Tables:
    """Barcodes and features."""

    def __init__(self, root: Path, triple: Triple, given: str) -> None:
        self._given, self.matrix_file = given, _file(given, triple.matrix)
        self._barcodes, described = _table(root / triple.barcodes, _file(given, triple.barcodes))
        self._features, _ = _table(root / triple.features, _file(given, triple.features))
        self._obs = described
        self._settle()

    def _settle(self) -> None:
        self._cells = self._barcodes[0]
        self._names = self._features[min(1, len(self._features) - 1)]
        self.types: Names | None = None
        if len(self._features) > 2:
            self.types = np.asarray(self._features[2].to_list(), dtype=object)

    def genes_first(self, shape: tuple[int, int], orientation: Orientation) -> bool:
        """Tell whether the rows are genes; headers of tables are read past, where the matrix has no room for them."""
        if len(self._names) + len(self._cells) > sum(shape):
            self._features, self._barcodes = _without_header(self._features), _without_header(self._barcodes)
            self._settle()
        return _genes_first(shape, len(self._names), len(self._cells), orientation, self.matrix_file)

    def raw(self, by_cell: sparse.csr_matrix, genes_first: bool) -> RawMatrix:
        """Put names to a matrix of cells × genes, and leave features out that are no genes."""
        accessions = np.asarray(self._features[0].to_list(), dtype=object)
        raw = RawMatrix(
            X=by_cell,
            cells=check_names(self._cells.to_list(), by_cell.shape[0], "cells", self.matrix_file),
            genes=check_names(self._names.to_list(), by_cell.shape[1], "genes", self.matrix_file),
            format="Matrix Market",
            rows="genes" if genes_first else "cells",
            gene_ids=accessions if len(self._features) > 1 else None,
            feature_types=self.types,
            obs=self._obs,
            notes={"orientation": "genes_by_cells" if genes_first else "cells_by_genes"},
        )
        return raw


def _file(given: str, name: str) -> str:
    """Path or URL of a file of the triple, for messages."""
    folder = given.rstrip("/")
    if folder.endswith((".mtx", ".mtx.gz")):
        folder = folder.rpartition("/")[0]
    return f"{folder}/{name}" if folder else name


def _table(path: Path, file: str) -> tuple[list[pl.Series], pd.DataFrame | None]:
    """Columns of names; of a table with commas and a header, as Parse writes it, two, and the others by name."""
    if not path.name.endswith((".csv", ".csv.gz")):
        return _lines(path, file), None
    content = b"".join(line_blocks(path, file))
    try:
        table = pl.read_csv(io.BytesIO(content), infer_schema=False).fill_null("")
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(file, "", f"is no table separated by commas ({reason})", "Export it again") from error
    columns = table.get_columns()
    names = columns[:2] if "gene" in table.columns[0] else columns[:1]
    others = {column.name: column.to_list() for column in columns[len(names) :]}
    return [_unquoted(column) for column in names], pd.DataFrame(others) if others else None


def _lines(path: Path, file: str) -> list[pl.Series]:
    """Read the columns of a table without header as text; null becomes ""."""
    content = b"".join(line_blocks(path, file))
    if not content:
        raise BadInput(file, "", "the file is empty", _AGAIN)
    try:
        table = pl.read_csv(
            io.BytesIO(content), separator="\t", has_header=False, quote_char=None, infer_schema=False
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(file, "", f"is no table separated by tabs ({reason})", "Export it again") from error
    plain = table.fill_null("").with_columns(pl.all().str.strip_chars_end("\r"))
    return [_unquoted(column) for column in plain.get_columns()]


def _unquoted(names: pl.Series) -> pl.Series:
    """Take off the quotes that R puts around all texts of a column."""
    quoted = names.str.contains(r'^".*"$').all()
    return names.str.slice(1).str.head(-1) if quoted else names


def _without_header(columns: list[pl.Series]) -> list[pl.Series]:
    """Take off a first line of columns' names, as R writes it."""
    first = {str(column[0]).lower() for column in columns}
    return [column[1:] for column in columns] if first <= _HEADERS else columns


class _Entries:
    """The entries of a matrix, block by block: row, column (from 1) and value of each. To be read once."""

    def __init__(self, path: Path, file: str) -> None:
        self._file, self._blocks = file, line_blocks(path, file)
        first = next(self._blocks, b"")
        self.header = _header(first, file)
        self._first = first[self.header.length :]

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        header, found = self.header, 0
        for block in chain([self._first], self._blocks):
            if block:
                plain = _plain_entries(block, header)
                entries = (
                    _entries(block, header, header.lines + found, self._file) if plain is None else plain
                )
                found += len(entries)
                yield entries
        if found != header.entries:
            raise BadInput(
                self._file,
                "",
                f"promises {header.entries} entries, but holds {found}",
                "It was cut short: " + _AGAIN,
            )


def _matrix(entries: _Entries) -> sparse.coo_matrix:
    rows, columns, values = ([np.empty(0, kind)] for kind in (np.int32, np.int32, np.float64))
    for block in entries:
        # 12 bytes an entry from here on, or 16, not 24
        rows.append(block[:, 0].astype(np.int32) - 1)
        columns.append(block[:, 1].astype(np.int32) - 1)
        values.append(_compact(block[:, 2]))
    positions = (_joined(rows), _joined(columns))
    return sparse.coo_matrix(
        (_joined(values), positions), shape=(entries.header.rows, entries.header.columns)
    )


def _compact(values: NDArray[np.float64]) -> NDArray[np.float64] | NDArray[np.float32]:
    """Give values as float32 where that holds them exactly, as it does all counts below 2²⁴."""
    small = values.astype(np.float32)
    return small if np.array_equal(small, values) else values.copy()


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate parts and let them go."""
    whole = np.concatenate([part for part in parts if part.size] or parts)
    parts.clear()
    return whole


def _header(block: bytes, file: str) -> _Header:
    """Read the banner, skip comments, read the sizes."""
    words = block.partition(b"\n")[0].lower().split()
    if len(words) < 5 or words[0] != b"%%matrixmarket" or words[1] != b"matrix" or words[2] != b"coordinate":
        raise BadInput(
            file,
            "line 1",
            "is not the header '%%MatrixMarket matrix coordinate …'",
            "Export the counts as a sparse Matrix Market file",
        )
    if words[3] not in (b"integer", b"real", b"double") or words[4] != b"general":
        kind = b" ".join(words[3:5]).decode("utf-8", "replace")
        raise BadInput(
            file, "line 1", f"the matrix is {kind!r}, not integer or real, general", "Export counts"
        )
    length, lines, line = 0, 0, b"%"
    while line.startswith(b"%") or (not line.strip() and length < len(block)):
        line = block[length : block.find(b"\n", length) + 1]
        length += len(line)
        lines += 1
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() and len(size) < _MOST_DIGITS for size in sizes):
        raise BadInput(file, f"line {lines}", "does not give rows, columns and entries", _AGAIN)
    rows, columns, entries = map(int, sizes)
    if max(rows, columns) > np.iinfo(np.int32).max:
        raise BadInput(file, f"line {lines}", f"promises a matrix of {rows} × {columns}", _AGAIN)
    return _Header(rows, columns, entries, length, lines)


def _plain_entries(block: bytes, header: _Header) -> NDArray[np.float64] | None:
    """Read entries of sound lines with single spaces quickly; None sends the block to `_entries`."""
    try:
        table = pl.read_csv(
            block,
            separator=" ",
            has_header=False,
            quote_char=None,
            schema={"row": pl.Int64, "column": pl.Int64, "value": pl.Float64},
        )
    except (pl.exceptions.PolarsError, ValueError):
        return None
    entries = table.to_numpy()
    sizes = (header.rows, header.columns)
    lowest, highest = (entries[:, :2].min(axis=0), entries[:, :2].max(axis=0)) if len(entries) else (1, sizes)
    sound = len(entries) == block.count(b"\n") and np.isfinite(entries).all()
    return entries if sound and np.all(lowest >= 1) and np.all(highest <= sizes) else None


def _entries(block: bytes, header: _Header, lines: int, file: str) -> NDArray[np.float64]:
    """Read the entries in a block of whole lines: row, column (from 1) and value of each."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text <= _SPACE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    _check_lines(text, starts, lines, file)
    values, unread = numbers(text, starts, ends - starts)
    if len(unread):
        values[unread], entries = other_numbers(text, starts[unread], (ends - starts)[unread])
        _refuse(
            np.isnan(values),
            lambda at: f"{entries[int(np.searchsorted(unread, at))]!r}{_at(values, at)} is no number",
            lines,
            file,
        )
    table = values.reshape(-1, 3)
    for axis, (size, name) in enumerate(((header.rows, "row"), (header.columns, "column"))):
        outside = np.zeros(table.shape, bool)
        outside[:, axis] = (
            (table[:, axis] < 1) | (table[:, axis] > size) | (np.rint(table[:, axis]) != table[:, axis])
        )
        _refuse(outside.ravel(), partial(_outside, values, name, size), lines, file)
    return table


def _check_lines(text: Bytes, starts: Positions, lines: int, file: str) -> None:
    """Refuse a block with a line that does not hold three fields."""
    line_ends = np.flatnonzero(text == NEWLINE)
    fields = np.bincount(np.searchsorted(line_ends, starts), minlength=len(line_ends))
    if (fields != 3).any():
        line = int((fields != 3).argmax())
        raise BadInput(
            file, f"line {lines + line + 1}", f"has {fields[line]} fields, not row, column and count", _AGAIN
        )


def _outside(values: NDArray[np.float64], name: str, size: int, at: int) -> str:
    return f"{values[at]:g} is no {name} from 1 to {size}"


def _at(values: NDArray[np.float64], at: int) -> str:
    """Tell the row and column of a count; empty where it is one of these two that cannot be read."""
    row, column = values[at // 3 * 3 : at // 3 * 3 + 2]
    return f" at row {row:g}, column {column:g}" if at % 3 == 2 and np.isfinite(row + column) else ""


def _refuse(bad: NDArray[np.bool_], problem: Callable[[int], str], lines: int, file: str) -> None:
    if bad.any():
        at = int(bad.argmax())
        raise BadInput(file, f"line {lines + at // 3 + 1}", problem(at), _AGAIN)


def _genes_first(shape: tuple[int, int], genes: int, cells: int, orientation: Orientation, file: str) -> bool:
    if shape == (genes, cells) and (genes != cells or orientation != "cells_by_genes"):
        return True
    if shape == (cells, genes):
        return False
    raise BadInput(
        file,
        "",
        f"the matrix is {shape[0]} × {shape[1]}, but there are {genes} features and {cells} barcodes",
        "The three files come from different runs, or one is cut short: export them again together",
    )
