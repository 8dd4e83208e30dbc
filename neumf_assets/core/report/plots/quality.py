"""Pictures of quality: what quality control kept, and how well predicted counts are calibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neumf_assets.core.report.image import (
    FAINT,
    INK,
    SMALL,
    ImageFormat,
    draw_legend,
    dress,
    export,
    legend_size,
    new_figure,
    short_text,
)
from neumf_assets.core.report.palette import colour_map
from neumf_assets.core.report.plots.basis import SERIES, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CellQC:
    """Per-cell figures of one dataset for :func:`qc_histograms`; arrays of one value per cell."""

    total_counts: Values
    genes_per_cell: Values
    mito_share: Values | None = None


def qc_histograms(
    datasets: Mapping[str, CellQC],
    thresholds: Mapping[str, float] | None = None,
    image_format: ImageFormat = "png",
) -> bytes:
    """Distributions over cells: total counts, genes per cell, mitochondrial share (where known).

    Parameters
    ----------
    datasets
        Dataset name -> figures of its cells.
    thresholds
        Bounds of the quality control, dashed: any of ``total_counts``, ``genes_per_cell``, ``mito_share``.
    image_format
        ``png`` or ``svg``.
    """
    panels = [("total_counts", "Counts per cell", True), ("genes_per_cell", "Genes per cell", True)]
    if any(qc.mito_share is not None for qc in datasets.values()):
        panels.append(("mito_share", "Mitochondrial share", False))
    legend = legend_size(list(datasets), 3.3 * len(panels))
    height = 2.75 + legend[1]
    figure = new_figure(3.3 * len(panels), height)
    colours = colour_map(list(datasets))
    for position, (key, title, logarithmic) in enumerate(panels):
        left, bottom = (3.3 * position + 0.55) / (3.3 * len(panels)), (0.55 + legend[1]) / height
        axes = figure.add_axes((left, bottom, 2.6 / (3.3 * len(panels)), 1.8 / height))
        dress(axes, title, y="cells (%)" if position == 0 else "")
        _draw_histograms(axes, {n: getattr(qc, key) for n, qc in datasets.items()}, colours, logarithmic)
        if thresholds and key in thresholds:
            axes.axvline(thresholds[key], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        if key == "mito_share":
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    draw_legend(figure, list(datasets), colours, (0.5, 0.05, 3.3 * len(panels) - 0.5, legend[1]))
    return export(figure, image_format)


def _draw_histograms(
    axes: Axes, values: Mapping[str, Values | None], colours: Mapping[str, str], logarithmic: bool
) -> None:
    known = {name: np.asarray(v, dtype=np.float64) for name, v in values.items() if v is not None}
    known = {name: v[np.isfinite(v) & (v > 0 if logarithmic else v >= 0)] for name, v in known.items()}
    everything = np.concatenate([np.zeros(0), *known.values()])
    if not len(everything):
        return
    low, high = float(everything.min()), float(np.quantile(everything, 0.9995))
    high = max(high, low * 1.1, low + 1e-6)
    edges = np.geomspace(low, high, 46) if logarithmic else np.linspace(0, high, 46)
    for name, v in known.items():
        share = 100 * np.histogram(np.minimum(v, high), edges)[0] / max(len(v), 1)
        axes.stairs(share, edges, fill=True, color=colours[name], alpha=0.18, linewidth=0)
        axes.stairs(share, edges, color=colours[name], linewidth=1.5)
    axes.set_ylim(0)
    if logarithmic:
        _log_axis(axes, edges[0], edges[-1])


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic x with a few round numbers written out."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
    axes.set_xticks(ticks[:: max(1, math.ceil(len(ticks) / 6))], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def calibration(
    predicted: Values, observed: Values, title: str = "", bins: int = 25, image_format: ImageFormat = "png"
) -> bytes:
    """Predicted mean against observed mean, on logarithmic axes beside the line of a perfect model.

    Parameters
    ----------
    predicted, observed
        Predicted means and observed counts, one value per entry or per group of entries. More than ``bins``
        values are grouped into bins of equal numbers by prediction, and the means of the groups shown.
    title
        What was predicted.
    bins
        Most points to show.
    image_format
        ``png`` or ``svg``.
    """
    p, o = np.asarray(predicted, dtype=np.float64).ravel(), np.asarray(observed, dtype=np.float64).ravel()
    if len(p) > bins:
        order = np.argsort(p, kind="stable")
        p = np.array([part.mean() for part in np.array_split(p[order], bins)])
        o = np.array([part.mean() for part in np.array_split(o[order], bins)])
    keep = (p > 0) & (o > 0)
    figure = new_figure(3.6, 3.4)
    axes = figure.add_axes((0.2, 0.17, 0.74, 0.7))
    dress(axes, short_text(title or "Calibration", 34), x="predicted mean count", y="observed mean count")
    if keep.any():
        low, high = min(p[keep].min(), o[keep].min()) * 0.6, max(p[keep].max(), o[keep].max()) * 1.7
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(p[keep], o[keep], "o", color=SERIES[0], markersize=4.5, alpha=0.9, markeredgewidth=0)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.text(
            0.98, 0.03, "dashed: perfect", transform=axes.transAxes, fontsize=SMALL, color=FAINT, ha="right"
        )
        axes.minorticks_off()
    return export(figure, image_format)
