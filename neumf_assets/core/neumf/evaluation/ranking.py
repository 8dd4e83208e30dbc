"""Ranking scores of recommender systems, HR@K and NDCG@K, for one left-out gene of each cell.

The left-out gene is ranked among genes that were not observed in its cell: 100 distinct ones drawn at random,
and all of them (He et al. 2017, section 4.1; Krichene and Rendle 2020 on why the full ranking belongs beside
the sampled one). Equal scores are ordered at random, in expectation: a constant score ranks like chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Blocks = Iterable[tuple[slice, NDArray[np.floating]]]

DRAW_ENTRIES = 4_000_000


@dataclass(frozen=True)
class RankingTask:
    """What is to be ranked in each cell.

    Parameters
    ----------
    counts
        All observed counts, cells x genes: what was observed here is no negative.
    cells, genes
        The left-out entries, cells ascending, one for a cell, ``[n]``.
    negatives
        Distinct unobserved genes of these cells, ``[n, n_negatives]``; the number of genes stands where a
        cell has fewer.
    """

    counts: csr_matrix
    cells: NDArray[np.intp]
    genes: NDArray[np.intp]
    negatives: NDArray[np.intp]


@dataclass(frozen=True)
class RankingScores:
    """Hit rate and NDCG at each K, averaged over cells.

    Parameters
    ----------
    hit_rate, ndcg
        By K.
    cells
        Number of cells that were ranked.
    candidates
        Mean number of genes in a ranking, the left-out one included.
    """

    hit_rate: dict[int, float]
    ndcg: dict[int, float]
    cells: int
    candidates: float


def ranking_task(
    counts: csr_matrix,
    cells: NDArray[np.intp],
    genes: NDArray[np.intp],
    n_negatives: int = 100,
    seed: int = 0,
) -> RankingTask:
    """Draw the negatives of left-out entries.

    Parameters
    ----------
    counts
        All observed counts, cells x genes, the left-out ones included.
    cells, genes
        The left-out entries.
    n_negatives
        Distinct unobserved genes to draw for each.
    seed
        Seed of the draw.
    """
    counts = counts.tocsr()
    width = min(n_negatives, counts.shape[1])
    rng = np.random.default_rng(seed)
    step = max(1, DRAW_ENTRIES // counts.shape[1])
    negatives = np.empty((cells.size, width), np.intp)
    for start in range(0, cells.size, step):
        part = slice(start, start + step)
        negatives[part] = _draw_unobserved(counts[cells[part]], width, rng)
    return RankingTask(counts, cells, genes, negatives)


def _draw_unobserved(rows: csr_matrix, width: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return ``width`` distinct unobserved genes of each row: those with the smallest random keys."""
    n_cells, n_genes = rows.shape
    keys = rng.random((n_cells, n_genes), dtype=np.float32)
    keys[_observed(rows)] = np.inf
    drawn = np.argpartition(keys, width - 1, axis=1)[:, :width]
    return np.where(np.isfinite(np.take_along_axis(keys, drawn, axis=1)), drawn, n_genes)


def _observed(rows: csr_matrix) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    positive = rows.data > 0
    return row[positive], rows.indices[positive]


class Ranker:
    """Collects the ranks of the left-out genes from predictions that arrive in blocks of cells."""

    def __init__(self, task: RankingTask) -> None:
        self.task = task
        self._sampled = np.zeros((3, task.cells.size), np.int64)
        self._full = np.zeros((3, task.cells.size), np.int64)
        self._seen = np.zeros(task.cells.size, bool)

    def add(self, rows: slice, scores: NDArray[np.floating]) -> None:
        """Take the scores of the cells ``rows``, ``[cells, genes]``; higher ranks first."""
        task = self.task
        first, last = np.searchsorted(task.cells, [rows.start, rows.stop])
        if first == last:
            return
        mine = slice(int(first), int(last))
        local = task.cells[mine] - rows.start
        scores = scores[local]
        held = np.take_along_axis(scores, task.genes[mine, None], axis=1)
        drawn = task.negatives[mine]
        exists = drawn < scores.shape[1]
        negative = np.take_along_axis(scores, np.minimum(drawn, scores.shape[1] - 1), axis=1)
        self._sampled[:, mine] = _compare(held, negative, exists)
        candidate = np.ones(scores.shape, bool)
        candidate[_observed(task.counts[task.cells[mine]])] = False
        self._full[:, mine] = _compare(held, scores, candidate)
        self._seen[mine] = True

    def sampled(self, ks: Sequence[int] = (10,)) -> RankingScores:
        """Return the scores among the drawn negatives."""
        return self._scores(self._sampled, ks)

    def full(self, ks: Sequence[int] = (10,)) -> RankingScores:
        """Return the scores among all unobserved genes."""
        return self._scores(self._full, ks)

    def _scores(self, found: NDArray[np.int64], ks: Sequence[int]) -> RankingScores:
        better, tied, candidates = found[:, self._seen]
        hits, ndcg = expected_scores(better, tied, ks)
        n = better.size
        return RankingScores(hits, ndcg, n, float(candidates.mean() + 1) if n else 0.0)


def _compare(
    held: NDArray[np.floating], others: NDArray[np.floating], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return for each row how many valid others score higher, equally, and how many there are."""
    better = ((others > held) & valid).sum(axis=1)
    tied = ((others == held) & valid).sum(axis=1)
    return better, tied, valid.sum(axis=1)


def expected_scores(
    better: NDArray[np.integer], tied: NDArray[np.integer], ks: Sequence[int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Return hit rate and NDCG at each K, in expectation over a random order of equal scores.

    Parameters
    ----------
    better, tied
        How many candidates score higher than the left-out gene, and how many equally, in each cell.
    ks
        The cut-offs.

    Notes
    -----
    The position (from 0) is uniform on ``better .. better + tied``; a hit is a position below K, its gain
    ``1 / log2(position + 2)``.
    """
    hits: dict[int, float] = {}
    ndcg: dict[int, float] = {}
    for k in ks:
        gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
        first, end = np.minimum(better, k), np.minimum(better + tied + 1, k)
        places = tied + 1
        hits[k] = float(np.mean((end - first) / places)) if better.size else 0.0
        ndcg[k] = float(np.mean((gain[end] - gain[first]) / places)) if better.size else 0.0
    return hits, ndcg


def popularity(train: csr_matrix, block_cells: int = 512) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield for every cell the number of cells in which each gene was observed: the baseline of all rankings.

    Parameters
    ----------
    train
        Cells x genes without the left-out entries.
    block_cells
        Cells in a block.
    """
    n_cells, n_genes = train.shape
    seen = np.bincount(train.indices[train.data > 0], minlength=n_genes).astype(np.float32)
    for start in range(0, n_cells, block_cells):
        rows = slice(start, min(start + block_cells, n_cells))
        yield rows, np.broadcast_to(seen, (rows.stop - rows.start, n_genes))


def rank(task: RankingTask, blocks: Blocks) -> Ranker:
    """Return the ranks of a task's left-out genes under predictions that arrive in blocks of cells."""
    ranker = Ranker(task)
    for rows, scores in blocks:
        ranker.add(rows, scores)
    return ranker
