"""Labels of cells: from the file itself or from ``NAME.labels.csv``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from neumf_assets.core.counts.readers.matrix import Names
from neumf_assets.core.errors import BadInput

CELL = "cell"
UNLABELLED = ("NA", "")
_MOST_VALUES = 0.5
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
        All columns as text; ``NA`` and empty fields are null.

    Raises
    ------
    BadInput
        When it is no such table, or names a cell twice or not at all.
    """
    if path.stat().st_size == 0:
        raise BadInput(given, "", "the file is empty", "Copy or export it again")
    try:
        table = pl.read_csv(path, infer_schema=False, null_values=list(UNLABELLED), encoding="utf8")
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise BadInput(
            given, "", f"cannot be read as CSV ({reason})", "Export it again as CSV (UTF-8)"
        ) from error
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
        Columns to keep. None keeps every column of ``labels`` and every text, categorical or yes/no column of
        ``obs``, except those that tell nearly every cell apart (identifiers).
    file, labels_file
        For messages.

    Returns
    -------
    pandas.DataFrame
        Categorical columns, cells in order; NaN = unlabelled.

    Raises
    ------
    BadInput
        When the labels name cells that the matrix does not hold, or a wanted column is nowhere.
    """
    columns: dict[str, pd.Categorical] = {}
    if obs is not None:
        for name in obs.columns:
            if str(name) in wanted if wanted is not None else _is_label(obs[name]):
                columns[str(name)] = _categorical(obs[name])
    if labels is not None:
        placed = _in_order(cells, labels, labels_file)
        for name in labels.columns:
            if name != CELL and (wanted is None or name in wanted):
                columns[name] = pd.Categorical(placed[name].to_list())
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
    return pd.DataFrame(columns, index=pd.Index(cells, dtype=object))


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
        return bool(pd.api.types.is_bool_dtype(kind))
    return bool(column.nunique() <= max(_FEW, _MOST_VALUES * len(column)))


def _categorical(column: pd.Series) -> pd.Categorical:
    missing = column.isna().to_numpy()
    text = column.astype(object).where(~missing, "").astype(str).to_numpy(dtype=object)
    text[missing | np.isin(text.astype(str), UNLABELLED)] = None
    return pd.Categorical(text)
