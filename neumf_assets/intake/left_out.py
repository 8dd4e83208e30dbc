"""Why datasets that a user put into the inbox have no part in the study's result."""

from __future__ import annotations

from collections.abc import Iterable

from neumf_assets.assets.catalogue import PER_DATASET, stages
from neumf_assets.core.store import Store
from neumf_assets.intake.quarantine import Quarantine
from neumf_assets.study.settings import StudySettings

INCOMPLETE = "a step of it failed, or is still to run: see its runs in the web interface"


def left_out(study: StudySettings, store: Store, known: Iterable[str]) -> dict[str, str]:
    """Datasets and files without a part in the study, with the reason: refused, or not complete.

    A refused file whose earlier version stays in use is none of them.

    Parameters
    ----------
    known
        The datasets that belong to the study: its partitions.
    """
    taken = {name for item in stages(study) if not item.per_dataset for name in item.inputs} & PER_DATASET
    incomplete = {
        dataset: INCOMPLETE
        for dataset in known
        if any(store.find((study.name, *stage.split("/"), dataset)) is None for stage in taken)
    }
    refused = {one.name: one.reason for one in Quarantine(study).all() if not one.in_use}
    return {**incomplete, **refused}
