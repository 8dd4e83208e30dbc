"""The arms that need no training: principal components, and Harmony on them; what the others have to beat."""

from __future__ import annotations

from neumf_assets.assets.inputs import selected_genes, stored_counts
from neumf_assets.assets.integrate import (
    CELL_COLUMNS,
    EMBEDDING_SETTINGS,
    embedding_product,
    harmonised,
)
from neumf_assets.assets.stage import Product, Stage, Step, stage
from neumf_assets.study.settings import Arm


@stage(
    group="integrate",
    inputs=("gene_space", "counts", "shared_genes"),
    settings=("pca",),
    kinds=("numpy",),
)
def principal_components(step: Step) -> Product:
    """The principal components of all cells' log-normalised counts, over the genes that LIGER uses.

    What the arms `pca` and `harmony` start from. Nothing is known of datasets here.
    """
    import numpy as np

    from neumf_assets.core.cells.components import principal_components as found_in
    from neumf_assets.core.counts.stored import StackedCounts

    with stored_counts(step) as counts:
        stacked = StackedCounts.of(counts)
        position = {gene: column for column, gene in enumerate(stacked.genes)}
        genes = np.array([position[gene] for gene in selected_genes(step)], dtype=np.intp)
        found = found_in(
            stacked,
            list(stacked.genes),
            genes,
            step.study.pca.n_components,
            lambda done, of: step.progress("principal components", done, of),
        )
    figures = {"cells": len(found.embedding), "genes": len(genes), "dimensions": len(found.variance)}
    return Product(found.save, {**figures, "variance_explained": float(found.variance.sum())})


@stage(
    name=("pca", "cell_embedding"),
    group="integrate",
    inputs=("gene_space", "principal_components", "counts"),
    settings=EMBEDDING_SETTINGS,
    kinds=("numpy", "parquet"),
    columns=CELL_COLUMNS,
)
def pca_cell_embedding(step: Step) -> Product:
    """Every cell's principal components, datasets as they are: what integrating them has to beat.

    Where no arm does, the datasets need no integration. With each cell's nearest neighbours.
    """
    from neumf_assets.core.cells.components import Components

    return embedding_product(step, Components.load(step.one("principal_components").path).embedding)


@stage(
    name=("harmony", "cell_embedding"),
    group="integrate",
    inputs=("gene_space", "principal_components", "counts"),
    settings=("harmony", *EMBEDDING_SETTINGS),
    kinds=("numpy", "parquet"),
    columns=CELL_COLUMNS,
)
def harmony_cell_embedding(step: Step) -> Product:
    """Every cell's principal components, datasets aligned by Harmony with its own defaults.

    Soft clusters that favour mixed datasets, their centroids corrected (Korsunsky et al. 2019). With each cell's
    nearest neighbours.
    """
    from neumf_assets.core.cells.components import Components

    points = Components.load(step.one("principal_components").path).embedding
    return harmonised(step, points, step.study.harmony)


STAGES: dict[Arm, tuple[Stage, ...]] = {
    "pca": (principal_components, pca_cell_embedding),
    "harmony": (principal_components, harmony_cell_embedding),
}
