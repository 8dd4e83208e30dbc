"""Scores of an embedding and its clusters: against labels, of the mixing of datasets, and of stability.

Labels are never an input of what is scored. Every function that takes labels scores the labelled cells only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from neumf_assets.core.cells.clustering import leiden_run
from neumf_assets.core.cells.neighbours import (
    Neighbours,
    find_cross_neighbours,
    find_neighbours_of,
    row_blocks,
)
from neumf_assets.core.cells.scoring.scores import ArmScores, PartitionScore, RunScore
from neumf_assets.core.cells.settings import Metric, MetricsSettings
from neumf_assets.core.errors import NeumfError

_LISI_TOLERANCE = 1e-5
_LISI_HALVINGS = 50


LISI_CELLS = 10_000


def score_embedding(
    embedding: np.ndarray,
    clusters: pd.DataFrame,
    labels: Sequence[str] | pd.Series | None,
    dataset: Sequence[str] | pd.Series,
    neighbours: Neighbours,
    settings: MetricsSettings | None = None,
) -> ArmScores:
    """Score one arm.

    Parameters
    ----------
    embedding
        Cells × dimensions, aligned: what was clustered.
    clusters
        The columns of ``cluster_cells``.
    labels
        Label of every cell, NaN or None where it has none; None without labels.
    dataset
        Dataset of every cell.
    neighbours
        Neighbours of every cell in this embedding; ``neighbours_needed`` tells how many.

    Raises
    ------
    NeumfError
        Lengths differ, or there is no Leiden clustering to score.
    """
    settings = settings or MetricsSettings()
    label_codes, label_names = _codes(labels, len(embedding))
    batch, batch_names = _codes(dataset, len(embedding))
    lengths = {len(embedding), len(clusters), len(label_codes), len(batch), neighbours.n_cells}
    if len(lengths) != 1 or "leiden" not in clusters:
        raise NeumfError(
            f"Scores need one length for all cells (not {sorted(lengths)}) and `leiden` clusters."
        )
    runs = _score_runs(clusters, label_codes)
    main = score_partition(clusters["leiden"], label_codes)
    figures: dict[str, float | None] = dict(_over_runs(runs))
    figures |= _mixing(embedding, label_codes, batch, neighbours, settings)
    figures |= _conservation(embedding, label_codes, batch, neighbours, settings)
    return ArmScores(
        n_cells=len(embedding),
        n_labelled=int((label_codes >= 0).sum()),
        n_clusters=main.n_clusters,
        ari=main.ari,
        ami=main.ami,
        nmi=main.nmi,
        stability=stability(clusters),
        runs=runs,
        methods={
            str(c): score_partition(clusters[c], label_codes) for c in clusters if leiden_run(str(c)) is None
        },
        cluster_by_label=cluster_table(clusters["leiden"], label_codes, label_names),
        cluster_by_dataset=cluster_table(clusters["leiden"], batch, batch_names),
        **figures,
    )


def score_partition(clusters: Sequence[str] | pd.Series, labels: np.ndarray) -> PartitionScore:
    """Score one clustering against label codes (negative = unlabelled): ARI, AMI and NMI (arithmetic means).

    HDBSCAN's noise counts as one cluster.
    """
    from sklearn.metrics import (
        adjusted_mutual_info_score,
        adjusted_rand_score,
        normalized_mutual_info_score,
    )

    codes = pd.factorize(np.asarray(clusters))[0]
    n_clusters = int(codes.max(initial=-1)) + 1
    known = labels >= 0
    if known.sum() < 2:
        return PartitionScore(n_clusters=n_clusters)
    truth, found = labels[known], codes[known]
    return PartitionScore(
        n_clusters=n_clusters,
        ari=float(adjusted_rand_score(truth, found)),
        ami=float(adjusted_mutual_info_score(truth, found)),
        nmi=float(normalized_mutual_info_score(truth, found)),
    )


def stability(clusters: pd.DataFrame) -> float | None:
    """Agreement of the Leiden runs that differ in their seed only: mean ARI of pairs, then over resolutions.

    Needs no labels. None where every resolution has a single seed.
    """
    from sklearn.metrics import adjusted_rand_score

    by_resolution: dict[float, list[np.ndarray]] = {}
    for column in clusters:
        if (run := leiden_run(str(column))) is not None:
            by_resolution.setdefault(run[0], []).append(pd.factorize(np.asarray(clusters[column]))[0])
    means = [
        float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(runs, 2)]))
        for runs in by_resolution.values()
        if len(runs) > 1
    ]
    return float(np.mean(means)) if means else None


def same_batch_share(neighbours: Neighbours, batch: np.ndarray, k: int = 20) -> float:
    """Share of each cell's ``k`` nearest neighbours that come from its own dataset, mean over the cells."""
    near = neighbours.nearest(k).indices
    same = sum(int((batch[near[rows]] == batch[rows, None]).sum()) for rows in row_blocks(len(near)))
    return same / near.size if near.size else float("nan")


