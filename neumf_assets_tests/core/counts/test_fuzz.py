"""Damaged files of every format: a valid matrix or our own error, never another, never without end."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neumf_assets.core.counts.readers import probe, read_counts
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts.files import FORMATS, SMALL

SECONDS = 60
HDF5 = [name for name in FORMATS if "HDF5" in name or "h5ad" in name or name == "loom"]
OTHERS = [name for name in FORMATS if name not in HDF5]


@contextmanager
def limited() -> Iterator[None]:
    """Fail when a reader takes far longer than any small file can need."""

    def stop(*_: object) -> None:
        pytest.fail(f"reading took longer than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, int, bytes]]:
    """One to four changes: overwrite, insert or cut at a place anywhere in the file (in millionths)."""
    change = st.tuples(
        st.sampled_from(["overwrite", "insert", "remove", "truncate"]),
        st.integers(0, 1_000_000),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            st.sampled_from(
                [b"\x00" * 64, b"\xff" * 8, b"9" * 30, b'"', b"\n", b",", b"-1", b"nan", b"1e400"]
            ),
        ),
    )
    return draw(st.lists(change, min_size=1, max_size=4))


def damaged(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, data in changes:
        at = place * len(content) // 1_000_000
        if kind == "overwrite":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + len(data) :]
        else:
            content = content[:at]
    return content


def read_or_refuse(path: Path, name: str) -> None:
    with limited():
        try:
            adata = read_counts(path, FORMATS[name][1])
        except BadInput as error:
            assert "\n" not in str(error)
            assert str(error).startswith(str(path.parent))
            return
    adata.X.check_format(full_check=True)
    assert adata.X.dtype == np.int32
    assert (adata.X.data > 0).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert min(adata.shape) > 0


@pytest.fixture(autouse=True, scope="module")
def short_patience() -> Iterator[None]:
    """HDF5 files without end are given up sooner than in earnest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_LEAST_SECONDS", 8.0)
        yield


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: writer(tmp_path_factory.mktemp("original"), SMALL) for name, (writer, _) in FORMATS.items()}


@pytest.mark.parametrize("name", HDF5)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damages())
def test_damaged_hdf5(name: str, originals: dict[str, Path], changes: list[tuple[str, int, bytes]]) -> None:
    damage_and_read(name, originals, changes, 0)


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damages(), which=st.integers(0, 10**6))
def test_damaged_bytes(
    name: str, originals: dict[str, Path], changes: list[tuple[str, int, bytes]], which: int
) -> None:
    damage_and_read(name, originals, changes, which)


def damage_and_read(
    name: str, originals: dict[str, Path], changes: list[tuple[str, int, bytes]], which: int
) -> None:
    original = originals[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "inbox"
        shutil.copytree(original.parent, copy)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
        target = files[which % len(files)]
        target.write_bytes(damaged(target.read_bytes(), changes))
        read_or_refuse(copy / original.name, name)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), which=st.integers(0, 10**6))
def test_truncated(name: str, originals: dict[str, Path], share: float, which: int) -> None:
    damage_and_read(name, originals, [("truncate", int(share * 1_000_000), b"")], which)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".h5", ".h5ad", ".loom", ".mtx"])
@settings(max_examples=15, deadline=None)
@given(content=st.one_of(st.binary(max_size=300), st.text('01,\t\n .-"eNA', max_size=200).map(str.encode)))
def test_any_bytes(ending: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"ctrl{ending}"
        for companion in ("barcodes", "genes"):
            (path.parent / f"ctrl_{companion}.tsv").write_bytes(content)
        path.write_bytes(content)
        read_or_refuse(path, "csv, genes by cells")


def damaged_heap(path: Path) -> None:
    """Set the size of the free space of a heap of strings to zero: the HDF5 library then never returns."""
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL") + 16
    while int.from_bytes(content[at : at + 2], "little"):
        at += 16 + (int.from_bytes(content[at + 8 : at + 16], "little") + 7) // 8 * 8
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)


def test_file_on_which_the_hdf5_library_never_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_LEAST_SECONDS", 3.0)
    path = FORMATS["h5ad dense"][0](tmp_path, SMALL)
    damaged_heap(path)
    with limited(), pytest.raises(BadInput, match="reading it does not end within 3 s"):
        read_counts(path)
