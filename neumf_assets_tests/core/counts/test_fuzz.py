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

from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts.files import FORMATS, SMALL

SECONDS = 20


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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: writer(tmp_path_factory.mktemp("original"), SMALL) for name, (writer, _) in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damages(), which=st.integers(0, 10**6))
def test_damaged_bytes(
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
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), which=st.integers(0, 10**6))
def test_truncated(name: str, originals: dict[str, Path], share: float, which: int) -> None:
    test_damaged_bytes.hypothesis.inner_test(  # type: ignore[attr-defined]
        name, originals, [("truncate", int(share * 1_000_000), b"")], which
    )


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
