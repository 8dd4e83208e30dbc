"""Files above the memory budget are read in parts: the same counts, the same refusals."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core.counts.readers import parts as parts_module
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.readers.delimited import estimated_entries
from neumf_assets.core.counts.readers.matrix import RawMatrix
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts.files import FORMATS, Case
from neumf_assets_tests.core.counts.test_store import assert_equal

CELLS, GENES = 23, 9


@pytest.fixture(params=["h5ad", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    """Format of the file."""
    return str(request.param)


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read five cells at a time."""
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 100)
    monkeypatch.setattr(parts_module, "BLOCK_CELLS", 5)


def written(folder: Path, kind: str, values: np.ndarray, cells: list[str] | None = None) -> Path:
    """Write a file with labels, a repeated gene, stored zeros and unsorted columns."""
    X = sparse.csr_matrix(values.astype(np.float32))
    X.data[::7] = 0
    X = X[:, ::-1]
    names = cells or [f"c{i}" for i in range(len(values))]
    obs = pd.DataFrame({"type": pd.Categorical(["B", *["T"] * (len(values) - 1)])}, index=names)
    var = pd.DataFrame({"gene_ids": [f"E{i}" for i in range(GENES)]}, index=[*"ABCDEFGA", "MT-X"])
    adata, path = ad.AnnData(X, obs=obs, var=var), folder / f"data.{kind}"
    if kind == "h5ad":
        adata.write_h5ad(path)
    else:
        adata.write_zarr(path)
    return path


def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(0.8, (CELLS, GENES))


def test_the_same_counts_are_stored(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, kind, counts())
    pd.DataFrame({"cell": ["c3", "c20"], "donor": ["x", "y"]}).to_csv(
        tmp_path / "data.labels.csv", index=False
    )
    whole = read_counts(path)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        stored = store_counts(path, tmp_path / "stored")
    assert "5 cells are read at a time" in caplog.text
    again = load_counts(tmp_path / "stored")
    assert again.uns["provenance"].pop("read_seconds") > 0
    del whole.uns["provenance"]["read_seconds"]
    assert_equal(again, whole)
    assert stored.shape == whole.shape
    assert stored.nonzero == whole.X.nnz
    assert stored.total_counts == whole.X.sum()


@pytest.mark.parametrize(("value", "problem"), [(-1, "negative"), (0.5, "whole"), (np.nan, "NaN")])
def test_a_bad_entry_is_named_by_its_place_in_the_whole(
    tmp_path: Path, kind: str, value: float, problem: str
) -> None:
    values = counts().astype(float)
    values[17, 3] = value
    path = written(tmp_path, kind, values)
    with pytest.raises(BadInput) as at_once:
        read_counts(path)
    with pytest.raises(BadInput) as in_parts:
        store_counts(path, tmp_path / "stored")
    assert "row 18" in str(in_parts.value)
    assert problem in str(in_parts.value)
    assert in_parts.value.place == at_once.value.place
    assert not list((tmp_path / "stored").glob("*"))


def test_a_name_that_occurs_in_two_parts_is_refused(tmp_path: Path, kind: str) -> None:
    names = [f"c{i}" for i in range(CELLS)]
    names[20] = "c1"
    path = written(tmp_path, kind, counts(), names)
    with pytest.raises(BadInput, match="cells 2 and 21"):
        store_counts(path, tmp_path / "stored")


def market(folder: Path, values: np.ndarray, order: str, types: bool) -> Path:
    """Write a Matrix Market folder with its entries in some order, and one feature that is no gene."""
    folder.mkdir()
    cells, genes = np.nonzero(values)
    by = {"cells": np.lexsort((genes, cells)), "genes": np.lexsort((cells, genes))}
    by["none"] = np.random.default_rng(0).permutation(cells.size)
    lines = [f"{genes[i] + 1} {cells[i] + 1} {values[cells[i], genes[i]]}" for i in by[order]]
    head = ["%%MatrixMarket matrix coordinate integer general", f"{GENES} {CELLS} {cells.size}"]
    (folder / "matrix.mtx").write_text("\n".join([*head, *lines]) + "\n")
    (folder / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(CELLS)))
    kinds = ["Antibody Capture" if types and i == 3 else "Gene Expression" for i in range(GENES)]
    names = [*"ABCDEFGA", "MT-X"]
    table = "".join(f"E{i}\t{name}\t{kinds[i]}\n" for i, name in enumerate(names))
    (folder / "features.tsv").write_text(table)
    return folder


@pytest.mark.parametrize("order", ["cells", "genes", "none"])
@pytest.mark.parametrize("types", [False, True])
def test_a_matrix_market_file_is_sorted_into_parts(
    tmp_path: Path, order: str, types: bool, caplog: pytest.LogCaptureFixture
) -> None:
    values = counts()
    values[10:15] = 0  # a part without entries
    path = market(tmp_path / "data", values, order, types)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        stored = store_counts(path, tmp_path / "out")
    assert "5 cells are read at a time" in caplog.text
    expected, found = read_counts(path), load_counts(tmp_path / "out")
    assert stored.shape == expected.shape == found.shape
    assert (stored.nonzero, stored.total_counts) == (expected.X.nnz, expected.X.sum())
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.X.dtype == expected.X.dtype == np.int32
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert list(found.obs_names) == list(expected.obs_names)
    for key in ("format", "orientation", "sha256", "features_left_out"):
        assert found.uns["provenance"].get(key) == expected.uns["provenance"].get(key)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["counts.h5ad"]


