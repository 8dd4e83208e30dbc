"""Settings of the comparison of conditions."""

from __future__ import annotations

from pydantic import Field

from neumf_assets.core.settings import Settings


class ConditionSettings(Settings):
    """Which cells are compared with which, and what counts as a replicate."""

    column: str | None = Field(
        None,
        description="Column of the cells, from the sample sheet or the files, with the condition; null: `condition`, "
        "where there is one.",
    )
    reference: str | None = Field(
        None,
        description="The condition that the others are compared with; null: one called control, ctrl, untreated, "
        "healthy, normal, wt or baseline, else the first in alphabetical order.",
    )
    replicate: str | None = Field(
        None,
        description="Column with the biological replicate (donor, mouse, culture); null: the first there is of donor, "
        "patient, individual, subject, animal, replicate, sample; else the dataset. Replicates that occur under both "
        "conditions are compared in pairs.",
    )
    covariates: tuple[str, ...] = Field(
        (), description="Columns whose effect is taken out (sex, batch, …); one value in every sample."
    )
    min_cells: int = Field(
        10,
        ge=1,
        le=100_000,
        description="Cells of a type that a sample must have to be tested for that type.",
    )
    min_replicates: int = Field(
        2, ge=2, le=1000, description="Samples that each condition must have; with fewer nothing is tested."
    )
    min_count: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="A gene is tested if so many counts of it were seen in as many samples as the smaller condition "
        "has.",
    )
    max_adjusted_p: float = Field(
        0.05, gt=0, le=1, description="Adjusted p-value up to which a difference is counted as found."
    )
