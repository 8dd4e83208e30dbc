"""The artifact store keeps the last good version, whatever happens to a writer."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from neumf_assets.core.store import Draft, MissingArtifact, Store, write_atomically

KEY = ("study", "counts", "ctrl")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    root = tmp_path / "storage" if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Store(root, cache=tmp_path / "cache")


def _writer(text: str):
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text * 2)

    return write


def test_published_files_and_facts_are_read_back(store: Store) -> None:
    draft = Draft("f1", code_version="2", settings={"k": 3}, inputs={"raw": "x"}, figures={"cells": 5})
    store.publish(KEY, _writer("one"), draft)
    artifact = store.get(KEY)
    assert (artifact.path / "deep" / "a.txt").read_text() == "one"
    assert artifact.manifest.bytes == len("one") * 3
    assert artifact.fingerprint == "f1"
    assert artifact.manifest.figures == {"cells": 5}
    assert artifact.manifest.inputs == {"raw": "x"}


def test_a_new_version_replaces_the_old_one_and_older_ones_go(store: Store) -> None:
    for number in range(4):
        store.publish(KEY, _writer(str(number)), Draft(f"f{number}"))
    assert (store.get(KEY).path / "b.txt").read_text() == "33"
    if store.local_root:
        versions = [path for path in (store.local_root / Path(*KEY)).iterdir() if path.is_dir()]
        assert len(versions) == 2  # the current one and the one before it


def test_a_reader_keeps_its_version_while_the_next_is_published(store: Store) -> None:
    store.publish(KEY, _writer("old"), Draft("f1"))
    held = store.get(KEY)
    store.publish(KEY, _writer("new"), Draft("f2"))
    assert (held.path / "b.txt").read_text() == "oldold"


def test_a_failing_writer_leaves_the_previous_version(store: Store) -> None:
    store.publish(KEY, _writer("good"), Draft("f1"))

    def broken(folder: Path) -> None:
        (folder / "b.txt").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        store.publish(KEY, broken, Draft("f2"))
    assert store.get(KEY).fingerprint == "f1"
    assert (store.get(KEY).path / "b.txt").read_text() == "goodgood"
    if store.local_root:
        assert not list((store.local_root / Path(*KEY)).glob(".tmp-*"))


def test_nothing_published_is_told_with_the_place(store: Store) -> None:
    assert store.find(KEY) is None
    with pytest.raises(MissingArtifact, match="ctrl"):
        store.get(KEY)


def test_names_below_a_key_are_listed(store: Store) -> None:
    assert store.names(("study", "counts")) == []
    for name in ("stim", "ctrl"):
        store.publish(("study", "counts", name), _writer("x"), Draft("f"))
    assert store.names(("study", "counts")) == ["ctrl", "stim"]


def test_deleted_is_gone(store: Store) -> None:
    store.publish(KEY, _writer("x"), Draft("f"))
    store.delete(KEY)
    store.delete(KEY)
    assert store.find(KEY) is None


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "a\\b"])
def test_keys_cannot_leave_the_root(store: Store, part: str) -> None:
    with pytest.raises(ValueError, match="storage key"):
        store.find(("study", part))


def test_a_killed_writer_leaves_the_previous_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(KEY, _writer("good"), Draft("f1"))
    program = textwrap.dedent(
        f"""
        import time
        from neumf_assets.core.store import Draft, Store

        def write(folder):
            (folder / "b.txt").write_text("half")
            print("writing", flush=True)
            time.sleep(60)

        Store({str(tmp_path)!r}).publish({KEY!r}, write, Draft("f2"))
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert store.get(KEY).fingerprint == "f1"
    store.publish(KEY, _writer("next"), Draft("f3"))
    assert (store.get(KEY).path / "b.txt").read_text() == "nextnext"


def test_write_atomically_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    write_atomically(target, b"1")
    write_atomically(target, b"2")
    assert target.read_bytes() == b"2"
    assert list(tmp_path.iterdir()) == [target]
