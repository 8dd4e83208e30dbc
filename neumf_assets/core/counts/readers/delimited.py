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
import zlib
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
from neumf_assets.core.counts.settings import Orientation
from neumf_assets.core.errors import BadInput

BLOCK = 1 << 20
"""Bytes of text scanned at a time: its temporaries stay within the processor's cache."""
_CHUNK = 1 << 18
_LONGEST_LINE = 1 << 30
_LONGEST_NAME = 4096
_LONGEST_NUMBER = 64
_NEWLINE, _RETURN, _QUOTE, _ZERO, _DOT = (ord(sign) for sign in '\n\r"0.')
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_EXACT_DIGITS = 15
_POWERS = 10.0 ** np.arange(_EXACT_DIGITS + 1)
_OTHER_FORMATS = {
    b"PK": "a ZIP archive (or an Excel workbook)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]


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
    blocks = line_blocks(path, given)
    first = next(blocks, b"")
    header_line, _, rest = first.partition(b"\n")
    rest = rest or next(blocks, b"")
    first_line = rest.partition(b"\n")[0]
    header_line = header_line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r")
    if not header_line.strip():
        raise BadInput(given, "line 1", "the header is empty", "Write the names of the columns there")
    if not first_line:
        raise BadInput(given, "", "holds a header and no rows", "Export it again")
    layout = _layout(header_line, first_line.removesuffix(b"\r"), given)
    parts = _Parts()
    for block in chain([rest], blocks):
        _scan(block, layout, parts)
    return _assemble(parts, layout.columns, orientation, labelled)


def line_blocks(path: Path, given: str) -> Iterator[bytes]:
    """Yield a text file, unzipped where need be, in blocks of whole lines, each ended by a line feed.

    Blank lines at the end are dropped.
    """
    carried: list[bytes] = []
    size = 0
    for chunk in _chunks(path, given):
        cut = chunk.rfind(b"\n") + 1
        size += len(chunk)
        if size > _LONGEST_LINE and not cut:
            raise BadInput(
                given, "", "a line is longer than 1 GiB", "This is not a table of text: export it again"
            )
        carried.append(chunk)
        if not cut or size < BLOCK:
            continue
        text = b"".join(carried)
        cut = len(text) - (len(chunk) - cut)
        whole = text[:cut].rstrip(b"\r\n")
        carried = [text[len(whole) :]]
        size = len(carried[0])
        if whole:
            # The line feed stays behind with any blank lines: they only matter when more text follows.
            yield whole + b"\n"
            carried = [_without_line_end(carried[0])]
    last = b"".join(carried).rstrip(b"\r\n")
    if last:
        yield last + b"\n"


def _without_line_end(text: bytes) -> bytes:
    return text[2:] if text.startswith(b"\r\n") else text[1:]


def _chunks(path: Path, given: str) -> Iterator[bytes]:
    """Yield the bytes of a file, unzipped where its content says so."""
    with path.open("rb") as file:
        head = file.read(8)
        if not head:
            raise BadInput(given, "", "the file is empty", "Copy or export it again")
        for magic, kind in _OTHER_FORMATS.items():
            if head.startswith(magic):
                raise BadInput(given, "", f"is {kind}, not text", "Save it as CSV (UTF-8), plain or gzipped")
        file.seek(0)
        if head.startswith(b"\x1f\x8b"):
            yield from _unzipped(file, given)
            return
        while chunk := file.read(BLOCK):
            yield chunk


def _unzipped(file: Any, given: str) -> Iterator[bytes]:
    stream = zlib.decompressobj(31)
    mend = "Copy or download it again"
    try:
        while compressed := file.read(_CHUNK):
            while compressed:
                if stream.eof:  # gzip files may be joined, as bgzip does
                    if not compressed.strip(b"\0"):
                        break
                    stream = zlib.decompressobj(31)
                yield stream.decompress(compressed, BLOCK)
                compressed = stream.unused_data if stream.eof else stream.unconsumed_tail
    except zlib.error as error:
        raise BadInput(given, "", f"the gzip data are damaged ({error})", mend) from error
    # zlib may hold back text that it has already unpacked
    yield stream.flush()
    if not stream.eof:
        raise BadInput(given, "", "the gzip file is cut short", mend)


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
    try:
        return next(csv.reader([line.decode("utf-8")], delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise BadInput(given, f"line {number}", "is not UTF-8 text", "Save it as CSV (UTF-8)") from error
    except csv.Error as error:
        raise BadInput(given, f"line {number}", f"is no table row ({error})", "Export it again") from error


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
    is_separator |= text == _NEWLINE
    ends = np.flatnonzero(is_separator)
    if b'"' in block:
        ends = _outside_quotes(text, ends, parts.lines, layout.given)
    _check_ragged(text, ends, width, parts.lines, layout.given)
    # A lone zero is a separator, "0", a separator: three shifted comparisons instead of reading the field.
    lone_zero = np.zeros(len(text), bool)
    lone_zero[2:] = is_separator[:-2] & (text[1:-1] == _ZERO) & is_separator[2:]
    wanted = ~lone_zero[ends]
    wanted[::width] = False  # the first field is the row's name
    at = np.flatnonzero(wanted)
    starts = ends[at - 1] + 1
    lengths = ends[at] - starts
    if b"\r" in block:
        lengths -= (text[ends[at] - 1] == _RETURN) & (lengths > 0) & (at % width == width - 1)
    fields = _Fields(starts, lengths, at // width, (at % width - 1).astype(np.int32))
    values, unread = _numbers(text, starts, lengths)
    if len(unread):
        values[unread] = _odd_numbers(text, fields, unread, layout, parts.lines)
    kept = values != 0
    count = len(ends) // width
    parts.names.append(_row_names(text, ends, width, parts.lines, layout.given))
    parts.lengths.append(np.bincount(fields.rows[kept], minlength=count).astype(np.int64))
    parts.columns.append(fields.columns[kept])
    parts.values.append(values[kept])
    parts.lines += count


def _outside_quotes(text: Bytes, ends: Positions, lines: int, given: str) -> Positions:
    """Drop separators that lie between quotes."""
    quotes = np.flatnonzero(text == _QUOTE)
    inside = np.searchsorted(quotes, ends) % 2 == 1
    broken = inside & (text[ends] == _NEWLINE)
    if broken.any():
        line = lines + 1 + int((text[: ends[broken][0]] == _NEWLINE).sum())
        raise BadInput(given, f"line {line}", "a quote is not closed", "Close it, or leave the quotes out")
    return ends[~inside]


def _check_ragged(text: Bytes, ends: Positions, width: int, lines: int, given: str) -> None:
    newlines = text[ends] == _NEWLINE
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


def _numbers(text: Bytes, starts: Positions, lengths: Positions) -> tuple[NDArray[np.float64], Positions]:
    """Read unsigned decimals of at most 15 digits exactly; also return which fields are something else."""
    values = text[np.minimum(starts, len(text) - 1)] - np.uint8(_ZERO)  # wraps above 9 for all but digits
    odd = (values > 9) | (lengths != 1)
    result = values.astype(np.float64)
    longer = np.flatnonzero(odd)
    if not len(longer):
        return result, longer
    start, length = starts[longer], lengths[longer]
    mantissa = np.zeros(len(longer), np.int64)
    decimals = np.zeros(len(longer), np.int64)
    dots = np.zeros(len(longer), np.int64)
    good = (length > 0) & (length <= _EXACT_DIGITS + 1)
    for offset in range(int(length[good].max(initial=0))):
        sign = text[np.minimum(start + offset, len(text) - 1)]
        here = good & (offset < length)
        digit = sign - np.uint8(_ZERO)
        is_digit, is_dot = here & (digit <= 9), here & (sign == _DOT)
        mantissa[is_digit] = mantissa[is_digit] * 10 + digit[is_digit]
        decimals += is_digit & (dots > 0)
        dots += is_dot
        good &= ~here | is_digit | is_dot
    good &= (dots <= 1) & (length > dots) & (length - dots <= _EXACT_DIGITS)
    # Both are exact below 2**53, so the quotient is the nearest double, as in any correct parser.
    result[longer] = mantissa / _POWERS[np.where(good, decimals, 0)]
    return result, longer[~good]


def _odd_numbers(
    text: Bytes, fields: _Fields, unread: Positions, layout: _Layout, lines: int
) -> NDArray[np.float64]:
    """Read signs, exponents, quotes and spaces; refuse the first entry that is no finite number."""
    lengths = fields.lengths[unread]
    entries = _strings(text, fields.starts[unread], np.minimum(lengths, _LONGEST_NUMBER))
    entries = entries.str.strip_chars(' "')
    numbers = entries.cast(pl.Float64, strict=False).to_numpy()
    bad = (lengths > _LONGEST_NUMBER) | ~np.isfinite(numbers)
    if bad.any():
        worst = int(np.argmax(bad))
        entry, at = entries[worst], int(unread[worst])
        column = int(fields.columns[at])
        what = "is empty" if entry == "" else f"is {entry!r}, not a finite number"
        raise BadInput(
            layout.given,
            f"line {lines + 1 + int(fields.rows[at])}, column {column + 2} ({layout.columns[column]!r})",
            f"the entry {what}",
            "Every entry must be a count: put 0 where nothing was seen, and take out columns without counts",
        )
    return numbers


def _row_names(text: Bytes, ends: Positions, width: int, lines: int, given: str) -> pl.Series:
    starts = np.concatenate([[0], ends[width - 1 : -1 : width] + 1])
    lengths = ends[::width] - starts
    if lengths.max() > _LONGEST_NAME:
        line = lines + 1 + int(lengths.argmax())
        raise BadInput(given, f"line {line}", f"the name is longer than {_LONGEST_NAME} signs", "Shorten it")
    names = _strings(text, starts, lengths)
    unreadable = names.str.contains(_UNREADABLE, literal=True)
    if unreadable.any():
        line = lines + 1 + int(unreadable.arg_max() or 0)
        raise BadInput(given, f"line {line}", "the name is not UTF-8 text", "Save it as CSV (UTF-8)")
    quoted = names.str.starts_with('"') & names.str.ends_with('"')
    if quoted.any():
        bare = names.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
        names = pl.select(pl.when(quoted).then(bare).otherwise(names)).to_series()
    return names


def _strings(text: Bytes, starts: Positions, lengths: Positions) -> pl.Series:
    """Fields as text; signs that are not UTF-8 become `_UNREADABLE`."""
    width = max(1, int(lengths.max(initial=1)))
    offsets = np.arange(width)
    signs = text[np.minimum(starts[:, None] + offsets, len(text) - 1)]
    signs[offsets >= lengths[:, None]] = 0
    fields = b"\n".join(signs.view(f"S{width}").ravel().tolist())  # no field holds a line feed
    return pl.Series(fields.decode("utf-8", errors="replace").split("\n"), dtype=pl.String)


def _assemble(parts: _Parts, columns: Names, orientation: Orientation, labelled: Names | None) -> RawMatrix:
    rows = np.asarray(pl.concat(parts.names).to_list(), dtype=object)
    data, indices = np.concatenate(parts.values), np.concatenate(parts.columns)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(parts.lengths))])
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(rows), len(columns)))
    side, rule = decide(rows, columns, labelled, orientation)
    genes_first = side == "genes_by_cells"
    return RawMatrix(
        X=matrix.T.tocsr() if genes_first else matrix,
        cells=columns if genes_first else rows,
        genes=rows if genes_first else columns,
        format="delimited text",
        rows="genes" if genes_first else "cells",
        header_rows=1,
        header_columns=1,
        notes={"orientation": side, "orientation_rule": rule},
    )
