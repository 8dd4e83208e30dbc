"""Composition: planted changes are found, null data give the share of false ones that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from neumf_assets.core.conditions.composition import compare_composition, fitted_prior, shares
from neumf_assets.core.conditions.samples import Design, design_of, model_matrix
from neumf_assets_tests.core.conditions.cells import design_table

TYPES = [f"type {number}" for number in range(8)]


def numbers(
    rng: np.random.Generator, design: Design, change: float = 0.0, spread: float = 60.0
) -> np.ndarray:
    """Cells of eight types in each sample; replicates differ (Dirichlet), the first type changes (log odds)."""
    logits = np.linspace(0, 1.5, len(TYPES))
    found = []
    for condition in design.samples["condition"]:
        share = logits.copy()
        share[0] += change * (condition != design.reference)
        found.append(rng.multinomial(800, rng.dirichlet(spread * special.softmax(share))))
    return np.array(found).T


@pytest.mark.parametrize("paired", [True, False])
def test_a_planted_change_is_found(paired: bool) -> None:
    design = design_of(design_table(6, paired=paired))
    found = compare_composition(numbers(np.random.default_rng(0), design, 1.3), TYPES, design)
    row = found.set_index("cell_type").loc["type 0"]
    assert row["p_adjusted"] < 0.05
    assert row["low"] < np.exp(1.3) < row["high"]
    assert row["share_condition"] > 2 * row["share_reference"]
    assert found["samples"].unique().tolist() == ["6 + 6"]


def test_null_data_give_as_many_false_ones_as_are_asked_for() -> None:
    rng = np.random.default_rng(1)
    design = design_of(design_table(4, paired=False))
    p = np.concatenate(
        [compare_composition(numbers(rng, design), TYPES, design)["p_value"] for _ in range(150)]
    )
    assert 0.03 < (p <= 0.05).mean() < 0.07
    assert 0.45 < (p <= 0.5).mean() < 0.55


def test_few_replicates_are_enough_because_types_lend_each_other_strength() -> None:
    rng = np.random.default_rng(2)
    design = design_of(design_table(3, paired=False))
    found = [compare_composition(numbers(rng, design, 1.5), TYPES, design) for _ in range(30)]
    ours = np.mean([table["p_value"].iloc[0] < 0.01 for table in found])
    plain = []
    for _ in range(30):
        cells = numbers(rng, design, 1.5)
        logit = special.logit((cells[0] + 0.5) / (cells.sum(axis=0) + 1))
        is_other = (design.samples["condition"] == "stim").to_numpy()
        plain.append(stats.ttest_ind(logit[is_other], logit[~is_other]).pvalue < 0.01)
    assert ours > np.mean(plain)


def test_effects_are_those_of_least_squares() -> None:
    import statsmodels.api as sm

    design = design_of(design_table(5))
    cells = numbers(np.random.default_rng(3), design, 0.5)
    found = compare_composition(cells, TYPES, design)
    matrix = model_matrix(design.samples, ("replicate",), "ctrl")
    for k in range(len(TYPES)):
        logit = special.logit((cells[k] + 0.5) / (cells.sum(axis=0) + 1))
        fitted = sm.OLS(logit, matrix).fit()
        assert np.log(found["odds_ratio"].iloc[k]) == pytest.approx(fitted.params[-1])


def test_the_prior_of_variances_is_recovered() -> None:
    """Variances drawn as the method assumes: scaled inverse chi-squared, then chi-squared around them."""
    rng = np.random.default_rng(4)
    true = 8 * 0.3 / rng.chisquare(8, 40_000)
    prior, freedom = fitted_prior(true * rng.chisquare(5, true.size) / 5, 5)
    assert prior == pytest.approx(0.3, rel=0.05)
    assert freedom == pytest.approx(8, rel=0.1)
    same = 0.3 * rng.chisquare(5, 100) / 5
    assert fitted_prior(np.full(50, 0.3), 5)[1] == float("inf")
    assert fitted_prior(same, 5)[0] == pytest.approx(0.3, rel=0.25)


def test_shares_have_their_intervals() -> None:
    design = design_of(design_table(2))
    cells = numbers(np.random.default_rng(5), design)
    table = shares(cells, TYPES, design)
    assert table.groupby("sample")["share"].sum().to_numpy() == pytest.approx(1)
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()
    row = table.iloc[0]
    known = stats.binomtest(int(row["cells"]), int(cells[:, 0].sum())).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((known.low, known.high))


def test_without_replicates_nothing_is_tested() -> None:
    design = design_of(design_table(1))
    found = compare_composition(numbers(np.random.default_rng(6), design), TYPES, design)
    assert found["p_value"].isna().all()
    assert found["refused"].str.startswith("too few replicates").all()
