from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score

from neumf_assets.core.cells import neighbours
from neumf_assets.core.cells.clustering import (
    _edges,
    cluster_cells,
    cluster_genes,
    leiden,
    leiden_column,
    leiden_run,
    louvain,
    named_clusters,
)
from neumf_assets.core.cells.neighbours import cell_graph, find_neighbours, merged_cells
from neumf_assets.core.cells.settings import ClusterSettings
from neumf_assets_tests.core.cells.data import blobs, noise

ALL = ClusterSettings(methods=("leiden", "louvain", "kmeans", "hdbscan"), kmeans_k=4, hdbscan_min_size=10)

LEIDEN = ClusterSettings(methods=("leiden",), resolutions=(0.4,), seeds=(0,))


def modularity(graph: csr_matrix, codes: np.ndarray, resolution: float) -> float:
    weights = graph.toarray().astype(np.float64)
    degree = weights.sum(axis=1)
    total = degree.sum()
    same = codes[:, None] == codes[None]
    return float(((weights - resolution * np.outer(degree, degree) / total) * same).sum() / total)


def test_every_method_finds_separated_types() -> None:
    data = blobs()
    found = cluster_cells(data.embedding, cell_graph(find_neighbours(data.embedding, 19)), ALL)
    for method in ("leiden", "louvain", "kmeans"):
        assert adjusted_rand_score(data.labels, found[method]) == 1.0
    clustered = found["hdbscan"] != "noise"
    assert adjusted_rand_score(data.labels[clustered], found["hdbscan"][clustered]) == 1.0
    assert clustered.mean() > 0.8


