"""The scores of one arm as data: immutable, JSON-serialisable, without heavy imports."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_serializer

from neumf_assets.core.settings import Settings


class PartitionScore(Settings):
    """One clustering of the cells against the labels; the scores are None without labels."""

    n_clusters: int
    ari: float | None = None
    ami: float | None = None
    nmi: float | None = None


class RunScore(PartitionScore):
    """One Leiden run: its resolution and seed beside its scores."""

    resolution: float
    seed: int


class ArmScores(Settings):
    """Everything by which an arm is judged.

    ``ari``, ``ami``, ``nmi`` and ``n_clusters`` belong to the delivered Leiden clusters (default resolution,
    first seed). ``*_best`` is the best over the resolutions and ``*_mean`` their mean, both taken within each
    seed and then averaged over the seeds, so that more seeds do not make the best look better; ``*_mean_sd``
    is the standard deviation of the mean over the seeds. Scores that need labels are None without them,
    scores of mixing are None with a single dataset. ``ilisi`` and ``clisi`` are scaled as in scib: 1 is best.
    """

    n_cells: int
    n_labelled: int = 0
    n_clusters: int
    ari: float | None = None
    ari_best: float | None = None
    ari_mean: float | None = None
    ari_mean_sd: float | None = None
    ami: float | None = None
    ami_best: float | None = None
    ami_mean: float | None = None
    ami_mean_sd: float | None = None
    nmi: float | None = None
    same_batch_neighbours: float | None = None
    expected_same_batch: float | None = None
    expected_same_batch_within_label: float | None = None
    cross_batch_label_accuracy: float | None = None
    silhouette_label: float | None = None
    silhouette_batch: float | None = None
    ilisi: float | None = None
    clisi: float | None = None
    stability: float | None = None
    alignment: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    runs: tuple[RunScore, ...] = ()
    methods: dict[str, PartitionScore] = Field(default_factory=dict)
    cluster_by_label: dict[str, dict[str, int]] = Field(default_factory=dict)
    cluster_by_dataset: dict[str, dict[str, int]] = Field(default_factory=dict)

    @field_serializer("*", when_used="json")
    def _finite(self, value: Any) -> Any:
        # JSON has no NaN, and a score that is not a number is a score that does not exist
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def summary(self) -> dict[str, Any]:
        """Give the single figures, without the per-run scores and tables, for ``summary.json``."""
        tables = {"runs", "methods", "cluster_by_label", "cluster_by_dataset"}
        return self.model_dump(mode="json", exclude=tables)
