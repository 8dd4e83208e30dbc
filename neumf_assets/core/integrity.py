"""Whether stored files are still what was written: sizes and checksums, kept beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "seal"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests_of(folder: Path, files: Mapping[str, int]) -> dict[str, str]:
    """Return the checksums of files of a folder, by name."""
    return {name: digest_of(folder / name) for name in files}


def wrong_size(folder: Path, files: Mapping[str, int]) -> str | None:
    """Return what is wrong with the sizes of files, ``None`` where all are as long as they were."""
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def what_changed(folder: Path, files: Mapping[str, int], digests: Mapping[str, str]) -> str | None:
    """Return what is wrong with the first file that is not as it was written, ``None`` where all are.

    Files without a checksum (of versions before there were any) are compared by size.
    """
    wrong = wrong_size(folder, files)
    if wrong is not None:
        return wrong
    for name, wanted in digests.items():
        try:
            found = digest_of(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if found != wanted:
            return f"{name} has other content than was written (its checksum differs)"
    return None


def sealed(values: Mapping[str, Any]) -> bytes:
    """Return a JSON object with the checksum of its content in it."""
    return _text({**values, SEAL: _seal_of(values)})


def unsealed(text: bytes) -> dict[str, Any]:
    """Return the object of :func:`sealed`; one without a checksum, of an earlier version, as it is.

    Raises
    ------
    ValueError
        If it is no JSON object, or not the one that was written.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    seal = values.pop(SEAL, None)
    if seal is not None and seal != _seal_of(values):
        raise ValueError("its checksum differs")
    return values


def _seal_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(json.loads(_text(values)))).hexdigest()


def _text(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True, default=str).encode()
