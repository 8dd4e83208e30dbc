"""Differential expression: planted changes are found, null data give none, samples and not cells are tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.conditions.differential import Differences, find_differences
from neumf_assets.core.conditions.samples import design_of
from neumf_assets_tests.core.conditions.cells import added_up, design_table

REPLICATES, GENES = 5, 300
NAMES = pd.Index([f"g{number}" for number in range(GENES)])
CHANGED = {number: (1.2 if number % 2 else -1.2) for number in range(20)}


def compared(counts: np.ndarray, *, paired: bool = True, cells: int = 100) -> Differences:
    design = design_of(design_table(REPLICATES, paired=paired))
    types = len(counts) // (2 * REPLICATES)
    number = np.full((types, 2 * REPLICATES), cells)
    return find_differences(counts, number, NAMES, [f"type {k}" for k in range(types)], design)


@pytest.mark.parametrize("paired", [True, False])
def test_planted_changes_are_found_with_their_sign_and_size(paired: bool) -> None:
    counts = added_up(np.random.default_rng(0), REPLICATES, GENES, CHANGED, dispersion=0.05)
    table = compared(counts, paired=paired).genes.set_index("gene")
    found = table.index[table["p_adjusted"] <= 0.05]
    planted = [f"g{number}" for number in CHANGED]
    assert len(set(planted) & set(found)) >= 16  # others have hardly any counts
    assert len(set(found) - set(planted)) <= 3
    tested = table.loc[[gene for gene in planted if gene in table.index], "log2_fold_change"]
    expected = np.array([CHANGED[int(gene[1:])] for gene in tested.index]) / np.log(2)
    assert np.median(np.abs(tested - expected)) < 0.3
    assert (np.sign(tested) == np.sign(expected)).all()


def test_nothing_is_found_where_nothing_changes() -> None:
    rng = np.random.default_rng(1)
    counts = np.vstack([added_up(rng, REPLICATES, GENES) for _ in range(4)])
    table = compared(counts).genes
    assert (table["p_adjusted"] <= 0.05).mean() <= 0.01
    assert (table["p_value"] <= 0.05).mean() <= 0.1


def test_it_is_pydeseq2_called_by_hand() -> None:
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    counts = added_up(np.random.default_rng(2), REPLICATES, GENES, CHANGED)
    design = design_of(design_table(REPLICATES)).samples
    rows = pd.Index([f"s{number}" for number in range(len(design))])
    kept = (counts >= 10).sum(axis=0) >= REPLICATES
    data = DeseqDataSet(
        counts=pd.DataFrame(counts[:, kept], index=rows, columns=NAMES[kept]),
        metadata=design.set_index(rows)[["condition", "replicate"]],
        design="~replicate + condition",
        quiet=True,
    )
    data.deseq2()
    statistics = DeseqStats(data, contrast=["condition", "stim", "ctrl"], quiet=True)
    statistics.summary()
    expected = statistics.results_df
    found = compared(counts).genes.set_index("gene").loc[expected.index]
    for ours, theirs in (
        ("log2_fold_change", "log2FoldChange"),
        ("p_value", "pvalue"),
        ("p_adjusted", "padj"),
    ):
        np.testing.assert_allclose(found[ours], expected[theirs], rtol=1e-4, atol=1e-8)


def test_the_surest_genes_come_first() -> None:
    counts = added_up(np.random.default_rng(3), REPLICATES, GENES, CHANGED)
    statistic = compared(counts).genes["statistic"].abs().to_numpy()
    assert (np.diff(statistic) <= 0).all()


def test_a_type_with_too_few_cells_in_its_samples_is_refused_and_the_others_go_on() -> None:
    rng = np.random.default_rng(4)
    counts = np.vstack([added_up(rng, REPLICATES, GENES) for _ in range(2)])
    design = design_of(design_table(REPLICATES))
    cells = np.full((2, 2 * REPLICATES), 50)
    cells[0, 1:] = 3
    found = find_differences(counts, cells, NAMES, ["rare", "common"], design)
    rows = found.compared.set_index("cell_type")
    assert rows.loc["rare", "refused"] == "too few replicates: 1 under ctrl, 0 under stim"
    assert rows.loc["common", "genes"] > 0 and rows.loc["common", "samples"] == "5 + 5"
    assert set(found.genes["cell_type"]) == {"common"}


def test_without_any_counts_nothing_is_tested() -> None:
    found = compared(np.zeros((2 * REPLICATES, GENES), np.int64))
    assert found.genes.empty
    assert found.compared["refused"].tolist() == ["no gene has counts enough"]
