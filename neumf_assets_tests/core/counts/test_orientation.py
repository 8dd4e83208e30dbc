"""The rule that tells genes from cells, one case for each of its steps."""

from __future__ import annotations

import numpy as np
import pytest

from neumf_assets.core.counts.readers.contents.orientation import decide

BARCODES = ["ctrlTCAGCGCTGGTCAT-1", "AAACATACCAGAAA-1", "GGGTTTAACCCATG"]
GENES = ["RP11.206L10.2", "FOO1", "GAPDH", "BAR2"]
PLAIN = ["a", "b", "c", "d", "e"]


def names(values: list[str]) -> np.ndarray:
    return np.asarray(values, dtype=object)


@pytest.mark.parametrize(
    ("one", "other", "labelled", "rule"),
    [
        (GENES, BARCODES, None, "barcodes"),
        (PLAIN, BARCODES, None, "barcodes"),
        (GENES, ["s1", "s2", "s3", "s4", "s5", "s6"], None, "genes"),
        (["ENSMUSG00000051951", "x"], ["w1", "w2", "w3"], None, "genes"),
        (["mt-Co1", "Xkr4"], ["w1", "w2", "w3"], None, "genes"),
        (["FBgn0000008", "x"], ["w1", "w2", "w3"], None, "genes"),
        (["g1", "g2"], PLAIN, ["a", "b", "e"], "labels"),
    ],
)
def test_names_decide_both_ways_round(
    one: list[str], other: list[str], labelled: list[str] | None, rule: str
) -> None:
    cells = None if labelled is None else names(labelled)
    assert decide(names(one), names(other), cells, "auto") == ("genes_by_cells", rule)
    assert decide(names(other), names(one), cells, "auto") == ("cells_by_genes", rule)


def test_without_any_hint_the_longer_side_holds_the_genes() -> None:
    assert decide(names(PLAIN), names(PLAIN[:2]), None, "auto") == ("genes_by_cells", "shape")
    assert decide(names(PLAIN[:2]), names(PLAIN), None, "auto") == ("cells_by_genes", "shape")
    assert decide(names(PLAIN), names(PLAIN), None, "auto") == ("genes_by_cells", "shape")


def test_the_setting_overrules_the_names() -> None:
    assert decide(names(GENES), names(BARCODES), None, "cells_by_genes") == ("cells_by_genes", "setting")
