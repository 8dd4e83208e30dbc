"""The simulator against its own stated truth and against the distribution it claims."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from anndata import concat
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from neumf_assets.core.counts.simulate.cells import negative_binomial
from neumf_assets.core.counts.simulate.inbox import MANIFEST, write_inbox
from neumf_assets.core.counts.simulate.settings import (
    BLOOD_CELL_TYPES,
    SimulatedDatasetSettings,
    SimulatorSettings,
    uneven_study,
)
from neumf_assets.core.counts.simulate.study import SimulatedDataset, simulate_chunks, simulate_study
from neumf_assets.core.errors import BadInput, BadSettings

SMALL = SimulatorSettings(
    datasets=(
        SimulatedDatasetSettings(name="a", cells=120, library_mean=60),
        SimulatedDatasetSettings(name="b", cells=80, condition="stimulated", library_mean=60),
    ),
    genes=500,
    seed=3,
)


@pytest.fixture(scope="module")
def study() -> dict[str, SimulatedDataset]:
    return simulate_study(SimulatorSettings())


@pytest.fixture(scope="module")
def large() -> dict[str, SimulatedDataset]:
    """Many cells of deep sequencing, so that empirical fold changes are sharp."""
    return simulate_study(
        SimulatorSettings(
            datasets=(
                SimulatedDatasetSettings(name="ctrl", cells=4000, library_mean=3000),
                SimulatedDatasetSettings(name="stim", cells=4000, condition="stimulated", library_mean=3000),
            ),
            genes=600,
            target_zero_share=0.6,
            batch_strength=0,
            seed=1,
        )
    )


def zero_share(dataset: SimulatedDataset) -> float:
    return 1 - dataset.counts.X.nnz / np.prod(dataset.counts.shape)


def test_default_study_has_the_promised_shape(study):
    assert list(study) == ["ctrl", "stim"]
    for name, dataset in study.items():
        adata = dataset.counts
        assert dataset.name == name
        assert adata.shape == (800, 2000)
        assert adata.X.format == "csr" and adata.X.dtype == np.int32 and adata.X.min() >= 0
        assert adata.X.has_sorted_indices
        assert 0.94 <= zero_share(dataset) <= 0.96
        seen = np.unique(adata.X.indices).size  # dropping unseen genes must not leave a dense matrix
        assert 0.94 <= 1 - adata.X.nnz / (800 * seen) <= 0.96
        assert list(adata.obs.columns) == ["cell_type", "condition"]
        assert adata.obs["cell_type"].nunique() == 8
        assert set(adata.obs["condition"]) == {{"ctrl": "control", "stim": "stimulated"}[name]}
        assert adata.obs_names.is_unique and adata.var_names.is_unique
        assert adata.obs_names.str.fullmatch(rf"[ACGT]{{16}}-1_{name}").all()
        assert all(isinstance(v, str | int | float) for v in adata.uns["provenance"].values())


def test_gene_names_look_real_and_one_occurs_twice(study):
    symbols = study["ctrl"].counts.var["original_name"]
    assert symbols.duplicated().sum() == 1
    assert symbols.str.startswith("MT-").sum() == 13
    assert symbols.str.fullmatch(r"RP[LS].*").sum() >= 30
    assert {"ISG15", "IFIT1", "MX1", "CD3D", "MS4A1", "NKG7", "LYZ"} <= set(symbols)
    assert (study["ctrl"].counts.var_names == study["stim"].counts.var_names).all()


def test_means_are_the_exponential_of_the_factors_and_sum_to_the_library(study):
    for dataset in study.values():
        truth = dataset.truth
        by_hand = np.exp(np.einsum("ck,gk->cg", dataset.cell_factors, truth.factors))
        np.testing.assert_allclose(dataset.means, by_hand, rtol=1e-5)
        assert dataset.means.dtype == np.float32
        np.testing.assert_allclose(by_hand.sum(axis=1), dataset.library_size, rtol=1e-9)


def test_library_sizes_are_log_normal_with_the_set_mean_and_spread():
    cells = 6000
    study = simulate_study(
        SimulatorSettings(
            datasets=(SimulatedDatasetSettings(name="x", cells=cells, library_mean=90, library_log_sd=0.5),),
            genes=400,
            markers_per_program=5,
        )
    )
    library = study["x"].library_size
    assert library.mean() == pytest.approx(90, rel=4 * 0.53 / math.sqrt(cells))
    logs = np.log(library)
    assert stats.kstest((logs - logs.mean()) / logs.std(), "norm").pvalue > 1e-3
    assert logs.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("mean", [1e-4, 0.01, 0.3, 2.5, 15.0, 40.0])
@pytest.mark.parametrize("theta", [0.5, 5.0, 200.0])
def test_counts_follow_the_negative_binomial(mean, theta):
    n = 40_000
    drawn = negative_binomial(np.random.default_rng(5), np.full((n, 1), mean), np.array([theta]))
    counts = drawn.toarray().ravel()
    # scipy's parametrisation: size theta, success probability theta / (theta + mean)
    reference = stats.nbinom(theta, theta / (theta + mean))
    variance = mean + mean**2 / theta
    assert reference.var() == pytest.approx(variance)
    assert counts.mean() == pytest.approx(mean, abs=4.5 * math.sqrt(variance / n))
    edges = np.unique(reference.ppf([0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1 - 1e-4]))
    observed = np.histogram(counts, np.concatenate([[-0.5], edges + 0.5, [np.inf]]))[0]
    expected = n * np.diff(np.concatenate([[0], reference.cdf(edges), [1]]))
    keep = expected > 5
    chi2 = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(chi2, max(keep.sum() - 1, 1)) > 1e-4


def test_sparse_draw_keeps_rows_and_columns_apart():
    mean = np.array([[1e-9, 30.0, 1e-9], [5.0, 1e-9, 100.0]])
    drawn = negative_binomial(np.random.default_rng(0), mean, np.full(3, 1e6))
    assert drawn.has_canonical_format
    assert ((drawn.toarray() > 0) == (mean > 1)).all()


def test_variance_of_the_study_is_mean_plus_squared_mean_over_theta(study):
    """Pearson residuals under the stated truth have mean 0 and variance 1; under Poisson they wouldn't."""
    squared, poisson, raw = [], [], []
    for dataset in study.values():
        mean, theta = dataset.means.astype(np.float64), dataset.truth.theta
        difference = dataset.counts.X.toarray() - mean
        enough = mean > 0.5
        raw.append((difference / np.sqrt(mean + mean**2 / theta))[enough])
        squared.append(raw[-1] ** 2)
        poisson.append((difference**2 / mean)[enough])
    residuals = np.concatenate(raw)
    assert abs(residuals.mean()) < 4.5 / math.sqrt(len(residuals))
    ratio = np.concatenate(squared)
    assert ratio.mean() == pytest.approx(1, abs=4.5 * ratio.std() / math.sqrt(len(ratio)))
    assert np.concatenate(poisson).mean() > 1.15


