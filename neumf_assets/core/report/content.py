"""What a report says: plain data, every part optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from neumf_assets.core.report.plots.basis import Categories, Values
from neumf_assets.core.report.plots.scores import RunScore

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Droplets:
    """All barcodes of a raw matrix: counts, which are called cells, and the bounds that decided."""

    totals: Values
    cells: npt.NDArray[Any]
    knee: float
    lower: float


@dataclass(frozen=True)
class DatasetSummary:
    """One dataset: what was read, what quality control kept, and per-cell figures for the histograms.

    ``removed`` maps a reason (``too few genes``) to the number of cells or genes that it removed. ``outlier`` and
    ``doublet`` mark cells that stayed.
    """

    name: str
    cells: int
    genes: int
    zero_fraction: float | None = None
    cells_read: int | None = None
    genes_read: int | None = None
    removed: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    sha256: str = ""
    total_counts: Values | None = None
    genes_per_cell: Values | None = None
    mito_share: Values | None = None
    outlier: npt.NDArray[Any] | None = None
    doublet: npt.NDArray[Any] | None = None
    ambient_share: float | None = None
    species: str = ""
    droplets: Droplets | None = None


@dataclass(frozen=True)
class FactorGenes:
    """Top genes of one factor: shared by all datasets, and more or less used in single ones."""

    name: str
    shared: Sequence[str] = ()
    specific: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmResult:
    """One way of integrating the datasets; per-cell values all in the same order of cells."""

    name: str
    coordinates: npt.NDArray[Any] | None = None
    dataset: Categories | None = None
    label: Categories | None = None
    cluster: Categories | None = None
    factors: Sequence[FactorGenes] = ()


@dataclass(frozen=True)
class Comparison:
    """Scores of the arms.

    ``scores``: arm -> metric -> one value per seed (None where unknown). ``runs``: one entry per arm,
    resolution and seed, for the picture. ``chance``: metric -> score of data whose structure was destroyed.
    """

    scores: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    runs: Sequence[RunScore] = ()
    chance: Mapping[str, float] = field(default_factory=dict)
    best_arm: str | None = None
    rule: str = ""


@dataclass(frozen=True)
class Curves:
    """Progress of one training or factorisation: series name -> value per epoch or iteration."""

    name: str
    series: Mapping[str, Values]
    kind: str = "loss"  # "loss" or "objective"


@dataclass(frozen=True)
class DatasetEvaluation:
    """How well one dataset's model predicts counts that it has not seen.

    ``deviance``: method -> mean Poisson deviance of the held-out counts (``model`` names ours; ``part`` what it starts
    from, which stands beside it and is no rival).
    ``ranking``: method -> measure (``HR@10``) -> value. ``predicted``, ``observed``: means for calibration.
    """

    dataset: str
    deviance: Mapping[str, float] = field(default_factory=dict)
    model: str = "neumf"
    ranking: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    predicted: Values | None = None
    observed: Values | None = None
    part: str | None = None


@dataclass(frozen=True)
class SweepRow:
    """One factorisation of a row of them in which ``varied`` (``k`` or ``lambda``) grows."""

    varied: str
    k: int
    lam: float
    objective: float
    divergence: float
    seconds: float


@dataclass(frozen=True)
class MarkerGene:
    """A gene that one cluster's cells show more than all others, from raw counts."""

    gene: str
    log2_fold_change: float
    p_adjusted: float | None = None
    share_inside: float | None = None
    share_outside: float | None = None


@dataclass(frozen=True)
class LabelResults:
    """Labels carried over to cells without one.

    ``accuracy``: rows with ``label``, ``cells``, ``right``, ``unknown``, ``mostly_taken_for``, where labels were held
    out (``datasets``: one at a time, or ``cells``). ``given``: rows with ``dataset``, ``predicted``, ``cells``.
    """

    column: str
    arm: str
    right: float | None
    held_out: str
    accuracy: Sequence[Mapping[str, Any]] = ()
    given: Sequence[Mapping[str, Any]] = ()
    unlabelled: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class ConditionResults:
    """What differs between conditions; tables as the study's artifacts hold them.

    ``shares`` and ``tests`` are of composition, ``genes`` and ``compared`` of expression, ``top`` the surest genes of
    every comparison.
    """

    reference: str
    groups: str
    assumed: str
    max_adjusted_p: float
    shares: pd.DataFrame
    tests: pd.DataFrame
    genes: pd.DataFrame
    compared: pd.DataFrame
    top: Sequence[Mapping[str, Any]] = ()

    @property
    def others(self) -> list[str]:
        """The conditions that are compared with the reference."""
        return sorted(map(str, self.tests["condition"].unique()))


@dataclass(frozen=True)
class Provenance:
    """What was run, with what, so that it can be repeated."""

    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContent:
    """All that a study's report can show; a part without data leaves no trace in the page.

    ``created`` is a time as text (the renderer never looks at the clock). ``qc_thresholds`` may bound
    ``total_counts``, ``genes_per_cell`` and ``mito_share``. ``markers`` belong to the clusters of
    ``markers_arm``, ``label_markers`` to the cells' labels; ``marker_dots`` and ``label_dots`` say how the first of
    them are expressed everywhere (``cluster``, ``gene``, ``mean``, ``share``). ``suggested``: names for clusters by
    lists of genes.
    """

    study: str
    title: str = ""
    description: str = ""
    created: str = ""
    datasets: Sequence[DatasetSummary] = ()
    qc_thresholds: Mapping[str, float] = field(default_factory=dict)
    arms: Sequence[ArmResult] = ()
    comparison: Comparison | None = None
    curves: Sequence[Curves] = ()
    evaluations: Sequence[DatasetEvaluation] = ()
    sweep: Sequence[SweepRow] = ()
    markers: Mapping[str, Sequence[MarkerGene]] = field(default_factory=dict)
    markers_arm: str = ""
    marker_dots: pd.DataFrame | None = None
    suggested: Mapping[str, str] = field(default_factory=dict)
    label_markers: Mapping[str, Sequence[MarkerGene]] = field(default_factory=dict)
    label_dots: pd.DataFrame | None = None
    labels: LabelResults | None = None
    conditions: ConditionResults | None = None
    warnings: Sequence[str] = ()
    provenance: Provenance | None = None
