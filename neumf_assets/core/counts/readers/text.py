"""Text in blocks of whole lines, and the numbers and names in it, by array operations."""

from __future__ import annotations

import codecs
import logging
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from neumf_assets.core.errors import BadInput

_logger = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Bytes of text scanned at a time: its temporaries stay within the processor's cache."""
_CHUNK = 1 << 18
_LONGEST_LINE = 1 << 30
_LONGEST_NUMBER = 64
NEWLINE, RETURN, QUOTE, ZERO, _DOT = (ord(sign) for sign in '\n\r"0.')
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_EXACT_DIGITS = 15
_POWERS = 10.0 ** np.arange(_EXACT_DIGITS + 1)
_GZIP = b"\x1f\x8b"
_TIMES_ZIPPED = 3
_OTHER_FORMATS = {
    b"PK": "a ZIP archive (or an Excel workbook)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x89HDF": "an HDF5 file",
}

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]


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
    rest = b"".join(carried)
    last = rest.rstrip(b"\r\n")
    if last:
        if last == rest:
            _logger.info(
                "%s: the last line has no end; if the file was cut short there, copy it again", given
            )
        yield last + b"\n"


def _without_line_end(text: bytes) -> bytes:
    return text[2:] if text.startswith(b"\r\n") else text[1:]


def _chunks(path: Path, given: str) -> Iterator[bytes]:
    """Yield the text of a file as UTF-8 without a byte-order mark, its lines ended by line feeds."""
    chunks = _bytes(path, given)
    first = next(chunks, b"")
    if first[257:262] == b"ustar":
        raise BadInput(
            given, "", "is a tar archive, not text", "Unpack it, and give each count file by itself"
        )
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from _from_utf16(chain([first], chunks), given)
        return
    first = first.removeprefix(codecs.BOM_UTF8)
    if b"\r" in first and b"\n" not in first:  # as Macs once ended lines
        yield from (chunk.replace(b"\r", b"\n") for chunk in chain([first], chunks))
        return
    yield from chain([first], chunks)


def _from_utf16(chunks: Iterable[bytes], given: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-16")()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise BadInput(given, "", "is damaged UTF-16 text", "Save it as CSV (UTF-8)") from error


def _bytes(path: Path, given: str) -> Iterator[bytes]:
    """Yield the bytes of a file, unzipped where its content says so."""
    with path.open("rb") as file:
        head = file.read(8)
        if not head:
            raise BadInput(given, "", "the file is empty", "Copy or export it again")
        for magic, kind in _OTHER_FORMATS.items():
            if head.startswith(magic):
                raise BadInput(given, "", f"is {kind}, not text", "Save it as text (UTF-8), plain or gzipped")
        file.seek(0)
        if not head.startswith(_GZIP):
            while chunk := file.read(BLOCK):
                yield chunk
            return
        chunks = _unzipped(iter(partial(file.read, _CHUNK), b""), given)
        for _ in range(_TIMES_ZIPPED):
            first = b""
            while len(first) < len(_GZIP) and (more := next(chunks, None)) is not None:
                first += more
            chunks = chain([first], chunks)
            if not first.startswith(_GZIP):
                break
            chunks = _unzipped(chunks, given)
        yield from chunks


def _unzipped(packed: Iterator[bytes], given: str) -> Iterator[bytes]:
    stream = zlib.decompressobj(31)
    mend = "Copy or download it again"
    try:
        for compressed in packed:
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


def numbers(text: Bytes, starts: Positions, lengths: Positions) -> tuple[NDArray[np.float64], Positions]:
    """Read unsigned decimals of at most 15 digits exactly; also return which fields are something else."""
    values = text[np.minimum(starts, len(text) - 1)] - np.uint8(ZERO)  # wraps above 9 for all but digits
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
        digit = sign - np.uint8(ZERO)
        is_digit, is_dot = here & (digit <= 9), here & (sign == _DOT)
        mantissa[is_digit] = mantissa[is_digit] * 10 + digit[is_digit]
        decimals += is_digit & (dots > 0)
        dots += is_dot
        good &= ~here | is_digit | is_dot
    good &= (dots <= 1) & (length > dots) & (length - dots <= _EXACT_DIGITS)
    # Both are exact below 2**53, so the quotient is the nearest double, as in any correct parser.
    result[longer] = mantissa / _POWERS[np.where(good, decimals, 0)]
    return result, longer[~good]


def other_numbers(
    text: Bytes, starts: Positions, lengths: Positions
) -> tuple[NDArray[np.float64], pl.Series]:
    """Read what `numbers` left: signs, exponents, quotes, spaces; NaN for what is no number.

    Also returns the fields as text, for messages.
    """
    entries = strings(text, starts, np.minimum(lengths, _LONGEST_NUMBER)).str.strip_chars(' "\r')
    values = entries.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy().copy()
    values[lengths > _LONGEST_NUMBER] = np.nan
    return values, entries


def strings(text: Bytes, starts: Positions, lengths: Positions) -> pl.Series:
    """Fields as text; signs that are not UTF-8 become `UNREADABLE`."""
    width = max(1, int(lengths.max(initial=1)))
    offsets = np.arange(width)
    signs = text[np.minimum(starts[:, None] + offsets, len(text) - 1)]
    signs[offsets >= lengths[:, None]] = 0
    fields = b"\n".join(signs.view(f"S{width}").ravel().tolist())  # no field holds a line feed
    return pl.Series(fields.decode("utf-8", errors="replace").split("\n"), dtype=pl.String)
