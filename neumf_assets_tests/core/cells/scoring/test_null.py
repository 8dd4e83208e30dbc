from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD

from neumf_assets.core.cells.clustering import cluster_cells
from neumf_assets.core.cells.neighbours import cell_graph, find_neighbours
from neumf_assets.core.cells.scoring.metrics import score_embedding
from neumf_assets.core.cells.scoring.null import permute_genes
from neumf_assets.core.cells.scoring.scores import ArmScores
from neumf_assets.core.cells.settings import ClusterSettings
from neumf_assets_tests.core.cells.data import simulated_counts

CHOSEN = ClusterSettings(methods=("leiden",))


def scored(counts: sp.csr_matrix, labels: np.ndarray) -> ArmScores:
    dataset = np.where(np.arange(counts.shape[0]) % 2, "a", "b")
    depth = np.maximum(np.asarray(counts.sum(axis=1)), 1)
    embedding = TruncatedSVD(6, random_state=0).fit_transform(
        np.log1p(counts.toarray() / depth * np.median(depth))
    )
    neighbours = find_neighbours(embedding[:, 1:], 90)
    clusters = cluster_cells(embedding[:, 1:], cell_graph(neighbours), CHOSEN)
    return score_embedding(embedding[:, 1:], clusters, labels, dataset, neighbours)


def test_every_gene_keeps_its_counts() -> None:
    counts = simulated_counts()[0].X
    shuffled = permute_genes(counts, seed=1)
    assert shuffled.dtype == counts.dtype
    np.testing.assert_array_equal(np.sort(shuffled.toarray(), axis=0), np.sort(counts.toarray(), axis=0))
    assert (shuffled != counts).nnz > 0
    assert (permute_genes(counts, seed=1) != shuffled).nnz == 0
    assert (permute_genes(counts, seed=2) != shuffled).nnz > 0


def test_scores_fall_to_chance_without_structure_between_genes() -> None:
    data, _ = simulated_counts(n_cells=600)
    labels = data.obs["cell_type"].to_numpy()
    real, null = scored(data.X, labels), scored(permute_genes(data.X), labels)
    assert real.ari_best > 0.8
    assert real.cross_batch_label_accuracy > 0.9
    assert abs(null.ari_mean) < 0.02
    assert abs(null.ami_mean) < 0.02
    assert abs(null.cross_batch_label_accuracy - 1 / 3) < 0.1
    assert null.clisi < 0.2
    assert null.stability < real.stability
