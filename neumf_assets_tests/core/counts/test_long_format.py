"""The long format holds exactly the entries that are not zero, and the matrix can be rebuilt from it."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from scipy import sparse

from neumf_assets.core.counts import long_format
from neumf_assets.core.counts.long_format import long_to_csr, read_long, write_long
from neumf_assets.core.counts.readers import read_counts
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import COUNTS, SMALL, Case
from neumf_assets_tests.core.counts.test_formats import cases


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_round_trip(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        adata = read_counts(files.tenx_v3_folder(Path(folder), case))
        rows = write_long(adata, Path(folder) / "long")
        matrix, cells, genes = long_to_csr(Path(folder) / "long")
        assert rows == np.count_nonzero(case.counts)
        assert matrix.dtype == np.int32
        np.testing.assert_array_equal(matrix.toarray(), case.counts)
        assert cells == list(case.cells)
        assert genes == adata.var_names.tolist()
        stored = pl.read_parquet(Path(folder) / "long" / "genes.parquet")
        assert stored["original_name"].to_list() == list(case.genes)


def test_contract_of_the_table(tmp_path: Path) -> None:
    write_long(read_counts(files.csv_genes_by_cells(tmp_path, SMALL)), tmp_path)
    scan = read_long(tmp_path)
    assert isinstance(scan, pl.LazyFrame)
    table = scan.collect()
    assert dict(table.schema) == {
        "cell": pl.Categorical,
        "gene": pl.Categorical,
        "cell_id": pl.UInt32,
        "gene_id": pl.UInt32,
        "expression": pl.Int32,
    }
    cells, genes = np.nonzero(COUNTS)
    assert table["cell_id"].to_list() == cells.tolist()
    assert table["gene_id"].to_list() == genes.tolist()
    assert table["expression"].to_list() == COUNTS[cells, genes].tolist()
    assert table["cell"].cast(pl.String).to_list() == [files.CELLS[cell] for cell in cells]
    unique = ["ACTB", "RP11.206L10.2", "Y_RNA", "Y_RNA-1", "MT-CO1"]
    assert table["gene"].cast(pl.String).to_list() == [unique[gene] for gene in genes]


def test_lookup_tables_hold_labels_and_empty_ones(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[2], counts[:, 0] = 0, 0
    path = files.csv_genes_by_cells(tmp_path, Case(counts, files.CELLS, files.GENES))
    (tmp_path / "ctrl.labels.csv").write_text(f"cell,type\n{files.CELLS[0]},T\n")
    write_long(read_counts(path), tmp_path)
    cells = pl.read_parquet(tmp_path / "cells.parquet")
    assert cells["cell_id"].to_list() == [0, 1, 2, 3]
    assert cells["total"].to_list() == counts.sum(1).tolist()
    assert cells["genes_seen"].to_list() == (counts > 0).sum(1).tolist()
    assert cells["type"].to_list() == ["T", None, None, None]
    assert pl.read_parquet(tmp_path / "genes.parquet").height == 5
    matrix, _, _ = long_to_csr(tmp_path)
    np.testing.assert_array_equal(matrix.toarray(), counts)


def test_row_groups_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_format, "ROW_GROUP", 100)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.4, (60, 40))
    counts[50:] = 0
    case = Case(counts, [f"c{i}" for i in range(60)], [f"g{i}" for i in range(40)])
    write_long(read_counts(files.tenx_v3_folder(tmp_path, case)), tmp_path)
    metadata = pq.ParquetFile(tmp_path / "long.parquet").metadata
    assert metadata.num_row_groups > 5
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert all(group.num_rows < 100 + 40 for group in groups)
    ranges = [(group.column(2).statistics.min, group.column(2).statistics.max) for group in groups]
    assert all(last < first for (_, last), (first, _) in pairwise(ranges)), "whole cells each"
    assert groups[0].column(0).compression == "ZSTD"
    assert "RLE_DICTIONARY" in groups[0].column(0).encodings
    np.testing.assert_array_equal(long_to_csr(tmp_path)[0].toarray(), counts)
    some = read_long(tmp_path).filter(pl.col("cell_id") == 33).collect()
    np.testing.assert_array_equal(some["gene_id"].to_numpy(), np.nonzero(counts[33])[0])


def test_any_engine_can_read_it(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, SMALL))
    write_long(adata, tmp_path)
    frame = pq.read_table(tmp_path / "long.parquet").to_pandas()
    assert str(frame["cell"].dtype) == "category"
    rebuilt = frame.pivot_table("expression", "cell_id", "gene_id", fill_value=0, observed=True)
    np.testing.assert_array_equal(rebuilt.to_numpy(), COUNTS[:, (COUNTS > 0).any(0)])


def test_matrix_without_entries(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, SMALL))
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.int32)
    assert write_long(adata, tmp_path) == 0
    assert long_to_csr(tmp_path)[0].shape == (4, 5)
