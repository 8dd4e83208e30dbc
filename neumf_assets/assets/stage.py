"""How an asset is declared here: a function of a :class:`Step`, returning a :class:`Product`.

A stage is declared once and becomes one Dagster asset in every study. The declaration carries all that both
the Dagster definitions and the planner (which assets are out of date?) need to know.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.core.progress import Progress, silent
from neumf_assets.core.store import Artifact

if TYPE_CHECKING:
    from neumf_assets.study.settings import StudySettings


@dataclass(frozen=True)
class CheckOutcome:
    """What a stage says about the quality of its own result; a failed one warns and stops nothing."""

    name: str
    passed: bool
    description: str
    figures: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass
class Product:
    """What a stage made.

    Attributes
    ----------
    save
        Writes the files into the folder it is given.
    figures
        JSON-like numbers and texts: kept with the files, shown in the UI (numbers are plotted over time).
    pictures
        Markdown by title, for the UI.
    tables
        Rows by title, for the UI.
    publish
        Files to copy into the study's results folder: name there by name in the artifact.
    sources
        Identities of what was read from outside the pipeline; they count as inputs of the fingerprint.
    checks
        Outcomes of the checks that the stage declares, all of them.
    members
        The datasets that take part in what is made from this; None: all.
    """

    save: Callable[[Path], object]
    figures: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    publish: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    checks: list[CheckOutcome] = field(default_factory=list)
    members: frozenset[str] | None = None

    def discard(self) -> None:
        """Let go of the data that ``save`` wrote, once it is written."""
        self.save = _discarded


def _discarded(folder: Path) -> object:
    raise RuntimeError("the product was discarded after it had been stored")


@dataclass(frozen=True)
class Step:
    """All that a stage's function may look at.

    ``replaced`` is the version that this materialisation will replace and ``previous`` its figures,
    ``scratch`` is a folder for checkpoints that outlives a killed step, ``left_out`` says why datasets of the
    inbox have no part in the study.
    """

    study: StudySettings
    inputs: Mapping[str, Any]
    dataset: str | None = None
    device: str = "cpu"
    scratch: Path = Path()
    previous: Mapping[str, Any] | None = None
    replaced: Artifact | None = None
    progress: Progress = silent
    left_out: Mapping[str, str] = field(default_factory=dict)
    log: Any = field(default_factory=lambda: logging.getLogger("neumf_assets"))

    def one(self, name: str) -> Artifact:
        """The upstream artifact ``name`` (of the same dataset, or of the study)."""
        artifact = self.inputs[name]
        assert isinstance(artifact, Artifact)
        return artifact

    def all(self, name: str) -> dict[str, Artifact]:
        """The upstream artifact ``name`` of every dataset, by dataset name in sorted order."""
        return dict(sorted(self.inputs[name].items()))


@dataclass(frozen=True)
class Stage:
    """The declaration of one asset of a study.

    ``settings`` names the sections of the study's settings that the result depends on, or single ones of
    them (``umap.n_neighbors``); ``version`` is raised
    whenever the code would give another result for the same settings and inputs. ``columns`` (name, type,
    description) document a table; ``checks`` (name, description) are reported on every materialisation.
    ``names_left_out`` marks what also tells of the datasets that have no part in the study.
    """

    name: tuple[str, ...]
    compute: Callable[[Step], Product]
    description: str
    inputs: tuple[str, ...]
    per_dataset: bool
    settings: tuple[str, ...]
    version: str
    kinds: frozenset[str]
    group: str
    uses_device: bool = False
    columns: tuple[tuple[str, str, str], ...] = ()
    checks: tuple[tuple[str, str], ...] = ()
    names_left_out: bool = False

    @property
    def path(self) -> str:
        """The name as one text, ``liger/factors``."""
        return "/".join(self.name)

    def settings_of(self, study: StudySettings) -> dict[str, Any]:
        """The settings that the result depends on, as JSON-like values."""
        dumped = study.model_dump(mode="json", include={name.split(".")[0] for name in self.settings})
        return {
            name: reduce(lambda value, key: value[key], name.split("."), dumped) for name in self.settings
        }

    def code_version(self, study: StudySettings) -> str:
        """Changes with the code and with the settings, so that Dagster shows either as out of date."""
        return f"{self.version}-{digest(self.settings_of(study))[:10]}"

    def fingerprint(self, study: StudySettings, inputs: Mapping[str, Any]) -> str:
        """Identity of the result by its causes: stage, code version, settings, inputs' fingerprints."""
        return digest({"stage": self.path, "code": self.code_version(study), "inputs": inputs})


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def stage(
    *,
    group: str,
    inputs: Sequence[str] = (),
    per_dataset: bool = False,
    settings: Sequence[str] = (),
    version: str = "1",
    kinds: Sequence[str] = (),
    name: Sequence[str] | None = None,
    uses_device: bool = False,
    columns: Sequence[tuple[str, str, str]] = (),
    checks: Sequence[tuple[str, str]] = (),
    names_left_out: bool = False,
) -> Callable[[Callable[[Step], Product]], Stage]:
    """Declare the decorated function as a stage; its docstring is the asset's description."""

    def declare(function: Callable[[Step], Product]) -> Stage:
        return Stage(
            name=tuple(name or (function.__name__,)),
            compute=function,
            description=inspect.getdoc(function) or "",
            inputs=tuple(inputs),
            per_dataset=per_dataset,
            settings=tuple(settings),
            version=version,
            kinds=frozenset(kinds),
            group=group,
            uses_device=uses_device,
            columns=tuple(columns),
            checks=tuple(checks),
            names_left_out=names_left_out,
        )

    return declare
