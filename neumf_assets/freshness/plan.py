"""What is out of date: compares the fingerprint that each asset should have with the one it has.

Fingerprints follow from settings, code versions and the source files' content alone, so nothing has to be
computed to know what would change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neumf_assets.assets.gene_space import LEFT_OUT
from neumf_assets.assets.stage import Stage
from neumf_assets.core.store import Artifact, Store
from neumf_assets.study.settings import StudySettings

STANDS_FOR = "stands_for"
"""Figure of an artifact that was made in a shorter way: the fingerprint of what it takes the place of."""


@dataclass(frozen=True)
class Plan:
    """Stages that are out of date, in order: by dataset, and for the study as a whole."""

    datasets: dict[str, list[Stage]]
    study: list[Stage]

    @property
    def empty(self) -> bool:
        """Whether everything is up to date."""
        return not self.study and not any(self.datasets.values())


def plan(
    study: StudySettings,
    stages: Sequence[Stage],
    sources: Mapping[str, str],
    store: Store,
    left_out: Mapping[str, str] | None = None,
) -> Plan:
    """Find what is out of date.

    Parameters
    ----------
    study, stages
        The study and its stages, upstream first.
    sources
        Content identity of each dataset's source, by dataset.
    store
        Where the artifacts are.
    left_out
        Why datasets of the inbox are not among the sources.
    """
    expected = {name: _dataset_fingerprints(study, stages, identity) for name, identity in sources.items()}
    stale = {
        name: [
            item
            for item in stages
            if item.per_dataset and not _current(store, study, item, name, fingerprints[item.path])
        ]
        for name, fingerprints in sorted(expected.items())
    }
    of_study: dict[str, str] = {}
    stale_study = []
    members = sorted(expected)
    for item in stages:
        if item.per_dataset:
            continue
        inputs = {
            name: of_study[name] if name in of_study else {d: expected[d][name] for d in members}
            for name in item.inputs
        }
        wanted = item.fingerprint(study, told(item, inputs, left_out or {}))
        found = store.find((study.name, *item.name))
        if found is not None and is_current(found, wanted, study):
            of_study[item.path] = found.fingerprint
            members = [name for name in members if name not in found.manifest.figures.get(LEFT_OUT, {})]
        else:
            of_study[item.path] = wanted
            stale_study.append(item)
    return Plan(datasets=stale, study=stale_study)


def told(item: Stage, inputs: Mapping[str, Any], left_out: Mapping[str, str]) -> Mapping[str, Any]:
    """The inputs of a stage, with the datasets that are left out where the stage tells of them."""
    return (
        {**inputs, LEFT_OUT: dict(sorted(left_out.items()))} if item.names_left_out and left_out else inputs
    )


def is_current(artifact: Artifact, fingerprint: str, study: StudySettings) -> bool:
    """Whether an artifact is what the fingerprint calls for.

    A model that datasets were mapped onto has a fingerprint of its own, and stands for the one trained on all
    of them until the study asks for training.
    """
    stands_for = artifact.manifest.figures.get(STANDS_FOR) if study.update != "retrain" else None
    return fingerprint in (artifact.fingerprint, stands_for)


def _dataset_fingerprints(study: StudySettings, stages: Sequence[Stage], identity: str) -> dict[str, str]:
    known: dict[str, str] = {}
    for item in stages:
        if item.per_dataset:
            inputs = {name: known[name] for name in item.inputs} or {"source": identity}
            known[item.path] = item.fingerprint(study, inputs)
    return known


def _current(store: Store, study: StudySettings, item: Stage, dataset: str | None, fingerprint: str) -> bool:
    artifact = store.find((study.name, *item.name, *([dataset] if dataset else [])))
    return artifact is not None and artifact.fingerprint == fingerprint
