"""The design of a study: which cells make up a sample, under which condition, from which replicate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from neumf_assets.core.cells.files.store import labels_of
from neumf_assets.core.conditions.settings import ConditionSettings
from neumf_assets.core.errors import BadSettings, NeumfError

CONDITION = "condition"
REPLICATES = ("donor", "patient", "individual", "subject", "animal", "replicate", "sample")
REFERENCES = ("control", "ctrl", "untreated", "healthy", "normal", "wt", "baseline")


class NothingToCompare(NeumfError):
    """The study has no two conditions; its text says what was looked for."""


@dataclass(frozen=True)
class Design:
    """The samples of a study.

    Parameters
    ----------
    samples
        One row per sample, which is a replicate under a condition: ``sample``, ``condition``, ``replicate`` and the
        covariates.
    of_cell
        Each cell's row in ``samples``; -1 for cells without condition or replicate.
    reference
        The condition that others are compared with.
    covariates
        Names of the covariates.
    assumed
        What was chosen and not told, in words.
    """

    samples: pd.DataFrame
    of_cell: np.ndarray
    reference: str
    covariates: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def others(self) -> list[str]:
        """The conditions that are compared with the reference."""
        return [name for name in sorted(self.samples["condition"].unique()) if name != self.reference]


@dataclass(frozen=True)
class CellGroups:
    """The cells of a study by type and sample.

    Parameters
    ----------
    names
        The cell types.
    of_cell
        Each cell's position among them; -1 for cells that have none.
    design
        The samples.
    """

    names: list[str]
    of_cell: np.ndarray
    design: Design

    @classmethod
    def of(cls, types: pd.Series, design: Design) -> CellGroups:
        """Group cells by type, in alphabetical order; a missing type is none."""
        codes, names = pd.factorize(
            types.astype(object).where(types.notna(), None).to_numpy(object), sort=True
        )
        return cls([str(name) for name in names], codes, design)

    @cached_property
    def position(self) -> np.ndarray:
        """Each cell's position among types × samples, the samples of the first type first; -1 for cells of none."""
        inside = (self.of_cell >= 0) & (self.design.of_cell >= 0)
        return np.where(inside, self.of_cell * len(self.design.samples) + self.design.of_cell, -1)

    @cached_property
    def cells(self) -> np.ndarray:
        """Cell types × samples: numbers of cells."""
        shape = (len(self.names), len(self.design.samples))
        return np.bincount(self.position[self.position >= 0], minlength=shape[0] * shape[1]).reshape(shape)


def design_of(cells: pd.DataFrame, settings: ConditionSettings | None = None) -> Design:
    """Find the samples among a study's cells.

    Parameters
    ----------
    cells
        One row per cell, with ``dataset`` and the columns that came with the cells.

    Raises
    ------
    NothingToCompare
        No column of conditions was named and none is there, or it has one value only.
    BadSettings
        A named column is not there, a condition is not among the values, or a covariate varies within a sample.
    """
    settings = settings or ConditionSettings()
    column = _condition_column(cells, settings)
    conditions = _texts(cells, column)
    found = sorted(conditions.dropna().unique())
    if len(found) < 2:
        raise NothingToCompare(
            f"column {column!r} has one value only ({found[0] if found else 'none'}), so there is nothing to compare"
        )
    assumed: list[str] = []
    replicate = _replicate_column(cells, column, settings, assumed)
    reference = _reference(found, column, settings, assumed)
    table = pd.DataFrame({"condition": conditions, "replicate": _texts(cells, replicate)})
    for name in settings.covariates:
        table[name] = _texts(cells, _existing(cells, name, "conditions.covariates"))
    complete = table.notna().all(axis=1).to_numpy()
    keys = table.loc[complete, ["condition", "replicate"]]
    samples = keys.drop_duplicates().sort_values(["condition", "replicate"], ignore_index=True)
    codes = pd.MultiIndex.from_frame(samples).get_indexer(pd.MultiIndex.from_frame(keys))
    of_cell = np.full(len(cells), -1)
    of_cell[complete] = codes
    for name in settings.covariates:
        samples[name] = _one_each(table.loc[complete, name], codes, samples, name)
    samples.insert(0, "sample", samples["replicate"] + " " + samples["condition"])
    return Design(samples, of_cell, reference, settings.covariates, tuple(assumed))


def _condition_column(cells: pd.DataFrame, settings: ConditionSettings) -> str:
    if settings.column is not None:
        return _existing(cells, settings.column, "conditions.column")
    named = [str(name) for name in cells.columns if str(name).lower() == CONDITION]
    if not named:
        raise NothingToCompare(
            "no cell has a column 'condition': name the column in conditions.column, or add it to the sample sheet"
        )
    return named[0]


