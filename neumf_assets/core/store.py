"""Where results live: a folder for each asset and partition, replaced atomically, on disk or object storage.

Layout below a root (a local folder or any fsspec URL)::

    <root>/<study>/<asset…>/<partition>/manifest.json     names the current version; written last
    <root>/<study>/<asset…>/<partition>/<version>/…        the files of that version

A reader follows the manifest, so a writer that dies at any moment leaves the previous version in place:
files go to a temporary name, are flushed to the disk, and become a version by one rename; the manifest is
swapped by another. The version before the current one is kept, so that a reader that has just opened it can
finish; older ones and abandoned temporary folders are removed by the next writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.integrity import digests_of, sealed, unsealed, what_changed, wrong_size

MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"
_TEMPORARY = ".tmp-"
_ABANDONED_AFTER_SECONDS = 24 * 3600
_sound: set[str] = set()
"""Locations of versions that this process has compared with their checksums, or has written."""

_log = logging.getLogger(__name__)


def remove_left(folder: Path, *prefixes: str, but: Path | None = None) -> None:
    """Remove the folders with such names in a folder, which a killed process left."""
    for prefix in prefixes:
        for left in folder.glob(f"{prefix}*"):
            if left != but:
                shutil.rmtree(left, ignore_errors=True)


class MissingArtifact(NeumfError):
    """Nothing has been published under a key yet."""


class DamagedArtifact(NeumfError):
    """A stored version is not what was written; it counts as never made from now on."""


@dataclass(frozen=True)
class Manifest:
    """What is known about one published version.

    ``fingerprint`` identifies the content by its causes (code version, settings, inputs' fingerprints), so
    equal fingerprints mean that there is nothing to recompute. ``figures`` holds the numbers that later
    stages and the summary show. ``files`` are sizes, ``digests`` checksums (SHA-256), by name.
    """

    version: str
    created: float
    fingerprint: str
    code_version: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    figures: Mapping[str, Any]
    files: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all files together, bytes."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Artifact:
    """A handle on one published version; nothing is read or downloaded before it is asked for."""

    key: tuple[str, ...]
    location: str
    manifest: Manifest
    _fetch: Callable[[], Path]

    @property
    def path(self) -> Path:
        """Local folder with the version's files; an object store's files are downloaded on first use.

        Raises
        ------
        DamagedArtifact
            If they are not what was written; each process compares once.
        """
        return self._fetch()

    @property
    def fingerprint(self) -> str:
        """The version's fingerprint."""
        return self.manifest.fingerprint


@dataclass(frozen=True)
class Draft:
    """Everything about a version to publish, but its files."""

    fingerprint: str
    code_version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """Published artifacts below one root.

    Parameters
    ----------
    root
        Local folder or fsspec URL (``s3://bucket/prefix``).
    cache
        Local folder for downloads of a remote root; a folder below the system's temporary one by default.
    options
        Options of the fsspec filesystem (credentials are better left to its own environment variables).
    """

    def __init__(
        self, root: str | Path, cache: str | Path | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        text = str(root)
        self.local_root: Path | None = None
        if "://" not in text or text.startswith("file://"):
            self.local_root = Path(text.removeprefix("file://")).absolute()
            self.root = str(self.local_root)
        else:
            self.root = text.rstrip("/")
        self._cache = Path(cache) if cache else Path(tempfile.gettempdir()) / "neumf-assets-cache"
        self._options = dict(options or {})

    def publish(self, key: tuple[str, ...], write: Callable[[Path], None], draft: Draft) -> Artifact:
        """Write a new version with ``write(folder)`` and make it the current one.

        Whatever ``write`` raises leaves the previous version as it was.
        """
        version = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        if self.local_root is not None:
            files, digests = self._write_local(key, version, write)
        else:
            files, digests = self._write_remote(key, version, write)
        manifest = Manifest(
            version=version, created=time.time(), files=files, digests=digests, **asdict(draft)
        )
        previous = self._read_manifest(key)
        self._swap_manifest(key, manifest)
        if self.local_root is not None:
            _sound.add(f"{self._folder(key)}/{version}")
        self._remove_old(key, keep={version} | ({previous.version} if previous else set()))
        return self._artifact(key, manifest)

    def find(self, key: tuple[str, ...]) -> Artifact | None:
        """The current version under a key, or None."""
        manifest = self._read_manifest(key)
        return None if manifest is None else self._artifact(key, manifest)

    def get(self, key: tuple[str, ...]) -> Artifact:
        """The current version under a key.

        Raises
        ------
        MissingArtifact
            If nothing was published there.
        """
        artifact = self.find(key)
        if artifact is None:
            raise MissingArtifact(
                f"Nothing has been materialised at {self._folder(key)}. Materialise it first."
            )
        return artifact

    def names(self, key: tuple[str, ...]) -> list[str]:
        """Names directly below a key that hold something, sorted."""
        if self.local_root is not None:
            folder = self._local(key)
            names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        else:
            try:
                listed = self._fs.ls(self._folder(key), detail=True, refresh=True)
            except FileNotFoundError:
                listed = []
            names = [i["name"].rstrip("/").rsplit("/", 1)[-1] for i in listed if i["type"] == "directory"]
        return sorted(names)

    def delete(self, key: tuple[str, ...]) -> None:
        """Remove all versions under a key."""
        if self.local_root is not None:
            shutil.rmtree(self._local(key), ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(self._folder(key), recursive=True)

    # paths

    def _folder(self, key: tuple[str, ...]) -> str:
        for part in key:
            if not part or part in {".", ".."} or "/" in part or "\\" in part:
                raise ValueError(f"{part!r} cannot be part of a storage key")
        return (
            str(PurePosixPath(self.root, *key))
            if self.local_root is not None
            else "/".join([self.root, *key])
        )

    def _local(self, key: tuple[str, ...]) -> Path:
        return Path(self._folder(key))

    @property
    def _fs(self) -> Any:
        import fsspec

        return fsspec.core.url_to_fs(self.root, **self._options)[0]

    # writing

    def _write_local(
        self, key: tuple[str, ...], version: str, write: Callable[[Path], None]
    ) -> tuple[dict[str, int], dict[str, str]]:
        folder = self._local(key)
        temporary = folder / f"{_TEMPORARY}{version}"
        temporary.mkdir(parents=True)
        try:
            write(temporary)
            files = dict(_sizes(temporary))
            digests = digests_of(temporary, files)
            _flush_tree(temporary)
            temporary.rename(folder / version)
            _flush_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return files, digests

    def _write_remote(
        self, key: tuple[str, ...], version: str, write: Callable[[Path], None]
    ) -> tuple[dict[str, int], dict[str, str]]:
        with tempfile.TemporaryDirectory(prefix="neumf-assets-") as name:
            temporary = Path(name)
            write(temporary)
            files = dict(_sizes(temporary))
            digests = digests_of(temporary, files)
            fs, target = self._fs, f"{self._folder(key)}/{version}"
            for file in files:
                fs.put_file(str(temporary / file), f"{target}/{file}")
        return files, digests

    def _swap_manifest(self, key: tuple[str, ...], manifest: Manifest) -> None:
        text = sealed(asdict(manifest))
        if self.local_root is None:
            self._fs.pipe_file(f"{self._folder(key)}/{MANIFEST}", text)
            return
        write_atomically(self._local(key) / MANIFEST, text)

    def _remove_old(self, key: tuple[str, ...], keep: set[str]) -> None:
        if self.local_root is None:
            fs = self._fs
            for path in fs.ls(self._folder(key), detail=False, refresh=True):
                name = path.rstrip("/").rsplit("/", 1)[-1]
                if name not in keep | {MANIFEST}:
                    with contextlib.suppress(FileNotFoundError):
                        fs.rm(path, recursive=True)
            return
        (self._local(key) / DAMAGED).unlink(missing_ok=True)
        for path in self._local(key).iterdir():
            if path.name == MANIFEST or path.name in keep or not path.is_dir():
                continue
            if path.name.startswith(_TEMPORARY) and not _abandoned(path):
                continue  # another writer may be at work in it
            shutil.rmtree(path, ignore_errors=True)

    # reading

    def _read_manifest(self, key: tuple[str, ...]) -> Manifest | None:
        try:
            if self.local_root is not None:
                text = (self._local(key) / MANIFEST).read_bytes()
            else:
                text = self._fs.cat_file(f"{self._folder(key)}/{MANIFEST}")
        except FileNotFoundError:
            return None
        try:
            manifest = Manifest(**unsealed(text))
        except (
            ValueError,
            TypeError,
        ) as error:  # TypeError: fields that another version of the package writes
            self._say_damaged(key, f"{MANIFEST} cannot be relied on ({error})")
            return None
        if self.local_root is not None:
            wrong = wrong_size(self._local(key) / manifest.version, manifest.files)
            if wrong is not None:
                self._say_damaged(key, wrong)
                return None
        return manifest

    def _say_damaged(self, key: tuple[str, ...], what: str) -> None:
        _log.warning("%s is damaged and is made again: %s.", self._folder(key), what)

    def _artifact(self, key: tuple[str, ...], manifest: Manifest) -> Artifact:
        location = f"{self._folder(key)}/{manifest.version}"
        return Artifact(key, location, manifest, lambda: self._fetch(key, location, manifest))

    def _fetch(self, key: tuple[str, ...], location: str, manifest: Manifest) -> Path:
        """The local folder of a version, compared with its checksums once in a process."""
        path = Path(location) if self.local_root is not None else self._download(location, manifest)
        if location in _sound:
            return path
        wrong = what_changed(path, manifest.files, manifest.digests)
        if wrong is not None and self.local_root is None:  # the copy, or its way here
            shutil.rmtree(path, ignore_errors=True)
            path = self._download(location, manifest)
            wrong = what_changed(path, manifest.files, manifest.digests)
        if wrong is not None:
            self._retire(key, manifest)
            raise DamagedArtifact(
                f"{location} is damaged: {wrong}. It is not used; materialise {'/'.join(key)} again "
                "(the next run of the study does)."
            )
        _sound.add(location)
        return path

    def _retire(self, key: tuple[str, ...], manifest: Manifest) -> None:
        """Let a damaged version count as never made; another that has come meanwhile stays."""
        current = self._read_manifest(key)
        if current is not None and current.version != manifest.version:
            return
        source, target = f"{self._folder(key)}/{MANIFEST}", f"{self._folder(key)}/{DAMAGED}"
        with contextlib.suppress(OSError):  # read-only storage: whoever reads it next finds the same
            if self.local_root is not None:
                Path(source).replace(target)
            else:
                self._fs.mv(source, target)

    def _download(self, location: str, manifest: Manifest) -> Path:
        target = self._cache / hashlib.sha256(location.encode()).hexdigest()[:32]
        if target.is_dir():
            return target
        self._cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._cache))
        try:
            for file in manifest.files:
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{location}/{file}", str(temporary / file))
            with contextlib.suppress(OSError):  # another process was faster
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file so that a reader of the target sees the old or the new one, never a part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows has no handle on a folder to flush
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _abandoned(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _ABANDONED_AFTER_SECONDS
