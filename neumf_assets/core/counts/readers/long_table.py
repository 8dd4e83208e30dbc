"""Long tables of text: one line for each gene and cell with their count, as umi_tools writes them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from neumf_assets.core.counts.readers.matrix import RawMatrix
from neumf_assets.core.counts.readers.text import line_blocks
from neumf_assets.core.errors import BadInput

_GENE = ("gene", "gene_id", "gene_name", "feature", "symbol")
_CELL = ("cell", "cell_id", "barcode", "cell_barcode", "cb")
_COUNT = ("count", "counts", "umi", "umis", "umi_count", "n", "value", "expression")


def long_columns(path: Path, given: str) -> tuple[str, list[str]] | None:
    """Return separator and names (of gene, cell, count) of a long table; None for everything else."""
    header = next(line_blocks(path, given), b"").partition(b"\n")[0].rstrip(b"\r").decode("utf-8", "replace")
    for separator in "\t,; ":
        names = [name.strip('" ') for name in header.split(separator)]
        found = [
            next((name for name in names if name.lower() in wanted), "") for wanted in (_GENE, _CELL, _COUNT)
        ]
        if len(names) == 3 and all(found):
            return separator, found
    return None


def read_long_table(path: Path, given: str, separator: str, columns: list[str]) -> RawMatrix:
    """Read a long table; what no line names is zero.

    Parameters
    ----------
    path, given
        Local file, and path or URL for messages.
    separator, columns
        As :func:`long_columns` gives them.

    Raises
    ------
    BadInput
        When lines are not equally long, or a count is no number.
    """
    content = b"".join(line_blocks(path, given))
    try:
        table = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(given, "", f"is no table of three columns ({reason})", "Export it again") from error
    table = table.rename({name.strip(' "'): name.strip(' "') for name in table.columns})
    gene, cell, count = (table[name].fill_null("") for name in columns)
    values = count.str.strip_chars().cast(pl.Float64, strict=False)
    if values.is_null().any():
        line = int(values.is_null().arg_max() or 0)
        raise BadInput(
            given,
            f"line {line + 2}, column {columns[2]!r}",
            f"the entry {count[line]!r} is no number",
            "Every line must give a gene, a cell and a count",
        )
    genes, cells = (column.unique(maintain_order=True) for column in (gene, cell))
    rows, places = (
        column.replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64).to_numpy()
        for column, names in ((cell, cells), (gene, genes))
    )
    shape = (len(cells), len(genes))
    return RawMatrix(
        X=sparse.coo_matrix((values.to_numpy(), (rows, places)), shape=shape).tocsr(),
        cells=np.asarray(cells.to_list(), dtype=object),
        genes=np.asarray(genes.to_list(), dtype=object),
        format="long table",
        notes={"orientation": "gene, cell, count"},
    )
