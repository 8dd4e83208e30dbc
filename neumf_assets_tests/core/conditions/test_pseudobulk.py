"""Counts added up by group against a loop over the cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from neumf_assets.core.conditions import pseudobulk as module
from neumf_assets.core.conditions.pseudobulk import pseudobulk
from neumf_assets.core.counts.stack import shared_genes
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.conditions.cells import Part


def parts(rng: np.random.Generator, cells: tuple[int, int]) -> dict[str, Part]:
    """Two datasets with most genes in common, in another order."""
    first, second = pd.Index(list("abcde")), pd.Index(list("ecbxa"))
    counts = [sp.csr_matrix(rng.poisson(0.7, (n, 5)).astype(np.int32)) for n in cells]
    return {"one": Part(counts[0], first), "two": Part(counts[1], second)}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 12), st.integers(1, 5))
def test_they_are_the_sums_of_a_loop(seed: int, n: int, m: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    data = parts(rng, (n, m))
    group = rng.integers(-1, 3, n + m)
    genes = pd.Index(shared_genes(data))
    assert genes.tolist() == ["a", "b", "c", "e"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_CELLS", block)
        found = pseudobulk(data, group, 3, genes)
    expected, row = np.zeros((3, 4), np.int64), 0
    for part in data.values():
        for cell in part.matrix.toarray():
            if group[row] >= 0:
                expected[group[row]] += [cell[part.var_names.get_loc(gene)] for gene in genes]
            row += 1
    np.testing.assert_array_equal(found, expected)


def test_values_that_are_no_counts_are_refused() -> None:
    half = Part(sp.csr_matrix(np.array([[0.5, 1.0]])), pd.Index(["a", "b"]))
    with pytest.raises(NeumfError, match="one holds values that are no counts"):
        pseudobulk({"one": half}, np.array([0]), 1, half.var_names)
    with pytest.raises(NeumfError, match="do not fit"):
        pseudobulk({"one": half}, np.array([0, 0]), 1, half.var_names)
