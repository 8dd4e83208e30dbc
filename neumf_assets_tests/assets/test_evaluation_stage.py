"""What the asset ``neumf_evaluation`` shows, and that its check only warns."""

from __future__ import annotations

import dagster as dg
import numpy as np
import pytest

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.model import _beats_baselines, _score_rows
from neumf_assets.core.neumf.evaluation.heldout import evaluate_neumf
from neumf_assets.core.neumf.evaluation.results import Evaluation, MethodScore
from neumf_assets.core.neumf.evaluation.settings import EvaluationSettings
from neumf_assets.definitions.checks import check_results, check_specs
from neumf_assets.study.settings import StudySettings
from neumf_assets_tests.core.neumf.problems import changed, low_rank


@pytest.mark.parametrize(("own", "passed"), [(0.2, False), (0.3, False), (0.1, True)])
def test_the_check_warns_unless_the_best_baseline_is_beaten(own: float, passed: bool) -> None:
    methods = {
        "gene_mean": MethodScore(0.9, 0.0),
        "svd": MethodScore(0.2, 0.0),
        "neumf": MethodScore(own, 0.0),
    }
    outcome = _beats_baselines(Evaluation("neumf", methods, {}, 10, 10, {}))
    study = StudySettings(name="a")
    (declared,) = (stage for stage in stages(study) if stage.path == "neumf_evaluation")
    (result,) = check_results(declared, study, [outcome])
    assert result.passed is passed
    assert result.severity is dg.AssetCheckSeverity.WARN
    assert "Best baseline: svd" in (result.description or "")
    (spec,) = (spec for spec in check_specs(declared, study) if spec.name == result.check_name)
    assert not spec.blocking


def test_every_method_and_popularity_stand_in_the_table() -> None:
    wanted = EvaluationSettings(baselines=("gene_mean", "svd", "nmf", "gmf"), n_components=4, n_negatives=7)
    counts, _, _ = low_rank(cells=80, genes=40)
    rows = _score_rows(evaluate_neumf(counts, changed(epochs=2), wanted))
    titles = [row["method"] for row in rows]
    assert titles[-2:] == ["NeuMF", "Popularity"]
    assert len(titles) == 6
    measures = {f"{what}@10, {among}" for what in ("HR", "NDCG") for among in ("7 negatives", "all genes")}
    for row in rows:
        assert row.keys() == {"method", "held-out deviance", "seconds"} | measures
        assert all(0 <= row[name] <= 1 for name in measures)
        assert row["method"] == "Popularity" or np.isfinite(row["held-out deviance"])
