"""Ranking scores against brute force, closed forms and the limits that any ranking keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.evaluation.ranking import (
    RankingTask,
    expected_scores,
    popularity,
    rank,
    ranking_task,
)
from neumf_assets.core.neumf.evaluation.thinning import leave_one_out


def blocks_of(scores: np.ndarray, size: int):
    for start in range(0, len(scores), size):
        yield slice(start, min(start + size, len(scores))), scores[start : start + size]


def random_counts(seed: int, shape: tuple[int, int], rate: float = 0.5) -> csr_matrix:
    return csr_matrix(np.random.default_rng(seed).poisson(rate, shape).astype(np.int32))


def brute_force(scores: np.ndarray, held: int, negatives: list[int], k: int) -> tuple[float, float]:
    """Average hit and NDCG over every place that the left-out gene can take among its equals."""
    above = sum(scores[g] > scores[held] for g in negatives)
    equal = sum(scores[g] == scores[held] for g in negatives)
    places = range(above, above + equal + 1)
    hits = [float(p < k) for p in places]
    gains = [1 / math.log2(p + 2) if p < k else 0.0 for p in places]
    return sum(hits) / len(hits), sum(gains) / len(gains)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 7), st.booleans())
def test_scores_agree_with_a_loop_over_cells(seed: int, k: int, block: int, coarse: bool) -> None:
    counts = random_counts(seed, (9, 15))
    left = leave_one_out(counts, seed)
    task = ranking_task(counts, left.cells, left.genes, n_negatives=5, seed=seed)
    scores = np.random.default_rng(seed).normal(size=counts.shape)
    scores = np.round(scores) if coarse else scores
    ranker = rank(task, blocks_of(scores, block))
    dense = counts.toarray()
    sampled, full = [], []
    for i, (cell, gene) in enumerate(zip(left.cells, left.genes, strict=True)):
        drawn = [g for g in task.negatives[i] if g < 15]
        sampled.append(brute_force(scores[cell], gene, drawn, k))
        full.append(brute_force(scores[cell], gene, list(np.flatnonzero(dense[cell] == 0)), k))
    if not sampled:
        return
    for found, expected in ((ranker.sampled([k]), sampled), (ranker.full([k]), full)):
        assert found.hit_rate[k] == pytest.approx(np.mean([e[0] for e in expected]))
        assert found.ndcg[k] == pytest.approx(np.mean([e[1] for e in expected]))
        assert found.cells == left.cells.size


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_negatives_are_distinct_and_unobserved_and_as_many_as_there_are(seed: int, wanted: int) -> None:
    counts = random_counts(seed, (12, 20))
    left = leave_one_out(counts, seed)
    task = ranking_task(counts, left.cells, left.genes, wanted, seed)
    dense = counts.toarray()
    for cell, row in zip(left.cells, task.negatives, strict=True):
        drawn = row[row < 20]
        assert len(set(drawn)) == len(drawn) == min(wanted, (dense[cell] == 0).sum())
        assert (dense[cell, drawn] == 0).all()


def test_negatives_are_drawn_uniformly() -> None:
    dense = np.zeros((4000, 30), np.int32)
    dense[:, :10] = 1
    cells = np.arange(4000)
    task = ranking_task(csr_matrix(dense), cells, np.zeros(4000, np.intp), n_negatives=5, seed=1)
    share = np.bincount(task.negatives.ravel(), minlength=30)[10:] / 4000
    assert np.abs(share - 5 / 20).max() < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_a_random_ranker_over_eleven_candidates_hits_ten_of_eleven() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    dense = np.zeros((n, 200), np.int32)
    dense[:, 0] = 1
    task = ranking_task(csr_matrix(dense), np.arange(n), np.zeros(n, np.intp), n_negatives=10, seed=0)
    found = rank(task, blocks_of(rng.random((n, 200)), 1000)).sampled([10])
    assert found.candidates == 11
    assert found.hit_rate[10] == pytest.approx(10 / 11, abs=4 * math.sqrt(10 / 121 / n))
    ndcg = sum(1 / math.log2(p + 2) for p in range(10)) / 11
    assert found.ndcg[10] == pytest.approx(ndcg, abs=0.01)


def test_a_constant_score_ranks_exactly_like_chance() -> None:
    counts = random_counts(3, (50, 400), 0.05)
    left = leave_one_out(counts)
    task = ranking_task(counts, left.cells, left.genes, n_negatives=10)
    found = rank(task, blocks_of(np.zeros(counts.shape), 7)).sampled([10])
    assert found.hit_rate[10] == pytest.approx(10 / 11)


def test_perfect_and_worst_rankings_reach_the_limits() -> None:
    counts = random_counts(4, (60, 300), 0.05)
    left = leave_one_out(counts)
    task = ranking_task(counts, left.cells, left.genes, n_negatives=50)
    scores = np.zeros(counts.shape)
    scores[left.cells, left.genes] = 1
    best, worst = rank(task, blocks_of(scores, 16)), rank(task, blocks_of(-scores, 16))
    for found in (best.sampled([1, 10]), best.full([1, 10])):
        assert found.hit_rate == {1: 1.0, 10: 1.0}
        assert found.ndcg == {1: 1.0, 10: 1.0}
    for found in (worst.sampled([10]), worst.full([10])):
        assert found.hit_rate == {10: 0.0}


def test_ranks_hold_for_any_strictly_rising_transformation_and_block_size() -> None:
    counts = random_counts(5, (80, 120), 0.2)
    left = leave_one_out(counts)
    task = ranking_task(counts, left.cells, left.genes)
    scores = np.random.default_rng(5).normal(size=counts.shape)
    one, other = rank(task, blocks_of(scores, 80)), rank(task, blocks_of(np.exp(scores), 13))
    assert one.full([1, 5, 20]) == other.full([1, 5, 20])
    assert one.sampled([1, 5, 20]) == other.sampled([1, 5, 20])


def test_popularity_counts_cells_of_the_training_part() -> None:
    train = random_counts(6, (70, 30))
    seen = (train.toarray() > 0).sum(0)
    blocks = list(popularity(train, block_cells=32))
    assert [rows.stop for rows, _ in blocks] == [32, 64, 70]
    assert all((block == seen).all() for _, block in blocks)


def test_popularity_beats_chance_where_genes_differ() -> None:
    rng = np.random.default_rng(7)
    rates = rng.gamma(0.3, 0.5, 300)
    counts = csr_matrix(rng.poisson(rates, (500, 300)).astype(np.int32))
    left = leave_one_out(counts)
    task = ranking_task(counts, left.cells, left.genes)
    found = rank(task, popularity(left.train)).sampled([10])
    assert found.hit_rate[10] > 3 * 10 / found.candidates


def test_scores_without_any_cell_are_zero() -> None:
    none = np.array([], np.intp)
    task = RankingTask(csr_matrix((3, 4)), none, none, np.empty((0, 2), np.intp))
    found = rank(task, blocks_of(np.zeros((3, 4)), 2)).full([10])
    assert (found.cells, found.hit_rate[10], found.ndcg[10]) == (0, 0.0, 0.0)


def test_hit_rate_rises_with_k_and_bounds_ndcg() -> None:
    rng = np.random.default_rng(8)
    hits, ndcg = expected_scores(rng.integers(0, 50, 200), rng.integers(0, 5, 200), [1, 5, 10, 60])
    values = list(hits.values())
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert all(ndcg[k] <= hits[k] for k in hits)
