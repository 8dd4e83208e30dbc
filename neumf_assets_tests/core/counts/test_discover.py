"""What lies in an inbox becomes datasets, or is refused with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from neumf_assets.core.counts.discover import SMALL as SMALL_FILE
from neumf_assets.core.counts.discover import dataset_name, list_datasets
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import FORMATS, SMALL


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_found_and_can_be_read_from_there(name: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    written = writer(tmp_path, SMALL)
    (tmp_path / "ctrl.labels.csv").write_text(f"cell,type\n{files.CELLS[0]},T\n")
    (found,), refused = list_datasets(tmp_path)
    assert refused == []
    assert (found.name, found.path) == ("ctrl", str(written))
    assert found.labels == str(tmp_path / "ctrl.labels.csv")
    adata = read_counts(found.path, reading, name=found.name, labels=found.labels)
    assert adata.obs["type"].notna().sum() == 1
    assert adata.uns["provenance"]["name"] == dataset_name(found.path) == "ctrl"


def test_several_kinds_side_by_side(tmp_path: Path) -> None:
    for prefix in ("GSM1_ctrl_", "GSM2_stim.", "GSM3-"):
        for part in ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"):
            (tmp_path / f"{prefix}{part}").write_bytes(b"x")
    (tmp_path / "donor4.raw.csv").write_bytes(b"x")
    files.zarr_v3(tmp_path, SMALL).rename(tmp_path / "d5.zarr")
    for passed_over in (".hidden.csv", "README.md", "x.csv.tmp", "LICENSE", "_SUCCESS", "md5sums.txt"):
        (tmp_path / passed_over).write_bytes(b"x")
    datasets, refused = list_datasets(tmp_path)
    assert [dataset.name for dataset in datasets] == ["GSM1_ctrl", "GSM2_stim", "GSM3", "d5", "donor4"]
    assert refused == []


def test_an_inbox_that_is_itself_a_matrix_folder(tmp_path: Path) -> None:
    inbox = files.starsolo_folder(tmp_path, SMALL)
    (found,), refused = list_datasets(inbox)
    assert (found.name, refused) == ("ctrl", [])
    assert read_counts(found.path, name=found.name).shape == (4, 5)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a b.csv"], "'a b' cannot be the name of a dataset"),
        (["ctrl.csv", "ctrl.h5ad"], "'ctrl' has several sources: ctrl.csv, ctrl.h5ad"),
        (["ctrl.xlsx"], "its ending is none of a known count file"),
        (["ctrl_matrix.mtx", "ctrl_genes.tsv"], "ctrl_barcodes.tsv[.gz] is missing beside ctrl_matrix.mtx"),
        (["ctrl_barcodes.tsv.gz"], "the Matrix Market file that it belongs to is missing"),
        (["ctrl.labels.csv"], "there is no dataset of this name to label"),
    ],
)
def test_what_is_no_dataset_is_refused_and_the_others_go_on(
    names: list[str], said: str, tmp_path: Path
) -> None:
    for name in [*names, "good.csv"]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty_folder").mkdir()
    datasets, refused = list_datasets(tmp_path)
    assert [dataset.name for dataset in datasets] == ["good"]
    messages = [str(error) for error in refused]
    assert any(said in message for message in messages)
    assert any("empty_folder" in message and "holds no matrix.mtx" in message for message in messages)
    assert all(message.startswith(str(tmp_path)) and "\n" not in message for message in messages)


def test_an_inbox_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be listed"):
        list_datasets(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="cannot be listed"):
        list_datasets("memory://nowhere-at-all")


def test_identity_follows_the_content(tmp_path: Path) -> None:
    def identity() -> str:
        return list_datasets(tmp_path).datasets[0].identity

    path = files.csv_genes_by_cells(tmp_path, SMALL)
    first = identity()
    os.utime(path, (1, 1))
    assert identity() == first, "a small file counts by its content"
    path.write_bytes(path.read_bytes().replace(b"12", b"13"))
    second = identity()
    assert second != first
    (tmp_path / "ctrl.labels.csv").write_text("cell,type\nx,T\n")
    assert identity() != second, "labels belong to the dataset"


def test_identity_of_a_large_file_follows_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "ctrl.csv"
    path.write_bytes(b"x" * (SMALL_FILE + 1))
    os.utime(path, (100, 100))
    first = list_datasets(tmp_path).datasets[0]
    assert (first.bytes, first.modified) == (SMALL_FILE + 1, 100)
    assert list_datasets(tmp_path).datasets[0] == first
    os.utime(path, (101, 101))
    assert list_datasets(tmp_path).datasets[0].identity != first.identity


def test_identity_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    folder = files.starsolo_folder(tmp_path, SMALL)
    first = list_datasets(tmp_path).datasets[0].identity
    (folder / "notes.log").write_text("not part of the counts")
    assert list_datasets(tmp_path).datasets[0].identity == first
    (folder / "barcodes.tsv").write_text("a\nb\nc\nd\n")
    assert list_datasets(tmp_path).datasets[0].identity != first


def test_identity_does_not_depend_on_where_the_inbox_lies(tmp_path: Path) -> None:
    for place in ("one", "another"):
        (tmp_path / place).mkdir()
        files.tenx_v3_folder(tmp_path / place, SMALL)
        (tmp_path / place / "ctrl.labels.csv").write_text("cell,type\n")
    one, another = (list_datasets(tmp_path / place).datasets[0] for place in ("one", "another"))
    assert one.identity == another.identity


def test_remote_inbox(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    files.tenx_v3_folder(tmp_path, SMALL)
    files.csv_genes_by_cells(tmp_path, SMALL).rename(tmp_path / "stim.csv")
    (tmp_path / "stim.labels.csv").write_text(f"cell,type\n{files.CELLS[0]},T\n")
    memory.put(f"{tmp_path}/", "/inbox/", recursive=True)
    try:
        datasets, refused = list_datasets("memory://inbox")
        assert refused == []
        assert [dataset.name for dataset in datasets] == ["ctrl", "stim"]
        assert datasets[1].labels == "memory:///inbox/stim.labels.csv"
        first = datasets[1].identity
        for dataset in datasets:
            assert read_counts(dataset.path, name=dataset.name, labels=dataset.labels).shape == (4, 5)
        memory.pipe("/inbox/stim.csv", files.text_bytes(SMALL, True).replace(b"12", b"123"))
        assert list_datasets("memory://inbox").datasets[1].identity != first
    finally:
        memory.rm("/inbox", recursive=True)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, neumf_assets.core.counts.discover as d, neumf_assets.core.counts.settings;"
        "d.list_datasets('.');"
        "heavy = 'numpy', 'anndata', 'scipy', 'polars', 'pandas', 'h5py', 'fsspec';"
        "print([name for name in heavy if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
