"""Settings of clustering, embedding, alignment, scoring, markers and the integrated result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from neumf_assets.core.settings import Settings

Metric = Literal["cosine", "euclidean"]
ClusterMethod = Literal["leiden", "louvain", "kmeans", "hdbscan"]
Resolution = Annotated[float, Field(gt=0, le=10)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ClusterSettings(Settings):
    """How cells are clustered; the defaults are the protocol by which arms are compared."""

    methods: tuple[ClusterMethod, ...] = Field(
        default=("leiden", "kmeans", "hdbscan"),
        min_length=1,
        description="Clusterings to compute. Leiden is the one that is compared between arms.",
    )
    n_neighbors: int = Field(
        default=20,
        ge=2,
        le=500,
        description="Neighbours of a cell in the graph, the cell itself included (LIGER's 20).",
    )
    metric: Metric = Field(
        default="cosine",
        description="Distance between cells, for the neighbours, k-means and HDBSCAN. Cosine ignores how "
        "strong a cell's factors are overall, which mostly reflects its depth.",
    )
    exact_up_to: int = Field(
        default=50_000,
        ge=0,
        le=1_000_000,
        description="Up to this many cells neighbours are found from all distances (14,000 cells take about "
        "a second on two cores, four times as long for twice the cells); above it nearly all are found, from "
        "the distances to the cells nearby.",
    )
    graph: Literal["shared", "nearest"] = Field(
        default="shared",
        description="`shared`: cells joined by the Jaccard index of their neighbourhoods (LIGER, Seurat); "
        "`nearest`: cells joined, with weight 1, when one is a neighbour of the other.",
    )
    prune: float = Field(
        default=1 / 15,
        ge=0,
        lt=1,
        description="Edges of the shared-neighbour graph at or below this Jaccard index are dropped "
        "(Seurat's 1/15).",
    )
    resolutions: tuple[Resolution, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
        min_length=1,
        description="Resolutions of Leiden; a higher one gives more clusters. Arms are scored over all of "
        "them, because the best resolution differs between embeddings.",
    )
    default_resolution: Resolution = Field(
        default=0.4,
        description="The resolution of the clusters that are shown and delivered: the middle of the grid, "
        "which separates the main cell types of blood. Must be one of `resolutions`.",
    )
    seeds: tuple[Seed, ...] = Field(
        default=(0, 1, 2),
        min_length=1,
        description="Seeds of Leiden at every resolution; three show the spread. The first one is delivered.",
    )
    leiden_iterations: int = Field(
        default=2,
        ge=-1,
        le=1000,
        description="Iterations of Leiden; -1 = until nothing improves (igraph's default is 2).",
    )
    kmeans_k: int = Field(default=10, ge=2, le=1000, description="Clusters of k-means (the notebook's 10).")
    kmeans_restarts: int = Field(default=10, ge=1, le=100, description="Starts of k-means; the best is kept.")
    hdbscan_min_size: int = Field(
        default=50,
        ge=2,
        le=100_000,
        description="Fewest cells of an HDBSCAN cluster; smaller groups count as noise.",
    )
    hdbscan_min_samples: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Neighbours that make a cell dense in HDBSCAN; more = more cells are noise.",
    )
    max_nodes: int = Field(
        default=200_000,
        ge=100,
        le=100_000_000,
        description="Nodes of the graph; of more cells, the nearest ones are joined until there are no more. "
        "Leiden and Louvain then move such groups of a few cells. Bounds time and memory.",
    )
    fit_cells: int = Field(
        default=30_000,
        ge=100,
        le=10_000_000,
        description="Cells that k-means and HDBSCAN learn from, drawn by seed; others get the cluster of the "
        "nearest centre (k-means) or of the nearest of these cells (HDBSCAN).",
    )
    gene_modules: int | None = Field(
        default=None,
        ge=2,
        le=1000,
        description="Also group the genes into this many modules by k-means; none by default.",
    )

    @model_validator(mode="after")
    def _default_is_in_grid(self) -> ClusterSettings:
        if self.default_resolution not in self.resolutions:
            raise ValueError(
                f"default_resolution {self.default_resolution} must be one of {list(self.resolutions)}"
            )
        if "leiden" not in self.methods:
            raise ValueError("methods must contain leiden, by which the arms are compared")
        for name in ("resolutions", "seeds", "methods"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} must not repeat a value")
        return self


class UmapSettings(Settings):
    """The two-dimensional picture of the cells."""

    n_neighbors: int = Field(
        default=20,
        ge=2,
        le=200,
        description="Neighbours of a cell, itself included (LIGER's 20); more = coarser picture.",
    )
    min_dist: float = Field(
        default=0.1, ge=0, le=1, description="Least distance between points (LIGER's 0.1)."
    )
    spread: float = Field(default=1.0, gt=0, le=10, description="Scale of the picture; at least `min_dist`.")
    n_epochs: int | None = Field(
        default=None,
        ge=1,
        le=5000,
        description="Passes of the layout; by default 500, or 200 above 10,000 cells.",
    )
    seed: Seed = Field(
        default=0, description="Seed of the layout, which is the same on every run with one seed."
    )
    sample: int | None = Field(
        default=None,
        ge=1000,
        description="Lay out at most this many cells, drawn by seed, and place each other cell among its "
        "neighbours of these (null: all cells; a million take half an hour and more; where all would take more "
        "memory than NEUMF_MEMORY allows, 20,000).",
    )
    tsne: bool = Field(
        default=False, description="Also compute t-SNE; about as slow as UMAP, and it adds no score."
    )
    perplexity: float = Field(
        default=30.0, ge=2, le=500, description="Effective neighbours of a cell in t-SNE."
    )

    @model_validator(mode="after")
    def _spread_holds_min_dist(self) -> UmapSettings:
        if self.min_dist > self.spread:
            raise ValueError(f"min_dist {self.min_dist} must be at most spread {self.spread}")
        return self


class ComponentSettings(Settings):
    """Principal components of log-normalised counts."""

    n_components: int = Field(
        default=30, ge=2, le=500, description="Principal components, at most; 30 to 50 are usual."
    )


class AlignSettings(Settings):
    """Harmony (Korsunsky et al. 2019): soft clusters with a ridge correction of their centroids."""

    theta: float = Field(
        default=2.0,
        ge=0,
        le=20,
        description="Push towards clusters that hold every dataset; 0 = no push (Harmony's 2).",
    )
    sigma: float = Field(
        default=0.05,
        gt=0,
        le=5,
        description="Width of the soft clusters; half of Harmony's 0.1: what differs between datasets differs "
        "from cell type to cell type, and wide clusters blur that.",
    )
    passes: int = Field(
        default=3,
        ge=1,
        le=10,
        description="Harmony from its own result so many times, at most: it stops early, with the datasets half mixed.",
    )
    guarded: bool = Field(
        default=True,
        description="Keep a pass only where the datasets gain at least as many of each other's cells as neighbours as "
        "cells lose of the neighbours in their own dataset, and a third of all moves is common to the cells of a "
        "dataset: different kinds of cells are not pushed together.",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Ridge penalty of the correction; by default estimated in each cluster (Harmony 2).",
    )
    n_clusters: int | None = Field(
        default=None, ge=2, le=1000, description="Soft clusters; by default one per 30 cells, from 2 to 100."
    )
    iterations: int = Field(
        default=10, ge=1, le=100, description="Rounds of clustering and correction (Harmony's 10)."
    )
    max_cells: int = Field(
        default=100_000,
        ge=100,
        le=100_000_000,
        description="Cells that Harmony works on, drawn from every dataset; of more cells, the others move as "
        "the nearest of these do. Bounds time and memory.",
    )
    seed: Seed = Field(default=0, description="Seed of the first centroids.")


def harmony_defaults() -> AlignSettings:
    """Return Harmony's own settings, for the arm that is the rival and is not mended."""
    return AlignSettings(sigma=0.1, passes=1, guarded=False)


