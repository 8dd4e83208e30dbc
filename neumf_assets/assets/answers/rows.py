"""Tables of results as rows, for the UI and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A mapping for every row; None where a value is missing."""
    whole = table.astype(object).where(table.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in whole.to_dict("records")]
