"""All that quality control finds out about the cells of one dataset, and what it decides from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.cells.doublets import Doublets, find_doublets
from neumf_assets.core.counts.qc import Mask, Verdict, blocks_of, figures_of, judge
from neumf_assets.core.counts.quality.ambient import ambient_share
from neumf_assets.core.counts.quality.cell_calling import CalledCells, call_cells
from neumf_assets.core.counts.quality.figures import CellFigures
from neumf_assets.core.counts.quality.outliers import Outliers, find_outliers
from neumf_assets.core.counts.settings import QCSettings
from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.progress import Progress, silent

_logger = logging.getLogger(__name__)
_MUCH_AMBIENT = 0.2
_PREFIX = "qc_"


@dataclass(frozen=True)
class Examined:
    """What was found.

    Attributes
    ----------
    verdict
        Which cells and genes are kept.
    figures
        Figures of every barcode.
    called
        Which barcodes are cells, where the file held all droplets.
    outliers, doublets
        Where the settings ask for them, and there are cells enough.
    ambient
        Share of the cells' counts that is ambient RNA, where a raw matrix tells what that is.
    """

    verdict: Verdict
    figures: CellFigures
    called: CalledCells | None
    outliers: Outliers | None
    doublets: Doublets | None
    ambient: float | None

    def columns(self) -> pd.DataFrame:
        """A row for every barcode: its figures, and whether it is an outlier or a doublet."""
        figures = self.figures
        table = {
            "total_counts": figures.totals,
            "genes": figures.genes_seen,
            "mito_share": figures.mito_share,
            "ribo_share": figures.ribo_share,
            "hb_share": figures.hb_share,
            "top20_share": figures.top_share,
        }
        known = figures.known
        columns: dict[str, Any] = {
            name: values
            for name, values in table.items()
            if not name.endswith("_share") or name == "top20_share" or known[name.removesuffix("_share")]
        }
        if self.outliers is not None:
            columns["outlier"] = self.outliers.any
            columns["outlier_in"] = pd.Categorical(pd.Series(self.outliers.described()).replace("", None))
        if self.doublets is not None:
            columns["doublet_score"] = self.doublets.score
            columns["doublet"] = self.doublets.called
        return pd.DataFrame({f"{_PREFIX}{name}": values for name, values in columns.items()})


def examine(
    counts: StoredCounts,
    settings: QCSettings,
    *,
    unfiltered: bool = False,
    ambient: NDArray[np.float64] | None = None,
    progress: Progress = silent,
) -> Examined:
    """Examine one dataset.

    Fixed limits decide first (and cell calling, in a raw matrix); of the cells that pass, outliers and doublets are
    found, which are removed where the settings say so.

    Parameters
    ----------
    counts
        The counts as read.
    unfiltered
        Whether they hold all droplets, most of them empty.
    ambient
        Share of each gene in the ambient RNA, where a raw matrix beside this one tells it.

    Raises
    ------
    BadInput
        When no cell or no gene remains.
    """
    figures = figures_of(counts, settings)
    called = _called(counts, figures, settings) if unfiltered and settings.call_cells == "auto" else None
    removed: dict[str, Mask] = {} if called is None else {"background": ~called.cells}
    verdict = judge(counts, settings, figures, removed)
    outliers = doublets = None
    if settings.doublets != "off" and counts.whole:
        doublets = _doublets(counts, np.flatnonzero(verdict.cells), settings, progress)
        if doublets is not None and settings.doublets == "remove":
            removed["doublet"] = doublets.called
    if settings.outliers != "off":
        score = None if doublets is None else doublets.score
        outliers = find_outliers(figures, verdict.cells, settings, score)
        if settings.outliers == "remove":
            removed["outlier"] = outliers.any
    if set(removed) - {"background"}:
        verdict = judge(counts, settings, figures, removed)
    profile = called.ambient if called is not None else ambient
    share = None if profile is None else _ambient(counts, verdict.cells, profile, settings)
    return Examined(verdict, figures, called, outliers, doublets, share)


def _called(counts: StoredCounts, figures: CellFigures, settings: QCSettings) -> CalledCells | None:
    try:
        found = call_cells(
            lambda: blocks_of(counts),
            counts.shape,
            figures.totals,
            lower=settings.call_lower,
            fdr=settings.call_fdr,
            expected_cells=settings.expected_cells,
            seed=settings.seed,
        )
    except NeumfError as error:
        _logger.warning("%s All barcodes are taken for cells.", error)
        return None
    _logger.warning(
        "A raw droplet matrix: of %d barcodes %d are called cells (%d above the knee at %.0f counts, %d of the %d "
        "tested below it); the others are left out as background",
        counts.shape[0],
        found.cells.sum(),
        found.cells.sum() - found.found,
        found.knee,
        found.found,
        found.tested,
    )
    return found


def _doublets(
    counts: StoredCounts, cells: NDArray[np.intp], settings: QCSettings, progress: Progress
) -> Doublets | None:
    """Doublets among the cells that pass, laid out over all barcodes."""
    stacked = StackedCounts.of({"": counts})
    found = find_doublets(
        lambda chosen: stacked.take(cells[chosen]),
        cells.size,
        rate=settings.doublet_rate,
        seed=settings.seed,
        progress=progress,
    )
    if found is None:
        return None
    score, called = np.full(counts.shape[0], np.nan), np.zeros(counts.shape[0], bool)
    score[cells], called[cells] = found.score, found.called
    return Doublets(score, found.threshold, called, found.expected)


def _ambient(
    counts: StoredCounts, cells: Mask, profile: NDArray[np.float64], settings: QCSettings
) -> float | None:
    def blocks() -> Iterator[tuple[slice, sparse.csr_matrix]]:
        start = 0
        for rows, X in blocks_of(counts):
            kept = X[cells[rows]]
            yield slice(start, start + kept.shape[0]), kept
            start += kept.shape[0]

    share = ambient_share(blocks, (int(cells.sum()), counts.shape[1]), profile, settings.seed)
    if share is not None and share > _MUCH_AMBIENT:
        _logger.warning(
            "About %.0f%% of the cells' counts are ambient RNA: types of cells look more alike than they are. Take it "
            "off with CellBender or SoupX, and give their counts",
            100 * share,
        )
    return share
