"""Figures of cells against a loop over them, and outliers by median absolute deviations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core.counts.quality.figures import CellFigures, cell_figures
from neumf_assets.core.counts.quality.outliers import find_outliers
from neumf_assets.core.counts.settings import QCSettings


def test_figures_are_those_of_a_loop_over_the_cells() -> None:
    rng = np.random.default_rng(0)
    X = rng.poisson(0.8, (50, 60))
    X[3] = 0
    names = ["MT-CO1", "RPL3", "HBB", *(f"G{n}" for n in range(57))]
    var = pd.DataFrame({"original_name": names}, index=names)

    def blocks():
        for start in (0, 20, 40):
            stop = min(start + 20, 50)
            yield slice(start, stop), sparse.csr_matrix(X[start:stop])

    found = cell_figures(blocks, X.shape, var, ("MT-",))
    for cell, row in enumerate(X):
        total = row.sum()
        assert found.totals[cell] == total and found.genes_seen[cell] == (row > 0).sum()
        for share, column in ((found.mito_share, 0), (found.ribo_share, 1), (found.hb_share, 2)):
            assert share[cell] == pytest.approx(row[column] / total if total else 0)
        assert found.top_share[cell] == pytest.approx(np.sort(row)[-20:].sum() / total if total else 0)
    np.testing.assert_array_equal(found.in_cells, (X > 0).sum(axis=0))
    assert found.known == {"mito": 1, "ribo": 1, "hb": 1}


def figures(n: int = 200, **changed: np.ndarray) -> CellFigures:
    rng = np.random.default_rng(1)
    values = {
        "totals": np.exp(rng.normal(8, 0.3, n)),
        "genes_seen": np.exp(rng.normal(7, 0.2, n)).astype(np.int64),
        "mito_share": rng.normal(0.05, 0.005, n).clip(0),
        "top_share": rng.normal(0.3, 0.03, n),
    }
    values |= changed
    zero = np.zeros(n)
    return CellFigures(
        values["totals"],
        values["genes_seen"],
        values["mito_share"],
        zero,
        zero,
        values["top_share"],
        np.ones(3, np.int64),
        {"mito": 1, "ribo": 0, "hb": 0},
    )


def test_far_cells_are_outliers_with_their_reason() -> None:
    plain = figures()
    totals, mito = plain.totals.copy(), plain.mito_share.copy()
    totals[0], totals[1], mito[2] = 20, 1e6, 0.4
    found = find_outliers(figures(totals=totals, mito_share=mito), np.ones(200, bool), QCSettings())
    assert found.reasons["total low"].nonzero()[0].tolist() == [0]
    assert found.reasons["total high"].nonzero()[0].tolist() == [1]
    assert 2 in found.reasons["mito high"].nonzero()[0]
    assert found.described()[0] == "total low"
    assert found.any.sum() < 0.1 * 200
    assert found.bounds["total"][0] < np.median(totals) < found.bounds["total"][1]


def test_only_too_much_mitochondrial_rna_is_a_fault() -> None:
    mito = figures().mito_share.copy()
    mito[0] = 0.0
    assert not find_outliers(figures(mito_share=mito), np.ones(200, bool), QCSettings()).any[0]


def test_alike_cells_are_no_outliers_for_a_grain_of_mitochondrial_rna() -> None:
    mito = np.zeros(200)
    mito[:3] = 0.005
    assert (
        "mito high" not in find_outliers(figures(mito_share=mito), np.ones(200, bool), QCSettings()).reasons
    )


def test_a_cell_that_resembles_a_sum_of_two_far_more_than_others_is_an_outlier() -> None:
    rng = np.random.default_rng(1)
    score = 1 / (1 + np.exp(-rng.normal(-3.5, 0.5, 200)))
    score[0], score[1], score[2] = 0.9, 0.0, np.nan
    judged = np.ones(200, bool)
    judged[2] = False
    found = find_outliers(figures(), judged, QCSettings(), score)
    assert 0 in found.reasons["doublet high"].nonzero()[0]
    assert not found.reasons["doublet high"][[1, 2]].any(), "the least alike, and one that is not judged"
    middle = np.median(np.log(score[judged].clip(1e-6) / (1 - score[judged].clip(1e-6))))
    assert found.bounds["doublet"][0] == 0
    assert 1 / (1 + np.exp(-middle)) < found.bounds["doublet"][1] < 0.9
    assert "doublet high" not in find_outliers(figures(), judged, QCSettings()).reasons


def test_bounds_are_those_of_the_settings() -> None:
    """With n deviations the bound is the median and n times the median of the distances from it, in logarithms."""
    own = figures()
    found = find_outliers(own, np.ones(200, bool), QCSettings(outlier_mads=2.0))
    logs = np.log1p(own.totals)
    middle = np.median(logs)
    width = 2 * np.median(np.abs(logs - middle))
    assert found.bounds["total"] == pytest.approx((np.expm1(middle - width), np.expm1(middle + width)))


def test_cells_that_are_left_out_already_neither_count_nor_are_judged() -> None:
    totals = figures().totals.copy()
    totals[:100] = 1.0
    judged = np.arange(200) >= 100
    found = find_outliers(figures(totals=totals), judged, QCSettings())
    assert not found.any[:100].any()
    assert found.bounds["total"][0] > 100
