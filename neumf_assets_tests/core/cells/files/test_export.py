from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import zarr

from neumf_assets.core.cells.files.export import export_csv, export_mtx, harmless
from neumf_assets.core.counts.store import save_counts
from neumf_assets.core.counts.stored import StoredCounts
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.cells.data import simulated_counts


def dense(tmp_path: Path) -> tuple[zarr.Array, list[str], list[str]]:
    values = np.random.default_rng(0).gamma(0.3, 1, (23, 41)).astype(np.float32)
    array = zarr.create_array(tmp_path / "dense.zarr", shape=values.shape, chunks=(7, 41), dtype="float32")
    array[:] = values
    return array, [f"AAAC.{i}" for i in range(23)], [f"RP11.{g}L10.2" for g in range(41)]


@pytest.mark.parametrize("name", ["dense.csv", "dense.csv.gz"])
@pytest.mark.parametrize("bytes_at_once", [1, 700, 4 * 23 * 23, 10**9])  # the third: as many genes as cells
def test_csv_is_gene_by_cell_with_names(tmp_path: Path, name: str, bytes_at_once: int) -> None:
    array, cells, genes = dense(tmp_path)
    path = export_csv(array, cells, genes, tmp_path / "out" / name, bytes_at_once=bytes_at_once)
    table = pd.read_csv(path, index_col=0)
    assert list(table.columns) == cells
    assert list(table.index) == genes
    np.testing.assert_array_equal(table.to_numpy(np.float32), array[:].T)
    content = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    assert content.startswith((b'"",AAAC.0', b",AAAC.0"))
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_a_failed_csv_leaves_the_previous_one(tmp_path: Path) -> None:
    array, cells, genes = dense(tmp_path)
    path = export_csv(array, cells, genes, tmp_path / "out" / "dense.csv")
    before = path.read_bytes()

    class Broken:
        shape = (23, 41)

        def __getitem__(self, key: object) -> np.ndarray:
            raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        export_csv(Broken(), cells, genes, path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_csv_refuses_names_that_do_not_fit(tmp_path: Path) -> None:
    array, cells, genes = dense(tmp_path)
    with pytest.raises(NeumfError, match="do not fit"):
        export_csv(array, cells[:-1], genes, tmp_path / "dense.csv")
    with pytest.raises(NeumfError, match="repeat"):
        export_csv(array, ["x"] * 23, genes, tmp_path / "dense.csv")


def stored(data: ad.AnnData, folder: Path) -> StoredCounts:
    save_counts(data, folder)
    return StoredCounts(folder)


def test_mtx_is_read_by_scanpy_as_10x(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "neumf_assets.core.cells.files.export.BLOCK_CELLS", 7
    )  # the last part is a smaller one
    data, _ = simulated_counts(n_cells=30, n_genes=40)
    with stored(data, tmp_path / "counts") as counts:
        folder = export_mtx(counts, tmp_path / "mtx")
    back = sc.read_10x_mtx(folder)
    assert list(back.obs_names) == list(data.obs_names)
    assert list(back.var_names) == list(data.var_names)
    assert (data.X.astype(np.float32) != back.X).nnz == 0
    with gzip.open(folder / "matrix.mtx.gz", "rt") as file:
        assert "integer general" in file.readline()


def test_mtx_holds_values_that_are_no_counts(tmp_path: Path) -> None:
    data, _ = simulated_counts(n_cells=30, n_genes=40)
    data.X = data.X / 3
    with stored(data, tmp_path / "counts") as counts:
        folder = export_mtx(counts, tmp_path / "mtx")
    assert (data.X.astype(np.float32) != sc.read_10x_mtx(folder).X).nnz == 0


def test_mtx_replaces_an_export_but_no_other_folder(tmp_path: Path) -> None:
    data, _ = simulated_counts(n_cells=30, n_genes=40)
    out = tmp_path / "out"
    with stored(data, tmp_path / "counts") as counts:
        folder = export_mtx(counts, out / "mtx")
        first = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
        export_mtx(counts, folder)
        assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == first
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(NeumfError, match="other files"):
            export_mtx(counts, folder)
    assert (folder / "notes.txt").exists()
    assert [entry.name for entry in out.iterdir()] == ["mtx"]


@pytest.mark.parametrize(
    "name", ["=1+1", "@sum", "+cmd|' /C calc'!A0", "-2+3", "\tx", "\r=1", "=HYPERLINK(1)"]
)
def test_names_that_a_spreadsheet_would_compute_are_marked(name: str) -> None:
    assert harmless([name]) == [f"'{name}"]


@pytest.mark.parametrize("name", ["g1", "-", "-1.5", "+3", "HLA-A", "a=b", "x@y", "'x", ""])
def test_other_names_stay(name: str) -> None:
    assert harmless([name]) == [name]


def test_csv_holds_no_formula(tmp_path: Path) -> None:
    path = export_csv(np.ones((2, 2), np.float32), ["=c1", "c2"], ["=g1", "@g2"], tmp_path / "m.csv")
    for line in path.read_text().splitlines():
        assert not [field for field in line.split(",") if field.strip('"').startswith(("=", "@", "+"))]
