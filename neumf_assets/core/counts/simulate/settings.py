"""Settings of the count simulator. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from neumf_assets.core.settings import Settings

DatasetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]

BLOOD_CELL_TYPES: dict[str, tuple[str, ...]] = {
    "CD14 Mono": ("myeloid", "monocyte"),
    "CD4 Naive T": ("lymphoid", "T", "CD4"),
    "CD4 Memory T": ("lymphoid", "T", "CD4"),
    "CD16 Mono": ("myeloid", "monocyte"),
    "B": ("lymphoid",),
    "CD8 T": ("lymphoid", "T", "cytotoxic"),
    "NK": ("lymphoid", "cytotoxic"),
    "DC": ("myeloid",),
}


class SimulatedDatasetSettings(Settings):
    """One dataset (sample) of a simulated study."""

    name: DatasetName = Field(description="Name of the dataset.")
    cells: int = Field(default=800, ge=1, le=100_000_000, description="Number of cells.")
    condition: Literal["control", "stimulated"] = Field(
        default="control", description="Whether the cells were treated: stimulated cells show the response."
    )
    missing_types: tuple[str, ...] = Field(
        default=(), description="Cell types that this dataset does not contain."
    )
    library_mean: float = Field(
        default=125.0,
        gt=0,
        le=1e6,
        description="Mean total count of a cell (log-normal over the cells), over the simulated genes.",
    )
    library_log_sd: float = Field(
        default=0.4,
        ge=0,
        le=2,
        description="Standard deviation of the natural log of the total counts; Kang 2018: 0.42.",
    )


class SimulatorSettings(Settings):
    """A simulated study of droplet data: several datasets, one set of genes and cell types.

    ``datasets`` may also be given as a mapping from name to the other settings of the dataset, or as a list
    of ``[name, cells, condition]``.
    """

    datasets: tuple[SimulatedDatasetSettings, ...] = Field(
        default=(
            SimulatedDatasetSettings(name="ctrl", condition="control"),
            SimulatedDatasetSettings(name="stim", condition="stimulated"),
        ),
        min_length=1,
        max_length=1000,
        description="The datasets; by default 800 control and 800 stimulated cells.",
    )
    genes: int = Field(default=2000, ge=50, le=100_000, description="Number of genes.")
    cell_types: dict[str, tuple[str, ...]] = Field(
        default=BLOOD_CELL_TYPES,
        min_length=1,
        max_length=100,
        description=(
            "Cell types, most frequent first, each with the expression programs that it shares with its "
            "relatives; every type has a program of its own besides. Shared programs make types hard to part."
        ),
    )
    markers_per_program: int = Field(
        default=18, ge=1, le=1000, description="Marker genes of each type and of each shared program."
    )
    marker_strength: float = Field(
        default=3.0,
        ge=0,
        le=10,
        description="Mean log2 fold change of the markers; single markers spread around it.",
    )
    response_genes: int = Field(default=60, ge=0, le=5000, description="Genes that the stimulation raises.")
    response_strength: float = Field(
        default=2.5,
        ge=0,
        le=10,
        description="Mean log2 fold change of the response; interferon-beta: about 2 to 5.",
    )
    response_specific_share: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="Share of the response genes that respond in some cell types only.",
    )
    variable_programs: int = Field(
        default=3,
        ge=0,
        le=50,
        description="Gene programs whose activity varies gradually among cells of one type.",
    )
    variable_strength: float = Field(
        default=0.4,
        ge=0,
        le=5,
        description="Standard deviation of those programs' effect on their genes, in log2.",
    )
    batch_strength: float = Field(
        default=0.3,
        ge=0,
        le=5,
        description="Standard deviation of each gene's log2 shift in a dataset (batch effect).",
    )
    composition_concentration: float = Field(
        default=60.0,
        gt=0,
        le=1e6,
        description="How alike the datasets' cell type shares are (Dirichlet; high: alike).",
    )
    target_zero_share: float = Field(
        default=0.955,
        gt=0,
        lt=1,
        description="Expected share of zeros; droplet data have 0.94 to 0.96, unseen genes left out.",
    )
    dispersion: float = Field(
        default=0.2,
        gt=0,
        le=10,
        description="Median over genes of 1/theta: variance = mean + mean^2 / theta.",
    )
    dispersion_log_sd: float = Field(
        default=0.3, ge=0, le=2, description="Standard deviation over genes of the natural log of theta."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of everything random.")

    @field_validator("datasets", mode="before")
    @classmethod
    def _read_short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return tuple({"name": name, **dict(rest)} for name, rest in value.items())
        if isinstance(value, (list, tuple)):
            return tuple(_from_triple(v) if isinstance(v, (list, tuple)) else v for v in value)
        return value

    @field_validator("datasets")
    @classmethod
    def _check_names(
        cls, value: tuple[SimulatedDatasetSettings, ...]
    ) -> tuple[SimulatedDatasetSettings, ...]:
        names = [d.name for d in value]
        if len(set(names)) < len(names):
            raise ValueError(f"dataset names must differ, got {names}")
        return value

    @field_validator("cell_types")
    @classmethod
    def _check_types(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        shared = {program for programs in value.values() for program in programs}
        if both := sorted(shared & set(value)):
            raise ValueError(f"{both} name both a cell type and a shared program; give them different names")
        return value

    @model_validator(mode="after")
    def _check_whole(self) -> SimulatorSettings:
        for dataset in self.datasets:
            if unknown := sorted(set(dataset.missing_types) - set(self.cell_types)):
                raise ValueError(f"{dataset.name}: missing_types {unknown} are not among cell_types")
            if set(dataset.missing_types) >= set(self.cell_types):
                raise ValueError(f"{dataset.name}: missing_types leaves no cell type")
        needed = len(self.programs) * self.markers_per_program + self.response_genes
        if needed > 0.8 * self.genes:
            raise ValueError(
                f"markers and response need {needed} of genes = {self.genes}, and at most 80 % may be used; "
                "raise genes or lower markers_per_program or response_genes"
            )
        return self

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of all marker programs: the shared ones, then one for each cell type."""
        shared = dict.fromkeys(program for programs in self.cell_types.values() for program in programs)
        return (*shared, *self.cell_types)


