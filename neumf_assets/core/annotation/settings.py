"""Settings of label transfer and of marker lists."""

from __future__ import annotations

from pydantic import Field

from neumf_assets.core.cells.settings import Metric, Seed
from neumf_assets.core.settings import Settings


class LabelSettings(Settings):
    """How labels are carried over from the cells that have one to those that have none."""

    neighbors: int = Field(
        30,
        ge=2,
        le=500,
        description="Labelled cells that vote on a cell's label, and that its support is of.",
    )
    metric: Metric = Field("cosine", description="Distance between cells.")
    reference_cells: int = Field(
        20_000,
        ge=100,
        le=1_000_000,
        description="Labelled cells that serve as reference, at most: of more, as many are drawn, rare labels whole.",
    )
    unknown_share: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Share of cells of known types that may be called unknown; it sets the bound on the support.",
    )
    min_probability: float = Field(
        0.5, ge=0, le=1, description="A cell whose most likely label is less probable is called unknown."
    )
    seed: Seed = Field(0, description="Seed of the draws.")
