"""Settings of the evaluation of a NeuMF on held-out counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from neumf_assets.core.settings import Settings

Baseline = Literal["gene_mean", "svd", "nmf", "nmf_normalised", "gmf"]
CutOff = Annotated[int, Field(ge=1, le=100_000)]


class EvaluationSettings(Settings):
    """How a model is judged: held-out deviance of thinned counts, calibration, and ranking.

    The evaluation trains the model anew on the train part. With the defaults it costs about one training on
    at most 3,000 cells x 2,000 genes, plus 5 to 20 s for the baselines on two cores.
    """

    train_share: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="Share of the molecules to train on; the rest is the test part.",
    )
    n_genes: int | None = Field(
        default=2000,
        ge=1,
        description="Judge on this many most overdispersed genes (null: as many as the model is set to use); "
        "2,000 keeps the figures comparable between studies.",
    )
    max_cells: int | None = Field(
        default=3000,
        ge=2,
        description="Judge on at most this many cells, drawn by seed (null: all); the deviance of 3,000 "
        "cells varies by about 0.0005 between splits.",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Train for at most this many epochs (null: as the model is set).",
    )
    baselines: tuple[Baseline, ...] = Field(
        default=("gene_mean", "svd", "nmf", "gmf"),
        description="gene_mean: gene mean x size factor; svd: of log1p counts; nmf: KL-NMF of the counts; "
        "nmf_normalised: KL-NMF of size-normalised counts (weaker); gmf: the model without its tower.",
    )
    n_components: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Rank of SVD and NMF; more than 20 hardly lowers their deviance.",
    )
    nmf_iterations: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Updates of the NMF at most; it stops at a tolerance of 1e-4, which 200 suffice for. 100 take half "
        "the time and leave its deviance 0.0003 higher, less than it varies between splits.",
    )
    ranking: Literal["off", "thinned", "leave_one_out"] = Field(
        default="thinned",
        description="thinned: rank one gene of each cell whose counts all fell into the test part, with the "
        "model at hand; leave_one_out: remove one observed gene of each cell and train everything once more "
        "(twice the time); off: no ranking.",
    )
    n_negatives: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Unobserved genes to rank the left-out one among; 100 as in NCF.",
    )
    cut_offs: tuple[CutOff, ...] = Field(
        default=(10,), min_length=1, description="The K of HR@K and NDCG@K; 10 as in the notebook and NCF."
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of the cells, the split and the negatives."
    )
