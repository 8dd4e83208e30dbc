"""Settings of LIGER: gene selection, integrative NMF, its online form and the alignment of its factors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from neumf_assets.core.settings import Settings

Alignment = Literal["quantile", "centroid", "none"]


class LigerSettings(Settings):
    """The LIGER chain (Welch et al. 2019; defaults of rliger 2 unless the description says otherwise)."""

    n_genes: int | None = Field(
        default=None,
        ge=2,
        le=100_000,
        description="Keep this many genes, ranked by their largest variance over the Poisson expectation in "
        "any dataset (null: all genes above gene_threshold; rliger's own default).",
    )
    gene_threshold: float = Field(
        default=0.1,
        ge=0.0,
        le=10.0,
        description="Keep a gene when in any dataset log10 of its variance over the Poisson expectation "
        "exceeds this; rliger's 0.1 keeps a few thousand genes of droplet data. Unused with n_genes.",
    )
    gene_confidence: float = Field(
        default=0.99,
        gt=0.0,
        le=1.0,
        description="Level, divided by the number of genes, of the upper bound of the Poisson mean that the "
        "variance must pass as well; rliger's alpha.thresh 0.99.",
    )
    k: int = Field(default=20, ge=2, le=500, description="Number of factors; rliger's 20.")
    lam: float = Field(
        default=5.0,
        ge=0.0,
        le=1e6,
        description="Lambda of the objective: larger values suppress dataset-specific factors; rliger's 5.",
    )
    iterations: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="At most this many iterations (one sparse product each way); 20 to 40 usually suffice.",
    )
    tol: float = Field(
        default=1e-5,
        ge=0.0,
        le=0.1,
        description="Converged once five iterations together lower the objective by less than this share per "
        "iteration.",
    )
    restarts: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Seeded starts. Every trial_iterations the worse half is dropped until one is left, so "
        "that a start costs a fraction of a run; four lower the objective more than further iterations do.",
    )
    trial_iterations: int = Field(
        default=8, ge=1, le=1000, description="Iterations between two choices among the starts."
    )
    sweeps: int = Field(
        default=2,
        ge=1,
        le=100,
        description="HALS sweeps over each block in an iteration; a second one costs less than the sparse "
        "product that it saves.",
    )
    extrapolate: bool = Field(
        default=True,
        description="Extrapolate between iterations and fall back where that would raise the objective "
        "(Ang & Gillis 2019); about halves the iterations.",
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=256,
        description="CPU threads of iNMF. The sparse products are bound by memory: a second thread gains "
        "little, and loses much on cores that others use too.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Processes that factorise counts in memory together, each with its share of the cells (on a "
        "Ray cluster, or on this machine); same factors up to the order of sums in float32. On the CPU only.",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the starts and of all sampling.")
    online: bool = Field(
        default=False,
        description="Learn from mini-batches (Gao et al. 2021) instead of all cells at once; for data that "
        "does not fit in memory or has millions of cells.",
    )
    batch_cells: int = Field(
        default=5000, ge=1, le=1_000_000, description="Cells of a mini-batch, or of a block read from disk."
    )
    epochs: int = Field(default=5, ge=1, le=1000, description="Passes of online iNMF; rliger's 5.")
    alignment: Alignment = Field(
        default="quantile",
        description="quantile: quantile normalisation of each factor within matched clusters (LIGER's own); "
        "centroid: ridge correction of the clusters' centroids; none: factors as they are.",
    )
    quantiles: int = Field(
        default=50, ge=2, le=10_000, description="Quantiles that are matched; rliger's 50."
    )
    vote_neighbors: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="A cell's cluster is the majority of the strongest factors of this many neighbours in "
        "its dataset, itself included (1: its own); rliger's 20.",
    )
    min_cells: int = Field(
        default=20,
        ge=2,
        le=100_000,
        description="Clusters with fewer cells in either dataset are left unaligned; rliger's 20.",
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="Dataset whose quantiles the others take (null: the one with the most cells).",
    )
    centroid_ridge: float = Field(
        default=1.0,
        ge=0.0,
        le=1e6,
        description="Ridge of the centroid alignment, in cells: clusters much smaller than this stay where "
        "they are; Harmony's 1.",
    )
    top_genes: int = Field(default=30, ge=1, le=10_000, description="Top genes listed for each factor.")


class SweepSettings(Settings):
    """Other numbers of factors and other lambdas to factorise with, to choose them by; none by default."""

    k: tuple[Annotated[int, Field(ge=2, le=500)], ...] = Field(
        default=(),
        description="Numbers of factors to try, as [10, 20, 30]; each starts from the factors of the one before.",
    )
    lam: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        default=(),
        description="Lambdas to try, as [1, 5, 20]; each starts from the factors of the one before.",
    )