@pytest.mark.parametrize("kind", ["shared", "nearest"])
@pytest.mark.parametrize("at_once", [4096, 40])
def test_a_graph_of_nodes_has_the_modularity_of_that_of_the_cells(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", at_once)
    found = find_neighbours(noise(500).embedding, 19)
    nodes = merged_cells(found, 120)
    number = nodes.max() + 1
    assert 20 < number <= 120 and set(nodes) == set(range(number))
    chosen = ClusterSettings(graph=kind)
    cells, merged = cell_graph(found, chosen), cell_graph(found, chosen, nodes)
    assert merged.shape == (number, number)
    for resolution in (0.4, 1.0):
        codes = np.random.default_rng(0).integers(4, size=number)
        of_cells = modularity(cells, codes[nodes], resolution)
        assert modularity(merged, codes, resolution) == pytest.approx(of_cells, abs=1e-5)
        graph, weights = _edges(merged)
        assert graph.modularity(codes, weights, resolution) == pytest.approx(of_cells, abs=1e-5)


def test_merged_cells_are_near_and_few_cells_stay_apart() -> None:
    data = blobs()
    found = find_neighbours(data.embedding, 19)
    nodes = merged_cells(found, 40)
    assert 4 <= nodes.max() + 1 <= 40
    for node in range(nodes.max() + 1):
        assert len(set(data.labels[nodes == node])) == 1
    np.testing.assert_array_equal(merged_cells(found, 240), np.arange(240))


def test_leiden_of_nodes_is_as_good_as_that_of_cells() -> None:
    data = noise(1500, dims=5)
    found = find_neighbours(data.embedding, 19)
    nodes = merged_cells(found, 400)
    cells = cell_graph(found)
    merged = cluster_cells(data.embedding, cell_graph(found, None, nodes), LEIDEN, nodes=nodes)["leiden"]
    whole = cluster_cells(data.embedding, cells, LEIDEN)["leiden"]
    scores = [modularity(cells, np.asarray(one.cat.codes), 0.4) for one in (merged, whole)]
    assert scores[0] > 0.95 * scores[1]


def test_methods_that_learn_from_some_cells_find_separated_types() -> None:
    data = blobs(per_type=200)
    chosen = ALL.model_copy(update={"fit_cells": 160})
    found = cluster_cells(data.embedding, cell_graph(find_neighbours(data.embedding, 19)), chosen)
    assert len(found) == 800
    assert adjusted_rand_score(data.labels, found["kmeans"]) == 1.0
    clustered = found["hdbscan"] != "noise"
    assert adjusted_rand_score(data.labels[clustered], found["hdbscan"][clustered]) == 1.0
    assert clustered.mean() > 0.7


def test_one_column_for_every_resolution_and_seed() -> None:
    data = blobs(per_type=30)
    cells = [f"cell{i}" for i in range(len(data.labels))]
    chosen = ClusterSettings(
        resolutions=(0.1, 1.0), default_resolution=1.0, seeds=(4, 5), methods=("leiden",)
    )
    found = cluster_cells(
        data.embedding, cell_graph(find_neighbours(data.embedding, 19)), chosen, cells=cells
    )
    assert list(found.columns) == [
        "leiden",
        "leiden_r0.1_s4",
        "leiden_r0.1_s5",
        "leiden_r1_s4",
        "leiden_r1_s5",
    ]
    assert list(found.index) == cells
    assert (found["leiden"] == found["leiden_r1_s4"]).all()


def test_column_names_hold_resolution_and_seed() -> None:
    for resolution in (0.1, 1.0, 0.05, 2.5, 1e-5):
        assert leiden_run(leiden_column(resolution, 7)) == (resolution, 7)
    assert leiden_run("leiden") is None
    assert leiden_run("kmeans") is None


def test_same_seed_same_clusters() -> None:
    data = noise(400)
    graph = cell_graph(find_neighbours(data.embedding, 19))
    first = cluster_cells(data.embedding, graph, ALL)
    np.random.default_rng().random(10)
    assert first.equals(cluster_cells(data.embedding, graph, ALL))
    assert any((first["leiden_r1_s0"] != first[f"leiden_r1_s{s}"]).any() for s in (1, 2))


def test_leiden_and_louvain_reach_the_modularity_of_the_truth() -> None:
    data = blobs()
    graph = cell_graph(find_neighbours(data.embedding, 19))
    truth = np.unique(data.labels, return_inverse=True)[1]
    for codes in (leiden(graph, 0.5, 0, -1), louvain(graph, 0.5, 0)):
        assert modularity(graph, codes, 0.5) >= modularity(graph, truth, 0.5) - 1e-9


def test_higher_resolution_gives_more_clusters() -> None:
    graph = cell_graph(find_neighbours(noise(500).embedding, 19))
    counts = [leiden(graph, resolution, 0).max() for resolution in (0.1, 1.0, 5.0)]
    assert counts[0] < counts[1] < counts[2]


@settings(deadline=None, max_examples=60)
@given(codes=st.lists(st.integers(-1, 12), min_size=1, max_size=60))
def test_names_rank_clusters_by_size_and_keep_the_partition(codes: list[int]) -> None:
    named = named_clusters(np.array(codes))
    pairs = {(code, str(name)) for code, name in zip(codes, named, strict=True)}
    assert len(pairs) == len(set(codes)) == len({name for _, name in pairs})
    assert all((code < 0) == (name == "noise") for code, name in pairs)
    sizes = [sum(str(n) == name for n in named) for name in named.categories if name != "noise"]
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)


def test_few_cells_are_clustered_without_complaint() -> None:
    points = noise(4).embedding
    found = cluster_cells(points, cell_graph(find_neighbours(points, 19)), ALL)
    assert len(found) == 4
    assert (found["hdbscan"] == "noise").all()


def test_gene_modules_group_genes_that_load_alike() -> None:
    data = blobs(n_types=3, per_type=20)
    genes = [f"G{i}" for i in range(60)]
    modules = cluster_genes(data.embedding, genes, 3)
    assert list(modules.index) == genes
    assert adjusted_rand_score(data.labels, modules) == pytest.approx(1)
