"""The null run that the comparison shows beside the arms."""

from __future__ import annotations

from neumf_assets.assets.null_scores import chance_check, chance_scores
from neumf_assets.assets.stage import Step
from neumf_assets.study.settings import StudySettings


def test_a_study_may_leave_the_null_run_out() -> None:
    study = StudySettings.model_validate({"name": "a", "metrics": {"null_cells": 0}})
    found = chance_scores(Step(study=study, inputs={}))
    assert found is None
    assert chance_check(found).passed
