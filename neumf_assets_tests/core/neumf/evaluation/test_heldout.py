"""Held-out scores against independent references, and the evaluation as a whole on counts of known truth."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse import csr_matrix
from sklearn.metrics import mean_poisson_deviance, mean_squared_error

from neumf_assets.core.counts.store import save_counts
from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
from neumf_assets.core.neumf.evaluation import baselines
from neumf_assets.core.neumf.evaluation.heldout import evaluate_neumf
from neumf_assets.core.neumf.evaluation.notebook import compare_notebook
from neumf_assets.core.neumf.evaluation.ranking import RankingScores
from neumf_assets.core.neumf.evaluation.results import Evaluation, MethodScore
from neumf_assets.core.neumf.evaluation.scorers import (
    Calibration,
    HeldOutDeviance,
    SquaredError,
    TruthError,
    score_blocks,
)
from neumf_assets.core.neumf.evaluation.settings import EvaluationSettings
from neumf_assets.core.neumf.evaluation.thinning import thin
from neumf_assets.core.neumf.genes import select_genes, size_factors
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets_tests.core.neumf.problems import changed
from neumf_assets_tests.core.neumf.problems import low_rank as small

SEED_DATA = Path(__file__).parents[5] / "shared" / "data" / "kang_seed" / "ctrl.csv.gz"
SMALL = NeuMFSettings(
    gmf_size=4, mlp_size=4, tower=(8, 4), epochs=30, pretrain_epochs=30, learning_rate=0.02, threads=1
)
QUICK = EvaluationSettings(n_components=4, nmf_iterations=50)


def low_rank(seed: int = 0, cells: int = 240, genes: int = 80) -> tuple[np.ndarray, csr_matrix]:
    """Return true means of rank 3 in log space with differing library sizes, and Poisson counts."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(cells, 3)) @ rng.normal(size=(3, genes)) * 0.7
    means = np.exp(score - 0.5 + rng.normal(0, 0.3, (cells, 1)))
    return means, csr_matrix(rng.poisson(means).astype(np.int32))


def blocks_of(matrix: np.ndarray, size: int = 50):
    for start in range(0, len(matrix), size):
        yield slice(start, min(start + size, len(matrix))), matrix[start : start + size]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 4.0), st.integers(1, 9))
