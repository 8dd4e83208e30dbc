"""Which version of each dataset a study uses: that of its file, or the one before a file that is gone or refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neumf_assets.core.counts.discover import DatasetFile
from neumf_assets.core.store import Store
from neumf_assets.intake.quarantine import Quarantine
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import source_digests


def digests_in_use(
    study: StudySettings, store: Store, known: Iterable[str], datasets: Sequence[DatasetFile]
) -> dict[str, str]:
    """Digest of the source that each dataset of the study should be made from.

    That of its file; where the file is gone or refused, that of the version which stays in use.

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
    digests = source_digests(study, store, usable)
    for name in sorted(names - set(digests)):
        artifact = store.find((study.name, "raw_counts", name))
        if artifact is not None:
            digests[name] = str(artifact.manifest.inputs["source"])
    return digests
