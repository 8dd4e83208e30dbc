"""Which label column is taken where the study names none, and cells on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from neumf_assets.core.cells.files.store import (
    CellEmbedding,
    batches,
    cell_table,
    label_column,
    labels_of,
    read_cells,
)
from neumf_assets.core.cells.neighbours import find_neighbours
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
    pd.testing.assert_frame_equal(again.cells.astype(object), saved.cells.astype(object))
    np.testing.assert_array_equal(again.embedding, points)
    np.testing.assert_array_equal(again.neighbours.indices, saved.neighbours.indices)
    assert again.neighbours.metric == "cosine"


def test_a_table_of_cells_takes_few_bytes_a_cell_and_keeps_missing_labels(tmp_path: Path) -> None:
    n = 20_000
    labels = pd.Series(np.where(np.arange(n) % 3 == 0, None, "CD14 monocyte"), dtype="string")
    names = [f"AAACATACCTCGCT-{i}" for i in range(n)]
    table = pd.DataFrame({"cell": names, "dataset": "ctrl", "cell_type": labels, "score": np.arange(n) / n})
    table.to_parquet(tmp_path / "cells.parquet")
    again = read_cells(tmp_path / "cells.parquet")
    assert list(again["cell"]) == names
    assert again["cell_type"].isna().sum() == len(range(0, n, 3))
    assert set(again["cell_type"].dropna()) == {"CD14 monocyte"}
    np.testing.assert_array_equal(again["score"], table["score"])
    as_python_text = table.astype(dict.fromkeys(["cell", "dataset", "cell_type"], object))
    assert again.memory_usage(deep=True).sum() < 50 * n < as_python_text.memory_usage(deep=True).sum() / 3
    assert list(read_cells(tmp_path / "cells.parquet", named=False)) == ["cell_type", "score"]


def test_all_cells_are_listed_with_the_labels_that_some_datasets_lack(tmp_path: Path) -> None:
    ctrl = AnnData(np.ones((2, 1)), obs=pd.DataFrame({"cell_type": ["B", None]}, index=["a", "b"]))
    stim = AnnData(np.ones((2, 1)), obs=pd.DataFrame({"donor": [1, 2], "cell": ["x", "y"]}, index=["a", "c"]))
    table = cell_table({"ctrl": ctrl, "stim": stim})
    table.to_parquet(tmp_path / "cells.parquet")
    for found in (table, read_cells(tmp_path / "cells.parquet")):
        assert list(found["cell"]) == ["a", "b", "a", "c"]
        assert list(found["dataset"]) == ["ctrl", "ctrl", "stim", "stim"]
        assert found["cell_type"].astype(object).where(found["cell_type"].notna(), None).tolist() == [
            "B",
            *[None] * 3,
        ]
        assert found["donor"].dropna().tolist() == [1, 2], "numbers stay numbers"
        assert labels_of(found, "donor").dropna().tolist() == ["1", "2"]


def test_numbers_are_never_taken_for_labels_unasked() -> None:
    table = pd.DataFrame(
        {"cell": list("abcd") * 3, "dataset": "a", "age": [1.5, 2, 3, 4] * 3, "kind": ["x", "y"] * 6}
    )
    assert label_column(table, None) == "kind"
    assert label_column(table, "age") == "age"
    assert label_column(table.drop(columns="kind"), None) is None


def test_a_cells_batch_is_its_dataset_or_the_value_of_a_column() -> None:
    ctrl = AnnData(np.ones((2, 1)), obs=pd.DataFrame({"donor": [1, 2]}, index=["a", "b"]))
    stim = AnnData(np.ones((1, 1)), obs=pd.DataFrame({"donor": [1]}, index=["a"]))
    counts = {"ctrl": ctrl, "stimulated": stim}
    assert batches(counts, None).tolist() == ["ctrl", "ctrl", "stimulated"]
    assert batches(counts, "dataset").tolist() == ["ctrl", "ctrl", "stimulated"]
    assert batches(counts, "donor").tolist() == ["1", "2", "1"]
