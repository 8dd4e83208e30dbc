"""What needs all datasets is made from one and the same state of them, even if more land meanwhile.

Every artifact of the study keeps, under ``made_of``, the fingerprints of the datasets' artifacts that it was
made from, its own inputs' included. Whoever takes such an artifact and datasets' artifacts as well gets just
those datasets. What starts from datasets alone gets those that were complete when the run started; one that
lands later is left to the next run.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from neumf_assets.assets.catalogue import PER_DATASET, stages
from neumf_assets.assets.stage import Stage
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.store import Artifact, Store
from neumf_assets.study.settings import StudySettings

MADE_OF = "made_of"

Inputs = Mapping[str, Artifact | Mapping[str, Artifact]]
MadeOf = dict[str, dict[str, str]]  # fingerprint by stage and dataset


def same_state(
    study: StudySettings, declared: Stage, context: dg.AssetExecutionContext, inputs: Inputs
) -> dict[str, Artifact | dict[str, Artifact]]:
    """The inputs with datasets that landed during the run left out.

    Raises
    ------
    NeumfError
        If the inputs were made from different versions of a dataset.
    """
    if declared.per_dataset:
        return {name: value if isinstance(value, Artifact) else dict(value) for name, value in inputs.items()}
    upstream = upstream_made_of(inputs)
    if upstream:
        wanted = set(next(iter(upstream.values())))
    else:
        wanted = _complete_at_start(study, declared, context, inputs)
    found: dict[str, Artifact | dict[str, Artifact]] = {}
    for name, value in inputs.items():
        found[name] = (
            value if isinstance(value, Artifact) else {d: value[d] for d in sorted(wanted & set(value))}
        )
        if name in upstream and made_of_datasets(found[name]) != upstream[name]:
            raise NeumfError(
                f"A dataset changed since the inputs of {declared.path} were made: "
                f"{', '.join(_differing(made_of_datasets(found[name]), upstream[name]))}. Materialise all that "
                f"needs all datasets together: job {study.name}_integrate."
            )
    return found


def made_of(inputs: Inputs, members: frozenset[str] | None = None) -> MadeOf:
    """The fingerprints of the datasets' artifacts that something made from these inputs is made of.

    ``members`` are the datasets that take part in it; None: all.
    """
    own = {name: made_of_datasets(value) for name, value in inputs.items() if not isinstance(value, Artifact)}
    return {
        stage: {name: one for name, one in versions.items() if members is None or name in members}
        for stage, versions in {**upstream_made_of(inputs), **own}.items()
    }


def upstream_made_of(inputs: Inputs) -> MadeOf:
    """What the study's own artifacts among the inputs were made of.

    Raises
    ------
    NeumfError
        If they were made from different datasets, or different versions of one.
    """
    merged: MadeOf = {}
    for name, value in inputs.items():
        known = value.manifest.figures.get(MADE_OF, {}) if isinstance(value, Artifact) else {}
        for stage, versions in known.items():
            first = next(iter(merged.values()), versions)
            if merged.setdefault(stage, dict(versions)) != versions or set(first) != set(versions):
                raise NeumfError(
                    f"{name} was made from other versions of {', '.join(_differing(first, versions)) or stage} "
                    "than what it is to be put together with. Materialise all that needs all datasets together."
                )
    return merged


def made_of_datasets(value: Artifact | Mapping[str, Artifact]) -> dict[str, str]:
    """Fingerprint by dataset."""
    assert not isinstance(value, Artifact)
    return {name: artifact.fingerprint for name, artifact in sorted(value.items())}


def _complete_at_start(
    study: StudySettings, declared: Stage, context: dg.AssetExecutionContext, inputs: Inputs
) -> set[str]:
    """Datasets of which everything that the study takes was there when the run started, or was made by it.

    Raises
    ------
    NeumfError
        If one that the stored version was made of is being replaced: it must not drop out meanwhile.
    """
    store: Store = context.resources.store.open()
    record = context.instance.get_run_record_by_id(context.run.run_id)
    started = record.start_time if record is not None and record.start_time else float("inf")
    taken = {name for item in stages(study) if not item.per_dataset for name in item.inputs}
    names = {name for value in inputs.values() if not isinstance(value, Artifact) for name in value}

    def there(dataset: str, stage: str) -> bool:
        artifact = store.find((study.name, *stage.split("/"), dataset))
        return artifact is not None and (
            artifact.manifest.created <= started or _run_of(artifact) == context.run.run_id
        )

    complete = {name for name in names if all(there(name, stage) for stage in taken & PER_DATASET)}
    late, before = sorted(names - complete), store.find((study.name, *declared.name))
    known = {} if before is None else before.manifest.figures.get(MADE_OF, {})
    if replaced := [name for name in late if any(name in versions for versions in known.values())]:
        raise NeumfError(
            f"Made anew since this run started, or not complete: {', '.join(replaced)}. The study is rebuilt "
            "when they have come to rest."
        )
    if late:
        context.log.info(f"Left to the next run, since they are not complete yet: {', '.join(late)}.")
    return complete


def _run_of(artifact: Artifact) -> Any:
    return artifact.manifest.figures.get("provenance", {}).get("run")


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> Iterable[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
