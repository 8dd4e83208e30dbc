from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neumf_assets.core.cells import inverted_lists, neighbours
from neumf_assets.core.cells.neighbours import (
    cell_graph,
    find_cross_neighbours,
    find_neighbours,
    graph_nodes,
    neighbours_needed,
)
from neumf_assets.core.cells.settings import ClusterSettings, MetricsSettings, UmapSettings
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.cells.data import blobs, noise


def all_distances(points: np.ndarray, metric: str) -> np.ndarray:
    x = points.astype(np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return 1 - x @ x.T
    return np.linalg.norm(x[:, None] - x[None], axis=2)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_exact_neighbours_match_all_distances(metric: str) -> None:
    points = noise(300).embedding
    found = find_neighbours(points, 12, metric=metric)
    true = all_distances(points, metric)
    np.fill_diagonal(true, np.inf)
    np.testing.assert_array_equal(found.indices, np.argsort(true, axis=1)[:, :12])
    np.testing.assert_allclose(found.distances, np.sort(true, axis=1)[:, :12], atol=1e-5)


def test_approximate_neighbours_are_nearly_all_right_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "LIST_POINTS", 64)
    monkeypatch.setattr(inverted_lists, "_AXIS_POINTS", 500)
    points = blobs(4, 2000, dims=12).embedding
    exact = find_neighbours(points, 20)
    first = find_neighbours(points, 20, exact_up_to=0, seed=3)
    again = find_neighbours(points, 20, exact_up_to=0, seed=3)
    np.testing.assert_array_equal(first.indices, again.indices)
    recall = np.mean(
        [len(np.intersect1d(a, b)) / 20 for a, b in zip(exact.indices, first.indices, strict=True)]
    )
    assert recall > 0.95


@pytest.mark.parametrize(("n", "size"), [(1, 4), (700, 64), (512, 512), (513, 512)])
def test_every_point_is_in_one_list_and_lists_are_even(n: int, size: int) -> None:
    points = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    points[: n // 2] = points[0]  # equal points have to be parted, too
    lists = inverted_lists.point_lists(points, size)
    np.testing.assert_array_equal(np.sort(np.concatenate(lists)), np.arange(n))
    assert max(map(len, lists)) <= size
    assert min(map(len, lists)) >= min(n, size // 2)


def test_more_neighbours_than_the_probed_lists_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "LIST_POINTS", 4)
    monkeypatch.setattr(inverted_lists, "PROBES", 2)
    points = noise(60).embedding
    np.testing.assert_array_equal(
        find_neighbours(points, 30, exact_up_to=0).indices, find_neighbours(points, 30).indices
    )


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 40), k=st.integers(1, 50), distinct=st.integers(1, 5), seed=st.integers(0, 1000))
def test_never_its_own_neighbour_even_among_duplicates(n: int, k: int, distinct: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(distinct, 3))[rng.integers(distinct, size=n)]
    found = find_neighbours(points, k)
    assert found.indices.shape == (n, min(k, n - 1))
    assert not (found.indices == np.arange(n)[:, None]).any()
    assert all(len(set(row)) == len(row) for row in found.indices.tolist())
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_cells_of_zeros_are_far_from_all_others() -> None:
    points = noise(50).embedding
    points[7] = 0
    found = find_neighbours(points, 5)
    assert np.isfinite(found.distances).all()
    np.testing.assert_allclose(found.distances[7], 1, atol=1e-6)


def test_refuses_an_embedding_that_diverged() -> None:
    points = noise(50).embedding
    points[3, 1] = np.nan
    with pytest.raises(NeumfError, match="cell 3"):
        find_neighbours(points, 5)
    with pytest.raises(NeumfError, match="at least 2 cells"):
        find_neighbours(points[:1], 5)


def test_cross_neighbours_match_all_distances() -> None:
    points = noise(200).embedding
    queries, references = points[:80], points[80:]
    found = find_cross_neighbours(queries, references, 15)
    true = all_distances(points, "cosine")[:80, 80:]
    np.testing.assert_array_equal(found, np.argsort(true, axis=1)[:, :15])


def test_shared_graph_is_the_jaccard_index_of_neighbourhoods() -> None:
    points = noise(120).embedding
    chosen = ClusterSettings(n_neighbors=10)
    graph = cell_graph(find_neighbours(points, 30), chosen).toarray()
    near = find_neighbours(points, 9).indices
    hoods = [{i, *near[i].tolist()} for i in range(len(points))]
    for i in range(len(points)):
        for j in range(len(points)):
            jaccard = len(hoods[i] & hoods[j]) / len(hoods[i] | hoods[j])
            expected = jaccard if i != j and jaccard > chosen.prune else 0
            assert graph[i, j] == pytest.approx(expected, abs=1e-6)


def test_nearest_graph_joins_neighbours_of_either_side() -> None:
    points = noise(60).embedding
    graph = cell_graph(find_neighbours(points, 4), ClusterSettings(n_neighbors=5, graph="nearest")).toarray()
    near = find_neighbours(points, 4).indices
    expected = np.zeros((60, 60))
    np.put_along_axis(expected, near, 1, axis=1)
    np.testing.assert_array_equal(graph, np.maximum(expected, expected.T))


def test_graph_does_not_join_separated_types() -> None:
    data = blobs()
    graph = cell_graph(find_neighbours(data.embedding, 19)).tocoo()
    assert (data.labels[graph.row] == data.labels[graph.col]).all()


def test_one_search_serves_every_use() -> None:
    needed = neighbours_needed(
        ClusterSettings(n_neighbors=30), UmapSettings(n_neighbors=50), MetricsSettings(lisi_perplexity=10)
    )
    assert needed == 49
    assert neighbours_needed(ClusterSettings(), UmapSettings(), MetricsSettings()) == 90


def test_the_graph_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    near = find_neighbours(noise(300).embedding, 19)
    whole = cell_graph(near)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 7)
    again = find_neighbours(noise(300).embedding, 19)
    np.testing.assert_array_equal(near.indices, again.indices)
    np.testing.assert_array_equal(near.distances, again.distances)
    assert (cell_graph(again) != whole).nnz == 0


def test_neighbours_of_some_cells_are_those_of_all() -> None:
    points, cells = noise(200).embedding, np.array([3, 50, 199])
    some, every = neighbours.find_neighbours_of(cells, points, 20), find_neighbours(points, 20)
    np.testing.assert_array_equal(some.indices, every.indices[cells])
    np.testing.assert_array_equal(some.distances, every.distances[cells])


def test_many_cells_need_no_neighbours_for_lisi() -> None:
    chosen = ClusterSettings(exact_up_to=100), UmapSettings(), MetricsSettings()
    assert neighbours_needed(*chosen, 100) == 90
    assert neighbours_needed(*chosen, 101) == 20


def test_a_graph_has_fewer_nodes_where_memory_does_not_hold_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = ClusterSettings(max_nodes=100_000)
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 2**40)
    assert graph_nodes(50_000, chosen) == 50_000
    assert graph_nodes(500_000, chosen) == 100_000
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 3000 * 30_000)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        assert graph_nodes(30_000, chosen) == 30_000
        assert not caplog.records
        assert graph_nodes(500_000, chosen) == 30_000
    assert "joined to 30000 nodes (clusters.max_nodes: 100000)" in caplog.text
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    assert graph_nodes(500_000, chosen) == 20_000
