"""Files above the memory budget are read in parts: the same counts, the same refusals."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core.counts.readers import parts as parts_module
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput
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
