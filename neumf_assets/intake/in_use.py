"""Which datasets a study has, and which version of each: that of its file, or the one before a refused one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from neumf_assets.core.counts.discover import DatasetFile, Inbox, dataset_name
from neumf_assets.core.errors import BadInput
from neumf_assets.core.store import Store
from neumf_assets.intake.quarantine import Quarantine
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import readable_digests


def missing(study: StudySettings, known: Iterable[str], inbox: Inbox) -> list[str]:
    """Datasets of the study (its partitions, ``known``) whose files are gone, and which are not to be kept.

    A file that is there and refused is not gone.
    """
    present = {item.name for item in inbox.datasets} | {_name_of(error.file) for error in inbox.refused}
    return sorted(set(known) - present - set(study.keep))


def _name_of(file: str | Path) -> str:
    """Name of the dataset that a refused file would be; its own where that cannot be a name."""
    try:
        return dataset_name(file)
    except BadInput:
        return str(file)


def digests_in_use(
    study: StudySettings, store: Store, known: Iterable[str], datasets: Sequence[DatasetFile]
) -> dict[str, str]:
    """Digest of the source that each dataset of the study should be made from.

    That of its file; where the file is refused, or gone and to be kept, that of the version which stays in use.

    Parameters
    ----------
    known
        The datasets that belong to the study: its partitions.
    datasets
        What lies in the inbox.
    """
    quarantine = Quarantine(study)
    names = set(known)
    usable = [
        item for item in datasets if item.name in names and not quarantine.holds(item.name, item.identity)
    ]
    digests, _ = readable_digests(study, store, usable)  # what cannot be read is told by who reads it
    for name in sorted(names - set(digests)):
        artifact = store.find((study.name, "raw_counts", name))
        if artifact is not None:
            digests[name] = str(artifact.manifest.inputs["source"])
    return digests
