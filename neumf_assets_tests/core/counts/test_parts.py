"""AnnData files above the memory budget are read in parts: the same counts, the same refusals."""

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