class MetricsSettings(Settings):
    """How an arm is scored."""

    mixing_neighbors: int = Field(
        default=20,
        ge=1,
        le=500,
        description="Neighbours over which the share of the cell's own dataset is taken.",
    )
    vote_neighbors: int = Field(
        default=15, ge=1, le=500, description="Neighbours in the other datasets that vote on a cell's label."
    )
    lisi_perplexity: float = Field(
        default=30.0,
        ge=1,
        le=200,
        description="Effective neighbours of iLISI and cLISI, over three times as many (Harmony's 30).",
    )
    silhouette_cells: int = Field(
        default=5_000,
        ge=100,
        le=50_000,
        description="Cells drawn for the silhouettes, which cost the square of their number.",
    )
    vote_cells: int = Field(
        default=50_000,
        ge=100,
        le=10_000_000,
        description="Cells drawn for the vote across datasets, which costs their number times that of all "
        "cells.",
    )
    null_cells: int = Field(
        default=2_000,
        ge=0,
        le=1_000_000,
        description="Cells of the null run, whose genes are shuffled to show what each score is by chance; 0: "
        "no null run.",
    )
    seed: Seed = Field(default=0, description="Seed of those draws.")


class MarkerSettings(Settings):
    """Marker genes of the clusters, tested on raw counts."""

    n_genes: int = Field(default=25, ge=1, le=10_000, description="Marker genes listed for each cluster.")
    min_cell_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Genes seen in a smaller share of every cluster's cells are not tested: they cannot mark "
        "one.",
    )
    max_cells_per_cluster: int = Field(
        default=500,
        ge=10,
        le=1_000_000,
        description="Cells drawn from each cluster for the test, which bounds time and memory; p-values "
        "saturate long before.",
    )
    max_adjusted_p: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Genes with a larger Benjamini-Hochberg adjusted p-value are not listed.",
    )
    lists: dict[str, tuple[str, ...]] = Field(
        default={},
        description="Genes that mark cell types, by the type's name, as {B: [CD79A, MS4A1], NK: [GNLY, -CD3D]}; a "
        "minus says that the type does not show the gene. Names for clusters are suggested by them.",
    )
    seed: Seed = Field(default=0, description="Seed of that draw.")


class IntegratedSettings(Settings):
    """What the integrated AnnData holds."""

    genes: Literal["shared", "union"] = Field(
        default="shared",
        description="`shared`: genes that every dataset measured, so that each zero is a count of zero; "
        "`union`: all genes, where `var['measured_in_NAME']` tells which zeros stand for not "
        "measured.",
    )
    target_sum: float = Field(
        default=10_000.0,
        gt=0,
        le=1e7,
        description="Counts per cell after normalisation, before log(1 + x), in `X`.",
    )
