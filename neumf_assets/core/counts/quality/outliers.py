"""Cells that differ from the rest of their dataset by more than chance explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neumf_assets.core.counts.quality.figures import CellFigures
from neumf_assets.core.counts.settings import QCSettings

_LEAST_MITO = 0.01
"""A share of mitochondrial counts less than this above the median is no fault, however alike the cells are."""
_SUREST = 1e-6
"""Doublet scores are taken to be no nearer to 0 and 1 than this: their log odds are finite then."""
Mask = NDArray[np.bool_]


def _log_odds(score: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(np.nan_to_num(score, nan=0.5), _SUREST, 1 - _SUREST)
    return np.asarray(np.log(inside / (1 - inside)))


def _from_log_odds(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


_BACK: dict[str, Callable[[float], float]] = {
    "total": np.expm1,
    "genes": np.expm1,
    "doublet": _from_log_odds,
}
"""From the scale that is judged on to that of the figure."""


@dataclass(frozen=True)
class Outliers:
    """Which cells are outliers and why.

    Attributes
    ----------
    any
        Whether a cell is one.
    reasons
        By reason (``total low``), which cells.
    bounds
        By figure, lowest and highest value that is none.
    """

    any: Mask
    reasons: dict[str, Mask]
    bounds: dict[str, tuple[float, float]]

    def described(self) -> NDArray[np.object_]:
        """The reasons of each cell as one text, empty where it is no outlier."""
        texts = np.full(self.any.size, "", dtype=object)
        for reason, cells in self.reasons.items():
            for at in np.flatnonzero(cells):
                texts[at] = f"{texts[at]}, {reason}" if texts[at] else reason
        return texts


def find_outliers(
    figures: CellFigures,
    cells: Mask,
    settings: QCSettings,
    doublet_score: NDArray[np.float64] | None = None,
) -> Outliers:
    """Judge cells by median absolute deviations from the median of their dataset, as is usual in the field.

    Total counts and genes seen (logarithms) and the share of the most frequent genes: both sides; the share of
    mitochondrial counts, and the log odds of a doublet: the upper side alone. The deviations are not scaled to standard
    deviations.

    Parameters
    ----------
    figures
        Figures of all cells.
    cells
        Those to judge, which also make the median; the others are never outliers.
    settings
        How many deviations are too many.
    doublet_score
        How much each cell resembles a sum of two, 0 to 1, where it is known.
    """
    values = {
        "total": (np.log1p(figures.totals), settings.outlier_mads, True),
        "genes": (np.log1p(figures.genes_seen), settings.outlier_mads, True),
        "top20": (figures.top_share, settings.outlier_mads, True),
        "mito": (figures.mito_share, settings.outlier_mads_mito, False),
    }
    if doublet_score is not None:
        values["doublet"] = (_log_odds(doublet_score), settings.outlier_mads, False)
    reasons: dict[str, Mask] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for name, (value, mads, both) in values.items():
        if not cells.any() or (name == "mito" and not figures.known["mito"]):
            continue
        middle = float(np.median(value[cells]))
        width = mads * float(np.median(np.abs(value[cells] - middle)))
        if name == "mito":
            width = max(width, _LEAST_MITO)
        if not width:
            continue
        low, high = middle - width if both else -np.inf, middle + width
        if both:
            reasons[f"{name} low"] = cells & (value < low)
        reasons[f"{name} high"] = cells & (value > high)
        back = _BACK.get(name, float)
        bounds[name] = float(back(low)), float(back(high))
    reasons = {name: found for name, found in reasons.items() if found.any()}
    every = np.logical_or.reduce([np.zeros(cells.size, bool), *reasons.values()])
    return Outliers(every, reasons, bounds)