def _replicate_column(
    cells: pd.DataFrame, condition: str, settings: ConditionSettings, assumed: list[str]
) -> str:
    if settings.replicate is not None:
        return _existing(cells, settings.replicate, "conditions.replicate")
    lower = {str(name).lower(): str(name) for name in cells.columns}
    for name in REPLICATES:
        if name in lower and lower[name] != condition and cells[lower[name]].nunique() > 1:
            assumed.append(f"replicates are the values of column {lower[name]!r}")
            return lower[name]
    assumed.append("every dataset is a replicate of its own, for no column tells of donors")
    return "dataset"


def _reference(found: list[str], column: str, settings: ConditionSettings, assumed: list[str]) -> str:
    if settings.reference is not None:
        if settings.reference not in found:
            raise BadSettings(
                f"conditions.reference is {settings.reference!r}, which is no value of column {column!r}. Values: "
                f"{', '.join(found)}."
            )
        return settings.reference
    lower = {name.lower(): name for name in reversed(found)}
    chosen = next((lower[name] for name in REFERENCES if name in lower), found[0])
    assumed.append(f"{chosen!r} is the condition that others are compared with")
    return chosen


def _existing(cells: pd.DataFrame, name: str, setting: str) -> str:
    if name not in cells.columns:
        known = ", ".join(str(column) for column in cells.columns if column != "cell") or "none"
        raise BadSettings(f"{setting} names {name!r}, which no dataset has as a column. Columns: {known}.")
    return name


def _texts(cells: pd.DataFrame, name: str) -> pd.Series:
    return labels_of(cells, name).astype(object).map(str, na_action="ignore")


def _one_each(values: pd.Series, codes: np.ndarray, samples: pd.DataFrame, name: str) -> list[str]:
    """The value of a covariate in every sample."""
    found: list[str] = []
    for code in range(len(samples)):
        own = values[codes == code].unique()
        if len(own) > 1:
            raise BadSettings(
                f"conditions.covariates names {name!r}, which has several values ({', '.join(sorted(own)[:3])}) in the "
                f"sample of replicate {samples['replicate'].iloc[code]!r} under {samples['condition'].iloc[code]!r}; a "
                "covariate has one in every sample."
            )
        found.append(str(own[0]))
    return found


@dataclass(frozen=True)
class Pairing:
    """The samples of one comparison.

    Parameters
    ----------
    rows
        Positions of the samples in the design, those of the reference and of the other condition.
    samples
        These rows.
    terms
        Columns that the model has besides the condition.
    """

    rows: np.ndarray
    samples: pd.DataFrame
    terms: tuple[str, ...]

    @property
    def formula(self) -> str:
        """The model in R's notation."""
        return "~ " + " + ".join([*self.terms, CONDITION])


def pairing(design: Design, other: str, usable: np.ndarray, min_replicates: int) -> Pairing | str:
    """The samples with which a condition is compared with the reference, or the reason why it cannot be.

    Replicates that were measured under both are compared in pairs, if there are as many as needed; then only they
    count. Covariates that do not vary, or that the replicates say already, are left out.

    Parameters
    ----------
    usable
        For every sample, whether it has cells enough.
    """
    wanted = design.samples["condition"].isin([design.reference, other]).to_numpy()
    rows = np.flatnonzero(usable & wanted)
    chosen = design.samples.iloc[rows].reset_index(drop=True)
    numbers = {name: int((chosen["condition"] == name).sum()) for name in (design.reference, other)}
    if min(numbers.values()) < min_replicates:
        return "too few replicates: " + ", ".join(
            f"{number} under {name}" for name, number in numbers.items()
        )
    both = chosen["replicate"].duplicated(keep=False).to_numpy()
    if both.sum() >= 2 * min_replicates:
        return Pairing(rows[both], chosen[both].reset_index(drop=True), ("replicate",))
    terms = tuple(name for name in design.covariates if chosen[name].nunique() > 1)
    matrix = model_matrix(chosen, terms, design.reference)
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        return f"the condition cannot be told from {', '.join(terms)}: they go together in all samples"
    if len(matrix) <= matrix.shape[1]:
        return f"too few samples ({len(matrix)}) for the condition and {', '.join(terms)}"
    return Pairing(rows, chosen, terms)


def model_matrix(samples: pd.DataFrame, terms: tuple[str, ...], reference: str) -> np.ndarray:
    """Samples × coefficients: a constant, a column for each further level of the terms, last the condition."""
    levels = [(samples[term] == level) for term in terms for level in sorted(samples[term].unique())[1:]]
    columns = [*levels, samples["condition"] != reference]
    return np.column_stack([np.ones(len(samples)), *(column.to_numpy(np.float64) for column in columns)])
