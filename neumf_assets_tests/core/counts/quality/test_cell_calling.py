"""Cells are called in raw matrices, and the ambient RNA is measured: against simulated truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import multinomial

from neumf_assets.core.counts.quality import cell_calling
from neumf_assets.core.counts.quality.ambient import ambient_share
from neumf_assets.core.counts.quality.beside import raw_beside
from neumf_assets.core.counts.quality.cell_calling import ambient_profile, call_cells
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.counts.quality.droplets import Droplets, droplets


@pytest.fixture(scope="module")
def simulated() -> Droplets:
    return droplets(0.1)


def test_cells_are_called_and_empty_droplets_are_not(simulated: Droplets) -> None:
    found = call_cells(simulated.blocks, simulated.X.shape, simulated.totals)
    large, small = simulated.large, simulated.small
    assert found.cells[:large].mean() > 0.99
    assert found.cells[large : large + small].mean() > 0.8, "small cells lie below the knee, and differ"
    false = found.cells[large + small :].sum()
    assert false <= 0.05 * found.cells.sum(), "the rate of false discoveries was to be 1 %"
    assert (simulated.totals[large + small :] > found.lower).sum() > 500, "which counts alone would not tell"
    assert found.found + (simulated.totals >= found.knee).sum() == found.cells.sum()


def test_calling_repeats_bit_for_bit(simulated: Droplets) -> None:
    first, second = (call_cells(simulated.blocks, simulated.X.shape, simulated.totals) for _ in range(2))
    np.testing.assert_array_equal(first.cells, second.cells)


def test_expected_cells_set_the_knee(simulated: Droplets) -> None:
    found = call_cells(simulated.blocks, simulated.X.shape, simulated.totals, expected_cells=simulated.large)
    top = np.sort(simulated.totals)[::-1][: simulated.large]
    assert found.knee == pytest.approx(np.quantile(top, 0.99) / 10)


def test_p_values_are_those_of_all_outcomes_listed() -> None:
    """Three genes and three counts have ten outcomes, whose probabilities are known."""
    ambient = np.array([0.5, 0.3, 0.2])
    outcomes = np.array([(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)])
    chances = multinomial.pmf(outcomes, 3, ambient)
    exact = np.array([chances[chances <= own * (1 + 1e-9)].sum() for own in chances])
    scores = cell_calling._log_likelihood(sparse.csr_matrix(outcomes), np.log(ambient))
    found = cell_calling._p_values(scores, np.full(len(scores), 3), ambient, seed=1)
    # p values of 10,000 draws: four standard deviations of a share are at most 0.02
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_unseen_genes_have_a_share_of_the_ambient_rna() -> None:
    profile = ambient_profile(np.array([1200.0, 1.0, 0.0, 0.0]))
    assert profile.sum() == pytest.approx(1)
    assert 0 < profile[2] == profile[3] < profile[1]


def test_too_few_counts_in_empty_droplets_are_told() -> None:
    with pytest.raises(NeumfError, match="only 30 counts in droplets without a cell"):
        ambient_profile(np.array([10.0, 20.0]))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.25])
def test_the_ambient_share_is_found(share: float) -> None:
    simulated = droplets(share, seed=5)
    cells = simulated.X[: simulated.large]
    found = ambient_share(lambda: iter([(slice(0, cells.shape[0]), cells)]), cells.shape, simulated.ambient)
    assert found is not None and abs(found - share) < 0.25 * share + 0.01


def test_few_cells_tell_no_ambient_share() -> None:
    cells = droplets(0.1).X[:10]
    assert ambient_share(lambda: iter([(slice(0, 10), cells)]), cells.shape, np.full(2000, 1 / 2000)) is None


@pytest.mark.parametrize(
    ("place", "raw", "given"),
    [
        ("S1/outs/filtered_feature_bc_matrix", "S1/outs/raw_feature_bc_matrix", "S1"),
        ("S1/outs/filtered_feature_bc_matrix", "S1/outs/raw_feature_bc_matrix.h5", "S1"),
        ("filtered_feature_bc_matrix", "raw_feature_bc_matrix", "filtered_feature_bc_matrix"),
        ("S1/filtered_gene_bc_matrices/GRCh38", "S1/raw_gene_bc_matrices/GRCh38", "S1"),
        ("S1/Solo.out/Gene/filtered", "S1/Solo.out/Gene/raw", "S1"),
        ("S1/plain", None, "S1/plain"),
    ],
)
def test_the_raw_matrix_beside_a_filtered_one_is_found(
    place: str, raw: str | None, given: str, tmp_path: Path
) -> None:
    folders = [tmp_path / place] + ([tmp_path / raw] if raw and not raw.endswith(".h5") else [])
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
            (folder / name).write_text("")
    if raw and raw.endswith(".h5"):
        (tmp_path / raw).write_text("")
    assert raw_beside(tmp_path / given) == (tmp_path / raw if raw else None)
