"""Stored versions that are not what was written: found when they are read, named, and never used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neumf_assets.core import store as storing
from neumf_assets.core.integrity import sealed, unsealed
from neumf_assets.core.store import (
    DAMAGED,
    MANIFEST,
    Artifact,
    DamagedArtifact,
    Draft,
    MissingArtifact,
    Store,
)

KEY = ("study", "counts", "ctrl")


def write(folder: Path) -> None:
    (folder / "table.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "zarr" / "c").mkdir(parents=True)
    (folder / "zarr" / "c" / "0").write_bytes(b"chunk")
    (folder / "empty").write_bytes(b"")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A version as another process finds it."""
    artifact = Store(tmp_path / "store").publish(
        KEY, write, Draft(fingerprint="f", figures={"cells": 5, "nan": None})
    )
    monkeypatch.setattr(storing, "_sound", set())
    return artifact


def again(artifact: Artifact) -> Store:
    return Store(Path(artifact.location).parents[len(KEY)])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "table.bin has other content": lambda f: (f / "table.bin").write_bytes(b"x" * 1024),
    "zarr/c/0 has other content": lambda f: (f / "zarr" / "c" / "0").write_bytes(b"Chunk"),
}
SIZES: dict[str, Callable[[Path], object]] = {
    "table.bin has 1023 bytes instead of 1024": lambda f: (f / "table.bin").write_bytes(b"x" * 1023),
    "zarr/c/0 is missing": lambda f: (f / "zarr" / "c" / "0").unlink(),
    "empty has 1 bytes instead of 0": lambda f: (f / "empty").write_bytes(b"x"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_other_content_is_found_when_it_is_read_and_counts_as_never_made(stored: Artifact, what: str) -> None:
    DAMAGES[what](Path(stored.location))
    found = again(stored).get(KEY)
    with pytest.raises(DamagedArtifact, match=what) as caught:
        _ = found.path
    assert stored.location in str(caught.value) and "study/counts/ctrl" in str(caught.value)
    assert again(stored).find(KEY) is None
    remade = again(stored).publish(KEY, write, Draft(fingerprint="g"))
    assert again(stored).get(KEY).path == remade.path
    assert not (remade.path.parent / DAMAGED).exists()


@pytest.mark.parametrize("what", SIZES)
def test_other_sizes_are_found_before_anything_is_read(
    stored: Artifact, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    SIZES[what](Path(stored.location))
    assert again(stored).find(KEY) is None
    assert what in caplog.text and "made again" in caplog.text
    with pytest.raises(MissingArtifact):
        again(stored).get(KEY)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bit_of_a_file_may_flip(
    stored: Artifact, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    path = Path(stored.location) / data.draw(st.sampled_from(["table.bin", "zarr/c/0"]))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    manifest = (Path(stored.location).parent / MANIFEST).read_bytes()
    try:
        with pytest.raises(DamagedArtifact):
            _ = again(stored).get(KEY).path
    finally:
        path.write_bytes(whole)
        (Path(stored.location).parent / MANIFEST).write_bytes(manifest)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bit_of_a_manifest_may_flip(stored: Artifact, data: st.DataObject) -> None:
    """What a flipped space or name of the seal leaves is either refused or the same manifest."""
    path = Path(stored.location).parent / MANIFEST
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        found = again(stored).find(KEY)
        assert found is None or found.manifest == stored.manifest
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b'{"version": 1, "of": "tomorrow"}', b"{}" + b" " * 9 + b"x"]
)
def test_a_manifest_of_something_else_counts_as_never_made(
    stored: Artifact, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(stored.location).parent / MANIFEST).write_bytes(text)
    assert again(stored).find(KEY) is None
    assert "cannot be relied on" in caplog.text
    again(stored).publish(KEY, write, Draft(fingerprint="g"))
    assert again(stored).get(KEY).fingerprint == "g"


def test_a_version_from_before_there_were_checksums_is_read(stored: Artifact) -> None:
    path = Path(stored.location).parent / MANIFEST
    values = json.loads(path.read_text())
    del values["digests"], values["seal"]
    path.write_text(json.dumps(values))
    assert again(stored).get(KEY).path == Path(stored.location)


def test_an_object_stores_copy_is_fetched_again_before_it_counts_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store("memory://integrity", cache=tmp_path / "cache")
    artifact = store.publish(KEY, write, Draft(fingerprint="f"))
    copy = artifact.path
    (copy / "table.bin").write_bytes(b"x" * 1024)
    monkeypatch.setattr(storing, "_sound", set())
    assert (store.get(KEY).path / "table.bin").read_bytes() == bytes(range(256)) * 4
    store._fs.pipe_file(f"{artifact.location}/table.bin", b"y" * 1024)
    monkeypatch.setattr(storing, "_sound", set())
    (copy / "table.bin").write_bytes(b"x" * 1024)
    with pytest.raises(DamagedArtifact, match=r"table\.bin has other content"):
        _ = store.get(KEY).path
    assert store.find(KEY) is None


def test_a_seal_survives_what_json_makes_of_values() -> None:
    values = {"a": (1, 2), "path": Path("x"), "f": 0.1, "n": float("nan"), "é": {"2": 1}}
    assert unsealed(sealed(values))["path"] == "x"
    with pytest.raises(ValueError, match="checksum"):
        unsealed(sealed(values).replace(b"0.1", b"0.2"))