def test_refusals_of_a_matrix_market_file_in_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    values = counts()
    values[17, 4] = -2
    path = market(tmp_path / "negative", values, "none", False)
    short = market(tmp_path / "short", counts(), "cells", False)
    text = (short / "matrix.mtx").read_text().splitlines()
    (short / "matrix.mtx").write_text("\n".join(text[:-3]) + "\n")
    for folder in (path, short):
        with pytest.raises(BadInput) as whole:
            read_counts(folder)
        with pytest.raises(BadInput) as parted:
            store_counts(folder, tmp_path / "out")
        assert str(parted.value) == str(whole.value)
        assert not list((tmp_path / "out").iterdir())


CASE = Case(counts(), [f"AAAC{i:04d}-1" for i in range(CELLS)], [*"ABCDEFGA", "MT-X"])
IN_PARTS = [
    "10x HDF5 v2",
    "10x HDF5 v3",
    "h5ad CSC",
    "h5ad dense",
    "h5ad layer",
    "h5ad raw",
    "h5ad with masked text",
    "Zarr v2",
    "loom",
]


@pytest.mark.parametrize("name", IN_PARTS)
def test_every_format_is_read_in_parts(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, settings = FORMATS[name]
    path = write(tmp_path, CASE)
    whole = read_counts(path, settings)
    monkeypatch.setattr(parts_module, "SORTED_ENTRIES", 7)
    monkeypatch.setattr("neumf_assets.core.counts.readers.matrix.BLOCK_BYTES", 100)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        stored = store_counts(path, tmp_path / "stored", settings)
    assert "5 cells are read at a time" in caplog.text
    again = load_counts(tmp_path / "stored")
    for adata in (whole, again):
        del adata.uns["provenance"]["read_seconds"]
    assert_equal(again, whole)
    assert (stored.shape, stored.nonzero, stored.total_counts) == (whole.shape, whole.X.nnz, whole.X.sum())
    assert [entry.name for entry in (tmp_path / "stored").iterdir()] == ["counts.h5ad"]


def test_features_that_are_no_genes_are_left_out_of_parts_of_a_10x_file(tmp_path: Path) -> None:
    path = FORMATS["10x HDF5 v3"][0](tmp_path, CASE)
    with h5py.File(path, "a") as file:
        types = [b"Gene Expression"] * GENES
        types[2] = b"Antibody Capture"
        file["matrix/features/feature_type"][...] = types
    whole = read_counts(path)
    stored = store_counts(path, tmp_path / "stored")
    assert stored.shape == (CELLS, GENES - 1)
    np.testing.assert_array_equal(load_counts(tmp_path / "stored").X.toarray(), whole.X.toarray())
    assert stored.provenance["features_left_out"] == 1


def test_genomes_of_a_10x_file_are_joined_in_every_part(tmp_path: Path) -> None:
    path = FORMATS["10x HDF5 v2"][0](tmp_path, CASE)
    with h5py.File(path, "a") as file:
        file.copy("GRCh38", "mm10")
    whole = read_counts(path)
    assert store_counts(path, tmp_path / "stored").shape == (CELLS, 2 * GENES)
    np.testing.assert_array_equal(load_counts(tmp_path / "stored").X.toarray(), whole.X.toarray())


@pytest.mark.parametrize(
    "name", ["csv, genes by cells", "csv, cells by genes", "tsv.gz with Windows line ends"]
)
def test_refusals_of_a_table_of_text_in_parts_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    write, settings = FORMATS[name]
    values = counts()
    values[17, 3] = -2
    path = write(tmp_path, Case(values, CASE.cells, CASE.genes))
    with pytest.raises(BadInput) as whole:
        read_counts(path, settings)
    with pytest.raises(BadInput) as parted:
        store_counts(path, tmp_path / "out", settings)
    assert str(parted.value) == str(whole.value)
    assert not list((tmp_path / "out").iterdir())


def test_the_labels_file_tells_cells_from_genes_in_parts_too(tmp_path: Path) -> None:
    path = FORMATS["csv, genes by cells"][0](tmp_path, CASE)
    table = pd.DataFrame({"cell": list(CASE.cells), "type": ["T"] * CELLS})
    table.to_csv(tmp_path / "ctrl.labels.csv", index=False)
    assert store_counts(path, tmp_path / "out").shape == read_counts(path).shape == (CELLS, GENES)
    assert load_counts(tmp_path / "out").obs["type"].tolist() == ["T"] * CELLS


def test_entries_of_a_table_of_text_are_estimated_from_its_beginning(tmp_path: Path) -> None:
    found = estimated_entries(FORMATS["csv, genes by cells"][0](tmp_path, CASE), "ctrl.csv")
    assert CASE.counts.astype(bool).sum() <= found < 2 * CASE.counts.astype(bool).sum()


def test_settings_that_need_all_cells_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = FORMATS["h5ad CSR"][0](tmp_path, CASE)
    stored = store_counts(path, tmp_path / "stored", ReadSettings(max_cells=7, allow_normalised=True))
    assert stored.shape == (7, GENES)
    assert "Without read.allow_normalised and read.max_cells it is read in parts" in caplog.text


def test_parts_are_smaller_where_the_budget_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "BLOCK_CELLS", 8192)
    whole = RawMatrix(sparse.csr_matrix((100_000, 9)), np.arange(100_000), np.arange(9), "h5ad")
    sizes = {}
    for budget in (1 << 28, 1 << 30, 1 << 34):
        monkeypatch.setattr("neumf_assets.core.memory.budget", lambda budget=budget: budget)
        sizes[budget] = parts_module.Parted(whole, 500_000_000, lambda *_: []).block_cells
    assert sizes == {1 << 28: 1342, 1 << 30: 5368, 1 << 34: 8192}