def test_zero_share_meets_its_expectation_and_its_target(study):
    for dataset in study.values():
        theta = dataset.truth.theta
        mean = dataset.means.astype(np.float64)
        p0 = np.exp(-theta * np.log1p(mean / theta))
        sd = math.sqrt((p0 * (1 - p0)).sum()) / p0.size
        assert zero_share(dataset) == pytest.approx(p0.mean(), abs=4.5 * sd)
    assert np.mean([zero_share(d) for d in study.values()]) == pytest.approx(0.955, abs=0.005)


@pytest.mark.parametrize("target", [0.9, 0.93, 0.965])
def test_zero_share_can_be_set(target):
    study = simulate_study(SimulatorSettings(target_zero_share=target, genes=800, seed=2))
    assert np.mean([zero_share(d) for d in study.values()]) == pytest.approx(target, abs=0.012)


def test_unreachable_zero_share_is_refused_with_the_possible_range():
    impossible = SimulatorSettings(target_zero_share=0.2)
    with pytest.raises(BadSettings, match=r"target_zero_share = 0\.2 .* between 0\.\d+ and 0\.\d+ can"):
        simulate_study(impossible)


def normalised(dataset: SimulatedDataset, cells: np.ndarray) -> np.ndarray:
    """Share of each gene in the counts of some cells."""
    sums = np.asarray(dataset.counts.X[cells].sum(axis=0)).ravel()
    return (sums + 0.5) / sums.sum()


