"""Top genes, alignment and agreement, reconstruction, and rows of factorisations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.factors import SHARED, specificity, top_genes
from neumf_assets.core.liger.inmf.solver import inmf
from neumf_assets.core.liger.inmf.sweep import loading_divergence, sweep_k, sweep_lambda
from neumf_assets.core.liger.metrics import agreement, alignment
from neumf_assets.core.liger.reconstruct import reconstruct
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets_tests.core.liger.conftest import Planted

BASE = LigerSettings(k=3, restarts=2, iterations=60)


def test_top_genes_are_the_largest_loadings() -> None:
    W = np.array([[0, 5, 1, 3], [2, 0, 0, 0]], np.float32)
    V = [np.array([[1, 0, 0, 9], [0, 0, 0, 0]], np.float32), np.zeros((2, 4), np.float32)]
    table = top_genes(W, V, ["a", "b", "c", "d"], ["x", "y"], 2)
    shared = table[(table.kind == SHARED) & (table.factor == 0)]
    assert shared.gene.tolist() == ["b", "d"]
    assert shared["rank"].tolist() == [1, 2]
    assert shared.share.tolist() == pytest.approx([1, 3 / 7.5])
    specific = table[(table.kind == "x") & (table.factor == 0)]
    assert specific.gene.tolist() == ["d", "a"]
    assert specific.share.tolist() == pytest.approx([9 / 12, 1])
    assert table[table.kind == "y"].empty
    assert table[(table.kind == SHARED) & (table.factor == 1)].gene.tolist() == ["a"]


def test_specificity_is_a_share() -> None:
    W, V = np.array([[3.0, 4.0], [0, 0]], np.float32), [np.array([[0, 5.0], [0, 0]], np.float32)]
    assert specificity(W, V, ["x"])["x"].tolist() == [0.5, 0.0]


def test_names_must_fit_the_factors() -> None:
    with pytest.raises(NeumfError, match="do not fit"):
        top_genes(np.ones((2, 3), np.float32), [np.ones((2, 3), np.float32)], ["a"], ["x"])


def test_mixed_datasets_align_and_separate_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    dataset = np.repeat(["a", "b"], [400, 300])
    points = rng.gamma(1, 1, (700, 6))
    mixed = alignment(points, dataset)
    assert mixed == pytest.approx(1, abs=0.1)
    points[dataset == "b", :3] = 0
    points[dataset == "a", 3:] = 0
    assert alignment(points, dataset) == pytest.approx(0, abs=0.02)
    assert alignment(points, np.repeat("a", 700)) is None


def test_alignment_is_its_formula() -> None:
    rng = np.random.default_rng(1)
    dataset, points = (
        np.repeat([0, 1, 2], 40),
        rng.normal(size=(120, 4)) + np.repeat([0, 0.5, 1], 40)[:, None],
    )
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    same = 0
    for cell in range(120):
        order = np.argsort(np.linalg.norm(unit - unit[cell], axis=1))
        near = [other for other in order if other != cell][:10]
        same += (dataset[near] == dataset[cell]).sum()
    expected = 1 - (same / 120 - 10 / 3) / (10 - 10 / 3)
    assert alignment(points, dataset, k=10) == pytest.approx(expected)


def test_agreement_is_one_for_the_same_space_and_chance_for_another() -> None:
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(n, 5)).astype(np.float32) for n in (200, 150)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in data]
    on_sphere = [sp.csr_matrix(u) for u in unit]
    same = agreement(on_sphere, unit, k=10, dimensions=5)
    noise = agreement(on_sphere, [rng.normal(size=u.shape) for u in unit], k=10, dimensions=5)
    assert same is not None and noise is not None
    assert same == pytest.approx(1, abs=0.01)
    assert noise < 0.1
    assert agreement([unit[0][:5]], [unit[0][:5]], k=10) is None


def test_agreement_refuses_cells_that_do_not_match() -> None:
    with pytest.raises(NeumfError, match="5 cells before and 6 after"):
        agreement([np.ones((5, 3))], [np.ones((6, 3))])


def test_reconstruction_is_the_product_in_blocks(planted: Planted) -> None:
    result = inmf(planted.X, BASE)
    whole = result.H[0] @ (result.W + result.V[0])
    rows, columns = np.linspace(1, 2, 150), np.linspace(3, 4, 80)
    blocks = list(reconstruct(result.H[0], result.W + result.V[0], block_cells=64))
    assert [b.shape[0] for _, b in blocks] == [64, 64, 22]
    np.testing.assert_allclose(np.vstack([b for _, b in blocks]), whole, rtol=1e-5)
    factors = {"row_factor": rows, "column_factor": columns}
    scaled = np.vstack([b for _, b in reconstruct(result.H[0], result.W + result.V[0], **factors)])
    np.testing.assert_allclose(scaled, whole * rows[:, None] * columns, rtol=1e-5)


def test_more_factors_fit_better_from_where_fewer_ended(planted: Planted) -> None:
    points = sweep_k(planted.X, [5, 2, 3, 4], BASE)
    assert [p.k for p in points] == [2, 3, 4, 5]
    assert (np.diff([p.objective for p in points]) < 0).all()
    alone = inmf(planted.X, BASE.model_copy(update={"k": 4}))
    assert points[2].objective <= 1.02 * alone.objective[-1]
    assert points[2].result.W.shape == (4, 80)


def test_lambda_sweep_agrees_with_single_runs(planted: Planted) -> None:
    base = BASE.model_copy(update={"k": 4, "restarts": 4})
    points = sweep_lambda(planted.X, [10.0, 0.5, 2.0], base)
    assert [p.lam for p in points] == [0.5, 2.0, 10.0]
    for point in points:
        alone = inmf(planted.X, base.model_copy(update={"lam": point.lam}))
        assert point.objective <= 1.02 * alone.objective[-1]
    assert (np.diff([p.objective for p in points]) > 0).all()


def test_divergence_runs_from_equal_shares_to_one_factor() -> None:
    assert loading_divergence([np.ones((5, 8))]) == pytest.approx(0)
    assert loading_divergence([np.eye(8), 3 * np.eye(8)]) == pytest.approx(3)
    assert loading_divergence([np.zeros((2, 4))]) == 0.0
