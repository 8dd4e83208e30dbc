"""Marker genes of clusters, tested on counts.

Never on denoised values: a model that was trained on all cells makes neighbouring cells alike, and a test on
its predictions finds differences that no cell showed.
"""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neumf_assets.core.cells.clustering import NOISE
from neumf_assets.core.cells.settings import MarkerSettings
from neumf_assets.core.counts.stored import StackedCounts
from neumf_assets.core.errors import NeumfError

_FEWEST_CELLS = 3
COLUMNS = ("cluster", "rank", "gene", "score", "log2_fold_change", "p_adjusted", "share_in", "share_out")


def find_markers(
    counts: sp.spmatrix | StackedCounts,
    genes: Sequence[str],
    clusters: Sequence[str] | pd.Series,
    settings: MarkerSettings | None = None,
) -> pd.DataFrame:
    """Find the genes that are higher in each cluster than in all others, by the Wilcoxon rank sum test.

    Counts are divided by the cell's total, scaled to 10,000 and log-transformed; the test is scanpy's,
    without correction for ties, which makes it conservative. Clusters of fewer than three cells, and noise,
    are left out.

    Parameters
    ----------
    counts
        Cells × genes, whole numbers; of counts on disk only the cells that are tested are read.
    clusters
        Cluster of every cell.

    Returns
    -------
    pandas.DataFrame
        ``cluster``, ``rank`` (from 1), ``gene``, ``score`` (z of the test), ``log2_fold_change``,
        ``p_adjusted`` (Benjamini-Hochberg within the cluster), ``share_in`` and ``share_out`` (share of the
        tested cells, inside and outside the cluster, in which the gene was seen).

    Raises
    ------
    NeumfError
        Values that are not counts, or lengths that don't fit.
    """
    settings = settings or MarkerSettings()
    return rank_markers(drawn_cells(counts, genes, clusters, settings), settings)


def drawn_cells(
    counts: sp.spmatrix | StackedCounts,
    genes: Sequence[str],
    clusters: Sequence[str] | pd.Series,
    settings: MarkerSettings,
) -> ad.AnnData:
    """Give the cells that are tested, log-normalised, with their ``cluster`` in ``obs``.

    Raises
    ------
    NeumfError
        As :func:`find_markers`.
    """
    groups = pd.Series(np.asarray(clusters, dtype=object)).astype(str)
    if counts.shape != (len(groups), len(genes)):
        raise NeumfError(
            f"{len(groups)} clusters and {len(genes)} genes do not fit counts of {counts.shape}."
        )
    cells = _draw_cells(groups, settings)
    drawn = counts.take(cells) if isinstance(counts, StackedCounts) else sp.csr_matrix(counts)[cells]
    _check(drawn)
    return _log_normalised(drawn, genes, groups.iloc[cells].reset_index(drop=True))


def rank_markers(tested: ad.AnnData, settings: MarkerSettings) -> pd.DataFrame:
    """As :func:`find_markers`, of what :func:`drawn_cells` gives."""
    if tested.obs["cluster"].nunique() < 2:
        return no_markers()
    seen = _of_clusters(tested, tested.X > 0)
    return _rank(tested[:, (seen >= settings.min_cell_share).any(axis=0).to_numpy()].copy(), settings)


def marker_dots(tested: ad.AnnData, chosen: Sequence[str]) -> pd.DataFrame:
    """Say how some genes are expressed in every cluster, over the cells that :func:`drawn_cells` gives.

    Returns
    -------
    pandas.DataFrame
        A row for every cluster and gene: ``cluster``, ``gene``, ``mean`` (of counts per 10,000, logarithm of one more)
        and ``share`` of the cells in which the gene was seen.
    """
    data = tested[:, list(chosen)]
    mean, share = (_of_clusters(data, values) for values in (data.X, data.X > 0))
    places = pd.MultiIndex.from_product([mean.index, list(chosen)], names=["cluster", "gene"])
    return pd.DataFrame(
        {"mean": mean.to_numpy().ravel(), "share": share.to_numpy().ravel()}, index=places
    ).reset_index()


def no_markers() -> pd.DataFrame:
    """The table of markers without any rows."""
    kinds = {"cluster": str, "gene": str, "rank": np.int64}
    return pd.DataFrame({name: pd.Series(dtype=kinds.get(name, np.float64)) for name in COLUMNS})


def _check(matrix: sp.csr_matrix) -> None:
    if (matrix.data < 0).any() or (matrix.data != np.round(matrix.data)).any():
        raise NeumfError("Marker genes are tested on raw counts; these values are not whole numbers.")


def _draw_cells(groups: pd.Series, settings: MarkerSettings) -> np.ndarray:
    """Draw at most so many cells of each cluster that is large enough to be tested."""
    rng = np.random.default_rng(settings.seed)
    drawn = []
    for name in sorted(groups.unique()):
        members = np.flatnonzero(groups == name)
        if name == NOISE or len(members) < _FEWEST_CELLS:
            continue
        if len(members) > settings.max_cells_per_cluster:
            members = rng.choice(members, settings.max_cells_per_cluster, replace=False)
        drawn.append(members)
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)


def _log_normalised(counts: sp.csr_matrix, genes: Sequence[str], groups: pd.Series) -> ad.AnnData:
    import scanpy as sc

    data = ad.AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame({"cluster": pd.Categorical(groups)}, index=groups.index.astype(str)),
        var=pd.DataFrame(index=pd.Index(list(genes), name="gene")),
    )
    if data.n_obs:  # all may be noise, and scanpy refuses no cells
        sc.pp.normalize_total(data, target_sum=1e4)
        sc.pp.log1p(data)
    return data


def _of_clusters(data: ad.AnnData, values: sp.csr_matrix) -> pd.DataFrame:
    """Give the mean of each cluster's cells, of each gene (clusters × genes)."""
    names, codes = np.unique(data.obs["cluster"].astype(str), return_inverse=True)
    sizes = np.bincount(codes)
    membership = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    return pd.DataFrame((membership @ values).toarray() / sizes[:, None], index=names, columns=data.var_names)


def _rank(data: ad.AnnData, settings: MarkerSettings) -> pd.DataFrame:
    import scanpy as sc

    sc.tl.rank_genes_groups(data, "cluster", method="wilcoxon", pts=True)
    found = sc.get.rank_genes_groups_df(data, group=None)
    found = found.rename(
        columns={
            "group": "cluster",
            "names": "gene",
            "scores": "score",
            "logfoldchanges": "log2_fold_change",
            "pvals_adj": "p_adjusted",
            "pct_nz_group": "share_in",
            "pct_nz_reference": "share_out",
        }
    )
    found = found[(found["score"] > 0) & (found["p_adjusted"] <= settings.max_adjusted_p)]
    found["cluster"] = found["cluster"].astype(str)
    found["rank"] = found.groupby("cluster").cumcount() + 1
    found = found[found["rank"] <= settings.n_genes]
    order = found["cluster"].map(lambda name: (len(name), name))
    return found.loc[order.sort_values(kind="stable").index, list(COLUMNS)].reset_index(drop=True)
