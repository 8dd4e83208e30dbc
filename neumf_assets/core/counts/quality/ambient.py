"""How much of the counts of cells is ambient RNA, given what empty droplets hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neumf_assets.core.counts.quality.figures import Blocks

_GENES = 200
_GROUPS = 12
_LOW = 0.1
_SAMPLE = 20_000


def ambient_share(
    blocks: Blocks, shape: tuple[int, int], ambient: NDArray[np.float64], seed: int = 0
) -> float | None:
    """Estimate the share of the cells' counts that is ambient RNA.

    Every type of cells lacks some genes of which the ambient RNA is full: what it shows of them is ambient. Cells are
    grouped by the most frequent ambient genes; in each group the ratio of observed to purely ambient counts is
    low for genes that its cells lack, and its low quantile bounds the share. The median over the groups is
    given; it tends to be somewhat high where cells are of one type.

    Parameters
    ----------
    blocks, shape
        The counts of cells, cells × genes, and their size.
    ambient
        Share of each gene in the ambient profile.
    seed
        Of the grouping.

    Returns
    -------
    The share from 0 to 1; None where there are too few cells to group.
    """
    from sklearn.cluster import KMeans

    genes = np.argsort(ambient)[::-1][: min(_GENES, int((ambient > 0).sum()))]
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(shape[0])[:_SAMPLE])
    if chosen.size < 2 * _GROUPS or genes.size < _GROUPS:
        return None
    parts, totals = [], []
    for rows, X in blocks():
        own = chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start
        if own.size:
            parts.append(X[own][:, genes].toarray())
            totals.append(np.asarray(X[own].sum(axis=1, dtype=np.float64)).ravel())
    counts, total = np.vstack(parts), np.concatenate(totals)
    scaled = np.log1p(counts / np.maximum(total, 1)[:, None] * np.median(total))
    groups = KMeans(_GROUPS, n_init=3, random_state=seed).fit_predict(scaled)
    found = []
    for group in range(_GROUPS):
        inside = groups == group
        expected = total[inside].sum() * ambient[genes]
        sure = expected >= 50  # where chance alone moves the ratio by less than about a seventh
        if inside.sum() >= 10 and sure.sum() >= _GROUPS:
            found.append(float(np.quantile(counts[inside].sum(axis=0)[sure] / expected[sure], _LOW)))
    return float(min(1.0, np.median(found))) if found else None