def test_markers_have_the_stated_fold_change(large):
    """NK against CD8 T cells: markers of either, relative to genes that differ by nothing but chance."""
    dataset = large["ctrl"]
    truth, labels = dataset.truth, dataset.counts.obs["cell_type"].to_numpy()
    fold = np.log2(normalised(dataset, labels == "NK") / normalised(dataset, labels == "CD8 T"))
    stated = np.zeros_like(fold)
    for column, name in enumerate(truth.factor_names):
        if name.startswith("program: "):
            u = dataset.cell_factors[:, column]
            stated += (u[labels == "NK"].mean() - u[labels == "CD8 T"].mean()) * truth.factors[:, column]
    stated /= math.log(2)
    seen = np.asarray(dataset.counts.X.sum(axis=0)).ravel() > 2000
    unchanged = seen & (stated == 0)
    shift = np.median(fold[unchanged])  # fold changes of shares are known up to a common factor
    for program, sign in [("NK", 1), ("CD8 T", -1), ("T", -1)]:
        genes = truth.markers[program]
        assert len(genes) == 18
        assert truth.effect(f"program: {program}")[genes].mean() / math.log(2) == pytest.approx(3.0)
        measured = fold[genes][seen[genes]] - shift
        assert len(measured) >= 5
        assert (measured - stated[genes][seen[genes]]).mean() == pytest.approx(0, abs=0.3)
        assert (sign * measured > 1).all()
    assert np.abs(fold[unchanged] - shift).mean() < 0.3


def test_shared_programs_make_relatives_alike(study):
    dataset = study["ctrl"]
    labels = dataset.counts.obs["cell_type"].to_numpy()
    profile = {t: np.log(dataset.means[labels == t].mean(axis=0)) for t in set(labels)}

    def distance(a: str, b: str) -> float:
        return float(np.linalg.norm(profile[a] - profile[b]))

    assert distance("CD4 Naive T", "CD4 Memory T") < distance("CD4 Naive T", "NK")
    assert distance("CD4 Naive T", "NK") < distance("CD4 Naive T", "CD14 Mono")
    assert distance("CD14 Mono", "CD16 Mono") < distance("CD14 Mono", "DC")


def test_response_appears_in_stimulated_cells_only_and_partly_by_type(large):
    ctrl, stim = large["ctrl"], large["stim"]
    truth = ctrl.truth
    specific_everywhere = np.unique(np.concatenate(list(truth.specific_response_genes.values())))
    changed = np.concatenate([truth.response_genes, specific_everywhere])
    same = np.setdiff1d(np.arange(600), changed)
    total = np.asarray(ctrl.counts.X.sum(axis=0)).ravel()
    same = same[total[same] > 5000]
    for cell_type in ("CD14 Mono", "NK"):
        fold = np.log2(
            normalised(stim, (stim.counts.obs["cell_type"] == cell_type).to_numpy())
            / normalised(ctrl, (ctrl.counts.obs["cell_type"] == cell_type).to_numpy())
        )
        fold -= np.median(fold[same])
        common = truth.response_genes[total[truth.response_genes] > 1000]
        stated = truth.response_scale[cell_type] * truth.effect("response")[common] / math.log(2)
        assert (fold[common] - stated).mean() == pytest.approx(0, abs=0.25)
        own = truth.specific_response_genes[cell_type]
        own = own[total[own] > 1000]
        assert len(own) and (fold[own] > 0.8).all()
        others = np.setdiff1d(specific_everywhere, truth.specific_response_genes[cell_type])
        others = others[total[others] > 3000]
        assert len(others) and np.median(np.abs(fold[others])) < 0.4
    specific = len(specific_everywhere)
    assert (len(truth.response_genes), specific) == (36, 24)
    assert truth.effect("response")[truth.response_genes].mean() / math.log(2) == pytest.approx(2.5)


