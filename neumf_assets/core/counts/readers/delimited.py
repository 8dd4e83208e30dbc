"""CSV and TSV matrices, plain or gzipped, in one streaming pass.

The text is scanned in blocks of whole lines with array operations: find the separators, drop the fields
that are just ``0`` (95 % of them), read the digits of the rest. That is several times faster than parsing
every field into a dense table, and never holds more than one block of text.

Accepted: comma, tab, semicolon or single spaces between fields (the one that the header holds most of), and
one more at the end of lines; remarks (#) above the header; line ends of Unix, Windows and old Macs; names in
double quotes; a header with or without a corner field; whole numbers, decimals, exponents as R writes them
(``1e+05``). Columns that hold no counts by their names (lengths, places, the index of pandas) are left out.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.readers.contents.orientation import decide
from neumf_assets.core.counts.readers.matrix import Names, RawMatrix
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
# fmt: off
_NO_COUNTS = frozenset(
    (
        "length", "gene_length", "genelength", "transcript_length", "effective_length", "effectivelength",
        "exon_length", "chr", "chrom", "chromosome", "seqname", "seqnames", "start", "end", "strand",
        "gene_start", "gene_end", "gc", "gc_content", "gccontent", "percentage_gene_gc_content", "entrez",
        "entrezid", "entrez_id", "entrezgene", "biotype", "gene_biotype", "gene_type", "description",
        "gene_description", "n_genes", "n_genes_by_counts", "ngene", "nfeature_rna", "n_counts",
        "ncount_rna", "n_umis", "numi", "total_counts", "percent.mt", "percent_mt", "percent_mito",
        "pct_counts_mt", "orig.ident", "unnamed: 0", "unnamed: 0.1",
    )
)
# fmt: on
"""Columns that programmes put beside counts: of annotations, of quality control, the index of pandas."""
_logger = logging.getLogger(__name__)
_UNZIPPED = 12
"""Size of a table of counts over that of its gzip file, about."""


@dataclass(frozen=True)
class _Layout:
    """What the first two lines of a file tell: delimiter, fields per line, names above the values.

    ``counts`` says which of these columns hold counts; ``trailing`` whether lines end with a separator.
    """

    given: str
    delimiter: str
    width: int
    columns: Names
    trailing: bool

    @cached_property
    def counts(self) -> NDArray[np.bool_]:
        """Columns of counts, and not of what else tables tell of genes or cells."""
        return np.array([str(name).strip().lower() not in _NO_COUNTS for name in self.columns], dtype=bool)

    @cached_property
    def places(self) -> NDArray[np.int32]:
        """Place of each column among those of counts."""
        return (np.cumsum(self.counts) - 1).astype(np.int32)


@dataclass
class _Parts:
    """What the scan collects: the file's own rows and columns, in compressed rows."""

    names: list[pl.Series] = field(default_factory=list)
    lengths: list[Positions] = field(default_factory=list)
    columns: list[NDArray[np.int32]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)
    lines: int = 1
    layout: _Layout = field(init=False)

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
    for _ in _scanned(path, given, parts):
        pass
    layout = parts.layout
    data, indices = np.concatenate(parts.values), np.concatenate(parts.columns)
    raw, genes_first = _described(parts, orientation, labelled)
    matrix = sparse.csr_matrix(
        (data, indices, parts.pointers), shape=(len(parts.pointers) - 1, int(layout.counts.sum()))
    )
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
        for _ in _scanned(path, given, parts):
            for found, file in ((parts.values, data), (parts.columns, indices)):
                for part in found:
                    part.tofile(file)
                found.clear()
    raw, genes_first = _described(parts, orientation, labelled)
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


def _scanned(path: Path, given: str, parts: _Parts) -> Iterator[None]:
    """Scan a file; pause after each block that has been added to ``parts``."""
    blocks = line_blocks(path, given)
    header_line, rest, first_line = _two_lines(next(blocks, b""), blocks)
    while _is_comment(header_line, first_line):
        header_line, rest, first_line = _two_lines(rest, blocks)
        parts.lines += 1
    header_line = header_line.removesuffix(b"\r")
    if not header_line.strip():
        raise BadInput(given, "line 1", "the header is empty", "Write the names of the columns there")
    if not first_line:
        raise BadInput(given, "line 2", "is empty" if rest else "is missing", "Write the first row there")
    layout = _layout(header_line, first_line.removesuffix(b"\r"), given)
    parts.layout = layout
    if not layout.counts.all():
        left_out = ", ".join(map(str, layout.columns[~layout.counts]))
        _logger.warning("%s: columns left out, as they hold no counts: %s", given, left_out)
    for block in chain([rest], blocks):
        _scan(block, layout, parts)
        yield


