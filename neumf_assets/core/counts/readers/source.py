"""Getting at the bytes: local files where they lie, URLs fetched to a temporary folder; all hashed first."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neumf_assets.core.counts.discover import (
    Triple,
    check_name,
    dataset_name,
    find_triple,
    is_url,
    labels_name,
    matrix_folder,
    the_only_file,
)
from neumf_assets.core.counts.readers.archive import is_archive, unpacked
from neumf_assets.core.errors import BadInput

FETCHED = "neumf-"
"""How folders of fetched files begin."""
_HDF5_MAGIC = b"\x89HDF"
_ALWAYS_FINE = 1 << 30
_DENSEST = 1000
"""No file of counts is packed more tightly by gzip."""
_ZARR_MARKS = frozenset({".zgroup", "zarr.json", ".zattrs", ".zmetadata"})


@dataclass(frozen=True)
class Source:
    """A dataset's files on the local disk.

    Attributes
    ----------
    given
        The path or URL as the user gave it, for messages and provenance.
    name
        Name of the dataset.
    path
        The file or folder to parse.
    triple
        The files of a Matrix Market matrix below ``path``, where it is one.
    sha256
        Digest of the file; of several files, the digest of their ``sha256sum`` listing sorted by name.
    bytes
        Size of all files together.
    labels, labels_given
        The labels file on the local disk, and as the user gave it.
    """

    given: str
    name: str
    path: Path
    triple: Triple | None
    sha256: str
    bytes: int
    labels: Path | None
    labels_given: str


@contextmanager
def fetched(
    source: str | Path,
    name: str | None,
    labels: str | Path | None,
    expected: dict[str, str],
    folder: Path | None = None,
) -> Iterator[Source]:
    """Make a dataset's files available on the local disk and verify their digest.

    What is fetched lies in ``folder`` meanwhile; by default in the system's folder for temporary files, which on
    some machines is in memory.

    Raises
    ------
    BadInput
        When something is missing, empty or unreachable, or the digest is not the expected one.
    """
    name = check_name(name, source) if name is not None else dataset_name(source)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=FETCHED, dir=folder) as scratch:
        path, below = _localise(source, Path(scratch) / "counts")
        files, triple = _files(path, below, str(source))
        digests = {file: _digest(path / file if file else path, str(source)) for file in files}
        digest = _combine(digests)
        size = sum((path / file if file else path).stat().st_size for file in files)
        if files == [""] and is_archive(path):
            path = unpacked(path, Path(scratch) / "archive", str(source))
            files, triple = _files(path, "", str(source))
        if triple is None and len(files) == 1 and files[0] and not _ZARR_MARKS & set(files):
            path, files = path / files[0], [""]  # the only file of its folder
        if files == [""]:
            path = _unpacked(path, Path(scratch) / "unpacked", str(source))
        if name in expected and expected[name] != digest:
            raise BadInput(
                source,
                "",
                f"its SHA-256 is {digest}, but {expected[name]} is expected",
                "Fetch the file again, or correct the digest in the settings if the new file is meant",
            )
        if labels is None and not is_url(source):
            labels = _labels_beside(Path(source).absolute(), name)
        local_labels = _localise(labels, Path(scratch) / "labels")[0] if labels is not None else None
        yield Source(
            given=str(source),
            name=name,
            path=path,
            triple=triple,
            sha256=digest,
            bytes=size,
            labels=local_labels,
            labels_given=str(labels) if labels is not None else "",
        )


def _labels_beside(source: Path, name: str) -> Path | None:
    """The labels file that lies beside a local dataset."""
    found = (path for path in sorted(source.parent.iterdir()) if labels_name(path.name) == name)
    return next((path for path in found if path.is_file()), None)


def _unpacked(path: Path, target: Path, given: str) -> Path:
    """Unpack an HDF5 file that was gzipped, which its library cannot read; everything else is left as it is.

    Raises
    ------
    BadInput
        When it is damaged, or unpacks to far more than counts can be packed into.
    """
    if not _holds_zipped_hdf5(path):
        return path
    limit = max(_ALWAYS_FINE, _DENSEST * path.stat().st_size)
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            while chunk := packed.read(1 << 20):
                plain.write(chunk)
                if plain.tell() > limit:
                    raise BadInput(given, "", f"unpacks to more than {limit} bytes", "Give the file unpacked")
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            given, "", f"the gzip data are damaged ({error})", "Copy or download it again"
        ) from error
    return target


def _holds_zipped_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return False
    try:
        with gzip.open(path) as packed:
            return packed.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC
    except (OSError, EOFError, zlib.error):  # whoever reads it says what is damaged
        return False


def _localise(source: str | Path, scratch: Path) -> tuple[Path, str]:
    """Return the local file or folder, and the name of the Matrix Market file in it when that was given."""
    if is_url(source):
        return _download(str(source), scratch)
    path = Path(source)
    if not path.exists():
        raise BadInput(source, "", "does not exist", "Check the path")
    if _is_market(path.name):
        return path.parent, path.name
    return path, ""


def _is_market(name: str) -> bool:
    return name.endswith((".mtx", ".mtx.gz"))


def _download(url: str, scratch: Path) -> tuple[Path, str]:
    import fsspec

    scratch.mkdir()
    base = PurePosixPath(url.split("?")[0].rstrip("/")).name
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()  # an object may have been replaced since this process listed it
        if _is_market(base):
            parent = root.rpartition("/")[0]
            triple = find_triple(_names(filesystem, parent), base, url)
            for part in triple:
                filesystem.get_file(f"{parent}/{part}", str(scratch / part))
            return scratch, base
        if not base.endswith(".zarr") and not _is_remote_folder(filesystem, root):
            filesystem.get_file(root, str(scratch / base))
            return scratch / base, ""
        for found in filesystem.find(root):
            target = scratch / base / found[len(root.rstrip("/")) + 1 :]
            if scratch not in target.resolve().parents:
                raise BadInput(url, found, "lies outside the folder", "Check the store")
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(found, str(target))
        if not (scratch / base).exists():
            raise BadInput(url, "", "the folder is empty or does not exist", "Check the URL")
        return scratch / base, ""
    except BadInput:
        raise
    except Exception as error:  # every file system raises its own kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadInput(
            url, "", f"cannot be fetched ({reason})", "Check the URL and the credentials"
        ) from error


def _is_remote_folder(filesystem: Any, root: str) -> bool:
    protocol = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
    # A web server answers for a folder with a page; only a trailing slash tells it from a file.
    return root.endswith("/") if protocol.startswith("http") else bool(filesystem.isdir(root))


def _names(filesystem: Any, folder: str) -> list[str]:
    return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in filesystem.ls(folder, detail=False)]


def _files(path: Path, matrix: str, given: str) -> tuple[list[str], Triple | None]:
    """Return the relative names of the files that count ("" for ``path`` itself), and the triple if any."""
    if not path.is_dir():
        return [""], None

    def names(below: str) -> list[str]:
        folder = path / below
        return sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []

    if matrix:
        triple = find_triple(names(""), matrix, given)
        return sorted(triple), triple
    if _ZARR_MARKS & set(names("")):
        return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()), None
    if only := the_only_file(names("")):
        return [only], None
    below, triple = matrix_folder(given, names)
    prefixed = Triple(*((PurePosixPath(below) / part).as_posix() for part in triple))
    return sorted(prefixed), prefixed


def _digest(path: Path, given: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(
            given, path.name, f"cannot be read ({error.strerror})", "Check its permissions"
        ) from error


def _combine(digests: dict[str, str]) -> str:
    if list(digests) == [""]:
        return digests[""]
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
