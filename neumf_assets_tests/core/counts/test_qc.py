"""Quality control: limits hold in the result, and each dropped cell and gene has a reason."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import sparse

from neumf_assets.core.counts import qc
from neumf_assets.core.counts.qc import check_size, filter_counts, judge
from neumf_assets.core.counts.settings import QCSettings
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.study import simulate_study
from neumf_assets.core.counts.store import load_counts, save_counts
from neumf_assets.core.counts.stored import StoredCounts
from neumf_assets.core.errors import BadInput


def counts_of(values: np.ndarray, genes: list[str] | None = None) -> ad.AnnData:
    names = genes or [f"g{i}" for i in range(values.shape[1])]
    adata = ad.AnnData(
        X=sparse.csr_matrix(values.astype(np.int32)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(values.shape[0])]),
        var=pd.DataFrame({"original_name": names}, index=names),
    )
    adata.uns["provenance"] = {"source": "here.csv"}
    return adata


def test_only_empty_ones_go_when_limits_are_one() -> None:
    kept, report = filter_counts(
        counts_of(np.array([[1, 0, 2], [0, 0, 0], [0, 0, 5]])), QCSettings(min_genes=1, max_mito=1.0)
    )
    assert kept.obs_names.tolist() == ["c0", "c2"]
    assert kept.var_names.tolist() == ["g0", "g2"]
    assert report.cells_dropped == {"empty": 1, "few_genes": 0, "mitochondrial": 0}
    assert report.genes_dropped == {"empty": 1, "few_cells": 0}
    assert (report.zero_share_before, report.zero_share_after) == pytest.approx((6 / 9, 1 / 4))
    assert report.totals.tolist() == [3, 0, 5]
    assert report.genes_seen.tolist() == [2, 0, 1]
    assert report.kept.tolist() == [True, False, True]


def test_mitochondrial_share_by_hand() -> None:
    values = np.array([[6, 4, 0], [1, 8, 1], [5, 0, 0]])
    kept, report = filter_counts(
        counts_of(values, ["ACTB", "MT-CO1", "MT.ND1"]), QCSettings(min_genes=1, max_mito=0.5)
    )
    np.testing.assert_allclose(report.mito_share, [0.4, 0.9, 0.0])
    assert report.mito_genes == 2
    assert report.cells_dropped == {"empty": 0, "few_genes": 0, "mitochondrial": 1}
    assert kept.obs_names.tolist() == ["c0", "c2"]
    assert report.genes_dropped == {"empty": 0, "few_cells": 1}, "MT.ND1 was seen in the dropped cell only"


def test_metallothioneins_and_mtor_are_not_mitochondrial() -> None:
    values = np.ones((2, 4), int)
    report = filter_counts(counts_of(values, ["MT2A", "MTOR", "MT1X", "ACTB"]), QCSettings(min_genes=1))[1]
    assert report.mito_genes == 0


def test_input_is_left_alone() -> None:
    adata = counts_of(np.array([[1, 0], [0, 0]]))
    filter_counts(adata, QCSettings(min_genes=1))
    assert adata.shape == (2, 2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    density=st.floats(0.05, 0.9),
    limits=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_both_limits_hold_and_the_kept_part_is_the_largest(
    seed: int, shape: tuple[int, int], density: float, limits: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 9, shape) * (rng.random(shape) < density)
    wanted = QCSettings(min_genes=limits[0], min_cells=limits[1], max_mito=1.0)
    cells, genes = np.ones(shape[0], bool), np.ones(shape[1], bool)
    for _ in range(sum(shape)):  # the definition, one cell or gene at a time
        cells &= (values[:, genes] > 0).sum(1) >= limits[0]
        genes &= (values[cells] > 0).sum(0) >= limits[1]
    if not cells.any() or not genes.any():
        with pytest.raises(BadInput, match=r"here\.csv: nothing is left"):
            filter_counts(counts_of(values), wanted)
        return
    kept, report = filter_counts(counts_of(values), wanted)
    np.testing.assert_array_equal(kept.X.toarray(), values[np.ix_(cells, genes)])
    assert sum(report.cells_dropped.values()) == report.cells_before - report.cells_after
    assert sum(report.genes_dropped.values()) == report.genes_before - report.genes_after


@pytest.mark.parametrize(
    "bad", [{"min_genes": 0}, {"max_mito": 1.5}, {"mito_prefixes": ("",)}, {"min_gene": 3}]
)
def test_settings_outside_their_range(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        QCSettings.model_validate(bad)


@pytest.mark.parametrize("block", [3, 8192])
def test_counts_on_disk_are_filtered_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(qc, "BLOCK_CELLS", block)
    (study,) = simulate_study(
        SimulatorSettings(
            datasets=(SimulatedDatasetSettings(name="a", cells=200),), genes=400, target_zero_share=0.9
        )
    ).values()
    limits = QCSettings(min_genes=30, min_cells=5, max_mito=0.2)
    kept, report = filter_counts(study.counts, limits)
    assert 0 < kept.n_obs < 200
    save_counts(study.counts, tmp_path / "raw")
    with StoredCounts(tmp_path / "raw") as stored:
        verdict = judge(stored, limits)
        verdict.write(stored, tmp_path / "kept")
    again = load_counts(tmp_path / "kept")
    assert (again.X != kept.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, kept.obs)
    pd.testing.assert_frame_equal(again.var, kept.var)
    assert verdict.nonzero == kept.X.nnz
    assert verdict.total_counts == kept.X.sum()
    assert verdict.report.cells_dropped == report.cells_dropped
    assert verdict.report.genes_dropped == report.genes_dropped
    np.testing.assert_array_equal(verdict.report.mito_share, report.mito_share)


def test_a_dataset_of_too_few_cells_is_refused_with_their_number() -> None:
    counts = counts_of(np.ones((30, 5)))
    check_size(counts, 20, QCSettings())
    with pytest.raises(BadInput, match=r"here\.csv: holds 19 cells that pass .*\(of 30\), fewer than 20"):
        check_size(counts, 19, QCSettings())
    check_size(counts, 19, QCSettings(fewest_cells=2))


@pytest.mark.parametrize(("giant", "said"), [(5_000_000, True), (100, False)])
def test_a_cell_that_holds_most_counts_is_named(
    giant: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.ones((30, 20))
    values[7, 3] = giant
    judge(counts_of(values), QCSettings())
    assert (
        "one cell holds 100% of all counts, an outlier: 'c7' with 5000019 of 5000599" in caplog.text
    ) == said
