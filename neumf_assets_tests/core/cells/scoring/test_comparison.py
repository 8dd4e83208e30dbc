from __future__ import annotations

import pytest

from neumf_assets.core.cells.scoring.comparison import (
    RULE_WITH_LABELS,
    RULE_WITHOUT_EVIDENCE,
    RULE_WITHOUT_LABELS,
    Comparison,
    compare_arms,
    mixing_score,
)
from neumf_assets.core.cells.scoring.scores import ArmScores, RunScore


def arm(
    ari: float | None = None, *, sd: float = 0.01, same: float | None = 0.6, stability: float | None = 0.9
) -> ArmScores:
    runs = tuple(
        RunScore(resolution=r, seed=s, n_clusters=5, ari=None if ari is None else ari + 0.01 * s, ami=ari)
        for r in (0.2, 0.4)
        for s in (0, 1, 2)
    )
    return ArmScores(
        n_cells=100,
        n_clusters=5,
        ari=ari,
        ari_mean=ari,
        ari_mean_sd=None if ari is None else sd,
        same_batch_neighbours=same,
        expected_same_batch=None if same is None else 0.5,
        stability=stability,
        runs=runs,
    )


def test_labels_decide_where_there_are_labels() -> None:
    found = compare_arms({"liger": arm(0.5, stability=0.99, same=0.5), "ineumf": arm(0.7, stability=0.5)})
    assert found.best_arm == "ineumf"
    assert found.ranking == ("ineumf", "liger")
    assert found.rule == RULE_WITH_LABELS
    assert "0.700" in found.reason
    assert found.with_labels


def test_ties_within_the_spread_go_to_the_better_mixed_arm() -> None:
    arms = {
        "liger": arm(0.69, same=0.52, sd=0.02),
        "ineumf": arm(0.70, same=0.60, sd=0.005),
        "other": arm(0.5, same=0.5),
    }
    found = compare_arms(arms)
    assert found.best_arm == "liger"
    assert "tied with ineumf" in found.reason
    arms["liger"] = arm(0.69, same=0.52, sd=0.001)
    assert compare_arms(arms).best_arm == "ineumf"


def test_without_labels_an_arm_must_be_both_steady_and_mixed() -> None:
    found = compare_arms(
        {
            "unintegrated": arm(same=0.98, stability=0.99),
            "noise": arm(same=0.5, stability=0.15),
            "good": arm(same=0.58, stability=0.9),
        }
    )
    assert found.best_arm == "good"
    assert found.rule == RULE_WITHOUT_LABELS
    assert not found.with_labels


def test_mixing_is_no_merit_where_nothing_shows_that_datasets_share_anything() -> None:
    arms = {"pushed": arm(same=0.5, stability=0.8), "apart": arm(same=0.98, stability=0.9)}
    assert compare_arms(arms).best_arm == "pushed"
    found = compare_arms(arms, evidence=False)
    assert found.best_arm == "apart"
    assert found.rule == RULE_WITHOUT_EVIDENCE
    assert "mixing" not in found.reason
    labelled = {"pushed": arm(0.8, same=0.5), "apart": arm(0.5, same=0.98)}
    assert compare_arms(labelled, evidence=False).best_arm == "pushed", "labels decide where there are labels"


def test_without_labels_one_dataset_is_judged_by_stability() -> None:
    assert (
        compare_arms({"a": arm(same=None, stability=0.5), "b": arm(same=None, stability=0.8)}).best_arm == "b"
    )


def test_no_arm_is_best_without_labels_and_seeds() -> None:
    found = compare_arms({"liger": arm(stability=None)})
    assert found.best_arm is None
    assert "two or more seeds" in found.reason
    assert compare_arms({}).best_arm is None


def test_denoising_hurts_only_beyond_the_spread() -> None:
    hurt = compare_arms({"liger": arm(0.6), "neumf_liger": arm(0.4)})
    assert hurt.denoising_hurts is True
    assert hurt.denoising_change == pytest.approx(-0.2)
    assert compare_arms({"liger": arm(0.6), "neumf_liger": arm(0.595)}).denoising_hurts is False
    assert compare_arms({"liger": arm(0.6), "neumf_liger": arm(0.8)}).denoising_hurts is False
    assert compare_arms({"liger": arm(0.6)}).denoising_hurts is None
    assert compare_arms({"liger": arm(), "neumf_liger": arm()}).denoising_hurts is None


def test_mixing_runs_from_separated_to_expected() -> None:
    assert mixing_score(arm(same=1.0)) == 0
    assert mixing_score(arm(same=0.5)) == 1
    assert mixing_score(arm(same=0.75)) == pytest.approx(0.5)
    assert mixing_score(arm(same=0.25)) == pytest.approx(0.5)
    assert mixing_score(arm(same=None)) is None
    within = arm(same=0.75).model_copy(update={"expected_same_batch_within_label": 0.75})
    assert mixing_score(within) == 1


def test_all_runs_and_their_spread_are_listed() -> None:
    found = compare_arms({"liger": arm(0.5), "ineumf": arm(0.7)})
    assert len(found.rows) == 12
    assert {(s.arm, s.resolution) for s in found.spreads} == {
        (a, r) for a in ("liger", "ineumf") for r in (0.2, 0.4)
    }
    spread = found.spreads[0]
    assert (spread.n_seeds, spread.n_clusters_mean) == (3, 5)
    assert spread.ari_mean == pytest.approx(0.51)
    assert spread.ari_sd == pytest.approx(0.01)
    assert found.arms["ineumf"]["ari_mean"] == 0.7
    assert Comparison.model_validate_json(found.model_dump_json()) == found