def expected_same_batch_share(batch: np.ndarray, labels: np.ndarray | None = None) -> float:
    """Same-dataset share that perfectly mixed cells would show: ``Σ n_d (n_d − 1) / (n (n − 1))``.

    With label codes the expectation is taken within each label (over its cells), which is the right one where
    the datasets differ in their composition.
    """
    batch = np.asarray(batch)
    groups = [np.arange(len(batch))]
    if labels is not None:
        groups = [np.flatnonzero(labels == code) for code in np.unique(labels[labels >= 0])]
    groups = [g for g in groups if len(g) > 1]
    shares = [_mixed_share(batch[g]) * len(g) for g in groups]
    return float(np.sum(shares) / sum(len(g) for g in groups)) if groups else float("nan")


def cross_batch_label_accuracy(
    embedding: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    *,
    k: int = 15,
    metric: Metric = "cosine",
    max_cells: int = 50_000,
    seed: int = 0,
) -> float | None:
    """Share of labelled cells whose label wins the vote of ``k`` cells of other datasets.

    The voters are the nearest labelled cells; ties go to the label of the nearest of them. Cells whose label
    occurs in no other dataset are left out: no vote could name it. At most ``max_cells``
    cells, drawn at random, are asked.

    Parameters
    ----------
    labels, batch
        Codes of every cell; a negative label is unlabelled.

    Returns
    -------
    float or None
        None where no cell has a labelled cell of its kind in another dataset.
    """
    known = np.flatnonzero(labels >= 0)
    rng = np.random.default_rng(seed)
    right, asked = 0, 0
    for code in np.unique(batch):
        references = known[batch[known] != code]
        queries = known[batch[known] == code]
        queries = queries[np.isin(labels[queries], labels[references])]
        quota = max(1, round(max_cells * len(queries) / max(1, len(known))))
        if len(queries) > quota and len(known) > max_cells:
            queries = rng.choice(queries, quota, replace=False)
        if not len(queries):
            continue
        near = find_cross_neighbours(embedding[queries], embedding[references], k, metric)
        right += int((_vote(labels[references][near]) == labels[queries]).sum())
        asked += len(queries)
    return right / asked if asked else None


def lisi(neighbours: Neighbours, codes: np.ndarray, perplexity: float = 30.0) -> np.ndarray:
    """Local inverse Simpson index of every cell: the effective number of groups around it.

    Korsunsky et al. 2019: the neighbours (three times the perplexity) are weighted by ``exp(−β d)`` with β
    such that the weights have the perplexity. Under the cosine metric d is the distance between the cells
    scaled to length 1.

    Returns
    -------
    numpy.ndarray
        One value per cell, from 1 to the number of groups.
    """
    k = min(neighbours.k, round(3 * perplexity))
    near, n_groups = neighbours.nearest(k), int(codes.max(initial=-1)) + 1
    found = np.empty(near.n_cells)
    for rows in row_blocks(near.n_cells):
        distances = near.distances[rows].astype(np.float64)
        if near.metric == "cosine":
            distances = np.sqrt(2 * np.maximum(distances, 0))
        weights = _perplexity_weights(distances, min(perplexity, k / 3))
        shares = np.zeros((len(weights), n_groups))
        np.add.at(shares, (np.arange(len(weights))[:, None], codes[near.indices[rows]]), weights)
        found[rows] = 1 / np.sum(shares**2, axis=1)
    return found