def _from_triple(value: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    if not 2 <= len(value) <= 3:
        raise ValueError(f"a dataset given as a list is [name, cells, condition], got {list(value)}")
    return dict(zip(("name", "cells", "condition"), value, strict=False))


def uneven_study(datasets: Literal[2, 3, 6], *, genes: int = 2000, seed: int = 0) -> SimulatorSettings:
    """Settings of a study that is hard to integrate: sizes differ and types are missing.

    Parameters
    ----------
    datasets
        2: sizes 1,200 and 400. 3: one of 150 cells besides, and no NK cells in the control.
        6: three donors, control and stimulated, 150 to 900 cells, B cells missing from one dataset.
    genes
        Number of genes.
    seed
        Seed of the study.
    """
    plans: dict[int, tuple[tuple[str, int, str, tuple[str, ...]], ...]] = {
        2: (("ctrl", 1200, "control", ()), ("stim", 400, "stimulated", ())),
        3: (
            ("ctrl", 900, "control", ("NK",)),
            ("stim", 500, "stimulated", ()),
            ("small", 150, "stimulated", ()),
        ),
        6: (
            ("donor1_ctrl", 900, "control", ()),
            ("donor1_stim", 450, "stimulated", ()),
            ("donor2_ctrl", 300, "control", ("B",)),
            ("donor2_stim", 600, "stimulated", ()),
            ("donor3_ctrl", 150, "control", ()),
            ("donor3_stim", 350, "stimulated", ()),
        ),
    }
    if datasets not in plans:
        raise ValueError(f"datasets must be one of {sorted(plans)}, got {datasets}")
    keys = ("name", "cells", "condition", "missing_types")
    return SimulatorSettings.model_validate(
        {
            "datasets": [dict(zip(keys, plan, strict=True)) for plan in plans[datasets]],
            "genes": genes,
            "seed": seed,
        }
    )
