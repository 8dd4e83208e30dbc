"""What is a sample, a replicate, a pair; what is assumed and what refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.conditions.samples import (
    NothingToCompare,
    Pairing,
    design_of,
    model_matrix,
    pairing,
)
from neumf_assets.core.conditions.settings import ConditionSettings
from neumf_assets.core.errors import BadSettings
from neumf_assets_tests.core.conditions.cells import design_table


def test_samples_are_replicates_under_conditions() -> None:
    cells = design_table(3, cells=2)
    design = design_of(cells)
    assert len(design.samples) == 6
    assert design.reference == "ctrl"
    assert design.others == ["stim"]
    for row, code in enumerate(design.of_cell):
        sample = design.samples.iloc[code]
        assert (sample["condition"], sample["replicate"]) == tuple(cells.loc[row, ["condition", "donor"]])
    assert any("'donor'" in text for text in design.assumed), "what was not told is said"


def test_without_donors_a_dataset_is_a_replicate() -> None:
    cells = pd.DataFrame({"dataset": ["a", "b", "c"], "condition": ["x", "x", "y"]})
    design = design_of(cells)
    assert design.samples["replicate"].tolist() == ["a", "b", "c"]
    assert any("every dataset is a replicate" in text for text in design.assumed)


def test_cells_without_a_condition_belong_to_no_sample() -> None:
    cells = design_table(2).assign(condition=["ctrl", None, "stim", "stim"])
    assert design_of(cells).of_cell.tolist()[1] == -1


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (pd.DataFrame({"dataset": ["a"]}), "no cell has a column 'condition'"),
        (pd.DataFrame({"dataset": ["a"], "condition": ["x"]}), "one value only \\(x\\)"),
    ],
)
def test_nothing_to_compare_says_why(cells: pd.DataFrame, words: str) -> None:
    with pytest.raises(NothingToCompare, match=words):
        design_of(cells)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"column": "dose"}, "conditions.column names 'dose'.*Columns: dataset, condition, donor"),
        ({"replicate": "mouse"}, "conditions.replicate names 'mouse'"),
        ({"reference": "placebo"}, "'placebo', which is no value.*ctrl, stim"),
        ({"covariates": ["day"]}, "several values \\(1, 2\\)"),
    ],
)
def test_wrong_settings_name_what_there_is(settings: dict[str, object], words: str) -> None:
    cells = design_table(2, cells=2)
    if "covariates" in settings:
        cells["day"] = ["1", "2"] * 4
    with pytest.raises(BadSettings, match=words):
        design_of(cells, ConditionSettings.model_validate(settings))


def paired_as(cells: pd.DataFrame, **settings: object) -> Pairing | str:
    design = design_of(cells, ConditionSettings.model_validate(settings))
    return pairing(design, "stim", np.ones(len(design.samples), bool), 2)


def test_replicates_under_both_conditions_are_paired() -> None:
    found = paired_as(design_table(3))
    assert isinstance(found, Pairing)
    assert found.formula == "~ replicate + condition"
    assert len(found.samples) == 6


def test_others_are_not() -> None:
    found = paired_as(design_table(3, paired=False))
    assert isinstance(found, Pairing)
    assert found.formula == "~ condition"


def test_covariates_are_taken_out_unless_they_go_with_the_condition() -> None:
    cells = design_table(3, paired=False)
    cells["sex"] = ["f", "m", "f"] * 2
    found = paired_as(cells, covariates=["sex"])
    assert isinstance(found, Pairing)
    assert found.formula == "~ sex + condition"
    cells["sex"] = ["f"] * 3 + ["m"] * 3
    assert "cannot be told from sex" in str(paired_as(cells, covariates=["sex"]))


def test_too_few_replicates_are_refused() -> None:
    assert paired_as(design_table(1)) == "too few replicates: 1 under ctrl, 1 under stim"


def test_the_model_matrix_is_of_full_rank_and_ends_with_the_condition() -> None:
    samples = design_of(design_table(3)).samples
    matrix = model_matrix(samples, ("replicate",), "ctrl")
    assert matrix.shape == (6, 4) and np.linalg.matrix_rank(matrix) == 4
    assert matrix[:, -1].tolist() == (samples["condition"] == "stim").astype(float).tolist()
