"""The sample sheet: which samples a study has, where they lie, and what is known of each.

A table with a header, ``samples.csv``: ``sample`` (name of the dataset), ``path`` (file, folder or URL; relative to
the sheet; empty: the dataset of that name in the inbox), ``sha256`` (of the file), limits of quality control for this
sample alone (`LIMITS`), and any other columns, which are carried to the cells. Read by the sensor at every look, so
nothing heavy is imported.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neumf_assets.core.errors import BadInput

Value = str | int | float | bool
SHEETS = ("samples.csv", "samples.tsv")
"""Names of a sheet in an inbox."""
SAMPLE, PATH, SHA256 = "sample", "path", "sha256"
LIMITS = ("min_genes", "max_mito", "expected_cells", "doublet_rate")
"""Settings of quality control that a sheet may give for one sample."""
_MISSING = ("", "na", "n/a", "nan", "none", "null")
_YES_NO = {"true": True, "false": False, "yes": True, "no": False}
_RESERVED = ("cell", "dataset", "index", "_index")
_BYTE_ORDERS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Sample:
    """A line of the sheet.

    Attributes
    ----------
    name
        Name of the dataset.
    path
        Where it lies, as the sheet says; empty: in the inbox under its name.
    sha256
        Digest that its file must have; empty: any.
    columns
        What is known of it, typed: the columns that are carried to its cells. A missing value is left out.
    limits
        Its own limits of quality control.
    line
        Its line in the sheet, from 1.
    """

    name: str
    path: str = ""
    sha256: str = ""
    columns: Mapping[str, Value] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    line: int = 0

    @property
    def told(self) -> str:
        """All that it says of the dataset besides where it lies, as one text: what results depend on."""
        return json.dumps([self.sha256, dict(self.columns), dict(self.limits)], sort_keys=True)


def read_samples(content: bytes, file: str) -> list[Sample]:
    """Read a sample sheet.

    Parameters
    ----------
    content
        CSV or TSV, UTF-8 or UTF-16.
    file
        Path or URL for messages.

    Raises
    ------
    BadInput
        Naming line and column.
    """
    header, rows = _table(content, file)
    columns = {
        name: _typed([row[at].strip() for _, row in rows])
        for at, name in enumerate(header)
        if name not in (SAMPLE, PATH, SHA256, *LIMITS)
    }
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    for number, (line, row) in enumerate(rows):
        given = {name: value.strip() for name, value in zip(header, row, strict=True)}
        name = given[SAMPLE]
        if not name:
            raise BadInput(file, f"line {line}, column {SAMPLE!r}", "the sample has no name", "Name it")
        if name in lines:
            raise BadInput(
                file,
                f"line {line}, column {SAMPLE!r}",
                f"{name!r} occurs twice (before: line {lines[name]})",
                "Give every sample a name of its own",
            )
        lines[name] = line
        known = {column: values[number] for column, values in columns.items()}
        samples.append(
            Sample(
                name,
                given.get(PATH, ""),
                _digest(given.get(SHA256, ""), line, file),
                {column: value for column, value in known.items() if value is not None},
                _limits(given, line, file),
                line,
            )
        )
    return samples


def _table(content: bytes, file: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows with their lines."""
    encoding = next((name for mark, name in _BYTE_ORDERS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInput(file, "", f"is no text ({error.reason})", "Save it as CSV (UTF-8)") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    filled = [(reader.line_num, row) for row in reader if any(value.strip() for value in row)]
    header = [name.strip() for name in filled[0][1]] if filled else []
    lowered = [name.lower() if name.lower() in (SAMPLE, PATH, SHA256, *LIMITS) else name for name in header]
    if SAMPLE not in lowered:
        raise BadInput(
            file,
            "line 1",
            f"there is no column {SAMPLE!r} (there are: {', '.join(map(repr, header)) or 'none'})",
            "Name the column of the samples so; a count table of this name must be called otherwise",
        )
    for at, name in enumerate(lowered):
        if not name or name.lower() in _RESERVED or lowered.index(name) < at:
            problem = "has no name" if not name else "is there twice" if lowered.index(name) < at else ""
            what = f"column {at + 1} {problem}" if problem else f"a column may not be called {name!r}"
            raise BadInput(file, "line 1", what, "Rename it, or take it out")
    for line, row in filled[1:]:
        if len(row) != len(lowered):
            raise BadInput(
                file,
                f"line {line}",
                f"has {len(row)} fields, the header {len(lowered)}",
                "Give every line all fields; put text with separators in quotes",
            )
    if len(filled) < 2:
        raise BadInput(file, "", "lists no sample", "Add a line for each")
    return lowered, filled[1:]


def _typed(texts: Sequence[str]) -> list[Value | None]:
    """Values of a column: whole numbers, numbers, yes or no, else text; None where one is missing."""
    there = [text for text in texts if text.lower() not in _MISSING]
    kinds: tuple[tuple[str, type], ...] = (
        (r"[+-]?\d{1,15}", int),
        (r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", float),
    )
    for pattern, kind in kinds:
        if there and all(re.fullmatch(pattern, text) for text in there):
            # a leading zero is part of a name: 007 is a patient
            if kind is int and any(re.match(r"[+-]?0\d", text) for text in there):
                break
            return [None if text.lower() in _MISSING else kind(text) for text in texts]
    if there and all(text.lower() in _YES_NO for text in there):
        return [_YES_NO.get(text.lower()) for text in texts]
    return [None if text.lower() in _MISSING else text for text in texts]


def _digest(text: str, line: int, file: str) -> str:
    if text and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise BadInput(
            file, f"line {line}, column {SHA256!r}", f"{text!r} is no SHA-256", "Give 64 hexadecimal digits"
        )
    return text.lower()


def _limits(given: Mapping[str, str], line: int, file: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in LIMITS:
        text = given.get(name, "")
        if text.lower() in _MISSING:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        whole = name in ("min_genes", "expected_cells")
        highest = math.inf if whole else 1.0
        if not 0 <= value <= highest or (whole and (value < 1 or value != int(value))):
            wanted = "a whole number from 1 up" if whole else "a number from 0 to 1"
            raise BadInput(file, f"line {line}, column {name!r}", f"{text!r} is not {wanted}", "Correct it")
        found[name] = int(value) if whole else value
    return found


def sheet_of(names: Mapping[str, str]) -> str:
    """A first sheet: a line for each dataset with its path, and columns to fill in.

    Parameters
    ----------
    names
        Path of each dataset by its name.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([SAMPLE, PATH, "donor", "condition", "expected_cells"])
    writer.writerows([name, path, "", "", ""] for name, path in names.items())
    return out.getvalue()
