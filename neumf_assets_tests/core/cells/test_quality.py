"""What quality control finds and decides of one dataset on disk."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core.cells.quality import examine
from neumf_assets.core.counts.qc import OUR_COLUMNS
from neumf_assets.core.counts.quality.beside import ambient_beside
from neumf_assets.core.counts.readers.contents.droplets import UNFILTERED
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.settings import QCSettings, ReadSettings
from neumf_assets.core.counts.store import load_counts, save_counts
from neumf_assets.core.counts.stored import StoredCounts
from neumf_assets_tests.core.counts.quality.droplets import Droplets, droplets
from neumf_assets_tests.core.counts.test_what_is_a_gene import folder


@pytest.fixture(scope="module")
def simulated() -> Droplets:
    return droplets(0.1, seed=2)


def stored(path: Path, X: sparse.csr_matrix, **obs: object) -> Path:
    cells = [f"c{at}" for at in range(X.shape[0])]
    genes = [f"G{at}" for at in range(X.shape[1] - 1)] + ["MT-CO1"]
    data = ad.AnnData(X.astype(np.int32), obs=pd.DataFrame(obs, index=cells))
    data.var = pd.DataFrame({"original_name": genes}, index=genes)
    data.uns["provenance"] = {"source": "here"}
    path.mkdir()
    save_counts(data, path)
    return path


def test_of_a_raw_matrix_only_cells_are_kept_and_the_rest_is_counted(
    simulated: Droplets, tmp_path: Path
) -> None:
    with StoredCounts(stored(tmp_path / "raw", simulated.X)) as counts:
        found = examine(counts, QCSettings(), unfiltered=True)
        off = examine(counts, QCSettings(call_cells="off", doublets="off"), unfiltered=True)
    true = simulated.large + simulated.small
    kept = found.verdict.cells
    assert kept[: simulated.large].mean() > 0.98 and kept[true:].mean() < 0.005
    dropped = found.verdict.report.cells_dropped
    assert dropped["background"] + dropped["empty"] == pytest.approx(simulated.X.shape[0] - true, rel=0.01)
    assert kept.sum() + sum(dropped.values()) == kept.size, "each barcode has one fate"
    assert found.ambient == pytest.approx(0.1, abs=0.03)
    assert off.called is None and off.verdict.cells.sum() > 10 * kept.sum()


@pytest.mark.parametrize("what", ["flag", "remove", "off"])
def test_outliers_and_doublets_are_marked_removed_or_not_looked_for(
    what: str, simulated: Droplets, tmp_path: Path
) -> None:
    cells = simulated.X[: simulated.large].tolil()
    cells[0] = cells[0] * 40
    settings = QCSettings.model_validate({"outliers": what, "doublets": what, "doublet_rate": 0.1})
    with StoredCounts(stored(tmp_path / "raw", cells.tocsr())) as counts:
        found = examine(counts, settings)
        found.verdict.write(counts, tmp_path / "kept", found.columns())
    kept = load_counts(tmp_path / "kept")
    if what == "off":
        assert found.outliers is None and found.doublets is None
        assert "qc_outlier" not in kept.obs and "qc_total_counts" in kept.obs
        return
    assert found.outliers is not None and found.outliers.any[0] and found.doublets is not None
    marked = found.outliers.any | found.doublets.called
    if what == "flag":
        assert (
            found.verdict.cells.all() and kept.obs["qc_outlier"].to_numpy().sum() == found.outliers.any.sum()
        )
        assert "total high" in kept.obs["qc_outlier_in"].iloc[0]
        assert kept.obs["qc_doublet_score"].dtype.kind == "f"
    else:
        np.testing.assert_array_equal(found.verdict.cells, ~marked)
        assert found.verdict.report.cells_dropped["outlier"] == found.outliers.any.sum()
        assert not kept.obs["qc_outlier"].any() and not kept.obs["qc_doublet"].any()


def test_columns_of_the_users_are_never_overwritten(simulated: Droplets, tmp_path: Path) -> None:
    X = simulated.X[:150]
    mine = np.arange(150.0)
    with StoredCounts(stored(tmp_path / "raw", X, qc_total_counts=mine)) as counts:
        found = examine(counts, QCSettings(doublets="off"))
        found.verdict.write(counts, tmp_path / "kept", found.columns())
    kept = load_counts(tmp_path / "kept")
    np.testing.assert_array_equal(kept.obs["qc_total_counts"], mine)
    np.testing.assert_array_equal(kept.obs["neumf_qc_total_counts"], np.asarray(X.sum(axis=1)).ravel())
    assert "neumf_qc_total_counts" in kept.uns[OUR_COLUMNS]
    assert "qc_total_counts" not in kept.uns[OUR_COLUMNS]


def test_figures_of_families_that_a_dataset_lacks_are_no_columns(simulated: Droplets, tmp_path: Path) -> None:
    with StoredCounts(stored(tmp_path / "raw", simulated.X[:150])) as counts:
        columns = examine(counts, QCSettings(doublets="off")).columns()
    assert "qc_mito_share" in columns and "qc_hb_share" not in columns


def test_the_raw_matrix_beside_a_filtered_one_tells_the_ambient_rna(
    simulated: Droplets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neumf_assets_tests.core.counts.test_what_is_a_gene as written

    cells = [f"c{at}" for at in range(simulated.X.shape[0])]
    features = [(f"I{at}", f"G{at}", "Gene Expression") for at in range(simulated.X.shape[1])]
    for name, chosen in (("filtered", slice(0, simulated.large)), ("raw", slice(None))):
        monkeypatch.setattr(written, "COUNTS", simulated.X[chosen].toarray())
        (tmp_path / "S1").mkdir(exist_ok=True)
        folder(tmp_path / "S1" / name, features, cells[chosen])
    stored_as = store_counts(tmp_path / "S1", tmp_path / "kept", ReadSettings())
    assert UNFILTERED not in stored_as.provenance and stored_as.shape[0] == simulated.large
    with StoredCounts(tmp_path / "kept") as counts:
        genes = counts.var_names
        profile = ambient_beside(tmp_path / "S1", genes, ReadSettings(), 100, tmp_path / "beside")
        assert profile is not None
        assert np.abs(profile - simulated.ambient).sum() < 0.1, "total variation of the two profiles"
        found = examine(counts, QCSettings(doublets="off"), ambient=profile)
    assert found.ambient == pytest.approx(0.1, abs=0.03)
