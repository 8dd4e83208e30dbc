"""An inbox as its sample sheet has it: which samples, under which names, with what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neumf_assets.core.counts.discover import DatasetFile, Inbox, check_name, dataset_at, is_url
from neumf_assets.core.counts.samples import SHEETS, Sample, read_samples
from neumf_assets.core.errors import BadInput


def find_sheet(inbox: str, named: str | None) -> str | None:
    """Path or URL of the study's sample sheet: the one that the settings name, else the inbox's own, if any.

    A relative path in the settings is one below the inbox.

    Raises
    ------
    BadInput
        When the inbox does not tell: without its sheet, datasets would go under other names.
    """
    if named is not None:
        absolute = is_url(named) or Path(named).is_absolute()
        return named if absolute else f"{inbox.rstrip('/')}/{named}"
    if not is_url(inbox):
        return next((str(Path(inbox) / name) for name in SHEETS if (Path(inbox) / name).is_file()), None)
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(inbox)
    for name in SHEETS:
        try:
            # not isfile, which takes a store that does not answer for one without the file
            if filesystem.info(f"{root.rstrip('/')}/{name}").get("type") == "file":
                return f"{inbox.rstrip('/')}/{name}"
        except FileNotFoundError:
            continue
        except Exception as error:  # each file system raises its own
            reason = str(error).strip() or type(error).__name__
            raise BadInput(
                inbox, name, f"cannot be looked for ({reason})", "Check the URL and the credentials"
            ) from error
    return None


def load_samples(sheet: str) -> list[Sample]:
    """Read a sample sheet from a path or URL.

    Raises
    ------
    BadInput
        When it cannot be read, or is wrong; naming line and column.
    """
    try:
        if is_url(sheet):
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(sheet)
            filesystem.invalidate_cache()
            content = filesystem.cat_file(path)
        else:
            content = Path(sheet).read_bytes()
    except Exception as error:  # each file system raises its own
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise BadInput(
            sheet, "", f"cannot be read ({reason})", "Check study.samples, and its permissions"
        ) from error
    return read_samples(content, sheet)


def with_samples(inbox: Inbox, samples: Sequence[Sample], sheet: str) -> Inbox:
    """The datasets that a sheet lists, under the names that it gives.

    What the inbox holds besides is refused, so that nothing is left out without a word.

    Parameters
    ----------
    inbox
        What lies in the inbox.
    samples
        The sheet's lines.
    sheet
        Its path or URL.
    """
    by_name = {item.name: item for item in inbox.datasets}
    by_path = {_resolved(item.path): item for item in inbox.datasets}
    refusals = {_resolved(str(error.file)): error for error in inbox.refused}
    datasets, refused, used = [], [], set()
    for sample in samples:
        place = f"line {sample.line}"
        try:
            check_name(sample.name, sheet)
            if not sample.path:
                found = by_name.get(sample.name)
                if found is None:
                    problem = f"the inbox holds no dataset {sample.name!r}"
                    mend = "Put its file there, or give its path in the column 'path'"
                    raise BadInput(sheet, place, problem, mend)
            else:
                path = _placed(sample.path, sheet)
                found = by_path.get(_resolved(path))
                own = refusals.pop(_resolved(path), None)
                if found is None and own is not None and own.place != "name":  # the sheet gives another name
                    raise own
                for folder in [above for above in refusals if _resolved(path).startswith(f"{above}/")]:
                    del refusals[folder]
                found = found or dataset_at(path)
            place_of = _resolved(found.path)
            used |= {
                name
                for name, item in by_name.items()
                if f"{place_of}/".startswith(f"{_resolved(item.path)}/")  # itself, or the folder it lies in
            }
            labels = found.labels or (by_name[sample.name].labels if sample.name in by_name else None)
            datasets.append(_described(found, sample, labels))
        except BadInput as error:
            refused.append(error)
    for name, item in by_name.items():
        if name not in used:
            refused.append(
                BadInput(
                    item.path,
                    "",
                    f"is not listed in the sample sheet {Path(sheet).name}",
                    "Add a line for it there, or take it out of the inbox",
                )
            )
    return Inbox(sorted(datasets, key=lambda item: item.name), [*refusals.values(), *refused])


def _described(found: DatasetFile, sample: Sample, labels: str | None) -> DatasetFile:
    identity = hashlib.sha256(f"{found.identity} {sample.told}".encode()).hexdigest()
    return replace(found, name=sample.name, labels=labels, identity=identity, sample=sample)


def _placed(path: str, sheet: str) -> str:
    """A path of the sheet: one that is relative starts where the sheet lies."""
    if is_url(path) or (Path(path).is_absolute() and not is_url(sheet)):
        return path
    folder = sheet.rpartition("/")[0] or "."
    return f"{folder}/{path}" if is_url(sheet) else str(Path(folder) / path)


def _resolved(path: str) -> str:
    if not is_url(path):
        return str(Path(path).resolve())
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(path)
    return str(filesystem.unstrip_protocol(root)).rstrip("/")
