from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from harmonypy import compute_lisi
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from neumf_assets.core.cells.clustering import cluster_cells
from neumf_assets.core.cells.neighbours import cell_graph, find_neighbours
from neumf_assets.core.cells.scoring.metrics import (
    cluster_table,
    cross_batch_label_accuracy,
    expected_same_batch_share,
    lisi,
    same_batch_share,
    score_embedding,
    score_partition,
    silhouettes,
    stability,
)
from neumf_assets.core.cells.scoring.scores import ArmScores
from neumf_assets.core.cells.settings import ClusterSettings, MetricsSettings
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.cells.data import Blobs, blobs, noise

CHOSEN = ClusterSettings(
    resolutions=(0.2, 0.5), default_resolution=0.2, methods=("leiden", "kmeans"), kmeans_k=4
)


def scored(data: Blobs, labels: object = "own") -> ArmScores:
    neighbours = find_neighbours(data.embedding, 90)
    clusters = cluster_cells(data.embedding, cell_graph(neighbours), CHOSEN)
    truth = data.labels if isinstance(labels, str) else labels
    return score_embedding(data.embedding, clusters, truth, data.dataset, neighbours)


def codes_of(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def pair_counting_ari(a: np.ndarray, b: np.ndarray) -> float:
    """Hubert & Arabie 1985 from a loop over all pairs."""
    both = first = second = pairs = 0
    for i in range(len(a)):
        for j in range(i):
            both += a[i] == a[j] and b[i] == b[j]
            first += a[i] == a[j]
            second += b[i] == b[j]
            pairs += 1
    expected = first * second / pairs
    return (both - expected) / ((first + second) / 2 - expected)


def test_ari_matches_counting_of_pairs_on_labelled_cells() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(-1, 3, 80), rng.integers(0, 4, 80).astype(str)
    known = labels >= 0
    score = score_partition(clusters, labels)
    assert score.ari == pytest.approx(pair_counting_ari(labels[known], clusters[known]))
    assert score.n_clusters == 4


def test_separated_mixed_types_score_perfectly() -> None:
    scores = scored(blobs(per_type=100))
    assert scores.ari == scores.ari_best == scores.ari_mean == 1
    assert scores.ami == pytest.approx(1)
    assert scores.nmi == pytest.approx(1)
    assert scores.cross_batch_label_accuracy == 1
    assert scores.clisi == pytest.approx(1)
    assert scores.stability == 1
    assert scores.silhouette_label > 0.9
    assert scores.silhouette_batch > 0.9
    assert scores.ilisi > 0.85
    assert scores.same_batch_neighbours == pytest.approx(scores.expected_same_batch_within_label, abs=0.03)


def test_random_labels_score_at_chance() -> None:
    data = noise(900)
    scores = scored(data)
    assert abs(scores.ari_mean) < 0.02
    assert abs(scores.ami_mean) < 0.02
    assert abs(scores.cross_batch_label_accuracy - 1 / 3) < 0.06
    # about 30 weighted neighbours never hold three labels in exactly equal shares
    assert scores.clisi < 0.25
    assert abs(scores.silhouette_label) < 0.03


def test_datasets_that_are_apart_do_not_count_as_mixed() -> None:
    scores = scored(blobs(per_type=100, shift=40.0))
    assert scores.same_batch_neighbours == 1
    assert scores.ilisi == pytest.approx(0, abs=1e-6)
    assert scores.silhouette_batch < 0.3


def test_scores_that_need_labels_are_absent_without_labels() -> None:
    scores = scored(blobs(), labels=None)
    assert scores.n_labelled == 0
    for name in (
        "ari",
        "ari_best",
        "ami_mean",
        "nmi",
        "cross_batch_label_accuracy",
        "silhouette_label",
        "clisi",
    ):
        assert getattr(scores, name) is None
    assert all(run.ari is None for run in scores.runs)
    assert scores.cluster_by_label == {}
    assert scores.same_batch_neighbours is not None
    assert scores.n_clusters == 4


def test_mixing_is_absent_with_one_dataset() -> None:
    data = blobs()
    scores = scored(Blobs(data.embedding, data.labels, np.full(len(data.labels), "a")))
    assert scores.ari == 1
    for name in (
        "same_batch_neighbours",
        "expected_same_batch",
        "ilisi",
        "cross_batch_label_accuracy",
        "silhouette_batch",
    ):
        assert getattr(scores, name) is None


def test_unlabelled_cells_do_not_change_the_scores_of_labels() -> None:
    data = blobs(per_type=100)
    labels = pd.Series(data.labels).where(np.arange(len(data.labels)) % 3 > 0, np.nan)
    scores = scored(data, labels)
    assert scores.n_labelled == labels.notna().sum()
    assert scores.ari == 1
    assert scores.cross_batch_label_accuracy == 1
    assert scores.clisi == pytest.approx(1)
    assert sum(sum(row.values()) for row in scores.cluster_by_label.values()) == scores.n_labelled


def test_best_and_mean_are_taken_within_a_seed() -> None:
    data = noise(300)
    scores = scored(data)
    by_seed = {seed: [r.ari for r in scores.runs if r.seed == seed] for seed in (0, 1, 2)}
    assert all(len(aris) == 2 for aris in by_seed.values())
    assert scores.ari_best == pytest.approx(np.mean([max(aris) for aris in by_seed.values()]))
    means = [np.mean(aris) for aris in by_seed.values()]
    assert scores.ari_mean == pytest.approx(np.mean(means))
    assert scores.ari_mean_sd == pytest.approx(np.std(means, ddof=1))


def test_scores_survive_json() -> None:
    scores = scored(blobs())
    assert ArmScores.model_validate_json(scores.model_dump_json()) == scores
    summary = json.loads(json.dumps(scores.summary(), allow_nan=False))
    contract = {
        "n_clusters", "ari", "ari_best", "ari_mean", "ami", "ami_best", "nmi", "same_batch_neighbours",
        "expected_same_batch", "cross_batch_label_accuracy", "alignment", "agreement", "seconds",
    }  # fmt: skip
    assert contract <= set(summary)
    assert "runs" not in summary


def test_lengths_must_fit() -> None:
    data = blobs()
    neighbours = find_neighbours(data.embedding, 90)
    clusters = cluster_cells(data.embedding, cell_graph(neighbours), CHOSEN)
    with pytest.raises(NeumfError, match="one length"):
        score_embedding(data.embedding, clusters.iloc[:-1], None, data.dataset, neighbours)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_expected_share_is_that_of_all_ordered_pairs(sizes: list[int]) -> None:
    batch = np.repeat(np.arange(len(sizes)), sizes)
    n = len(batch)
    pairs = [batch[i] == batch[j] for i in range(n) for j in range(n) if i != j]
    found = expected_same_batch_share(batch)
    assert math.isnan(found) if n == 1 else found == pytest.approx(np.mean(pairs))


def test_expected_share_of_the_study_in_the_protocol() -> None:
    assert expected_same_batch_share(np.repeat([0, 1], [6548, 7451])) == pytest.approx(0.502, abs=5e-4)


def test_expected_share_within_labels_knows_about_missing_types() -> None:
    labels, batch = np.array([0] * 10 + [1] * 10), np.array([0, 1] * 5 + [1] * 10)
    assert expected_same_batch_share(batch, labels) == pytest.approx((4 / 9 + 1) / 2)


def test_same_batch_share_matches_a_loop() -> None:
    data = noise(150)
    codes = codes_of(data.dataset)
    neighbours = find_neighbours(data.embedding, 40)
    loop = [codes[j] == codes[i] for i in range(150) for j in neighbours.indices[i, :20]]
    assert same_batch_share(neighbours, codes, 20) == pytest.approx(np.mean(loop))


def test_vote_across_datasets_matches_a_loop() -> None:
    data = noise(240)
    labels, batch = codes_of(data.labels), np.random.default_rng(1).integers(0, 3, 240)
    labels[::5] = -1
    unit = data.embedding / np.linalg.norm(data.embedding, axis=1, keepdims=True)
    right = []
    for i in np.flatnonzero(labels >= 0):
        others = np.flatnonzero((labels >= 0) & (batch != batch[i]))
        nearest = others[np.argsort(-(unit[others] @ unit[i]))[:15]]
        votes = np.bincount(labels[nearest], minlength=3)
        winners = np.flatnonzero(votes == votes.max())
        winner = next(label for label in labels[nearest] if label in winners)
        right.append(winner == labels[i])
    assert cross_batch_label_accuracy(data.embedding, labels, batch) == pytest.approx(np.mean(right))


def test_labels_of_one_dataset_only_are_not_asked_for() -> None:
    data = blobs(n_types=3, per_type=60)
    labels, batch = codes_of(data.labels), codes_of(data.dataset)
    keep = (labels != 2) | (batch == 0)
    accuracy = cross_batch_label_accuracy(data.embedding[keep], labels[keep], batch[keep])
    assert accuracy == 1
    assert cross_batch_label_accuracy(data.embedding, batch, batch) is None


def test_a_draw_of_cells_estimates_the_vote() -> None:
    data = noise(900)
    labels, batch = codes_of(data.labels), codes_of(data.dataset)
    drawn = [
        cross_batch_label_accuracy(data.embedding, labels, batch, max_cells=300, seed=seed)
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    whole = cross_batch_label_accuracy(data.embedding, labels, batch)
    assert np.mean(drawn) == pytest.approx(whole, abs=0.06)


def simpson_loop(distances: np.ndarray, codes: np.ndarray, perplexity: float) -> float:
    """Inverse Simpson index of one cell, its weights' β found by plain bisection on their entropy."""
    low, high = 0.0, 1e4
    for _ in range(200):
        beta = (low + high) / 2
        p = [math.exp(-beta * (d - distances[0])) for d in distances]
        p = [x / sum(p) for x in p]
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        low, high = (beta, high) if entropy > math.log(perplexity) else (low, beta)
    return 1 / sum(sum(x for x, c in zip(p, codes, strict=True) if c == group) ** 2 for group in set(codes))


def test_lisi_matches_a_loop() -> None:
    data = noise(200)
    codes = codes_of(data.labels)
    neighbours = find_neighbours(data.embedding, 60, metric="euclidean")
    found = lisi(neighbours, codes, perplexity=20)
    for i in range(0, 200, 20):
        loop = simpson_loop(neighbours.distances[i].astype(float), codes[neighbours.indices[i]].tolist(), 20)
        assert found[i] == pytest.approx(loop, rel=1e-3)


def test_lisi_matches_harmonypy() -> None:
    data = noise(400)
    unit = data.embedding / np.linalg.norm(data.embedding, axis=1, keepdims=True)
    theirs = compute_lisi(unit, {"label": data.labels}, ["label"], perplexity=30)[:, 0]
    ours = lisi(find_neighbours(data.embedding, 90), codes_of(data.labels), 30)
    # theirs takes one neighbour fewer, because it counts the cell itself among the 90
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.02)


def test_lisi_of_few_cells_stays_in_its_range() -> None:
    data = noise(12)
    found = lisi(find_neighbours(data.embedding, 90), codes_of(data.dataset), 30)
    assert ((found >= 1 - 1e-9) & (found <= 2 + 1e-9)).all()


def test_silhouettes_match_scikit_learn_and_scib() -> None:
    data = noise(200)
    labels, batch = codes_of(data.labels), codes_of(data.dataset)
    of_labels, of_batch = silhouettes(data.embedding, labels, batch, metric="cosine", max_cells=1000, seed=0)
    assert of_labels == pytest.approx(silhouette_samples(data.embedding, labels, metric="cosine").mean())
    per_label = []
    for label in range(3):
        own = labels == label
        per_label.append(
            (1 - np.abs(silhouette_samples(data.embedding[own], batch[own], metric="cosine"))).mean()
        )
    assert of_batch == pytest.approx(np.mean(per_label))


def test_stability_is_the_mean_agreement_between_seeds() -> None:
    table = pd.DataFrame(
        {
            "leiden": list("0011"),
            "leiden_r1_s0": list("0011"),
            "leiden_r1_s1": list("0101"),
            "leiden_r2_s0": list("0123"),
        }
    )
    assert stability(table) == pytest.approx(
        adjusted_rand_score(table["leiden_r1_s0"], table["leiden_r1_s1"])
    )
    assert stability(table[["leiden", "leiden_r1_s0"]]) is None


def test_cluster_table_counts_known_cells() -> None:
    table = cluster_table(["0", "0", "10", "2"], np.array([1, 0, 0, -1]), ["a", "b"])
    assert table == {"0": {"a": 1, "b": 1}, "10": {"a": 1, "b": 0}}


def test_settings_reach_the_scores() -> None:
    data = noise(200)
    neighbours = find_neighbours(data.embedding, 90)
    clusters = cluster_cells(data.embedding, cell_graph(neighbours), CHOSEN)
    codes = codes_of(data.dataset)
    scores = score_embedding(
        data.embedding, clusters, None, data.dataset, neighbours, MetricsSettings(mixing_neighbors=3)
    )
    assert scores.same_batch_neighbours == same_batch_share(neighbours, codes, 3)


def test_lisi_of_few_known_neighbours_is_that_of_a_sample() -> None:
    data = blobs(per_type=100)
    arguments = data.embedding, pd.DataFrame({"leiden": data.labels}), data.labels, data.dataset
    known = find_neighbours(data.embedding, 90)
    whole = score_embedding(*arguments, known, MetricsSettings())
    sampled = score_embedding(*arguments, known.nearest(20), MetricsSettings())
    assert (sampled.ilisi, sampled.clisi) == (whole.ilisi, whole.clisi)  # fewer cells than the sample holds
