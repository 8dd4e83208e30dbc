"""Names for clusters by lists of genes that are known to mark cell types."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

LEAST = 0.5
"""Standard deviations above the mean of all clusters, on average over a type's genes, that a name takes."""
NOT = "-"
COLUMNS = ("cluster", "suggested", "score", "next", "next_score")


def listed_genes(lists: Mapping[str, Sequence[str]], measured: Collection[str] | None = None) -> list[str]:
    """The genes of all lists, or those of them that were measured, each once; a sign is taken off."""
    known = None if measured is None else set(measured)
    return [
        gene
        for gene in dict.fromkeys(_plain(gene) for genes in lists.values() for gene in genes)
        if known is None or gene in known
    ]


def _plain(gene: str) -> str:
    return gene.removeprefix(NOT)


def suggest_names(dots: pd.DataFrame, lists: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Score every list in every cluster, and suggest the name of the best.

    A gene's mean in a cluster is taken relative to all clusters (mean 0, standard deviation 1 over them), so that
    strong genes do not drown weak ones; a list's score is the mean over its genes, those marked with ``-`` with the
    sign turned. Genes that were not measured, or are the same everywhere, count for nothing.

    Parameters
    ----------
    dots
        ``cluster``, ``gene``, ``mean``, as :func:`~neumf_assets.core.cells.markers.marker_dots` gives them.
    lists
        Genes by name of the type.

    Returns
    -------
    pandas.DataFrame
        A row for every cluster: ``suggested`` (empty where no list scores 0.5 or two tie), its ``score``, the ``next``
        best name and its ``next_score``.
    """
    mean = dots.pivot_table(index="cluster", columns="gene", values="mean", sort=False, observed=True)
    spread = mean.std(ddof=0)
    standard = ((mean - mean.mean()) / spread.where(spread > 1e-9)).dropna(axis=1)
    scores = pd.DataFrame({name: _score(standard, genes) for name, genes in lists.items()}, index=mean.index)
    rows = []
    for cluster, own in scores.iterrows():
        order = own.dropna().sort_values(ascending=False, kind="stable")
        best, second = (order.index[i] if len(order) > i else "" for i in (0, 1))
        score, behind = (float(order.iloc[i]) if len(order) > i else float("nan") for i in (0, 1))
        clear = score >= LEAST and not score - behind < 1e-9
        rows.append((str(cluster), str(best) if clear else "", score, str(second), behind))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _score(standard: pd.DataFrame, genes: Sequence[str]) -> pd.Series:
    """Mean over the genes that tell clusters apart; missing where none does."""
    used = [gene for gene in dict.fromkeys(genes) if _plain(gene) in standard]
    if not used:
        return pd.Series(np.nan, index=standard.index)
    signs = np.array([-1.0 if gene.startswith(NOT) else 1.0 for gene in used])
    return (standard[[_plain(gene) for gene in used]] * signs).mean(axis=1)