def test_batch_effect_has_the_set_strength(study):
    effect = study["ctrl"].truth.effect("batch ctrl") / math.log(2)
    assert effect.std() == pytest.approx(0.3, rel=0.08)
    assert abs(np.corrcoef(effect, study["ctrl"].truth.effect("batch stim"))[0, 1]) < 0.1
    assert (study["stim"].cell_factors[:, study["ctrl"].truth.factor_names.index("batch ctrl")] == 0).all()


def test_same_seed_same_study_other_seed_other_study():
    first, again = simulate_study(SMALL), simulate_study(SMALL)
    other = simulate_study(SMALL.model_copy(update={"seed": 4}))
    for name in first:
        np.testing.assert_array_equal(first[name].counts.X.toarray(), again[name].counts.X.toarray())
        assert first[name].counts.obs.equals(again[name].counts.obs)
        assert (first[name].counts.X != other[name].counts.X).nnz > 0
        assert not set(first[name].counts.obs_names) & set(other[name].counts.obs_names)


@settings(deadline=None, max_examples=8)
@given(chunk_cells=st.integers(min_value=1, max_value=900))
def test_chunks_joined_are_the_study(chunk_cells):
    plan = SimulatorSettings(
        datasets=(
            SimulatedDatasetSettings(name="x", cells=700),
            SimulatedDatasetSettings(name="y", cells=20),
        ),
        genes=60,
        markers_per_program=2,
        response_genes=4,
        target_zero_share=0.6,
    )
    if chunk_cells < 64:
        chunk_cells *= 7  # many tiny chunks would only repeat the same blocks
    whole = simulate_study(plan)
    chunks: dict[str, list[SimulatedDataset]] = {"x": [], "y": []}
    for chunk in simulate_chunks(plan, chunk_cells):
        assert chunk.counts.n_obs <= chunk_cells
        chunks[chunk.name].append(chunk)
    for name, parts in chunks.items():
        joined = concat([part.counts for part in parts])
        np.testing.assert_array_equal(joined.X.toarray(), whole[name].counts.X.toarray())
        assert list(joined.obs_names) == list(whole[name].counts.obs_names)
        assert list(joined.obs["cell_type"]) == list(whole[name].counts.obs["cell_type"])
        np.testing.assert_allclose(np.concatenate([p.means for p in parts]), whole[name].means, rtol=1e-6)


def test_barcodes_stay_distinct_over_many_chunks():
    plan = SMALL.model_copy(
        update={"datasets": (SimulatedDatasetSettings(name="x", cells=5000),), "genes": 400}
    )
    names = [name for chunk in simulate_chunks(plan, 1024) for name in chunk.counts.obs_names]
    assert len(names) == len(set(names)) == 5000


def test_uneven_studies_are_as_described():
    two, three, six = uneven_study(2), uneven_study(3), uneven_study(6)
    assert [d.cells for d in two.datasets] == [1200, 400]
    assert min(d.cells for d in three.datasets) == min(d.cells for d in six.datasets) == 150
    assert len(six.datasets) == 6 and len({d.cells for d in six.datasets}) == 6
    study = simulate_study(three)
    assert "NK" not in set(study["ctrl"].counts.obs["cell_type"])
    assert "NK" in set(study["stim"].counts.obs["cell_type"])
    assert {n: d.counts.n_obs for n, d in study.items()} == {"ctrl": 900, "stim": 500, "small": 150}
    with pytest.raises(ValueError, match="one of"):
        uneven_study(4)  # type: ignore[arg-type]


