from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from neumf_assets.core.cells.markers import COLUMNS, drawn_cells, find_markers, marker_dots
from neumf_assets.core.cells.settings import MarkerSettings
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.cells.data import simulated_counts


def test_finds_the_planted_genes() -> None:
    data, planted = simulated_counts()
    found = find_markers(data.X, data.var_names, data.obs["cell_type"], MarkerSettings(n_genes=8))
    assert tuple(found.columns) == COLUMNS
    for t, genes in enumerate(planted):
        own = found[found["cluster"] == f"t{t}"]
        assert set(own["gene"]) <= set(genes)
        assert len(own) >= 7
        assert list(own["rank"]) == list(range(1, len(own) + 1))
        assert (own["log2_fold_change"] > 1).all()
        assert (own["share_in"] > own["share_out"]).all()
    assert (found["p_adjusted"] <= 0.05).all()


def test_the_score_is_that_of_the_rank_sum_test() -> None:
    data, _ = simulated_counts()
    found = find_markers(data.X, data.var_names, data.obs["cell_type"], MarkerSettings(n_genes=5))
    row = found.iloc[0]
    dense = data.X.toarray().astype(np.float64)
    values = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))[:, data.var_names.get_loc(row["gene"])]
    own = (data.obs["cell_type"] == row["cluster"]).to_numpy()
    u = mannwhitneyu(values[own], values[~own]).statistic
    n, m = own.sum(), (~own).sum()
    z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    assert row["score"] == pytest.approx(z, rel=1e-4)
    assert row["share_in"] == pytest.approx((values[own] > 0).mean())


def test_dots_are_means_and_shares_of_every_cluster() -> None:
    data, planted = simulated_counts()
    genes = [planted[0][0], planted[1][0]]
    dots = marker_dots(drawn_cells(data.X, data.var_names, data.obs["cell_type"], MarkerSettings()), genes)
    dense = data.X.toarray().astype(np.float64)
    values = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
    assert len(dots) == 2 * data.obs["cell_type"].nunique()
    for row in dots.to_dict("records"):
        own = (data.obs["cell_type"] == row["cluster"]).to_numpy()
        gene = values[own, data.var_names.get_loc(row["gene"])]
        assert row["mean"] == pytest.approx(gene.mean(), rel=1e-5)
        assert row["share"] == pytest.approx((gene > 0).mean())


def test_clusters_without_markers_have_none() -> None:
    data, _ = simulated_counts()
    clusters = np.random.default_rng(0).permutation(data.obs["cell_type"].to_numpy())
    found = find_markers(data.X, data.var_names, clusters)
    assert len(found) <= 3


@pytest.mark.parametrize("cluster", ["noise", "0"])
def test_one_cluster_or_none_has_no_markers(cluster: str) -> None:
    data, _ = simulated_counts()
    assert find_markers(data.X, data.var_names, [cluster] * data.n_obs).empty


def test_small_clusters_and_noise_are_left_out() -> None:
    data, _ = simulated_counts()
    clusters = data.obs["cell_type"].astype(str).to_numpy()
    clusters[:2] = "tiny"
    clusters[2:40] = "noise"
    assert set(find_markers(data.X, data.var_names, clusters)["cluster"]) == {"t0", "t1", "t2"}
    assert find_markers(data.X, data.var_names, np.full(300, "0")).empty


def test_a_draw_of_cells_finds_them_too_and_repeats() -> None:
    data, planted = simulated_counts(n_cells=600)
    chosen = MarkerSettings(max_cells_per_cluster=60, n_genes=8)
    found = find_markers(data.X, data.var_names, data.obs["cell_type"], chosen)
    assert found.equals(find_markers(data.X, data.var_names, data.obs["cell_type"], chosen))
    for t, genes in enumerate(planted):
        assert set(found.loc[found["cluster"] == f"t{t}", "gene"]) <= set(genes)


def test_refuses_denoised_values_and_wrong_lengths() -> None:
    data, _ = simulated_counts()
    with pytest.raises(NeumfError, match="raw counts"):
        find_markers(data.X * 0.7, data.var_names, data.obs["cell_type"])
    with pytest.raises(NeumfError, match="do not fit"):
        find_markers(data.X, data.var_names[:-1], data.obs["cell_type"])
