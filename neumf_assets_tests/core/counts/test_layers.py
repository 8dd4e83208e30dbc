"""Which matrix of a file with several holds the counts."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core import memory
from neumf_assets.core.counts.readers.read import read_counts, store_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput

COUNTS = np.random.default_rng(0).poisson(1.5, (30, 12)).astype(np.float32)
LOGGED = np.log1p(COUNTS / COUNTS.sum(1, keepdims=True) * 1e4)
CELLS = [f"cell{i}" for i in range(30)]
GENES = [f"G{i}" for i in range(12)]


def annotated(X: np.ndarray | None, **layers: np.ndarray) -> ad.AnnData:
    """An object of some layers."""
    obs, var = pd.DataFrame(index=CELLS), pd.DataFrame(index=GENES)
    return ad.AnnData(X, obs=obs, var=var, layers={k: sparse.csr_matrix(v) for k, v in layers.items()})


def written(adata: ad.AnnData, folder: Path, kind: str) -> Path:
    """The object as a file."""
    path = folder / f"a.{kind}"
    if kind == "zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("X", [LOGGED, LOGGED - 1, None], ids=["log", "scaled", "missing"])
def test_the_counts_are_read_from_the_layer_that_holds_them_and_it_is_said(
    kind: str, X: np.ndarray | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(annotated(X, Counts=COUNTS, mask=(COUNTS > 0).astype(np.float32)), tmp_path, kind)
    read = read_counts(path)
    np.testing.assert_array_equal(read.X.toarray(), COUNTS)
    assert read.uns["provenance"]["layer"] == "Counts"
    assert [record.message for record in caplog.records if "layers/Counts" in record.message]


def test_raw_which_has_all_genes_comes_before_a_layer(tmp_path: Path) -> None:
    whole = annotated(COUNTS)
    adata = annotated(LOGGED, counts=COUNTS)[:, :5].copy()
    adata.raw = whole
    read = read_counts(written(adata, tmp_path, "h5ad"))
    assert read.shape == COUNTS.shape and list(read.var_names) == GENES
    np.testing.assert_array_equal(read.X.toarray(), COUNTS)


def test_whole_numbers_in_x_are_read_whatever_lies_beside_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(annotated(COUNTS, counts=COUNTS + 5, spliced=COUNTS), tmp_path, "h5ad")
    np.testing.assert_array_equal(read_counts(path).X.toarray(), COUNTS)
    assert not caplog.records


def test_several_that_could_be_meant_are_refused_by_name(tmp_path: Path) -> None:
    path = written(annotated(LOGGED, spliced=COUNTS, unspliced=COUNTS + 1), tmp_path, "h5ad")
    with pytest.raises(BadInput, match=r"Several others hold whole numbers.*spliced, unspliced"):
        read_counts(path)
    read = read_counts(path, ReadSettings(layer="unspliced"))
    np.testing.assert_array_equal(read.X.toarray(), COUNTS + 1)


@pytest.mark.parametrize("layers", [{}, {"logged": LOGGED}, {"mask": (COUNTS > 0).astype(np.float32)}])
def test_nothing_else_is_taken_for_counts(layers: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = written(annotated(LOGGED, **layers), tmp_path, "h5ad")
    with pytest.raises(BadInput, match="log-normalised"):
        read_counts(path)


def test_who_asks_for_normalised_values_gets_them(tmp_path: Path) -> None:
    path = written(annotated(LOGGED, counts=COUNTS), tmp_path, "h5ad")
    read = read_counts(path, ReadSettings(allow_normalised=True))
    np.testing.assert_allclose(read.X.toarray(), LOGGED, rtol=1e-6)
    with pytest.raises(BadInput, match="Set layer: counts, which holds whole numbers"):
        read_counts(path, ReadSettings(layer="X"))


def test_a_loom_file_keeps_its_counts_in_a_layer(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"], file["layers/counts"] = LOGGED.T, COUNTS.T
        file["row_attrs/Gene"], file["col_attrs/CellID"] = np.array(GENES, "S"), np.array(CELLS, "S")
    np.testing.assert_array_equal(read_counts(tmp_path / "a.loom").X.toarray(), COUNTS)


def test_a_file_read_in_parts_is_read_from_the_same_layer_and_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(annotated(LOGGED, counts=COUNTS), tmp_path, "h5ad")
    monkeypatch.setattr(memory, "budget", lambda: 100)
    with caplog.at_level(logging.WARNING):
        store_counts(path, tmp_path / "stored")
    np.testing.assert_array_equal(load_counts(tmp_path / "stored").X.toarray(), COUNTS)
    assert len([record for record in caplog.records if "layers/counts" in record.message]) == 1
