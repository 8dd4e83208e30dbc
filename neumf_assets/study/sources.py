"""A study's source files: its inbox, and the identity of what lies in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neumf_assets.core.counts.discover import DatasetFile, Inbox, is_url, list_datasets
from neumf_assets.core.counts.sheet import find_sheet, load_samples, with_samples
from neumf_assets.core.errors import BadInput
from neumf_assets.core.store import Store
from neumf_assets.home import Home
from neumf_assets.study.settings import StudySettings


def inbox_of(study: StudySettings) -> str:
    """Folder or URL of the study's inbox."""
    return study.inbox or Home.from_environment().inbox(study.name)


def find_sources(study: StudySettings) -> Inbox:
    """What the study's inbox holds; a simulated study's inbox is filled first, the default one created.

    Raises
    ------
    BadInput
        If the inbox cannot be listed.
    """
    inbox = inbox_of(study)
    if study.simulate is not None:
        from neumf_assets.core.counts.simulate.inbox import write_inbox

        write_inbox(study.simulate, Path(inbox))
    elif study.inbox is None and not is_url(inbox):
        Path(inbox).mkdir(parents=True, exist_ok=True)
    found = list_datasets(inbox)
    sheet = find_sheet(inbox, study.samples)
    return found if sheet is None else with_samples(found, load_samples(sheet), sheet)


def readable_digests(
    study: StudySettings, store: Store, datasets: Sequence[DatasetFile]
) -> tuple[dict[str, str], list[BadInput]]:
    """Content digest of each dataset's source, and why there is none of those that cannot be read.

    A file that looks as it did when it was last read (same size and time) is not read again: its digest is
    in the manifest of ``raw_counts``.
    """
    digests: dict[str, str] = {}
    refused = []
    for item in datasets:
        try:
            digests[item.name] = _digest(study, store, item)
        except BadInput as error:
            refused.append(error)
    return digests, refused


def dataset_digest(item: DatasetFile) -> str:
    """Digest of all that belongs to a dataset: its counts, and its labels where there are any.

    Raises
    ------
    BadInput
        If a file cannot be read.
    """
    from neumf_assets.core.counts.readers.source import fetched

    with fetched(item.path, item.name, item.labels, {}) as source:
        labels = b"" if source.labels is None else source.labels.read_bytes()
        known = b"" if item.sample is None else item.sample.told.encode()
        return hashlib.sha256(source.sha256.encode() + hashlib.sha256(labels).digest() + known).hexdigest()


@contextmanager
def blaming(identity: str) -> Iterator[None]:
    """Name the content that is at fault when the body refuses it: by then another may lie in the inbox."""
    try:
        yield
    except BadInput as error:
        error.identity = identity
        raise


def _digest(study: StudySettings, store: Store, item: DatasetFile) -> str:
    known = store.find((study.name, "raw_counts", item.name))
    if known is not None and known.manifest.figures.get("identity") == item.identity:
        return str(known.manifest.inputs["source"])
    return dataset_digest(item)