def silhouettes(
    embedding: np.ndarray, labels: np.ndarray, batch: np.ndarray, *, metric: Metric, max_cells: int, seed: int
) -> tuple[float | None, float | None]:
    """Silhouette of the labels (−1 to 1; higher is better) and of the datasets (0 to 1; 1 = mixed).

    The second one is scib's (Luecken et al. 2022): ``1 − |s|`` of the datasets within each label, averaged
    over its cells, then over the labels; without labels over all cells. At most ``max_cells`` are drawn.
    """
    known = np.flatnonzero(labels >= 0)
    pool = known if len(known) else np.arange(len(embedding))
    if len(pool) > max_cells:
        pool = np.sort(np.random.default_rng(seed).choice(pool, max_cells, replace=False))
    of_labels = _silhouette(embedding[pool], labels[pool], metric)
    groups = [pool[labels[pool] == code] for code in np.unique(labels[pool])]
    found = [_silhouette(embedding[group], batch[group], metric) for group in groups]
    mixed = [float(np.mean(1 - np.abs(s))) for s in found if s is not None]
    return (
        float(of_labels.mean()) if of_labels is not None else None,
        float(np.mean(mixed)) if mixed else None,
    )


def cluster_table(
    clusters: Sequence[str] | pd.Series, codes: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count the cells of every cluster by group (label or dataset); negative codes are left out."""
    known = codes >= 0
    groups = np.asarray(names, dtype=object)[codes[known]]
    table = pd.crosstab(np.asarray(clusters)[known], groups)
    order = sorted(table.index, key=lambda name: (len(str(name)), str(name)))
    return {str(c): {str(g): int(n) for g, n in table.loc[c].items()} for c in order}


def _codes(values: Sequence[str] | pd.Series | None, n: int) -> tuple[np.ndarray, list[str]]:
    if values is None:
        return np.full(n, -1), []
    codes, names = pd.factorize(pd.Series(np.asarray(values, dtype=object)), sort=True)
    return codes, [str(name) for name in names]


def _score_runs(clusters: pd.DataFrame, labels: np.ndarray) -> tuple[RunScore, ...]:
    scores = []
    for column in clusters:
        if (run := leiden_run(str(column))) is not None:
            score = score_partition(clusters[column], labels)
            scores.append(RunScore(resolution=run[0], seed=run[1], **score.model_dump()))
    return tuple(scores)


def _over_runs(runs: tuple[RunScore, ...]) -> dict[str, float]:
    """Best and mean over the resolutions within each seed, averaged over the seeds."""
    table = pd.DataFrame([run.model_dump() for run in runs])
    if table.empty or table["ari"].isna().any():
        return {}
    figures = {}
    for score in ("ari", "ami"):
        by_seed = table.groupby("seed")[score]
        figures[f"{score}_best"] = float(by_seed.max().mean())
        figures[f"{score}_mean"] = float(by_seed.mean().mean())
        if table["seed"].nunique() > 1:
            figures[f"{score}_mean_sd"] = float(by_seed.mean().std(ddof=1))
    return figures


def _mixing(
    embedding: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    neighbours: Neighbours,
    settings: MetricsSettings,
) -> dict[str, float | None]:
    n_batches = int(batch.max(initial=-1)) + 1
    if n_batches < 2:
        return {}
    within = expected_same_batch_share(batch[labels >= 0], labels[labels >= 0])
    mixing = _median_lisi(embedding, neighbours, batch, settings)
    return {
        "same_batch_neighbours": same_batch_share(neighbours, batch, settings.mixing_neighbors),
        "expected_same_batch": expected_same_batch_share(batch),
        "expected_same_batch_within_label": within if np.isfinite(within) else None,
        "ilisi": (mixing - 1) / (n_batches - 1),
        "cross_batch_label_accuracy": cross_batch_label_accuracy(
            embedding,
            labels,
            batch,
            k=settings.vote_neighbors,
            metric=neighbours.metric,
            max_cells=settings.vote_cells,
            seed=settings.seed,
        ),
    }


def _conservation(
    embedding: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    neighbours: Neighbours,
    settings: MetricsSettings,
) -> dict[str, float | None]:
    of_labels, of_batch = silhouettes(
        embedding,
        labels,
        batch,
        metric=neighbours.metric,
        max_cells=settings.silhouette_cells,
        seed=settings.seed,
    )
    return {
        "silhouette_label": of_labels,
        "silhouette_batch": of_batch,
        "clisi": _clisi(embedding, labels, neighbours, settings),
    }


def _median_lisi(
    embedding: np.ndarray, neighbours: Neighbours, codes: np.ndarray, settings: MetricsSettings
) -> float:
    """Return the median LISI; that of cells drawn by chance where too few neighbours are known."""
    perplexity = settings.lisi_perplexity
    wanted = min(round(3 * perplexity), len(codes) - 1)
    if neighbours.k >= wanted:
        return float(np.median(lisi(neighbours, codes, perplexity)))
    rng = np.random.default_rng(settings.seed)
    cells = np.sort(rng.choice(len(codes), min(LISI_CELLS, len(codes)), replace=False))
    found = find_neighbours_of(cells, embedding, wanted, neighbours.metric)
    return float(np.median(lisi(found, codes, perplexity)))


def _clisi(
    embedding: np.ndarray, labels: np.ndarray, neighbours: Neighbours, settings: MetricsSettings
) -> float | None:
    """Label LISI as scib scales it: 1 = neighbourhoods of one label, 0 = all labels alike."""
    known = labels >= 0
    codes = np.unique(labels[known], return_inverse=True)[1]
    n_labels = int(codes.max(initial=-1)) + 1
    if n_labels < 2:
        return None
    if not known.all():
        embedding, none = embedding[known], np.empty((int(known.sum()), 0), np.int32)
        neighbours = Neighbours(none, none.astype(np.float32), neighbours.metric)
    return (n_labels - _median_lisi(embedding, neighbours, codes, settings)) / (n_labels - 1)


def _mixed_share(batch: np.ndarray) -> float:
    sizes = np.unique(batch, return_counts=True)[1].astype(float)
    return float(np.sum(sizes * (sizes - 1)) / (len(batch) * (len(batch) - 1)))


def _vote(votes: np.ndarray) -> np.ndarray:
    """Give each row's most frequent code, of equally frequent ones the one that comes first in the row."""
    rows = np.arange(len(votes))[:, None]
    counts = np.zeros((len(votes), int(votes.max(initial=0)) + 1))
    np.add.at(counts, (rows, votes), 1.0)
    per_vote = np.take_along_axis(counts, votes, axis=1)
    return votes[rows[:, 0], per_vote.argmax(axis=1)]


def _silhouette(points: np.ndarray, codes: np.ndarray, metric: Metric) -> np.ndarray | None:
    from sklearn.metrics import silhouette_samples

    # with as many groups as points, or one, the silhouette does not exist
    if not 2 <= len(np.unique(codes)) < len(codes):
        return None
    return silhouette_samples(points, codes, metric=metric)


def _perplexity_weights(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Weights ``exp(−β d) / Σ``, each row's β found by bisection: their entropy is log(perplexity)."""
    n = len(distances)
    shifted = distances - distances.min(axis=1, keepdims=True)
    beta, low, high = np.ones(n), np.zeros(n), np.full(n, np.inf)
    for _ in range(_LISI_HALVINGS):
        weights = np.exp(-shifted * beta[:, None])
        total = weights.sum(axis=1)
        surplus = np.log(total) + beta * (shifted * weights).sum(axis=1) / total - np.log(perplexity)
        if np.all(np.abs(surplus) < _LISI_TOLERANCE):
            break
        low, high = np.where(surplus > 0, beta, low), np.where(surplus > 0, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + high) / 2)
    return weights / total[:, None]