def _two_lines(text: bytes, blocks: Iterator[bytes]) -> tuple[bytes, bytes, bytes]:
    """Give the first line, all that follows of its block (or the next one), and the line after it."""
    line, _, rest = text.partition(b"\n")
    rest = rest or next(blocks, b"")
    return line, rest, rest.partition(b"\n")[0]


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
    """Choose the delimiter that fits header and first row alike and gives most fields; tabs first, spaces last."""
    best: tuple[bool, int, str, list[str], bool] = (False, 0, ",", [], False)
    for delimiter in "\t,; ":
        if delimiter.encode() not in first_line or (delimiter == " " and best[0]):
            continue  # spaces stand in names too
        header = _split(header_line, delimiter, given, 1)
        row = _split(first_line, delimiter, given, 2)
        width, trailing = len(row), _ends_in_separator(header, row)
        if header and header[-1] == "" and len(header) > width - trailing:
            header = header[:-1]
        fits = width > 1 and len(header) in (width - trailing, width - trailing - 1)
        if (fits, width) > best[:2]:
            best = (fits, width, delimiter, header, trailing)
    _, width, delimiter, header, trailing = best
    return _Layout(given, delimiter, width, _column_names(header, width - trailing, given), trailing)


def _ends_in_separator(header: list[str], row: list[str]) -> bool:
    """Whether lines end with a separator behind the last count; a count that is missing has a name above it."""
    return len(row) > 2 and row[-1] == "" and (len(header) < len(row) or header[-1] == "")


def _is_comment(line: bytes, following: bytes) -> bool:
    """Whether a line above the table is a remark; a header may begin with # too, but has as many fields as rows."""
    fields = [(line.count(sign), following.count(sign)) for sign in (b"\t", b",", b";")]
    return line.startswith(b"#") and bool(following) and not any(own == other > 0 for own, other in fields)


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
    for column in np.flatnonzero(~layout.counts):
        wanted[column + 1 :: width] = False
    if layout.trailing:
        _check_trailing(text, ends, width, parts.lines, layout.given)
        wanted[width - 1 :: width] = False
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
    parts.columns.append(layout.places[fields.columns[kept]])
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


def _check_trailing(text: Bytes, ends: Positions, width: int, lines: int, given: str) -> None:
    """Refuse a line that has something behind the separator with which the first one ends."""
    last = ends[width - 1 :: width]
    filled = last - ends[width - 2 :: width] - 1 - (text[last - 1] == RETURN) > 0
    if filled.any():
        raise BadInput(
            given,
            f"line {lines + 1 + int(filled.argmax())}",
            f"has {width} fields, but the first line leaves the last one empty",
            "Make all rows equally long",
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


def _described(parts: _Parts, orientation: Orientation, labelled: Names | None) -> tuple[RawMatrix, bool]:
    """Give the matrix without its entries, and whether the file's rows are genes."""
    layout = parts.layout
    columns = layout.columns[layout.counts]
    rows = np.asarray(pl.concat(parts.names).to_list(), dtype=object)
    side, rule = decide(rows, columns, labelled, orientation)
    if rule == "shape":
        _logger.warning(
            "%s: which way round the table lies is a guess, as no names tell: the longer side is taken for the genes. "
            "If that is wrong set orientation: %s",
            layout.given,
            "cells_by_genes" if side == "genes_by_cells" else "genes_by_cells",
        )
    genes_first = side == "genes_by_cells"
    cells, genes = (columns, rows) if genes_first else (rows, columns)
    raw = RawMatrix(
        X=sparse.csr_matrix((len(cells), len(genes))),
        cells=cells,
        genes=genes,
        format="delimited text",
        rows="genes" if genes_first else "cells",
        header_rows=1 + parts.lines - 1 - len(rows),
        header_columns=1 + int(np.argmax(layout.counts)),
        notes={"orientation": side, "orientation_rule": rule},
    )
    return raw, genes_first
