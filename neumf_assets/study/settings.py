"""The settings of a study: what one ``defs.yaml`` may say, and the allowed ranges."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from neumf_assets.core.annotation.settings import LabelSettings
from neumf_assets.core.cells.settings import (
    AlignSettings,
    ClusterSettings,
    ComponentSettings,
    IntegratedSettings,
    MarkerSettings,
    MetricsSettings,
    UmapSettings,
    harmony_defaults,
)
from neumf_assets.core.conditions.settings import ConditionSettings
from neumf_assets.core.counts.settings import QCSettings, ReadSettings
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.liger.settings import LigerSettings, SweepSettings
from neumf_assets.core.neumf.evaluation.settings import EvaluationSettings
from neumf_assets.core.neumf.settings import DenseSettings, NeuMFSettings, ineumf_defaults
from neumf_assets.core.settings import Settings
from neumf_assets.dagster_internals import is_valid_cron_string, is_valid_owner

Arm = Literal["pca", "harmony", "liger", "neumf_liger", "ineumf"]
ARMS: tuple[Arm, ...] = ("pca", "harmony", "liger", "neumf_liger", "ineumf")
_WITHOUT_VALUE = ("extra_forbidden", "missing")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
NAME_RULE = "1 to 64 letters, digits, '_' and '-', the first a letter or digit"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Cron = Annotated[str, StringConstraints(pattern=r"^\s*(\S+\s+){4}\S+\s*$|^@(hourly|daily|weekly|monthly)$")]
Update = Literal["retrain", "map", "auto"]


class ArrivalSettings(Settings):
    """How the inbox is watched."""

    poll_seconds: int = Field(
        30, ge=1, le=86_400, description="Seconds between two looks at the inbox, at least."
    )
    quiet_seconds: float = Field(
        30.0,
        ge=0,
        le=86_400,
        description="Nothing may come or change in the inbox for this long before work starts, so that files "
        "that come together are integrated together; never waited for more than ten times as long.",
    )
    attempts: int = Field(
        3, ge=1, le=100, description="Runs for the same file, where they fail through no fault of the file."
    )


class ScheduleSettings(Settings):
    """When a study is refreshed by itself, besides on arrival of data."""

    cron: Cron | None = Field(
        None,
        description="Cron expression of a refresh of all that is out of date, as '0 2 * * *' for every night; "
        "null: only on arrival, so that nothing runs at night unasked.",
    )
    retrain: Cron | None = Field(
        "0 3 * * 0",
        description="Cron expression of a full training of the integrative model where datasets were only "
        "mapped onto it (update: map or auto); weekly by default, null: never by itself.",
    )
    timezone: str = Field("UTC", description="Time zone of the cron expressions.")
    fresh_within_hours: float | None = Field(
        None,
        gt=0,
        le=24 * 366,
        description="For a study that is fed regularly: results older than this are marked as overdue in the "
        "UI; null: results are as old as the last arrival.",
    )

    @field_validator("cron", "retrain")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None and not is_valid_cron_string(value.strip()):
            raise ValueError(
                "not a cron expression: minute 0-59, hour 0-23, day 1-31, month 1-12 and day of the week 0-6, "
                "or @hourly, @daily, @weekly, @monthly"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a time zone; use a name of the tz database, as Europe/Berlin") from None
        return value


class RequestSettings(Settings):
    """What a step asks for on a cluster (Ray, Kubernetes)."""

    cpus: float = Field(1.0, gt=0, le=1024, description="Processors.")
    memory_mib: int = Field(2048, ge=128, le=2**24, description="Memory in MiB.")


class StudySettings(Settings):
    """One study: several datasets that are measured, modelled and compared together."""

    name: Name = Field(description=f"Key prefix and group of all its assets: {NAME_RULE}.")
    title: str = Field("", max_length=300, description="What the study is about, for the report.")
    inbox: str | None = Field(
        None,
        description="Folder or fsspec URL where count files arrive; null: inbox/<name> below NEUMF_HOME.",
    )
    samples: str | None = Field(
        None,
        description="Sample sheet: path or URL, relative to the inbox; null: samples.csv (or .tsv) in the inbox, "
        "where there is one.",
    )
    simulate: SimulatorSettings | None = Field(
        None, description="Fill the inbox with simulated data of these settings (the embedded example)."
    )
    owners: tuple[str, ...] = Field(
        ("team:single-cell",), description="Owners shown in Dagster: e-mail addresses or team:NAME."
    )
    label_column: str | None = Field(
        None,
        description="Column with the cell type for the scores; null: the one that most likely holds cell types.",
    )
    batch_column: str | None = Field(
        None, description="Column that says which cells were measured together; null: the dataset."
    )
    keep: tuple[Name, ...] = Field(
        (),
        description="Datasets that stay in the study although their files are gone from the inbox; others leave it.",
    )
    arms: tuple[Arm, ...] = Field(
        ARMS,
        min_length=1,
        description="Ways of integrating the datasets to build and compare; all by default.",
    )
    read: ReadSettings = Field(ReadSettings(), description="How count files are read.")
    qc: QCSettings = Field(QCSettings(), description="Which cells and genes are kept.")
    model: NeuMFSettings = Field(NeuMFSettings(), description="The NeuMF model of each dataset.")
    dense: DenseSettings = Field(DenseSettings(), description="The dense matrix that a model predicts.")
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(), description="Held-out evaluation of each dataset's model."
    )
    liger: LigerSettings = Field(
        LigerSettings(n_genes=2000),
        description="The LIGER arms; with as many genes as the integrative NeuMF, so that arms are compared alike.",
    )
    sweep: SweepSettings = Field(
        SweepSettings(),
        description="LIGER with other numbers of factors and other lambdas, to choose them by.",
    )
    ineumf: NeuMFSettings = Field(ineumf_defaults(), description="The integrative NeuMF over all datasets.")
    align: AlignSettings = Field(AlignSettings(), description="Alignment of the integrative NeuMF's cells.")
    pca: ComponentSettings = Field(
        ComponentSettings(), description="Principal components, for the arms pca and harmony."
    )
    harmony: AlignSettings = Field(
        harmony_defaults(),
        description="The arm harmony, by default with Harmony's own settings: a rival is not mended.",
    )
    clusters: ClusterSettings = Field(ClusterSettings(), description="Neighbour graph and clusters of cells.")
    umap: UmapSettings = Field(UmapSettings(), description="The map of the cells.")
    metrics: MetricsSettings = Field(MetricsSettings(), description="Scores of the arms.")
    markers: MarkerSettings = Field(MarkerSettings(), description="Marker genes of the clusters.")
    labels: LabelSettings = Field(LabelSettings(), description="Labels carried over to cells without one.")
    conditions: ConditionSettings = Field(
        ConditionSettings(), description="Comparison of conditions: composition and differential expression."
    )
    integrated: IntegratedSettings = Field(IntegratedSettings(), description="The integrated h5ad file.")
    update: Update = Field(
        "retrain",
        description="What becomes of the integrative NeuMF when datasets arrive. retrain: it is trained anew "
        "on all of them; map: their cells are mapped onto the model as it is, which is quick; auto: mapped "
        "while all mapped cells together stay below map_share, else trained anew.",
    )
    map_share: float = Field(
        0.2, gt=0, le=10, description="auto: mapped cells, at most, as a share of the cells trained on."
    )
    arrival: ArrivalSettings = Field(ArrivalSettings(), description="Watching the inbox.")
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="Timed refreshes.")
    requests: dict[str, RequestSettings] = Field(
        {},
        description="What steps ask for on a cluster, by asset (liger/factors) or by group (ingest, model, "
        "integrate, report); others ask for 1 processor and 2048 MiB.",
    )

    @field_validator("owners")
    @classmethod
    def _owners(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if not is_valid_owner(owner):
                raise ValueError(f"{owner!r} is neither an e-mail address nor team:NAME")
        return value

    @model_validator(mode="before")
    @classmethod
    def _over_own_defaults(cls, values: Any) -> Any:
        """Lay a section that is given in part over the study's default for it, not over its class's."""
        if not isinstance(values, dict):
            return values
        laid = dict(values)
        for name, given in values.items():
            field = cls.model_fields.get(name)
            if field is not None and isinstance(field.default, Settings) and isinstance(given, dict):
                laid[name] = {**field.default.model_dump(exclude_unset=True), **given}
        return laid

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ineumf.preset != "none":
            raise ValueError("ineumf.preset: presets are for the model of a single dataset (model.preset)")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms names an arm twice: {list(self.arms)}")
        return self

    def request_of(self, asset: str, group: str) -> RequestSettings:
        """What a step asks for on a cluster."""
        return self.requests.get(asset) or self.requests.get(group) or RequestSettings()


def check_name(name: str, what: str) -> str:
    """Return a study or dataset name that follows the rule.

    Raises
    ------
    BadSettings
        If it does not.
    """
    if not re.match(NAME_PATTERN, name):
        raise BadSettings(f"{name!r} is no {what} name. Use {NAME_RULE}.")
    return name


def explain(error: ValidationError, where: str) -> BadSettings:
    """Turn a pydantic error into one line for each setting: its key, what is wrong, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        shown = f" = {problem['input']!r}" if key and problem["type"] not in _WITHOUT_VALUE else ""
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {key}{shown}{': ' if key else ''}{message}.")
    return BadSettings("\n".join(lines))
