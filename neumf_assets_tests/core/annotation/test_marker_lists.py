"""Names suggested for clusters by lists of genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.annotation.marker_lists import listed_genes, suggest_names

MEANS = {"CD79A": [3.0, 0.1, 0.0], "MS4A1": [1.0, 0.0, 0.1], "GNLY": [0.0, 4.0, 0.2], "CD3D": [0.1, 0.2, 2.0]}
LISTS = {"B": ["CD79A", "MS4A1", "ABSENT"], "NK": ["GNLY", "-CD3D"], "T": ["CD3D", "-GNLY"]}


def dots(means: dict[str, list[float]] = MEANS) -> pd.DataFrame:
    rows = [(str(c), gene, value) for gene, values in means.items() for c, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["cluster", "gene", "mean"])


def test_clusters_get_the_name_whose_genes_they_show() -> None:
    found = suggest_names(dots(), LISTS).set_index("cluster")
    assert found["suggested"].to_dict() == {"0": "B", "1": "NK", "2": "T"}
    assert (found["score"] > found["next_score"]).all()


def test_the_score_is_the_mean_of_standardised_means() -> None:
    def standard(gene: str) -> np.ndarray:
        values = np.array(MEANS[gene])
        return (values - values.mean()) / values.std()

    found = suggest_names(dots(), LISTS).set_index("cluster")
    assert found.loc["1", "score"] == pytest.approx((standard("GNLY")[1] - standard("CD3D")[1]) / 2)
    assert found.loc["0", "score"] == pytest.approx((standard("CD79A")[0] + standard("MS4A1")[0]) / 2)


def test_no_name_is_given_without_evidence() -> None:
    flat = {gene: [1.0, 1.0, 1.0] for gene in MEANS}
    assert (suggest_names(dots(flat), LISTS)["suggested"] == "").all()
    twins = {"one": ["CD79A"], "other": ["CD79A"]}
    assert (suggest_names(dots(), twins)["suggested"] == "").all(), "two that tie"
    absent = suggest_names(dots(), {"X": ["NOWHERE"]})
    assert (absent["suggested"] == "").all() and absent["score"].isna().all()


def test_genes_are_listed_once_as_far_as_they_were_measured() -> None:
    assert listed_genes(LISTS, MEANS) == ["CD79A", "MS4A1", "GNLY", "CD3D"]
