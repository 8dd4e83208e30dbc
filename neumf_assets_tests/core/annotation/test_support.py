"""Mutual support against a brute-force loop, and what it says of a type that the references lack."""

from __future__ import annotations

import numpy as np
import pytest

from neumf_assets.core.annotation import support
from neumf_assets.core.annotation.support import mutual_support


def brute_force(queries: np.ndarray, references: np.ndarray, k: int) -> np.ndarray:
    """The definition, cell by cell, before it is evened out."""

    def nearest(point: np.ndarray, among: np.ndarray, n: int, skip: int = -1) -> list[int]:
        order = np.argsort(np.linalg.norm(among - point, axis=1), kind="stable")
        return [int(i) for i in order if i != skip][:n]

    back = max(k, round(k * len(queries) / len(references)))
    pointed = [set(nearest(reference, queries, back)) for reference in references]
    share = []
    for number, query in enumerate(queries):
        hood = {number, *nearest(query, queries, support.OWN_NEIGHBOURS, skip=number)}
        near = nearest(query, references, k)
        share.append(np.mean([bool(pointed[reference] & hood) for reference in near]))
    return np.array(share)


@pytest.mark.parametrize(("n_queries", "n_references"), [(60, 60), (120, 40), (30, 90)])
def test_it_is_its_definition(n_queries: int, n_references: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "SMOOTHINGS", 0)
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(n_queries, 4)), rng.normal(size=(n_references, 4))
    found = mutual_support(queries, references, k=5, metric="euclidean")
    np.testing.assert_allclose(found, brute_force(queries, references, 5))


def test_a_type_that_the_references_lack_has_less() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 10)) * 3
    queries = np.repeat(centres, 80, axis=0) + rng.normal(size=(320, 10))
    references = np.repeat(centres[:3], 80, axis=0) + rng.normal(size=(240, 10)) + 0.5
    found = mutual_support(queries, references)
    assert np.median(found[240:]) < 0.3 < 0.8 < np.median(found[:240])


def test_nobody_supports_where_there_is_nobody() -> None:
    assert mutual_support(np.ones((3, 2)), np.empty((0, 2))).tolist() == [0, 0, 0]
    assert mutual_support(np.empty((0, 2)), np.ones((3, 2))).tolist() == []
    assert mutual_support(np.ones((1, 2)), np.ones((1, 2))).tolist() == [1]
