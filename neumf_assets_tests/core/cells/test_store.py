"""Which label column is taken where the study names none, and cells on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.cells.neighbours import find_neighbours
from neumf_assets.core.cells.store import CellEmbedding, label_column
from neumf_assets.core.errors import NeumfError


def _cells() -> pd.DataFrame:
    n = 40
    return pd.DataFrame(
        {
            "cell": [f"c{i}" for i in range(n)],
            "dataset": ["ctrl"] * 20 + ["stim"] * 20,
            "barcode": [f"b{i}" for i in range(n)],
            "condition": ["CTRL"] * 20 + ["STIM"] * 20,
            "donor": [f"d{i % 8}" for i in range(n)],
            "cell_type_coarse": [f"t{i % 3}" for i in range(n)],
            "cell_type": [f"t{i % 5}" for i in range(n)],
        }
    )


def test_cell_types_are_preferred_to_conditions_donors_and_barcodes() -> None:
    assert label_column(_cells(), None) == "cell_type"


def test_a_wanted_column_is_taken_and_an_unknown_one_refused() -> None:
    assert label_column(_cells(), "donor") == "donor"
    with pytest.raises(NeumfError, match="cell_type_coarse"):
        label_column(_cells(), "celltype")


def test_without_a_column_that_varies_within_a_dataset_there_is_none() -> None:
    assert label_column(_cells()[["cell", "dataset", "condition", "barcode"]], None) is None
    assert label_column(_cells()[["cell", "dataset"]], None) is None


def test_missing_labels_do_not_count_as_a_type() -> None:
    cells = _cells()
    cells["cell_type"] = np.where(np.arange(40) % 2 == 0, "B", None)
    assert label_column(cells[["cell", "dataset", "cell_type"]], None) is None


def test_cells_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    saved = CellEmbedding(_cells(), points, find_neighbours(points, 7))
    saved.save(tmp_path)
    again = CellEmbedding.load(tmp_path)
    pd.testing.assert_frame_equal(again.cells, saved.cells)
    np.testing.assert_array_equal(again.embedding, points)
    np.testing.assert_array_equal(again.neighbours.indices, saved.neighbours.indices)
    assert again.neighbours.metric == "cosine"