def test_datasets_may_be_given_as_mapping_or_list():
    mapping = SimulatorSettings.model_validate(
        {"datasets": {"a": {"cells": 5}, "b": {"condition": "stimulated"}}}
    )
    listed = SimulatorSettings.model_validate({"datasets": [["a", 5, "control"], ["b", 800, "stimulated"]]})
    assert mapping == listed


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"genes": 10}, "genes"),
        ({"target_zero_share": 1.0}, "target_zero_share"),
        ({"datasets": []}, "datasets"),
        ({"datasets": {"a b": {}}}, "pattern"),
        ({"datasets": {"a": {"cells": 0}}}, "cells"),
        ({"datasets": [["a", 5, "boiled"]]}, "condition"),
        ({"datasets": [["a"]]}, "name, cells, condition"),
        ({"datasets": [["a", 5], ["a", 6]]}, "must differ"),
        ({"datasets": {"a": {"missing_types": ["Neuron"]}}}, "Neuron"),
        ({"datasets": {"a": {"missing_types": list(BLOOD_CELL_TYPES)}}}, "no cell type"),
        ({"cell_types": {"T": [], "CD4": ["T"]}}, "different names"),
        ({"genes": 300}, "markers_per_program"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_settings_are_refused(given_settings, words):
    with pytest.raises(ValidationError, match=words):
        SimulatorSettings.model_validate(given_settings)


def test_settings_import_nothing_heavy():
    code = (
        "import sys, neumf_assets.core.counts.simulate.settings as s; s.SimulatorSettings();"
        "print([m for m in ('numpy','scipy','pandas','anndata','torch','matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_inbox_holds_the_simulated_counts_and_labels(tmp_path):
    paths = write_inbox(SMALL, tmp_path / "inbox")
    study = simulate_study(SMALL)
    assert [p.name for p in paths] == ["a.csv.gz", "b.csv.gz"]
    for path in paths:
        dataset = study[path.name.split(".")[0]]
        rows = [line.split(",") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        assert rows[0] == ["", *dataset.counts.obs_names]
        assert [row[0] for row in rows[1:]] == list(dataset.truth.symbols)
        values = np.array([row[1:] for row in rows[1:]], dtype=int)
        np.testing.assert_array_equal(values.T, dataset.counts.X.toarray())
        labels = (path.parent / f"{dataset.name}.labels.csv").read_text().splitlines()
        assert labels[0] == "cell,cell_type"
        assert labels[1:] == [f"{c},{t}" for c, t in dataset.counts.obs["cell_type"].items()]


def test_as_many_cells_as_genes_are_written_the_right_way_round(tmp_path):
    square = SimulatorSettings.model_validate(
        {"datasets": [["ctrl", 400, "control"]], "genes": 400, "seed": 1, "target_zero_share": 0.9}
    )
    (path,) = write_inbox(square, tmp_path)
    expected = simulate_study(square)["ctrl"].counts
    table = pl.read_csv(path, has_header=True)
    assert table.columns[1:] == list(expected.obs_names)
    np.testing.assert_array_equal(table[:, 1:].to_numpy(), expected.X.toarray().T)


def test_inbox_is_left_alone_when_nothing_changed_and_mended_when_damaged(tmp_path):
    paths = write_inbox(SMALL, tmp_path)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}
    write_inbox(SMALL, tmp_path)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()} == before
    paths[0].write_bytes(b"cut")
    (tmp_path / "b.labels.csv").unlink()
    write_inbox(SMALL, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {n: b for n, (_, b) in before.items()}


def test_inbox_follows_changed_settings_but_never_overwrites_foreign_files(tmp_path):
    write_inbox(SMALL, tmp_path)
    old = (tmp_path / "a.csv.gz").read_bytes()
    write_inbox(SMALL.model_copy(update={"seed": 9}), tmp_path)
    assert (tmp_path / "a.csv.gz").read_bytes() != old
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BadInput, match=r"a\.csv\.gz.*in the way"):
        write_inbox(SMALL, tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_interrupted_writing_is_finished_by_the_next(tmp_path, monkeypatch):
    from neumf_assets.core.counts.simulate import inbox

    real, calls = inbox._write_atomically, []

    def dies_at_third(path, data):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(inbox, "_write_atomically", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_inbox(SMALL, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.csv.gz"))  # labels come first: no counts without their labels
    paths = write_inbox(SMALL, tmp_path)
    assert all(p.is_file() for p in paths)
    assert json.loads((tmp_path / MANIFEST).read_text())["files"].keys() == {
        "a.csv.gz",
        "b.csv.gz",
        "a.labels.csv",
        "b.labels.csv",
    }


def test_a_study_too_large_for_text_is_refused_before_it_is_made(tmp_path, monkeypatch):
    many = SMALL.model_copy(update={"datasets": (SMALL.datasets[0].model_copy(update={"cells": 10**8}),)})
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 2**34)
    with pytest.raises(BadSettings, match=r"simulate: .*simulate_chunks"):
        write_inbox(many, tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()
