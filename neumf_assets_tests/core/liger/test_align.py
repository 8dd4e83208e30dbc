"""Alignment against plain loops, and on datasets with a known shift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.align import (
    align,
    centroid_align,
    factor_clusters,
    quantile_normalise,
    reference_dataset,
)
from neumf_assets.core.liger.settings import LigerSettings


def two_types(n: int = 200, seed: int = 0) -> tuple[list[NDArray], list[NDArray]]:
    """Two cell types in two datasets; the second dataset's loadings are stretched."""
    rng = np.random.default_rng(seed)
    H, types = [], []
    for number, stretch in enumerate((1.0, 3.0)):
        kind = rng.integers(0, 2, n + 50 * number)
        h = rng.gamma(1, 0.05, (kind.size, 3))
        h[np.arange(kind.size), kind] += rng.gamma(5, 0.2, kind.size)
        H.append((stretch * h).astype(np.float32))
        types.append(kind)
    return H, types


def quantile_loop(
    H: list[NDArray], clusters: list[NDArray], quantiles: int, min_cells: int, reference: int
) -> list[NDArray]:
    out = [h.astype(float).copy() for h in H]
    for d in range(len(H)):
        for cluster in range(H[0].shape[1]):
            cells = [i for i in range(len(H[d])) if clusters[d][i] == cluster]
            model = [i for i in range(len(H[reference])) if clusters[reference][i] == cluster]
            if len(cells) < min_cells or len(model) < min_cells:
                continue
            for factor in range(H[0].shape[1]):
                # The very same levels: one that is off by a rounding error can leave a tie at zero.
                levels = np.linspace(0, 1, quantiles + 1)
                x = np.quantile(H[d][cells, factor].astype(float), levels)
                y = np.quantile(H[reference][model, factor].astype(float), levels)
                if x.max() == x.min() or y.max() == y.min():
                    out[d][cells, factor] = 0
                    continue
                tied = [q for q in range(quantiles + 1) if x[q] == 0]
                if tied:
                    mean = sum(y[q] for q in tied) / len(tied)
                    y = np.array([mean if q in tied else y[q] for q in range(quantiles + 1)])
                for cell in cells:
                    out[d][cell, factor] = np.interp(float(H[d][cell, factor]), x, y)
    return out


