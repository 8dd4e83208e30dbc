"""What lies in an inbox becomes datasets, or is refused with a reason."""

from __future__ import annotations

import gzip
import os
import shutil
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
    assert [dataset.name for dataset in datasets] == ["GSM1_ctrl", "GSM2_stim", "GSM3", "d5", "donor4_raw"]
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
        (["ctrl.xlsx"], "is a workbook. Export the sheet with the counts as CSV"),
        (["ctrl.docx"], "its ending is none of a known count file"),
        (["ctrl.rds"], "only R can open. Export its counts, in R: "),
        (["ctrl.tar"], "is an archive. Unpack it"),
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


def listed(inbox: Path) -> tuple[list[str], list[str]]:
    """Names of datasets and of what is refused."""
    datasets, refused = list_datasets(inbox)
    return [dataset.name for dataset in datasets], [Path(str(error.file)).name for error in refused]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("E12.5_rep1.csv.gz", "E12_5_rep1"),
        ("ctrl.TSV", "ctrl"),
        ("donor4.raw.h5ad", "donor4_raw"),
        ("a.h5ad.gz", "a"),
        ("s1.zarr", "s1"),
        ("day1.5", "day1_5"),
        ("sample1.matrix.mtx", "sample1"),
        ("E12.5_matrix.mtx.gz", "E12_5"),
    ],
)
def test_a_dataset_is_named_without_the_endings_of_its_kind(file: str, name: str) -> None:
    assert dataset_name(f"/inbox/{file}") == name


def test_what_systems_and_programmes_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    for name in (
        *("Thumbs.db", "desktop.ini", ".DS_Store", "._a.csv", "Icon\r", "filelist.txt"),
        *("GSE1_series_matrix.txt.gz", "GSE1_family.soft.gz", "metrics_summary.csv", "x.cloupe", "x.bam.bai"),
    ):
        (tmp_path / name).write_bytes(b"x")
    assert listed(tmp_path) == ([], [])