def test_deviance_and_squared_error_agree_with_scikit_learn(seed: int, ratio: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    y, mu = rng.poisson(0.7, (9, 6)), rng.gamma(1, 1, (9, 6)) + 1e-3
    deviance, squared = HeldOutDeviance(csr_matrix(y), ratio), SquaredError(csr_matrix(y), ratio)
    score_blocks(blocks_of(mu, size), [deviance, squared])
    assert deviance.value == pytest.approx(mean_poisson_deviance(y.ravel(), ratio * mu.ravel()), rel=1e-9)
    assert squared.value == pytest.approx(mean_squared_error(y.ravel(), ratio * mu.ravel()), rel=1e-9)


def test_true_means_have_the_lowest_heldout_deviance() -> None:
    means, counts = low_rank()
    split = thin(counts, seed=1)
    found = {}
    for factor in (0.8, 1.0, 1.25):
        scorer = HeldOutDeviance(split.test, split.ratio)
        score_blocks(blocks_of(0.8 * means * factor), [scorer])
        found[factor] = scorer.value
    assert min(found, key=found.__getitem__) == 1.0


def test_true_means_are_calibrated_and_halved_ones_are_not() -> None:
    means, counts = low_rank(1, 600, 200)
    for factor, calibrated in ((1.0, True), (0.5, False)):
        scorer = Calibration(counts)
        score_blocks(blocks_of(means * factor), [scorer])
        bins = [b for b in scorer.bins if b.entries * b.predicted > 50]
        deviations = [(b.observed - b.predicted) / b.standard_error for b in bins]
        assert (np.abs(deviations).max() < 4.5) == calibrated
        assert len(bins) > 8


def test_calibration_bins_hold_every_entry_and_count() -> None:
    means, counts = low_rank(2)
    scorer = Calibration(counts, ratio=0.25)
    score_blocks(blocks_of(means, 7), [scorer])
    assert sum(b.entries for b in scorer.bins) == means.size
    assert sum(b.entries * b.observed for b in scorer.bins) == pytest.approx(counts.sum())
    assert sum(b.entries * b.predicted for b in scorer.bins) == pytest.approx(0.25 * means.sum(), rel=1e-4)
    assert [b.predicted for b in scorer.bins] == sorted(b.predicted for b in scorer.bins)


def test_truth_error_agrees_with_numpy_and_vanishes_for_the_truth() -> None:
    means, counts = low_rank(3)
    guess = np.vstack([b for _, b in baselines.gene_mean(counts, size_factors(counts).astype(float))])
    truth, other = TruthError(means), TruthError(means)
    score_blocks(blocks_of(means), [truth])
    score_blocks(blocks_of(guess), [other])
    assert truth.correlation == pytest.approx(1.0)
    assert truth.deviance == pytest.approx(0.0, abs=1e-9)
    expected = np.corrcoef(np.log(means).ravel(), np.log(guess).ravel())[0, 1]
    assert other.correlation == pytest.approx(expected, rel=1e-6)
    assert other.deviance == pytest.approx(mean_poisson_deviance(means.ravel(), guess.ravel()), rel=1e-6)


@pytest.fixture(scope="module")
def evaluated() -> Evaluation:
    return evaluate_neumf(low_rank(4)[1], SMALL, QUICK)


def test_model_and_every_baseline_are_scored(evaluated: Evaluation) -> None:
    assert list(evaluated.methods) == ["gene_mean", "svd", "nmf", "gmf", "neumf"]
    assert (evaluated.cells, evaluated.genes) == (240, 80)
    for score in evaluated.methods.values():
        assert score.heldout_deviance is not None
        assert sum(b.entries for b in score.calibration) == 240 * 80
        assert set(score.ranking) == {"sampled", "full"}
        assert score.seconds > 0


def test_structure_lowers_the_heldout_deviance(evaluated: Evaluation) -> None:
    deviance = {name: value or 0.0 for name, value in evaluated.heldout_deviance.items()}
    assert max(deviance["svd"], deviance["nmf"], deviance["gmf"]) < 0.8 * deviance["gene_mean"]
    assert deviance["neumf"] < min(deviance["svd"], deviance["nmf"])
    assert evaluated.best_baseline == min(("gene_mean", "svd", "nmf"), key=deviance.__getitem__)


def test_evaluation_is_json_and_repeats_exactly(evaluated: Evaluation) -> None:
    again = evaluate_neumf(low_rank(4)[1], SMALL, QUICK).to_json()
    first = json.loads(json.dumps(evaluated.to_json(), allow_nan=False))
    for name, score in json.loads(json.dumps(again))["methods"].items():
        score.pop("seconds")
        first["methods"][name].pop("seconds")
        assert score == first["methods"][name]
    assert again["best_baseline"] == evaluated.best_baseline


def test_left_out_gene_is_ranked_better_than_by_chance(evaluated: Evaluation) -> None:
    scores = evaluated.methods["neumf"].ranking["full"]
    assert scores.hit_rate[10] > 1.5 * 10 / scores.candidates
    assert scores.ndcg[10] > evaluated.popularity["full"].ndcg[10]


def test_leave_one_out_trains_without_the_left_out_entries() -> None:
    wanted = QUICK.model_copy(update={"ranking": "leave_one_out", "baselines": ("gene_mean",)})
    counts = low_rank(5)[1]
    trained: list[int] = []

    def listen(stage: str, done: int, total: int, **figures: float) -> None:
        trained.append(done) if stage.startswith("train neumf") else None

    found = evaluate_neumf(counts, SMALL.model_copy(update={"epochs": 2}), wanted, progress=listen)
    assert trained.count(1) == 2
    assert found.popularity["full"].cells == ((counts > 0).sum(axis=1) >= 2).sum()


def test_without_ranking_there_are_no_ranking_scores() -> None:
    wanted = EvaluationSettings(ranking="off", baselines=("gene_mean",), epochs=1)
    found = evaluate_neumf(low_rank(6)[1], SMALL, wanted)
    assert found.popularity == {}
    assert found.methods["neumf"].ranking == {}


def test_caps_bound_the_cost() -> None:
    wanted = EvaluationSettings(max_cells=100, n_genes=30, epochs=2, baselines=("gene_mean",), ranking="off")
    epochs: list[int] = []

    def listen(stage: str, done: int, total: int, **figures: float) -> None:
        epochs.append(total) if stage.startswith("train") else None

    found = evaluate_neumf(low_rank(7)[1], SMALL, wanted, progress=listen)
    assert (found.cells, found.genes) == (100, 30)
    assert max(epochs) == 2


def test_a_model_that_predicts_no_means_is_judged_by_its_ranking() -> None:
    wanted = QUICK.model_copy(update={"baselines": ("gene_mean", "gmf")})
    found = evaluate_neumf(low_rank(8)[1], SMALL.model_copy(update={"objective": "bce"}), wanted)
    assert found.heldout_deviance["neumf"] is None
    assert found.heldout_deviance["gmf"] is None
    assert found.best_baseline == "gene_mean"
    assert isinstance(found.beats_best_baseline, bool)
    assert found.methods["neumf"].calibration == []


@pytest.mark.parametrize(
    ("own", "baseline", "expected"), [(0.1, 0.2, True), (0.2, 0.1, False), (0.2, 0.2, False)]
)
def test_beating_the_best_baseline_means_a_lower_deviance(
    own: float, baseline: float, expected: bool
) -> None:
    methods = {
        "gene_mean": MethodScore(9.0, 0.0),
        "svd": MethodScore(baseline, 0.0),
        "mlp": MethodScore(own, 0.0),
    }
    found = Evaluation("mlp", methods, {}, 1, 1, {})
    assert found.best_baseline == "svd"
    assert found.beats_best_baseline is expected
    assert replace(found, methods={"mlp": methods["mlp"]}).beats_best_baseline is None


def test_the_part_that_neumf_starts_from_is_no_baseline() -> None:
    scores = {"svd": MethodScore(0.3, 0.0), "gmf": MethodScore(0.2, 0.0), "neumf": MethodScore(0.2, 0.0)}
    found = Evaluation("neumf", scores, {}, 1, 1, {})
    assert found.best_baseline == "svd"
    assert found.beats_best_baseline


def test_popularity_is_a_rival_where_only_rankings_compare() -> None:
    def ranking(ndcg: float) -> dict[str, RankingScores]:
        return {"full": RankingScores({10: 1.0}, {10: ndcg}, 1, 2.0)}

    methods = {"neumf": MethodScore(None, 0.0, ranking=ranking(0.4))}
    assert Evaluation("neumf", methods, ranking(0.5), 1, 1, {}).beats_best_baseline is False
    assert Evaluation("neumf", methods, ranking(0.3), 1, 1, {}).beats_best_baseline is True


@pytest.mark.parametrize(
    "wrong", [{"train_share": 1.0}, {"baselines": ("best",)}, {"cut_offs": ()}, {"cutoff": 3}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluationSettings.model_validate(wrong)


def test_notebook_loss_stands_beside_the_constant_predictor() -> None:
    _, counts = low_rank(9)
    found = compare_notebook(counts, SMALL)
    assert list(found) == ["constant", "gene_mean", "notebook", "default"]
    assert found["constant"]["mse"] == pytest.approx(counts.toarray().var(), rel=1e-5)
    assert found["default"]["heldout_deviance"] < found["constant"]["heldout_deviance"]
    assert found["default"]["mse"] < found["constant"]["mse"]


@pytest.fixture(scope="module")
def control() -> csr_matrix:
    if not SEED_DATA.exists():
        pytest.skip("the real count data are not beside the checkout")
    with gzip.open(SEED_DATA) as stream:
        dense = pd.read_csv(stream, index_col=0, engine="pyarrow").to_numpy()
    return csr_matrix(dense.T.astype(np.int32))


def heldout(method, counts: csr_matrix, split_seed: int, **options: object) -> float:
    genes = select_genes(counts, np.zeros(counts.shape[0], np.intp), 2000)
    split = thin(counts, seed=split_seed)
    scorer = HeldOutDeviance(split.test[:, genes], split.ratio)
    factors = size_factors(split.train).astype(float)
    score_blocks(method(split.train[:, genes], factors, **options), [scorer])
    return scorer.value


@pytest.mark.real_data
def test_real_counts_give_the_known_deviances_of_mean_and_svd(control: csr_matrix) -> None:
    means = [heldout(baselines.gene_mean, control, seed) for seed in range(3)]
    svds = [heldout(baselines.svd_log1p, control, seed, seed=seed) for seed in range(3)]
    assert np.mean(means) == pytest.approx(0.2644, abs=0.0008)
    assert np.mean(svds) == pytest.approx(0.1876, abs=0.0008)


@pytest.mark.real_data
@pytest.mark.slow
def test_real_counts_give_the_known_deviance_of_nmf(control: csr_matrix) -> None:
    normalised = heldout(baselines.kl_nmf, control, 0, on="normalised")
    assert normalised == pytest.approx(0.1834, abs=0.0008)
    assert heldout(baselines.kl_nmf, control, 0) < normalised - 0.001


def test_counts_on_disk_are_judged_alike(tmp_path: Path) -> None:
    counts, _, _ = small(cells=90, genes=30)
    names = [f"g{i}" for i in range(30)]
    save_counts(ad.AnnData(counts, var=pd.DataFrame(index=names)), tmp_path)
    chosen = EvaluationSettings(max_cells=60, n_genes=20, baselines=("gene_mean",), epochs=2)
    with StoredCounts(tmp_path) as stored:
        on_disk = evaluate_neumf(StackedCounts.of({"a": stored}), changed(), chosen, gene_names=names)
    assert on_disk.heldout_deviance == evaluate_neumf(counts, changed(), chosen).heldout_deviance


def test_an_evaluation_that_exceeds_the_budget_says_so_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts, _, _ = small(cells=90, genes=30)
    save_counts(ad.AnnData(counts, var=pd.DataFrame(index=[f"g{i}" for i in range(30)])), tmp_path)
    chosen = EvaluationSettings(max_cells=45, baselines=("gene_mean",), epochs=1, ranking="off")
    told: list[tuple[str, int]] = []

    def note(*_: object, **__: object) -> None:
        told.append(("progress", len(caplog.records)))

    with StoredCounts(tmp_path) as stored:
        stack = StackedCounts.of({"a": stored})
        for budget in (90 * counts.nnz // 2 + 1, 90 * counts.nnz // 2 - 1):
            monkeypatch.setattr("neumf_assets.core.memory.budget", lambda budget=budget: budget)
            evaluate_neumf(stack, changed(), chosen, progress=note)
            if budget > 90 * counts.nnz // 2:
                assert not caplog.records
                told.clear()
    assert "Evaluation on 45 cells would take" in caplog.text
    assert "Set evaluation.max_cells lower" in caplog.text
    assert told[0] == ("progress", 1)
