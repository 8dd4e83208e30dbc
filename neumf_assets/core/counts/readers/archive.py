"""Archives that hold the files of one sample, unpacked with care: no bombs, no paths outside, no links."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from neumf_assets.core.counts.discover import ARCHIVES, UNPACK, is_table
from neumf_assets.core.errors import BadInput

_ALWAYS_FINE = 1 << 30
_DENSEST = 1000
"""No files of counts are packed more tightly."""
_MOST_MEMBERS = 10_000
_LITTER = ("._", ".DS_Store", "__MACOSX")


def is_archive(path: Path) -> bool:
    """Whether a file is called as an archive that is unpacked here."""
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


def unpacked(path: Path, folder: Path, given: str) -> Path:
    """Unpack an archive of one sample; returns its file or folder.

    Parameters
    ----------
    path
        ZIP or gzipped tar.
    folder
        Takes what is in it.
    given
        Path or URL for messages.

    Raises
    ------
    BadInput
        When it is damaged, holds more than it could be packed into, links or places outside, or more than a sample.
    """
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _write(_of_zip(archive, given), folder, path.stat().st_size, given)
        else:
            with tarfile.open(path, "r:*") as archive:
                _write(_of_tar(archive, given), folder, path.stat().st_size, given)
    except BadInput:
        raise
    except Exception as error:  # damaged archives raise nearly every kind
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise BadInput(
            given, "", f"the archive is damaged ({reason})", "Copy or download it again"
        ) from error
    return _the_sample(folder, path, given)


def _of_zip(archive: zipfile.ZipFile, given: str) -> Iterator[tuple[str, IO[bytes]]]:
    for member in archive.infolist():
        if member.is_dir():
            continue
        if member.flag_bits & 1:
            raise BadInput(given, member.filename, "is encrypted", UNPACK)
        if (member.external_attr >> 28) == 0xA:
            raise BadInput(given, member.filename, "is a link", UNPACK)
        with archive.open(member) as content:
            yield member.filename, content


def _of_tar(archive: tarfile.TarFile, given: str) -> Iterator[tuple[str, IO[bytes]]]:
    for member in archive:
        if member.isdir():
            continue
        content = archive.extractfile(member) if member.isfile() else None
        if content is None:
            raise BadInput(given, member.name, "is a link or no file", UNPACK)
        yield member.name, content


def _write(members: Iterator[tuple[str, IO[bytes]]], folder: Path, packed: int, given: str) -> None:
    room, number = max(_ALWAYS_FINE, _DENSEST * packed), 0
    for name, content in members:
        number += 1
        if number > _MOST_MEMBERS:
            raise BadInput(given, "", f"holds more than {_MOST_MEMBERS} files", UNPACK)
        place = PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or (place.parts and ":" in place.parts[0]):
            raise BadInput(
                given, name, "lies outside the archive", "This is no archive of counts: do not use it"
            )
        if any(part.startswith(_LITTER) for part in place.parts):
            continue
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while chunk := content.read(1 << 20):
                room -= len(chunk)
                if room < 0:
                    raise BadInput(given, name, "unpacks to far more than counts are packed into", UNPACK)
                file.write(chunk)


def _the_sample(folder: Path, archive: Path, given: str) -> Path:
    """The one file or folder that counts: past folders that hold nothing but one other."""
    children = list(folder.iterdir())
    while len(children) == 1 and children[0].is_dir():
        folder = children[0]
        children = list(folder.iterdir())
    files = [child for child in children if child.is_file()]
    if not children:
        raise BadInput(given, "", "the archive is empty", UNPACK)
    if len(children) == 1 and files:
        only = files[0]
        if is_table(only.name) and not archive.name.lower().endswith(".zip"):
            raise BadInput(given, only.name, "is a table in an archive", f"{UNPACK}; a table may be gzipped")
        if archive.name.lower().endswith(ARCHIVES) and only.name.lower().endswith(ARCHIVES):
            raise BadInput(given, only.name, "is an archive in an archive", UNPACK)
        return only
    tables = [child for child in files if is_table(child.name)]
    if len(tables) > 1 and not any(".mtx" in child.name for child in files):
        names = ", ".join(sorted(child.name for child in tables)[:3])
        raise BadInput(given, "", f"is an archive of {len(tables)} tables ({names}, …)", UNPACK)
    return folder