@settings(max_examples=20, deadline=None)
@example(seed=1, quantiles=5, min_cells=2, zeros=0.5)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 8), st.floats(0, 0.9))
def test_quantile_normalisation_equals_a_plain_loop(
    seed: int, quantiles: int, min_cells: int, zeros: float
) -> None:
    rng = np.random.default_rng(seed)
    H = [(rng.gamma(1, 1, (n, 3)) * (rng.random((n, 3)) > zeros)).astype(np.float32) for n in (40, 25, 31)]
    clusters = [rng.integers(0, 3, len(h)) for h in H]
    found = quantile_normalise(H, clusters, quantiles=quantiles, min_cells=min_cells, reference=2)
    for one, other in zip(found, quantile_loop(H, clusters, quantiles, min_cells, 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_quantile_normalisation_gives_each_type_the_reference_distribution() -> None:
    H, types = two_types()
    found = quantile_normalise(H, types, reference=0)
    np.testing.assert_allclose(found[0], H[0], rtol=1e-4, atol=1e-6)
    for kind in (0, 1):
        of_type = [found[d][types[d] == kind, kind] for d in (0, 1)]
        deciles = [np.quantile(x, np.linspace(0.1, 0.9, 9)) for x in of_type]
        np.testing.assert_allclose(deciles[1], deciles[0], rtol=0.02)


def test_small_clusters_stay_as_they_are() -> None:
    H, types = two_types()
    types[1] = np.where(np.arange(types[1].size) < 5, 2, types[1])
    found = quantile_normalise(H, types, min_cells=20, reference=0)
    np.testing.assert_array_equal(found[1][:5], H[1][:5])


def test_order_within_cluster_is_kept() -> None:
    H, types = two_types()
    found = quantile_normalise(H, types, reference=0)
    cells = types[1] == 0
    order = np.argsort(H[1][cells, 0], kind="stable")
    assert (np.diff(found[1][cells, 0][order]) >= -1e-6).all()


def test_clusters_are_the_majority_of_the_neighbours() -> None:
    H, _ = two_types()
    h, k = H[0], 7
    own = np.argmax(h / np.sqrt((h.astype(float) ** 2).sum(0) / (len(h) - 1)), axis=1)
    expected = []
    for cell in range(len(h)):
        near = np.argsort(np.linalg.norm(h - h[cell], axis=1))[:k]
        votes = np.bincount(own[near], minlength=3)
        expected.append(max(np.flatnonzero(votes == votes.max())))
    np.testing.assert_array_equal(factor_clusters(h, k), expected)
    np.testing.assert_array_equal(factor_clusters(h, 1), own)


def test_clusters_do_not_depend_on_the_size_of_a_factor() -> None:
    H, types = two_types()
    np.testing.assert_array_equal(factor_clusters(H[0][:, :2], 20), types[0])
    scaled = factor_clusters(H[0] * np.float32([1, 100, 1]), 1)
    np.testing.assert_array_equal(scaled, factor_clusters(H[0], 1))


def test_centroids_meet_and_spread_is_kept() -> None:
    H, types = two_types()
    rng = np.random.default_rng(5)
    shifted = [
        H[0],
        np.abs(H[1] + np.float32([0.5, 0.1, 1.5]) + rng.normal(0, 0.01, H[1].shape)).astype(np.float32),
    ]
    found = centroid_align(shifted, types, ridge=0.01)
    unit = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in shifted]
    for kind in (0, 1):
        before = [u[t == kind].mean(axis=0) for u, t in zip(unit, types, strict=True)]
        after = [f[t == kind].mean(axis=0) for f, t in zip(found, types, strict=True)]
        assert np.linalg.norm(after[0] - after[1]) < 0.01 * np.linalg.norm(before[0] - before[1])
        spread = [x[1][types[1] == kind].std(axis=0) for x in (unit, found)]
        np.testing.assert_allclose(spread[1], spread[0], rtol=1e-4)


def test_centroid_alignment_is_the_ridge_solution() -> None:
    """Per cluster: minimise ||Z − ΦB||² + ridge ||B but for its intercept||², subtract the latter's part."""
    H, types = two_types(60)
    unit = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in H]
    found = centroid_align(H, types, ridge=2.0)
    for kind in (0, 1):
        members = [t == kind for t in types]
        Z = np.vstack([u[m] for u, m in zip(unit, members, strict=True)]).astype(float)
        code = np.repeat([0, 1], [m.sum() for m in members])
        phi = np.column_stack([np.ones(len(Z)), code == 0, code == 1]).astype(float)
        B = np.linalg.solve(phi.T @ phi + np.diag([0, 2.0, 2.0]), phi.T @ Z)
        expected = Z - phi[:, 1:] @ B[1:]
        got = np.vstack([f[m] for f, m in zip(found, members, strict=True)])
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_align_follows_the_settings() -> None:
    H, _ = two_types()
    names = ["a", "b"]
    none = align(H, LigerSettings(alignment="none"), names)
    assert all(np.array_equal(x, y) for x, y in zip(none, H, strict=True))
    largest = align(H, LigerSettings(), names)
    np.testing.assert_allclose(largest[1], H[1], rtol=1e-3, atol=1e-5)
    named = align(H, LigerSettings(reference="a"), names)
    np.testing.assert_allclose(named[0], H[0], rtol=1e-3, atol=1e-5)
    assert not np.allclose(named[1], H[1], rtol=0.1)
    again = align(H, LigerSettings(reference="a"), names)
    assert all(np.array_equal(x, y) for x, y in zip(named, again, strict=True))


def test_reference_is_the_largest_or_the_named_one() -> None:
    assert reference_dataset([3, 9, 9], ["a", "b", "c"], None) == 1
    assert reference_dataset([3, 9, 9], ["a", "b", "c"], "c") == 2
    with pytest.raises(NeumfError, match="'d' is not one of the datasets: a, b, c"):
        reference_dataset([3, 9, 9], ["a", "b", "c"], "d")