def test_hidden_files_in_matrix_folders_are_passed_over(tmp_path: Path) -> None:
    folder = files.tenx_v3_folder(tmp_path, SMALL)
    for name in ("._matrix.mtx.gz", "._barcodes.tsv.gz", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    assert read_counts(folder).shape == (4, 5)


LAYOUTS = [
    "filtered_feature_bc_matrix",
    "outs/filtered_feature_bc_matrix",
    "sample_filtered_feature_bc_matrix",
    "count/sample_filtered_feature_bc_matrix",
    "outs/per_sample_outs/S1/count/sample_filtered_feature_bc_matrix",
    "filtered_gene_bc_matrices/hg19",
    "Solo.out/GeneFull_Ex50pAS/filtered",
    "Gene/filtered",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrices_are_found_where_programmes_put_them(layout: str, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "S1" / layout).parent.mkdir(parents=True)
    files.tenx_v3_folder(tmp_path, SMALL).rename(inbox / "S1" / layout)
    (found,), refused = list_datasets(inbox)
    assert (found.name, refused) == ("S1", [])
    assert read_counts(found.path).shape == (4, 5)


def test_a_folder_of_several_samples_is_refused(tmp_path: Path) -> None:
    for sample in ("A", "B"):
        place = tmp_path / "inbox" / "run" / "per_sample_outs" / sample / "count"
        place.mkdir(parents=True)
        (tmp_path / sample).mkdir()
        files.tenx_v3_folder(tmp_path / sample, SMALL).rename(place / "sample_filtered_feature_bc_matrix")
    _, (error,) = list_datasets(tmp_path / "inbox")
    assert "holds 2 samples" in str(error)


def test_of_an_outs_folder_the_filtered_matrix_is_read_once(tmp_path: Path) -> None:
    files.tenx_v3_folder(tmp_path, SMALL).rename(tmp_path / "filtered_feature_bc_matrix")
    for name in ("filtered_feature_bc_matrix.h5", "raw_feature_bc_matrix.h5", "molecule_info.h5", "x.bam"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("raw_feature_bc_matrix", "analysis"):
        (tmp_path / name).mkdir()
    assert listed(tmp_path) == (["filtered_feature_bc_matrix"], [])


def test_matrix_mtx_is_the_matrix_whatever_lies_beside_it(tmp_path: Path) -> None:
    folder = files.starsolo_folder(tmp_path, SMALL)
    (folder / "UniqueAndMult-EM.mtx").write_text("no counts")
    assert read_counts(folder).shape == (4, 5)


def test_of_velocytos_matrices_the_spliced_one_is_read(tmp_path: Path) -> None:
    folder = files.starsolo_folder(tmp_path, SMALL)
    (folder / "matrix.mtx").rename(folder / "spliced.mtx")
    for name in ("unspliced.mtx", "ambiguous.mtx"):
        (folder / name).write_text("no counts")
    assert read_counts(folder).shape == (4, 5)


def test_one_features_file_serves_all_matrices_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    folder = files.tenx_v3_folder(tmp_path / "x", SMALL)
    for prefix in ("GSM1_", "GSM2_"):
        for part in ("matrix.mtx.gz", "barcodes.tsv.gz"):
            (tmp_path / f"{prefix}{part}").write_bytes((folder / part).read_bytes())
    (folder / "features.tsv.gz").rename(tmp_path / "GSE1_features.tsv.gz")
    shutil.rmtree(tmp_path / "x")
    datasets, refused = list_datasets(tmp_path)
    assert ([dataset.name for dataset in datasets], refused) == (["GSM1", "GSM2"], [])
    assert list(read_counts(datasets[1].path).var["original_name"]) == list(SMALL.genes)


def test_what_kallisto_and_bustools_write_is_read(tmp_path: Path) -> None:
    folder = files.tenx_v3_folder(tmp_path, SMALL)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    matrix = gzip.decompress((folder / "matrix.mtx.gz").read_bytes())
    (inbox / "cells_x_genes.mtx").write_bytes(matrix)
    (inbox / "cells_x_genes.barcodes.txt").write_text("\n".join(SMALL.cells) + "\n")
    (inbox / "cells_x_genes.genes.txt").write_text("".join(f"ENSG{i}\n" for i in range(5)))
    (inbox / "cells_x_genes.genes.names.txt").write_text("\n".join(SMALL.genes) + "\n")
    (found,), refused = list_datasets(inbox)
    assert refused == []
    assert list(read_counts(found.path).var["original_name"]) == list(SMALL.genes)


@pytest.mark.parametrize("name", ["a.h5ad.gz", "a.h5ad"])
def test_a_zipped_hdf5_file_is_unpacked(name: str, tmp_path: Path) -> None:
    path = files.tenx_h5_v3(tmp_path, SMALL)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / name).write_bytes(gzip.compress(path.read_bytes()))
    (found,), refused = list_datasets(tmp_path / "inbox")
    assert (found.name, refused) == ("a", [])
    assert read_counts(found.path).shape == (4, 5)


def test_a_zipped_file_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neumf_assets.core.counts.readers.source._ALWAYS_FINE", 1 << 20)
    monkeypatch.setattr("neumf_assets.core.counts.readers.source._DENSEST", 1)
    (tmp_path / "a.h5ad.gz").write_bytes(gzip.compress(b"\x89HDF" + bytes(8 << 20)))
    with pytest.raises(BadInput, match="unpacks to more than"):
        read_counts(tmp_path / "a.h5ad.gz")


@pytest.mark.parametrize(
    "name", ["E12.5.labels.csv", "E12.5.labels.tsv", "E12.5.labels.csv.gz", "E12.5.labels.txt"]
)
def test_labels_may_be_in_any_table_of_text(name: str, tmp_path: Path) -> None:
    files.csv_genes_by_cells(tmp_path, SMALL).rename(tmp_path / "E12.5.csv")
    separator = "," if "csv" in name else "\t"
    text = f"cell{separator}type\n{SMALL.cells[0]}{separator}T\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    (found,), refused = list_datasets(tmp_path)
    assert (found.name, found.labels, refused) == ("E12_5", str(tmp_path / name), [])
    for labels in (found.labels, None):  # None: it is found beside the counts
        read = read_counts(found.path, name=found.name, labels=labels)
        assert read.obs["type"].notna().sum() == 1
