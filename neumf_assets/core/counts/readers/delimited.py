"""CSV and TSV matrices, plain or gzipped, in one streaming pass.

The text is scanned in blocks of whole lines with array operations: find the separators, drop the fields
that are just ``0`` (95 % of them), read the digits of the rest. That is several times faster than parsing
every field into a dense table, and never holds more than one block of text.

Accepted: comma, tab, semicolon or single spaces between fields (the one that the header holds most of);
Unix and Windows line ends; names in double quotes; a header with or without a corner field; whole numbers,
decimals, exponents as R writes them (``1e+05``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.readers.matrix import Names, RawMatrix
from neumf_assets.core.counts.readers.orientation import decide
from neumf_assets.core.counts.readers.text import (
    NEWLINE,
    QUOTE,
    RETURN,
    UNREADABLE,
    ZERO,
    Bytes,
    Positions,
    line_blocks,
    numbers,
    other_numbers,
    strings,
)
from neumf_assets.core.counts.settings import Orientation
from neumf_assets.core.errors import BadInput

_LONGEST_NAME = 4096
_UNZIPPED = 12
"""Size of a table of counts over that of its gzip file, about."""


@dataclass(frozen=True)
class _Layout:
    """What the first two lines of a file tell: delimiter, fields per line, names above the values."""

    given: str
    delimiter: str
    width: int
    columns: Names


@dataclass
class _Parts:
    """What the scan collects: the file's own rows and columns, in compressed rows."""

    names: list[pl.Series] = field(default_factory=list)
    lengths: list[Positions] = field(default_factory=list)
    columns: list[NDArray[np.int32]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)
    lines: int = 1

    @property
    def pointers(self) -> Positions:
        """Where each row begins among the entries, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(np.concatenate(self.lengths))])


@dataclass(frozen=True)
class _Fields:
    """Fields of one block that are not a lone zero: where they lie in the text and in the table."""

    starts: Positions
    lengths: Positions
    rows: Positions
    columns: NDArray[np.int32]


def read_delimited(path: Path, given: str, orientation: Orientation, labelled: Names | None) -> RawMatrix:
    """Read a matrix of text.

    Parameters
    ----------
    path
        Local file; gzip is recognised by its content.
    given
        Path or URL for messages.
    orientation
        What the study says about rows and columns.
    labelled
        Cells named in the labels file, where there is one.

    Returns
    -------
    RawMatrix
        Cells × genes, float64 values.

    Raises
    ------
    BadInput
        When the file is empty, cut short, ragged, or holds something that is no number.
    """
    parts = _Parts()
    for layout in _scanned(path, given, parts):
        columns = layout.columns
    data, indices = np.concatenate(parts.values), np.concatenate(parts.columns)
    raw, genes_first = _described(parts, columns, orientation, labelled)
    matrix = sparse.csr_matrix((data, indices, parts.pointers), shape=(parts.lines - 1, len(columns)))
    raw.X = matrix.T.tocsr() if genes_first else matrix
    return raw


def spill_delimited(
    path: Path, given: str, orientation: Orientation, labelled: Names | None, folder: Path
) -> tuple[RawMatrix, dict[str, Any], bool]:
    """Read a matrix of text with its entries into files.

    Parameters
    ----------
    path, given, orientation, labelled
        As :func:`read_delimited`.
    folder
        Takes the entries, 12 bytes each.

    Returns
    -------
    tuple
        The matrix without its entries; the file's own rows, compressed (``data``, ``indices``, ``indptr``), read where
        they are used; whether these are genes.

    Raises
    ------
    BadInput
        As :func:`read_delimited`.
    """
    parts, places = _Parts(), {name: folder / name for name in ("data", "indices")}
    with places["data"].open("wb") as data, places["indices"].open("wb") as indices:
        for layout in _scanned(path, given, parts):
            columns = layout.columns
            for found, file in ((parts.values, data), (parts.columns, indices)):
                for part in found:
                    part.tofile(file)
                found.clear()
    raw, genes_first = _described(parts, columns, orientation, labelled)
    kinds = {"data": np.float64, "indices": np.int32}
    element: dict[str, Any] = {name: FileVector(places[name], np.dtype(kind)) for name, kind in kinds.items()}
    return raw, element | {"indptr": parts.pointers}, genes_first


class FileVector:
    """Numbers in a plain file, of which slices are read; a mapping's pages would count as the process's memory."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self.dtype, self.ndim = path, dtype, 1
        self.shape = (path.stat().st_size // dtype.itemsize,)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """Read a slice of consecutive numbers."""
        start, stop, _ = part.indices(self.shape[0])
        return np.fromfile(self._path, self.dtype, stop - start, offset=start * self.dtype.itemsize)


def _scanned(path: Path, given: str, parts: _Parts) -> Iterator[_Layout]:
    """Scan a file; tell its layout after each block that has been added to ``parts``."""
    blocks = line_blocks(path, given)
    first = next(blocks, b"")
    header_line, _, rest = first.partition(b"\n")
    rest = rest or next(blocks, b"")
    first_line = rest.partition(b"\n")[0]
    header_line = header_line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r")
    if not header_line.strip():
        raise BadInput(given, "line 1", "the header is empty", "Write the names of the columns there")
    if not first_line:
        raise BadInput(given, "line 2", "is empty" if rest else "is missing", "Write the first row there")
    layout = _layout(header_line, first_line.removesuffix(b"\r"), given)
    for block in chain([rest], blocks):
        _scan(block, layout, parts)
        yield layout


def estimated_entries(path: Path, given: str) -> int:
    """Estimate the number of entries of a matrix of text that are not zero, from its beginning.

    Raises
    ------
    BadInput
        When it is empty or no text.
    """
    with path.open("rb") as file:
        unzipped = _UNZIPPED if file.read(2) == b"\x1f\x8b" else 1
    text = np.frombuffer(next(line_blocks(path, given), b"\n"), np.uint8)
    separates = np.isin(text, np.frombuffer(b",\t; \n", np.uint8))
    zeros = separates[:-2] & (text[1:-1] == ZERO) & separates[2:]
    return round((separates.sum() - zeros.sum()) / len(text) * path.stat().st_size * unzipped)


def _layout(header_line: bytes, first_line: bytes, given: str) -> _Layout:
    """Choose the delimiter that fits header and first row alike and gives most fields; tabs before commas."""
    best: tuple[bool, int, str, list[str]] = (False, 0, ",", [])
    for delimiter in "\t,; ":
        if delimiter.encode() not in first_line:
            continue
        header = _split(header_line, delimiter, given, 1)
        width = len(_split(first_line, delimiter, given, 2))
        fits = width > 1 and len(header) in (width, width - 1)
        if (fits, width) > best[:2]:
            best = (fits, width, delimiter, header)
    _, width, delimiter, header = best
    return _Layout(given, delimiter, width, _column_names(header, width, given))


def _split(line: bytes, delimiter: str, given: str, number: int) -> list[str]:
    """Split a line with quotes minded; [] where this delimiter makes no sense."""
    try:
        return next(csv.reader([line.decode("utf-8")], delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise BadInput(given, f"line {number}", "is not UTF-8 text", "Save it as CSV (UTF-8)") from error
    except csv.Error:  # fields beyond the limit of the csv module
        return []


def _column_names(header: list[str], width: int, given: str) -> Names:
    """Return the names above the values; the header may lack the corner, as R writes it."""
    if width < 2:
        raise BadInput(
            given,
            "line 2",
            "holds one field only",
            "Separate names and counts by commas or tabs, one row per line",
        )
    if len(header) == width:
        return np.asarray(header[1:], dtype=object)
    if len(header) == width - 1:
        return np.asarray(header, dtype=object)
    raise BadInput(
        given,
        "line 2",
        f"has {width} fields, but the header has {len(header)}",
        "Make all rows as long as the header",
    )


def _scan(block: bytes, layout: _Layout, parts: _Parts) -> None:
    """Scan a block of whole lines and append what is not zero to ``parts``."""
    width = layout.width
    text = np.frombuffer(block, np.uint8)
    is_separator = text == ord(layout.delimiter)
    is_separator |= text == NEWLINE
    ends = np.flatnonzero(is_separator)
    if b'"' in block:
        ends = _outside_quotes(text, ends, parts.lines, layout.given)
    _check_ragged(text, ends, width, parts.lines, layout.given)
    # A lone zero is a separator, "0", a separator: three shifted comparisons instead of reading the field.
    lone_zero = np.zeros(len(text), bool)
    lone_zero[2:] = is_separator[:-2] & (text[1:-1] == ZERO) & is_separator[2:]
    wanted = ~lone_zero[ends]
    wanted[::width] = False  # the first field is the row's name
    at = np.flatnonzero(wanted)
    starts = ends[at - 1] + 1
    lengths = ends[at] - starts
    if b"\r" in block:
        lengths -= (text[ends[at] - 1] == RETURN) & (lengths > 0) & (at % width == width - 1)
    fields = _Fields(starts, lengths, at // width, (at % width - 1).astype(np.int32))
    values, unread = numbers(text, starts, lengths)
    names = _row_names(text, ends, width, parts.lines, layout.given)
    if len(unread):
        values[unread] = _odd_numbers(text, fields, unread, layout, names, parts.lines)
    kept = values != 0
    count = len(ends) // width
    parts.names.append(names)
    parts.lengths.append(np.bincount(fields.rows[kept], minlength=count).astype(np.int64))
    parts.columns.append(fields.columns[kept])
    parts.values.append(values[kept])
    parts.lines += count


def _outside_quotes(text: Bytes, ends: Positions, lines: int, given: str) -> Positions:
    """Drop separators that lie between quotes."""
    quotes = np.flatnonzero(text == QUOTE)
    inside = np.searchsorted(quotes, ends) % 2 == 1
    broken = inside & (text[ends] == NEWLINE)
    if broken.any():
        line = lines + 1 + int((text[: ends[broken][0]] == NEWLINE).sum())
        raise BadInput(given, f"line {line}", "a quote is not closed", "Close it, or leave the quotes out")
    return ends[~inside]


def _check_ragged(text: Bytes, ends: Positions, width: int, lines: int, given: str) -> None:
    newlines = text[ends] == NEWLINE
    count = int(newlines.sum())
    if len(ends) == count * width and newlines[width - 1 :: width].all():
        return
    fields = np.diff(np.flatnonzero(newlines), prepend=-1)
    row = int(np.argmax(fields != width))
    raise BadInput(
        given,
        f"line {lines + 1 + row}",
        f"has {fields[row]} fields, but the lines before have {width}",
        "Make all rows equally long; a file that was cut short must be copied again",
    )


def _odd_numbers(
    text: Bytes, fields: _Fields, unread: Positions, layout: _Layout, names: pl.Series, lines: int
) -> NDArray[np.float64]:
    """Read signs, exponents, quotes and spaces; refuse the first entry that is no finite number."""
    values, entries = other_numbers(text, fields.starts[unread], fields.lengths[unread])
    bad = ~np.isfinite(values)
    if bad.any():
        worst = int(np.argmax(bad))
        entry, at = entries[worst], int(unread[worst])
        row, column = int(fields.rows[at]), int(fields.columns[at])
        what = "is empty" if entry == "" else f"is {entry!r}, not a finite number"
        raise BadInput(
            layout.given,
            f"line {lines + 1 + row}, column {column + 2} "
            f"(row {names[row]!r}, column {layout.columns[column]!r})",
            f"the entry {what}",
            "Every entry must be a count: put 0 where nothing was seen, and take out columns without counts",
        )
    return values


def _row_names(text: Bytes, ends: Positions, width: int, lines: int, given: str) -> pl.Series:
    starts = np.concatenate([[0], ends[width - 1 : -1 : width] + 1])
    lengths = ends[::width] - starts
    if lengths.max() > _LONGEST_NAME:
        line = lines + 1 + int(lengths.argmax())
        raise BadInput(given, f"line {line}", f"the name is longer than {_LONGEST_NAME} signs", "Shorten it")
    names = strings(text, starts, lengths)
    unreadable = names.str.contains(UNREADABLE, literal=True)
    if unreadable.any():
        line = lines + 1 + int(unreadable.arg_max() or 0)
        raise BadInput(given, f"line {line}", "the name is not UTF-8 text", "Save it as CSV (UTF-8)")
    quoted = names.str.starts_with('"') & names.str.ends_with('"')
    if quoted.any():
        bare = names.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
        names = pl.select(pl.when(quoted).then(bare).otherwise(names)).to_series()
    return names


def _described(
    parts: _Parts, columns: Names, orientation: Orientation, labelled: Names | None
) -> tuple[RawMatrix, bool]:
    """Give the matrix without its entries, and whether the file's rows are genes."""
    rows = np.asarray(pl.concat(parts.names).to_list(), dtype=object)
    side, rule = decide(rows, columns, labelled, orientation)
    genes_first = side == "genes_by_cells"
    cells, genes = (columns, rows) if genes_first else (rows, columns)
    raw = RawMatrix(
        X=sparse.csr_matrix((len(cells), len(genes))),
        cells=cells,
        genes=genes,
        format="delimited text",
        rows="genes" if genes_first else "cells",
        header_rows=1,
        header_columns=1,
        notes={"orientation": side, "orientation_rule": rule},
    )
    return raw, genes_first
