"""Labels carried over between datasets whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.annotation.settings import LabelSettings
from neumf_assets.core.annotation.transfer import UNKNOWN, LabelTransfer, transfer_labels
from neumf_assets.core.errors import NeumfError

TYPES = np.array(["B", "NK", "T", "mono"])


def study(
    spread: float = 1.0, cells: int = 150, datasets: int = 2, seed: int = 0
) -> tuple[np.ndarray, pd.Series, np.ndarray]:
    """Embedding, true types and datasets: four types in each, datasets a little apart."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 12)) * 2
    types = np.tile(np.repeat(np.arange(4), cells), datasets)
    dataset = np.repeat(np.arange(datasets), 4 * cells)
    shift = rng.normal(size=(datasets, 12)) * 0.3
    points = centres[types] + shift[dataset] + spread * rng.normal(size=(len(types), 12))
    return points, pd.Series(TYPES[types]), np.char.add("d", dataset.astype(str))


def hidden(
    truth: pd.Series, dataset: np.ndarray, points: np.ndarray, without: str | None = None
) -> tuple[LabelTransfer, np.ndarray, np.ndarray]:
    """The labels of d1 hidden, and cells of a type taken out of d0: transfer, truth and rows of d1."""
    keep = ~((dataset == "d0") & (truth == without).to_numpy())
    labels = truth.where(dataset != "d1")[keep].reset_index(drop=True)
    found = transfer_labels(points[keep], labels, dataset[keep])
    return found, truth[keep].to_numpy(str), dataset[keep] == "d1"


def test_hidden_labels_are_found() -> None:
    points, truth, dataset = study()
    found, true, asked = hidden(truth, dataset, points)
    assert (found.cells["best_guess"].to_numpy(str) == true)[asked].mean() > 0.97
    assert (found.cells.loc[asked, "predicted"] == UNKNOWN).mean() < 0.1
    assert found.cells["label"].isna().sum() == asked.sum()
    assert found.held_out == "cells"


def test_a_type_that_is_labelled_nowhere_is_unknown() -> None:
    points, truth, dataset = study()
    found, true, asked = hidden(truth, dataset, points, without="NK")
    unknown = (found.cells["predicted"] == UNKNOWN).to_numpy()
    new = asked & (true == "NK")
    assert unknown[new].mean() > 0.9
    assert unknown[asked & ~new].mean() < 0.1


def test_probabilities_hold_and_so_does_the_accuracy_that_is_told() -> None:
    points, truth, dataset = study(spread=2.6, cells=400, datasets=3)
    labels = truth.where(dataset != "d2")
    found = transfer_labels(points, labels, dataset)
    asked = dataset == "d2"
    right = (found.cells["best_guess"] == truth)[asked]
    assert found.held_out == "datasets"
    assert 0.6 < right.mean() < 0.97, "neither easy nor hopeless"
    assert found.right == pytest.approx(right.mean(), abs=0.05)
    assert found.cells.loc[asked, "probability"].mean() == pytest.approx(right.mean(), abs=0.05)
    sure = found.cells.loc[asked, "probability"] > 0.9
    assert right[sure].mean() > 0.88


def test_accuracy_by_label_is_that_of_cells_whose_labels_were_held_out() -> None:
    points, truth, dataset = study(spread=2.0)
    found = transfer_labels(points, truth, dataset)
    for row in found.accuracy.to_dict("records"):
        own = found.cells[found.cells["label"] == row["label"]]
        assert row["cells"] == len(own) == 300
        assert row["right"] == pytest.approx((own["best_guess"] == row["label"]).mean())
        assert row["unknown"] == pytest.approx((own["predicted"] == UNKNOWN).mean())
    # a twentieth lies below the bound, and some besides are of no probable label
    assert (found.cells["support"] < found.bound).mean() <= 0.05


def test_a_label_of_one_dataset_alone_cannot_be_asked_for() -> None:
    points, truth, dataset = study()
    labels = truth.where(~((dataset == "d0") & (truth == "B").to_numpy()))
    found = transfer_labels(points, labels, dataset)
    assert "B" not in set(found.accuracy["label"])
    given = (labels == "B").to_numpy()
    assert (found.cells.loc[given, "predicted"] == UNKNOWN).all()
    unlabelled = labels.isna().to_numpy()
    assert (found.cells.loc[unlabelled, "best_guess"] == "B").mean() > 0.95


def test_half_a_datasets_labels_serve_the_other_half() -> None:
    points, truth, dataset = study(datasets=1)
    labels = truth.where(np.arange(len(truth)) % 2 == 0)
    found = transfer_labels(points, labels, dataset)
    rest = labels.isna().to_numpy()
    assert (found.cells["best_guess"] == truth)[rest].mean() > 0.97
    assert (found.cells.loc[rest, "predicted"] == UNKNOWN).mean() < 0.15


def test_of_many_references_rare_labels_are_kept_whole() -> None:
    points, truth, dataset = study(cells=200)
    rare = truth.where(~((truth == "NK").to_numpy() & (np.arange(len(truth)) % 20 > 0)))
    labels = rare.where(dataset != "d1")
    few = transfer_labels(points, labels, dataset, LabelSettings(reference_cells=100))
    asked = dataset == "d1"
    assert (few.cells["best_guess"] == truth)[asked].mean() > 0.95


def test_it_repeats() -> None:
    points, truth, dataset = study()
    first, second = (
        transfer_labels(points, truth, dataset, LabelSettings(reference_cells=200)).cells for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, second)


def test_what_does_not_fit_is_refused() -> None:
    points, truth, dataset = study(cells=5)
    with pytest.raises(NeumfError, match="do not fit"):
        transfer_labels(points[1:], truth, dataset)
    with pytest.raises(NeumfError, match="at least two; found: B"):
        transfer_labels(points, truth.where(truth == "B"), dataset)
