"""The published Kang et al. counts, as they are shipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pytest
from scipy import sparse

from neumf_assets.core.counts.discover import list_datasets
from neumf_assets.core.counts.long_format import long_to_csr, write_long
from neumf_assets.core.counts.qc import filter_counts
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.store import load_counts, save_counts

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real count data are not beside the checkout"),
]


@pytest.fixture(scope="module")
def control() -> ad.AnnData:
    return read_counts(DATA / "kang_seed" / "ctrl.csv.gz")


def test_the_notebooks_corner_holds_its_zeros(control: ad.AnnData) -> None:
    corner = control.X[:1000, :300]
    assert 300 * 1000 - corner.nnz == 286_953
    assert 300 * 1000 - np.count_nonzero(corner.toarray()) == 286_953


@pytest.mark.parametrize(("name", "shape", "twice"), [("ctrl", (3000, 14879), 6), ("stim", (3000, 14578), 5)])
def test_seed_equals_what_polars_reads(name: str, shape: tuple[int, int], twice: int) -> None:
    path = DATA / "kang_seed" / f"{name}.csv.gz"
    adata = read_counts(path)
    frame = pl.read_csv(path)
    assert adata.shape == shape
    assert adata.X.dtype == np.int32
    assert adata.var["original_name"].tolist() == frame[:, 0].to_list()
    assert adata.obs_names.tolist() == frame.columns[1:]
    expected_counts = sparse.csr_matrix(frame[:, 1:].cast(pl.Int32).to_numpy())
    assert (adata.X.T.tocsr() != expected_counts).nnz == 0
    assert adata.uns["provenance"]["gene_names_made_unique"] == twice
    assert adata.uns["provenance"]["orientation"] == "genes_by_cells"
    table = pl.read_csv(path.with_name(f"{name}.labels.csv"))
    expected = dict(table.filter(pl.col("cell_type") != "NA").iter_rows())
    assert adata.obs["cell_type"].dropna().to_dict() == expected
    assert 0.3 < adata.obs["cell_type"].notna().mean() < 0.6


@pytest.mark.parametrize(("name", "cells"), [("ctrl", 6548), ("stim", 7451)])
def test_ifnb_equals_what_anndata_reads(name: str, cells: int) -> None:
    path = DATA / "kang_ifnb" / f"{name}.h5ad"
    adata, expected = read_counts(path), ad.read_h5ad(path)
    assert adata.shape == (cells, 14053)
    assert (adata.X != expected.X).nnz == 0
    assert adata.obs_names.equals(expected.obs_names)
    assert adata.obs["cell_type"].nunique() == 13
    assert adata.obs["cell_type_coarse"].nunique() == 8
    assert {"donor"} <= set(adata.obs.columns)
    assert "barcode" not in adata.obs.columns


def test_default_quality_control_keeps_the_data(control: ad.AnnData) -> None:
    kept, report = filter_counts(control)
    assert kept.shape == control.shape
    assert report.cells_dropped == {"empty": 0, "few_genes": 0, "mitochondrial": 0}
    stimulated = read_counts(DATA / "kang_ifnb" / "stim.h5ad")
    kept, report = filter_counts(stimulated)
    assert kept.n_obs == 7451
    assert report.genes_dropped == {"empty": 778, "few_cells": 0}


def test_names_and_counts_survive_store_and_long_format(control: ad.AnnData, tmp_path: Path) -> None:
    save_counts(control, tmp_path)
    stored = load_counts(tmp_path)
    assert (stored.X != control.X).nnz == 0
    assert stored.var["original_name"].equals(control.var["original_name"])
    assert stored.var["original_name"].duplicated().sum() == 6
    write_long(control, tmp_path)
    matrix, cells, genes = long_to_csr(tmp_path)
    assert (matrix != control.X).nnz == 0
    assert cells == control.obs_names.tolist()
    assert genes == control.var_names.tolist()


def test_reading_takes_little_memory() -> None:
    # Not ru_maxrss: it starts at what the process that was forked had, here that of all tests before.
    code = (
        "import re, sys; from neumf_assets.core.counts.readers import read_counts;"
        "read_counts(sys.argv[1]); print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, str(DATA / "kang_seed" / "ctrl.csv.gz")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed) / 2**20 < 1.5, "GiB; polars.read_csv alone takes about 1"


def test_inboxes_are_listed() -> None:
    for study in ("kang_seed", "kang_ifnb"):
        datasets, refused = list_datasets(DATA / study)
        assert [dataset.name for dataset in datasets] == ["ctrl", "stim"]
        assert refused == []
