"""Pictures of what differs between conditions: shares of cell types, genes."""

from __future__ import annotations

import math
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
)
from neumf_assets.core.report.palette import colour_map, ordered
from neumf_assets.core.report.plots.basis import SERIES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_SAMPLES = 60
_MOST_PANELS = 12
_NAMED = 3


def composition_bars(shares: pd.DataFrame, image_format: ImageFormat = "png") -> bytes:
    """:func:`composition_figure` as a picture."""
    return export(composition_figure(shares), image_format)


def composition_figure(shares: pd.DataFrame) -> Figure:
    """A stacked bar for every sample, the samples of a condition side by side.

    Parameters
    ----------
    shares
        ``sample``, ``condition``, ``replicate``, ``cell_type``, ``share``; the first 60 samples are drawn.
    """
    samples = shares[["sample", "condition", "replicate"]].drop_duplicates().head(_MOST_SAMPLES)
    types = ordered(shares["cell_type"])
    colours = colour_map(types)
    # a gap of one bar between conditions
    step = samples["condition"].ne(samples["condition"].shift()).cumsum().to_numpy() - 1
    at = np.arange(len(samples)) + step
    width = max(4.5, 0.24 * (at[-1] + 1) + 1.4)
    legend = legend_size(types, width)
    height = 3.4 + legend[1]
    figure = new_figure(width, height)
    axes = figure.add_axes((0.7 / width, (1.0 + legend[1]) / height, (width - 0.8) / width, 2.0 / height))
    dress(axes, "", x="", y="share of cells")
    below = np.zeros(len(samples))
    table = shares.pivot_table(index="sample", columns="cell_type", values="share", observed=True)
    for name in types:
        values = table[name].reindex(samples["sample"]).fillna(0).to_numpy()
        axes.bar(at, values, bottom=below, color=colours[name], width=0.9, linewidth=0)
        below += values
    axes.set_xticks(at, samples["replicate"], rotation=90, fontsize=SMALL)
    axes.set_xlim(-0.7, at[-1] + 0.7)
    axes.set_ylim(0, 1)
    for condition in samples["condition"].unique():
        middle = at[(samples["condition"] == condition).to_numpy()].mean()
        axes.text(middle, 1.02, condition, ha="center", va="bottom", color=INK, fontsize=SMALL)
    draw_legend(figure, types, colours, (0.6, 0.05, width - 0.6, legend[1]))
    return figure


def volcanoes(genes: pd.DataFrame, max_adjusted_p: float = 0.05, image_format: ImageFormat = "png") -> bytes:
    """:func:`volcano_figure` as a picture."""
    return export(volcano_figure(genes, max_adjusted_p), image_format)


def volcano_figure(genes: pd.DataFrame, max_adjusted_p: float = 0.05) -> Figure:
    """Fold change against certainty, a panel for every comparison (the 12 with most genes found).

    Parameters
    ----------
    genes
        ``cell_type``, ``condition``, ``gene``, ``log2_fold_change``, ``p_value``, ``p_adjusted``.
    """
    found = (genes["p_adjusted"] <= max_adjusted_p).groupby([genes["cell_type"], genes["condition"]]).sum()
    chosen = found.sort_values(ascending=False, kind="stable").index[:_MOST_PANELS]
    several = genes["condition"].nunique() > 1
    columns = min(4, max(1, len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    width, height = 2.35 * columns + 0.3, 2.2 * rows + 0.3
    figure = new_figure(width, height)
    for position, (cell_type, condition) in enumerate(chosen):
        own = genes[(genes["cell_type"] == cell_type) & (genes["condition"] == condition)]
        left = 0.5 + 2.35 * (position % columns)
        bottom = height - 2.2 * (position // columns + 1) + 0.35
        axes = figure.add_axes((left / width, bottom / height, 1.75 / width, 1.5 / height))
        title = f"{cell_type}, {condition}" if several else str(cell_type)
        dress(axes, title, x="log2 fold change", y="−log10 p" if position % columns == 0 else "")
        _volcano(axes, own, max_adjusted_p)
    return figure


def _volcano(axes: Axes, genes: pd.DataFrame, max_adjusted_p: float) -> None:
    known = genes[genes["p_value"].notna()]
    height = -np.log10(np.maximum(known["p_value"].to_numpy(float), 1e-300))
    change = known["log2_fold_change"].to_numpy(float)
    significant = (known["p_adjusted"] <= max_adjusted_p).to_numpy()
    for chosen, colour in (
        (~significant, FAINT),
        (significant & (change < 0), SERIES[0]),
        (significant & (change > 0), SERIES[1]),
    ):
        axes.plot(
            change[chosen], height[chosen], "o", color=colour, markersize=2, markeredgewidth=0, alpha=0.7
        )
    for row in np.flatnonzero(significant)[:_NAMED]:
        axes.annotate(
            str(known["gene"].iloc[row]),
            (change[row], height[row]),
            fontsize=5.5,
            color=INK,
            ha="center",
            va="bottom",
        )
