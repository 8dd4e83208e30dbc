"""Pictures of what quality control found: knee of a raw matrix, violins, outliers and doublets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neumf_assets.core.report.image import (
    FAINT,
    INK,
    RULE,
    SMALL,
    ImageFormat,
    draw_legend,
    dress,
    export,
    new_figure,
    short_text,
)
from neumf_assets.core.report.palette import colour_map
from neumf_assets.core.report.plots.basis import SERIES, Values
from neumf_assets.core.report.plots.quality import CellQC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 20_000
_VIOLINS = 24
_DASHED = (0, (4, 3))


def knee_plot(
    totals: Values,
    cells: npt.NDArray[np.bool_],
    knee: float,
    lower: float,
    title: str = "",
    image_format: ImageFormat = "png",
) -> bytes:
    """Counts of all barcodes by rank, on logarithmic axes; those that are called cells are dark.

    Parameters
    ----------
    totals, cells
        Counts of each barcode, and whether it is called a cell.
    knee, lower
        From which counts on every barcode is a cell, and up to which none is.
    """
    order = np.argsort(np.asarray(totals))[::-1]
    ranked, called = np.asarray(totals, dtype=float)[order], np.asarray(cells)[order]
    places = np.unique(np.geomspace(1, max(len(ranked), 1), 2000).astype(int)) - 1
    places = places[ranked[places] > 0]
    share = np.cumsum(called)
    figure = new_figure(4.6, 3.3)
    axes = figure.add_axes((0.15, 0.16, 0.8, 0.72))
    dress(axes, short_text(title or "Barcodes by rank", 40), x="barcode, by counts", y="counts")
    for start, stop in pairwise(places):
        part = (share[stop] - share[start]) / max(1, stop - start)  # of cells among these barcodes
        colour = SERIES[0] if part > 0.5 else "#9CC4DC" if part > 0.02 else RULE
        axes.plot([start + 1, stop + 1], ranked[[start, stop]], color=colour, linewidth=2.4)
    axes.set(xscale="log", yscale="log")
    for value, name in ((knee, "knee"), (lower, "surely empty below")):
        if np.isfinite(value) and value > 0:
            axes.axhline(value, color=FAINT, linewidth=0.8, linestyle=_DASHED)
            axes.text(1.1, value * 1.08, name, fontsize=SMALL, color=FAINT, va="bottom")
    text = f"{int(called.sum()):,} of {len(ranked):,} are cells"
    axes.text(0.98, 0.95, text, transform=axes.transAxes, fontsize=SMALL, color=INK, ha="right", va="top")
    axes.minorticks_off()
    return export(figure, image_format)


def quality_scatter(
    totals: Values,
    genes: Values,
    mito: Values | None,
    outlier: npt.NDArray[np.bool_] | None = None,
    doublet: npt.NDArray[np.bool_] | None = None,
    image_format: ImageFormat = "png",
) -> bytes:
    """Counts against genes of each cell: what is marked, and beside it the mitochondrial share where it is known."""
    x, y = (np.asarray(v, dtype=float) for v in (totals, genes))
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:_POINTS])
    width = 3.7 if mito is None else 7.4
    figure = new_figure(width, 3.3)
    marked = figure.add_axes((0.6 / width, 0.16, 2.7 / width, 0.72))
    dress(marked, "Marked cells", x="counts per cell", y="genes per cell")
    marks = {"other cells": np.ones(len(chosen), bool)}
    colours = {"other cells": RULE, "outlier": SERIES[1], "doublet": SERIES[2]}
    for name, mask in (("outlier", outlier), ("doublet", doublet)):
        if mask is not None:
            marks[name] = np.asarray(mask)[chosen]
    for name, mask in marks.items():
        size = 4 if name == "other cells" else 8
        marked.scatter(x[chosen][mask], y[chosen][mask], s=size, color=colours[name], linewidths=0)
    named = {n: f"{n} ({int(mask.sum()):,})" for n, mask in marks.items() if n != "other cells"}
    if named:
        box = (0.75, 2.35, 1.3, 0.5)
        draw_legend(figure, list(named.values()), {named[n]: colours[n] for n in named}, box)
    drawn = [marked]
    if mito is not None:
        drawn.append(_coloured(figure, width, x[chosen], y[chosen], np.asarray(mito, dtype=float)[chosen]))
    for axes in drawn:
        axes.set(xscale="log", yscale="log")
        axes.minorticks_off()
    return export(figure, image_format)


def _coloured(
    figure: Figure,
    width: float,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
) -> Axes:
    """The same cells, coloured by their mitochondrial share."""
    axes = figure.add_axes((4.0 / width, 0.16, 2.7 / width, 0.72))
    dress(axes, "Mitochondrial share", x="counts per cell")
    order = np.argsort(share)
    highest = max(float(np.quantile(share, 0.99)) if len(share) else 0.0, 1e-3)
    points = axes.scatter(
        x[order], y[order], c=share[order], s=4, cmap="cividis_r", vmin=0, vmax=highest, linewidths=0
    )
    bar = figure.colorbar(points, cax=figure.add_axes((6.8 / width, 0.16, 0.09 / width, 0.72)))
    bar.ax.tick_params(labelsize=SMALL, colors=FAINT)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    bar.outline.set_visible(False)
    return axes


def quality_violins(datasets: Mapping[str, CellQC], image_format: ImageFormat = "png") -> bytes:
    """Counts, genes and mitochondrial share of the cells of each dataset side by side; the line is the median."""
    shown = dict(list(datasets.items())[:_VIOLINS])
    panels = [("total_counts", "Counts per cell", True), ("genes_per_cell", "Genes per cell", True)]
    if any(qc.mito_share is not None for qc in shown.values()):
        panels.append(("mito_share", "Mitochondrial share", False))
    width = max(6.0, 0.55 * len(shown) + 1.2)
    height = 1.75 * len(panels) + (0.9 if len(shown) > 4 else 0.25)
    figure = new_figure(width, height)
    colours = colour_map(list(datasets))
    for row, (key, title, logarithmic) in enumerate(panels):
        bottom = (height - 1.75 * (row + 1) + 0.2) / height
        axes = figure.add_axes((0.75 / width, bottom, 1 - 0.95 / width, 1.2 / height))
        dress(axes, title)
        for place, (name, qc) in enumerate(shown.items()):
            _violin(axes, place, getattr(qc, key), colours[name], logarithmic)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        last = row == len(panels) - 1
        axes.set_xticks(range(len(shown)))
        axes.set_xticklabels(
            [short_text(name, 16) for name in shown] if last else [],
            rotation=35 if len(shown) > 4 else 0,
            ha="right" if len(shown) > 4 else "center",
            fontsize=SMALL,
        )
        if logarithmic:
            _round_ticks(axes)
        else:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return export(figure, image_format)


def _round_ticks(axes: Axes) -> None:
    """Ticks at a few round numbers, on an axis of logarithms."""
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 2.5 else (1,)
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ticks = [p + np.log10(s) for p in powers for s in steps if low <= p + np.log10(s) <= high]
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(lambda value, _: f"{10**value:,.0f}")


def _violin(axes: Axes, place: int, values: Values | None, colour: str, logarithmic: bool) -> None:
    if values is None:
        return
    known = np.asarray(values, dtype=float)
    known = np.log10(known[known > 0]) if logarithmic else known[np.isfinite(known)]
    if not len(known):
        return
    low, high = float(known.min()), float(np.quantile(known, 0.999))
    if high <= low:
        axes.plot([place - 0.3, place + 0.3], [low, low], color=colour, linewidth=2)
        return
    counts, edges = np.histogram(np.minimum(known, high), 60, (low, high))
    smooth = np.convolve(np.pad(counts.astype(float), 3, mode="edge"), np.ones(7) / 7, mode="valid")
    half = 0.42 * smooth / smooth.max()
    middle = (edges[:-1] + edges[1:]) / 2
    axes.fill_betweenx(middle, place - half, place + half, color=colour, alpha=0.45, linewidth=0)
    median = float(np.median(known))
    axes.plot([place - 0.25, place + 0.25], [median, median], color=INK, linewidth=1.2)
