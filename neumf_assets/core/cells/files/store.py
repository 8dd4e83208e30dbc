"""An arm's cells on disk: the table of cells, their aligned embedding and its nearest neighbours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neumf_assets.core.cells.neighbours import Neighbours
from neumf_assets.core.counts.qc import OUR_COLUMNS
from neumf_assets.core.counts.stored import is_measured
from neumf_assets.core.errors import NeumfError

if TYPE_CHECKING:
    import anndata as ad

    from neumf_assets.core.counts.stored import StoredCounts

CELL, DATASET = "cell", "dataset"
_TEXT = pd.StringDtype("pyarrow")


@dataclass(frozen=True)
class CellEmbedding:
    """Cells in the space that an arm gives them.

    Parameters
    ----------
    cells
        One row per cell: ``cell`` (name), ``dataset``, and the label columns.
    embedding
        Cells × dimensions, float32, aligned between the datasets.
    neighbours
        The nearest neighbours in this embedding.
    """

    cells: pd.DataFrame
    embedding: np.ndarray
    neighbours: Neighbours

    @property
    def names(self) -> pd.DataFrame:
        """Each cell's name and dataset."""
        return self.cells[[CELL, DATASET]]

    def save(self, folder: Path) -> None:
        """Write ``cells.parquet``, ``embedding.npy``, ``neighbours.npy`` and ``distances.npy``."""
        self.cells.to_parquet(folder / "cells.parquet", index=False)
        np.save(folder / "embedding.npy", self.embedding)
        np.save(folder / "neighbours.npy", self.neighbours.indices.astype(np.int32))
        np.save(folder / f"distances-{self.neighbours.metric}.npy", self.neighbours.distances)

    @classmethod
    def load(cls, folder: Path) -> CellEmbedding:
        """Read what :meth:`save` wrote."""
        metric = "cosine" if (folder / "distances-cosine.npy").exists() else "euclidean"
        distances = np.load(folder / f"distances-{metric}.npy", mmap_mode="r", allow_pickle=False)
        indices = np.load(folder / "neighbours.npy", mmap_mode="r", allow_pickle=False)
        return cls(
            read_cells(folder / "cells.parquet"),
            np.load(folder / "embedding.npy", mmap_mode="r", allow_pickle=False),
            Neighbours(indices, distances, metric),  # type: ignore[arg-type]
        )


def read_cells(path: Path, *, named: bool = True) -> pd.DataFrame:
    """Read a Parquet table with a row for every cell, in a tenth of the memory that Python's text would take.

    Names of cells are Arrow's text; other text, of which few values occur, is categorical.

    Parameters
    ----------
    named
        Whether the columns ``cell`` and ``dataset`` are read too.
    """
    schema = pq.read_schema(path)
    columns = [name for name in schema.names if named or name not in (CELL, DATASET)]
    texts = [name for name in columns if name != CELL and _is_text(schema.field(name).type)]
    table = pq.read_table(path, columns=columns, read_dictionary=texts)
    frame = table.to_pandas(types_mapper=_ARROW_TEXT.get, split_blocks=True, self_destruct=True)
    del table
    pa.default_memory_pool().release_unused()
    return frame


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_ARROW_TEXT = dict.fromkeys((pa.string(), pa.large_string()), _TEXT)


def cell_table(counts: Mapping[str, ad.AnnData] | Mapping[str, StoredCounts]) -> pd.DataFrame:
    """All cells of a study, dataset by dataset in the given order, with the labels that came with them.

    A label column that a dataset lacks is missing for its cells.
    """
    parts = []
    for name, data in counts.items():
        own = pd.DataFrame({CELL: pd.array(data.obs_names.to_numpy(str), _TEXT), DATASET: name})
        ours = [*data.uns.get(OUR_COLUMNS, [])]
        labels = data.obs.drop(columns=[CELL, DATASET, *ours], errors="ignore")
        for column in labels.columns:
            if is_measured(labels[column]):
                own[column] = labels[column].to_numpy(np.float64)
            else:
                own[column] = labels[column].astype(object).map(str, na_action="ignore").astype(_TEXT).array
        parts.append(own.astype({DATASET: _TEXT}))
    return pd.concat(parts, ignore_index=True)


def labels_of(cells: pd.DataFrame, column: str) -> pd.Series:
    """A column of labels as text, numbers as they would be written."""
    values = cells[column]
    return values.map("{:g}".format, na_action="ignore") if is_measured(values) else values


def batches(
    counts: Mapping[str, ad.AnnData] | Mapping[str, StoredCounts], column: str | None
) -> NDArray[np.str_]:
    """Each cell's batch, as text: its value in a label column, by default its dataset."""
    if column is None or column == DATASET:
        return np.repeat([*counts], [len(data.obs_names) for data in counts.values()])
    cells = cell_table(counts)
    if column not in cells:
        known = ", ".join(name for name in cells.columns if name not in (CELL, DATASET)) or "none"
        raise NeumfError(f"batch_column {column!r} is in no dataset. Columns found: {known}.")
    found = labels_of(cells, column)
    return found.astype(object).where(found.notna(), "none").to_numpy(str)


def label_column(cells: pd.DataFrame, wanted: str | None) -> str | None:
    """The column to judge clusters by: the wanted one, else the one that most likely names cell types.

    Left to itself it passes over columns with one value in each dataset (a condition, a donor) and columns
    that name nearly every cell (a barcode); of the rest, one whose name speaks of types, labels or
    annotation comes first, and of these the one with the most types.

    Raises
    ------
    NeumfError
        If the wanted column is not there.
    """
    columns = [name for name in cells.columns if name not in (CELL, DATASET)]
    if wanted is not None:
        if wanted not in columns:
            known = ", ".join(columns) or "none"
            raise NeumfError(f"label_column {wanted!r} is in no dataset. Label columns found: {known}.")
        return wanted
    varied = [
        name
        for name in columns
        if not is_measured(cells[name])
        and cells.groupby(DATASET, observed=True)[name].nunique().max() >= 2
        and cells[name].nunique() <= len(cells) / 4
    ]
    telling = [name for name in varied if re.search(r"type|label|annot", name, re.IGNORECASE)]
    return max(telling or varied, key=lambda name: cells[name].nunique(), default=None)
