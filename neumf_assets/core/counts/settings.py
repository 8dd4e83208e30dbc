"""What a study can set about reading count files and about quality control."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from neumf_assets.core.settings import Settings

Orientation = Literal["auto", "genes_by_cells", "cells_by_genes"]


class ReadSettings(Settings):
    """How count files are read."""

    orientation: Orientation = Field(
        default="auto",
        description="Which way round CSV and TSV matrices (and square Matrix Market files) lie. 'auto' looks "
        "at the names (gene symbols and accessions against barcodes), then at the labels file, then takes "
        "the longer axis for the genes.",
    )
    layer: str | None = Field(
        default=None,
        min_length=1,
        description="Which matrix of an AnnData or loom file holds the counts: 'raw' for raw.X, 'X' (loom: "
        "'matrix') for the main one, else the name of a layer. Empty takes the main one; where that is missing "
        "or holds no whole numbers, another that does: raw.X, a layer called like counts, or the only one, "
        "and says so.",
    )
    allow_normalised: bool = Field(
        default=False,
        description="Accept values that are not whole numbers. Off, because the models' likelihoods are for "
        "counts: normalised data are nearly always an accident.",
    )
    round_values: bool = Field(
        default=False,
        description="Round values that are no whole numbers, as tools give that take off ambient RNA (SoupX). Off, "
        "because it hides normalised values, which are refused else.",
    )
    label_columns: tuple[str, ...] | None = Field(
        default=None,
        description="Label columns to keep. Empty keeps every column of the labels file and every text, "
        "categorical or yes/no column of obs.",
    )
    unlabelled: tuple[str, ...] = Field(
        default=("NA", "N/A", "nan", "None", "null", "unknown", "unassigned"),
        description="Labels, in any case, that say that a cell has none; an empty field always does.",
    )
    sha256: dict[str, str] = Field(
        default_factory=dict,
        description="Expected SHA-256 by dataset name, checked before the file is parsed. Empty by default: "
        "the digest found is recorded either way.",
    )
    max_cells: int | None = Field(
        default=None,
        ge=1,
        description="Quick run: at most this many cells, drawn at random. Empty takes all.",
    )
    max_genes: int | None = Field(
        default=None,
        ge=1,
        description="Quick run: at most this many genes, drawn at random. Empty takes all.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the draw that max_cells and max_genes make."
    )

    @field_validator("sha256")
    @classmethod
    def _hex_digests(cls, value: dict[str, str]) -> dict[str, str]:
        for name, digest in value.items():
            if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise ValueError(f"the SHA-256 of {name!r} must be 64 hexadecimal digits, not {digest!r}")
        return {name: digest.lower() for name, digest in value.items()}


class QCSettings(Settings):
    """Which cells and genes are kept. Empty cells and empty genes are always dropped."""

    min_genes: int = Field(
        default=10,
        ge=1,
        description="Fewest genes seen in a cell. The default only drops barcodes that hold next to nothing; "
        "200 is usual for whole droplet data.",
    )
    min_cells: int = Field(
        default=1,
        ge=1,
        description="Fewest cells that a gene is seen in. The default drops only genes never seen, so that "
        "datasets keep the genes they share; 3 is usual for a single dataset.",
    )
    fewest_cells: int = Field(
        default=20,
        ge=1,
        description="Fewest cells of a dataset, which is left out else: neighbours and factors of fewer mean nothing.",
    )
    fewest_shared_genes: int = Field(
        default=20,
        ge=1,
        description="Genes that a dataset has to share with the others of the study, which goes on without it else.",
    )
    max_mito: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Largest share of a cell's counts from mitochondrial genes. Cells above one half are "
        "broken in any tissue; 0.1 to 0.2 is usual for blood. 1 switches the limit off.",
    )
    mito_prefixes: tuple[str, ...] = Field(
        default=("MT-", "mt-", "Mt-", "MT.", "mt.", "mt:"),
        description="How names of mitochondrial genes begin: human, mouse, these as R writes them, and fly.",
    )

    outliers: Literal["flag", "remove", "off"] = Field(
        default="flag",
        description="Cells that differ from their dataset's median in total counts, genes seen, share of the 20 most "
        "frequent genes or (upwards) mitochondrial share and likeness to doublets: marked, removed, or not looked for.",
    )
    outlier_mads: float = Field(
        default=5.0,
        gt=0,
        description="Median absolute deviations that make an outlier of total counts, genes, share of the most "
        "frequent genes and log odds of a doublet; 5 is usual, as it only marks what is far off.",
    )
    outlier_mads_mito: float = Field(
        default=3.0,
        gt=0,
        description="The same for mitochondrial share, of which only too much is a fault; 3 is usual.",
    )
    doublets: Literal["flag", "remove", "off"] = Field(
        default="flag",
        description="Cells that resemble sums of two others of their dataset: marked, removed, or not looked for.",
    )
    doublet_rate: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="Expected share of doublets; null: 0.8 % for every thousand cells, as on droplet instruments.",
    )
    call_cells: Literal["auto", "off"] = Field(
        default="auto",
        description="Where a file holds all droplets (most barcodes nearly empty), which of them are cells is found by "
        "their knee and a test against the ambient RNA; off: all barcodes are taken for cells.",
    )
    call_lower: int = Field(
        default=100,
        ge=1,
        description="Counts up to which a barcode is surely no cell; they make the ambient profile.",
    )
    call_fdr: float = Field(
        default=0.01, gt=0, lt=1, description="Share of false cells among those that the test finds."
    )
    expected_cells: int | None = Field(
        default=None,
        ge=1,
        description="How many cells were loaded, for the knee of raw matrices; null: found from the curve itself.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of cell calling and of doublets.")

    @field_validator("mito_prefixes")
    @classmethod
    def _no_empty_prefix(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not prefix for prefix in value):
            raise ValueError("an empty prefix would match every gene; leave it out")
        return value
