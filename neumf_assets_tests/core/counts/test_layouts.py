"""Layouts of folders and archives as programmes and people make them."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core import memory
from neumf_assets.core.counts.discover import list_datasets
from neumf_assets.core.counts.readers import archive, read_counts
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts.test_what_is_a_gene import (
    ACCESSIONS,
    CELLS,
    COUNTS,
    SYMBOLS,
    folder,
    tenx,
)

X = COUNTS[:, :6]
FEATURES = list(zip(ACCESSIONS, SYMBOLS, strict=True))


def market(matrix: np.ndarray) -> str:
    entries = sparse.coo_matrix(matrix)
    lines = (f"{r + 1} {c + 1} {v}\n" for r, c, v in zip(entries.row, entries.col, entries.data, strict=True))
    head = f"%%MatrixMarket matrix coordinate integer general\n{matrix.shape[0]} {matrix.shape[1]} {entries.nnz}\n"
    return head + "".join(lines)


def names_of(root: Path) -> list[str]:
    found = list_datasets(root)
    assert not found.refused, found.refused
    return [item.name for item in found.datasets]


def only(root: Path) -> ad.AnnData:
    (item,) = list_datasets(root).datasets
    return read_counts(item.path, name=item.name)


def test_parse(tmp_path: Path) -> None:
    place = tmp_path / "S1" / "all-sample" / "DGE_filtered"
    place.mkdir(parents=True)
    (place / "count_matrix.mtx").write_text(market(X))
    genes = "".join(f"{a},{s},hg38\n" for a, s in FEATURES)
    (place / "all_genes.csv").write_text("gene_id,gene_name,genome\n" + genes)
    cells = "".join(f"{cell},s{at % 2},{at}\n" for at, cell in enumerate(CELLS))
    (place / "cell_metadata.csv").write_text("bc_wells,sample,tscp_count\n" + cells)
    assert names_of(tmp_path) == ["S1"]
    read = only(tmp_path)
    np.testing.assert_array_equal(read.X.toarray(), X)
    assert list(read.var["gene_id"]) == ACCESSIONS and list(read.var_names) == SYMBOLS
    assert read.obs["sample"].tolist() == [f"s{at % 2}" for at in range(len(CELLS))]


@pytest.mark.parametrize("budget", [2**40, 1], ids=["at once", "in parts"])
@pytest.mark.parametrize("usa", [True, False])
def test_alevin_fry(
    usa: bool,
    budget: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory, "budget", lambda: budget)
    place = tmp_path / "S1" / "alevin"
    place.mkdir(parents=True)
    unspliced, ambiguous = X[::-1], np.roll(X, 1, axis=0)
    whole = np.hstack([X, unspliced, ambiguous]) if usa else X
    endings = ("", "-U", "-A") if usa else ("",)
    (place / "quants_mat.mtx").write_text(market(whole))
    (place / "quants_mat_rows.txt").write_text("\n".join(CELLS) + "\n")
    columns = [f"{name}{ending}" for ending in endings for name in ACCESSIONS]
    (place / "quants_mat_cols.txt").write_text("\n".join(columns) + "\n")
    (item,) = list_datasets(tmp_path).datasets
    store_counts(item.path, tmp_path / "stored", name=item.name)
    read = load_counts(tmp_path / "stored")
    assert list(read.var_names) == ACCESSIONS
    np.testing.assert_array_equal(read.X.toarray(), X + ambiguous if usa else X)
    assert ("spliced and ambiguous molecules" in caplog.text) is usa


def test_a_folder_that_holds_one_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "S1").mkdir()
    tenx(tmp_path / "S1" / "filtered_feature_bc_matrix.h5", SYMBOLS, ACCESSIONS, ["Gene Expression"] * 6)
    (tmp_path / "S1" / "raw_feature_bc_matrix.h5").write_bytes(b"not looked at")
    (tmp_path / "S1" / "web_summary.html").write_text("<html>")
    assert names_of(tmp_path) == ["S1"]
    np.testing.assert_array_equal(only(tmp_path).X.toarray(), X)


def sample(root: Path, kind: str) -> Path:
    """The files of a sample in a folder of their own."""
    if kind == "folder":
        return folder(root / "files", FEATURES)
    (root / "files").mkdir()
    if kind == "table":
        table = pd.DataFrame(X.T, index=SYMBOLS, columns=CELLS)
        table.to_csv(root / "files" / "counts.csv")
    elif kind == "10x":
        tenx(root / "files" / "m.h5", SYMBOLS, ACCESSIONS, ["Gene Expression"] * 6)
    else:
        var = pd.DataFrame(index=SYMBOLS)
        data = ad.AnnData(sparse.csr_matrix(X), obs=pd.DataFrame(index=CELLS), var=var)
        data.write_zarr(root / "files" / "a.zarr")
    return root / "files"


@pytest.mark.parametrize("kind", ["folder", "10x", "zarr", "table"])
@pytest.mark.parametrize("ending", ["zip", "gztar"])
@pytest.mark.parametrize("inside", ["", "a/b"])
def test_an_archive_of_one_sample_is_read(kind: str, ending: str, inside: str, tmp_path: Path) -> None:
    files = sample(tmp_path, kind)
    if inside:
        (tmp_path / "outer" / inside).parent.mkdir(parents=True)
        shutil.move(files, tmp_path / "outer" / inside)
        files = tmp_path / "outer"
    (tmp_path / "in").mkdir()
    made = shutil.make_archive(str(tmp_path / "in" / "S.1"), ending, files)
    assert names_of(tmp_path / "in") == ["S_1"]
    if kind == "table" and ending == "gztar":
        with pytest.raises(BadInput, match="is a table in an archive"):
            read_counts(made)
        return
    read = only(tmp_path / "in")
    np.testing.assert_array_equal(read.X.toarray(), X)
    assert list(read.obs_names) == CELLS


def tar_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for member in members:
            file.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, size: int = 1, **kind: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in kind.items():
        setattr(info, key, value)
    return info


def test_an_archive_cannot_write_outside_link_or_swell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_ALWAYS_FINE", 1000)
    attacks = {
        "up": (member("../../evil.csv"), "lies outside"),
        "root": (member("/etc/evil.csv"), "lies outside"),
        "drive": (member("C:/evil.csv"), "lies outside"),
        "link": (member("l.csv", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
        "hard": (member("h.csv", 0, type=tarfile.LNKTYPE, linkname="/etc/passwd"), "is a link"),
        "device": (member("d.csv", 0, type=tarfile.CHRTYPE), "no file"),
        "bomb": (member("b.h5", 50_000_000), "far more than counts are packed into"),
    }
    for name, (one, said) in attacks.items():
        path = tar_with(tmp_path / f"{name}.tar.gz", one)
        with pytest.raises(BadInput, match=said):
            read_counts(path)
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.parent.glob("evil*"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("../evil.csv", "x")
    with pytest.raises(BadInput, match="lies outside"):
        read_counts(tmp_path / "z.zip")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 and no more", "the archive is damaged"),
        (b"", "the archive is damaged"),
        (gzip.compress(b"no tar", mtime=0), "the archive is damaged"),
    ],
)
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_damaged_archive_is_told(content: bytes, said: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_counts(tmp_path / name)


def test_an_archive_of_several_samples_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("one.csv", ",c1\nACTB,1\n")
        file.writestr("two.csv", ",c1\nACTB,1\n")
    with pytest.raises(BadInput, match="an archive of 2 tables") as caught:
        read_counts(tmp_path / "a.zip")
    assert "Unpack it" in caught.value.mend


def test_a_plugin_that_compression_needs_is_named(tmp_path: Path) -> None:
    path = tenx(tmp_path / "a.h5", SYMBOLS, ACCESSIONS, ["Gene Expression"] * 6)
    with h5py.File(path, "r+") as file:
        data = file["matrix/data"][...]
        del file["matrix/data"]
        written = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        written.set_chunk((data.size,))
        written.set_filter(32_099, h5py.h5z.FLAG_OPTIONAL, ())  # a number that no compressor has
        space = h5py.h5s.create_simple(data.shape)
        stored = h5py.h5d.create(file.id, b"matrix/data", h5py.h5t.py_create(data.dtype), space, dcpl=written)
        stored.write_direct_chunk((0,), data.tobytes(), 0)
    with pytest.raises(BadInput, match=r"matrix/data: is compressed by a plugin of HDF5") as caught:
        read_counts(path)
    assert "hdf5plugin" in caught.value.mend
