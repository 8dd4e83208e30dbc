"""Labels of cells: from the file itself or from ``NAME.labels.csv``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from neumf_assets.core.counts.readers.matrix import Names
from neumf_assets.core.counts.readers.text import line_blocks
from neumf_assets.core.counts.samples import Value
from neumf_assets.core.counts.stored import is_measured
from neumf_assets.core.errors import BadInput

CELL = "cell"
CELL_NAMES = (
    "cell",
    "cells",
    "cell_id",
    "cellid",
    "cell_barcode",
    "barcode",
    "barcodes",
    "index",
    "unnamed: 0",
    "",
)
"""What the first column of a labels file may be called, in any case."""
_MOST_VALUES = 0.5
_RESERVED = ("_index", "index")
_logger = logging.getLogger(__name__)
_FEW = 50


def read_labels(path: Path, given: str) -> pl.DataFrame:
    """Read a labels file.

    Parameters
    ----------
    path
        Local CSV file with a column ``cell`` and one or more label columns.
    given
        Path or URL for messages.

    Returns
    -------
    polars.DataFrame
        All columns as text.

    Raises
    ------
    BadInput
        When it is no such table, or names a cell twice or not at all.
    """
    try:
        content = b"".join(line_blocks(path, given))
        separator = max(",;\t", key=content.partition(b"\n")[0].decode("utf-8", "replace").count)
        table = pl.read_csv(content, infer_schema=False, separator=separator, encoding="utf8")
    except BadInput:
        raise
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise BadInput(
            given, "", f"cannot be read as CSV ({reason})", "Export it again as CSV (UTF-8)"
        ) from error
    table = table.rename({name: CELL for name in table.columns[:1] if name.strip().lower() in CELL_NAMES})
    if CELL not in table.columns or table.width < 2:
        raise BadInput(
            given,
            "line 1",
            f"the columns are {', '.join(map(repr, table.columns[:5]))}",
            "Name the first column 'cell' and add at least one label column",
        )
    nameless = table[CELL].is_null()
    if nameless.any():
        raise BadInput(given, f"line {(nameless.arg_max() or 0) + 2}", "the cell has no name", "Name it")
    repeated = table[CELL].is_duplicated()
    if repeated.any():
        line = repeated.arg_max() or 0
        raise BadInput(
            given,
            f"line {line + 2}",
            f"the cell {table[CELL][line]!r} occurs twice",
            "Keep one line for each cell",
        )
    return table


def cell_labels(
    cells: Names,
    obs: pd.DataFrame | None,
    labels: pl.DataFrame | None,
    wanted: tuple[str, ...] | None,
    unlabelled: tuple[str, ...],
    file: str,
    labels_file: str,
) -> pd.DataFrame:
    """Gather the labels of the cells.

    Parameters
    ----------
    cells
        Names of the cells of the matrix.
    obs
        Columns that came with the matrix, in the order of its cells.
    labels
        What `read_labels` gave; where a column is in both, this one counts.
    wanted
        Columns to keep, as labels. None keeps every column of ``labels`` and every text, categorical, yes/no or
        numeric column of ``obs``, except text that tells nearly every cell apart (identifiers).
    unlabelled
        Values, in any case, that say that a cell has no label; an empty field always does.
    file, labels_file
        For messages.

    Returns
    -------
    pandas.DataFrame
        Categorical columns, cells in order; NaN = unlabelled. Numeric columns of ``obs``, and columns of ``labels``
        that hold fractions, are numbers.

    Raises
    ------
    BadInput
        When the labels name cells that the matrix does not hold, or a wanted column is nowhere.
    """
    columns: dict[str, Any] = {}
    if obs is not None:
        for name in obs.columns:
            if str(name) in wanted if wanted is not None else _is_label(obs[name]):
                numeric = wanted is None and is_measured(obs[name])
                columns[str(name)] = obs[name].to_numpy() if numeric else _categorical(obs[name], unlabelled)
    if labels is not None:
        placed = _in_order(cells, labels, labels_file)
        for name in labels.columns:
            if name != CELL and (wanted is None or name in wanted):
                texts = _categorical(pd.Series(placed[name].to_list(), dtype=object), unlabelled)
                columns[name] = _measured(texts)
    missing = [name for name in wanted or () if name not in columns]
    if missing:
        there = [
            *(obs.columns if obs is not None else ()),
            *(labels.columns[1:] if labels is not None else ()),
        ]
        raise BadInput(
            labels_file or file,
            "columns",
            f"there is no label column {missing[0]!r} (there are: {', '.join(map(str, there)) or 'none'})",
            "Correct label_columns in the settings, or add the column",
        )
    return pd.DataFrame(_storable(columns, labels_file or file), index=pd.Index(cells, dtype=object))


def _storable(columns: dict[str, Any], file: str) -> dict[str, Any]:
    """Give columns names that files of HDF5 can hold, and say which were changed."""
    named: dict[str, Any] = {}
    for name, values in columns.items():
        new = name.replace("/", "_").strip() or "label"
        new = f"label{new}" if new in _RESERVED else new
        while new in named:
            new += "_"
        if new != name:
            _logger.warning(
                "%s: the label column %r is called %r from here on: files cannot hold a slash in names, "
                "nor names that are empty or their own",
                file,
                name,
                new,
            )
        named[new] = values
    return named


def with_sample(labels: pd.DataFrame, described: Mapping[str, Value], file: str) -> pd.DataFrame:
    """Add what the sample sheet says of all cells of a dataset; where it and the file say something, it counts."""
    columns: dict[str, Any] = {}
    for name, value in described.items():
        text = isinstance(value, str | bool)
        columns[name] = pd.Categorical([str(value)] * len(labels)) if text else np.full(len(labels), value)
    for name, values in _storable(columns, file).items():
        if name in labels:
            _logger.warning("%s: the sample sheet's column %r is taken, not the file's own", file, name)
        labels[name] = values
    return labels


def _in_order(cells: Names, labels: pl.DataFrame, file: str) -> pl.DataFrame:
    frame = pl.DataFrame({CELL: pl.Series(cells, dtype=pl.String)})
    strangers = ~labels[CELL].is_in(frame[CELL].implode())
    if strangers.any():
        line = strangers.arg_max() or 0
        raise BadInput(
            file,
            f"line {line + 2}",
            f"the matrix lacks the cell {labels[CELL][line]!r} and {strangers.sum() - 1} others in this file",
            "Use the matrix's own cell names, and keep only the lines of this dataset",
        )
    return frame.join(labels, on=CELL, how="left", maintain_order="left")


def _is_label(column: pd.Series) -> bool:
    kind = column.dtype
    if not (
        isinstance(kind, pd.CategoricalDtype)
        or kind is np.dtype(object)
        or pd.api.types.is_string_dtype(kind)
    ):
        return bool(pd.api.types.is_bool_dtype(kind) or pd.api.types.is_numeric_dtype(kind))
    return bool(column.nunique() <= max(_FEW, _MOST_VALUES * len(column)))


def _measured(texts: pd.Categorical) -> Any:
    """Labels, or numbers where all values are and some are fractions: whole numbers name clusters or donors."""
    numbers = pd.to_numeric(pd.Series(texts.categories), errors="coerce")
    finite = numbers[np.isfinite(numbers)]
    if len(numbers) < 2 or len(finite) < len(numbers) or (finite == finite.round()).all():
        return texts
    return pd.Series(texts.astype(object)).astype(float).to_numpy()


def _categorical(column: pd.Series, unlabelled: tuple[str, ...]) -> pd.Categorical:
    missing = column.isna().to_numpy()
    text = column.astype(object).where(~missing, "").astype(str).to_numpy(dtype=object)
    lowered = np.char.strip(np.char.lower(text.astype(str)))
    text[missing | np.isin(lowered, ["", *(value.lower() for value in unlabelled)])] = None
    return pd.Categorical(text)
