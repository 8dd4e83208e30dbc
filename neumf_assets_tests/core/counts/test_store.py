"""Stored counts come back exactly."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import CountsWriter, load_counts, save_counts
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import Case
from neumf_assets_tests.core.counts.test_formats import cases


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Hold text as Python's: what AnnData reads is of pandas' own type from pandas 3 on."""
    texts = [name for name in table if isinstance(table[name].dtype, pd.StringDtype)]
    table = table.astype(dict.fromkeys(texts, object))
    for name in table:
        if isinstance(table[name].dtype, pd.CategoricalDtype):
            table[name] = table[name].cat.rename_categories(table[name].cat.categories.astype(object))
    return table.set_axis(table.index.astype(object)).set_axis(table.columns.astype(object), axis=1)


def assert_equal(one: ad.AnnData, other: ad.AnnData) -> None:
    assert one.X.dtype == other.X.dtype
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one.X, part), getattr(other.X, part))
    pd.testing.assert_frame_equal(plain(one.obs), plain(other.obs))
    pd.testing.assert_frame_equal(plain(one.var), plain(other.var))
    assert dict(one.uns["provenance"]) == dict(other.uns["provenance"])


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_round_trip(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.csv"
        pd.DataFrame({"cell": case.cells[:1], "type": ["T"]}).to_csv(labels, index=False)
        adata = read_counts(files.tenx_v3_folder(Path(folder), case), labels=labels)
        save_counts(adata, Path(folder) / "stored")
        assert_equal(load_counts(Path(folder) / "stored"), adata)


def test_normalised_values_round_trip(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(",c1,c2\ng,0.5,1\nACTB,2.25,0\n")
    adata = read_counts(tmp_path / "x.csv", ReadSettings(allow_normalised=True))
    save_counts(adata, tmp_path)
    assert_equal(load_counts(tmp_path), adata)


def test_text_is_stored_as_every_version_of_anndata_reads_it(tmp_path: Path) -> None:
    adata = read_counts(files.tenx_v3_folder(tmp_path, files.SMALL))
    save_counts(adata, tmp_path / "whole")
    stored = load_counts(tmp_path / "whole")  # its text is of the type that this version of pandas prefers
    save_counts(stored, tmp_path / "again")
    with CountsWriter(tmp_path / "parts.h5ad") as writer:
        writer.add(stored)
    for path in (tmp_path / "whole/counts.h5ad", tmp_path / "again/counts.h5ad", tmp_path / "parts.h5ad"):
        with h5py.File(path) as file:
            for name in ("obs/_index", "var/_index", "var/gene_id", "var/original_name"):
                assert file[name].attrs["encoding-type"] == "string-array"


def test_backed_leaves_the_matrix_on_disk(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, files.SMALL))
    save_counts(adata, tmp_path)
    backed = load_counts(tmp_path, backed=True)
    assert backed.isbacked
    np.testing.assert_array_equal(backed.X[1:3].toarray(), files.COUNTS[1:3])
    backed.file.close()


def test_a_failed_write_leaves_the_previous_version(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, files.SMALL))
    target = save_counts(adata, tmp_path / "stored")
    before = target.read_bytes()
    adata.uns["provenance"] = {"unwritable": object()}
    with pytest.raises(Exception, match="object"):
        save_counts(adata, tmp_path / "stored")
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def test_counts_written_in_parts_are_those_written_at_once(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, files.SMALL))
    adata.obs["type"] = pd.Categorical(["T", *[None] * (adata.n_obs - 2), "B"])
    with CountsWriter(tmp_path / "counts.h5ad") as writer:
        for cell in range(adata.n_obs):
            writer.add(adata[cell : cell + 1].copy())  # each part knows its own categories only
    stored = load_counts(tmp_path)
    assert stored.X.indptr.dtype == stored.X.indices.dtype
    assert stored.obs["type"].astype(object).equals(adata.obs["type"].astype(object))
    del stored.obs["type"], adata.obs["type"]
    assert_equal(stored, adata)


def test_a_part_with_other_genes_leaves_no_file(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, files.SMALL))
    with pytest.raises(ValueError, match="genes"), CountsWriter(tmp_path / "parts.h5ad") as writer:
        writer.add(adata)
        writer.add(adata[:, :1].copy())
    assert not [path.name for path in tmp_path.iterdir() if "parts" in path.name]
