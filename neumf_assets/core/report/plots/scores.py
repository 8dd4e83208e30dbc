"""Pictures of scores: arms over resolutions, clusters against labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neumf_assets.core.report.image import (
    FAINT,
    INK,
    NORMAL,
    RULE,
    SMALL,
    TITLE,
    ImageFormat,
    draw_legend,
    dress,
    export,
    legend_size,
    new_figure,
    short_text,
)
from neumf_assets.core.report.palette import category_names, colour_map, ordered
from neumf_assets.core.report.plots.basis import Categories

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class RunScore:
    """Scores of one clustering: one arm, one resolution, one seed."""

    arm: str
    resolution: float
    seed: int
    scores: Mapping[str, float | None] = field(default_factory=dict)


def comparison(
    runs: Sequence[RunScore],
    metrics: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    image_format: ImageFormat = "png",
) -> bytes:
    """Scores of the arms by clustering resolution: mean over seeds as a line, their range as a band.

    Parameters
    ----------
    runs
        One entry per arm, resolution and seed.
    metrics
        Score -> title; by default ARI, AMI and NMI where known.
    names
        Arm -> name to show.
    image_format
        ``png`` or ``svg``.
    """
    titles = metrics or {"ari": "ARI", "ami": "AMI", "nmi": "NMI"}
    shown = [key for key in titles if any(run.scores.get(key) is not None for run in runs)]
    arms = list(dict.fromkeys(run.arm for run in runs))
    captions = [(names or {}).get(arm, arm) for arm in arms]
    colours = dict(zip(captions, colour_map([f"{i:03d}" for i in range(len(arms))]).values(), strict=True))
    resolutions = sorted({run.resolution for run in runs})
    width = 3.4 * max(len(shown), 1)
    legend = legend_size(captions, width)
    height = 3.1 + legend[1]
    figure = new_figure(width, height)
    for position, key in enumerate(shown):
        box = (3.4 * position + 0.65, 0.6 + legend[1], 2.6, 2.05)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        dress(axes, titles[key], x="clustering resolution", y="score" if position == 0 else "")
        axes.set_xticks(range(len(resolutions)), [f"{r:g}" for r in resolutions])
        for arm, caption in zip(arms, captions, strict=True):
            own = [run for run in runs if run.arm == arm]
            _draw_score(axes, own, key, resolutions, colours[caption])
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0), max(high, 1.0) if high > 0.7 else high * 1.05)
    draw_legend(figure, captions, colours, (0.6, 0.05, width - 0.6, legend[1]))
    return export(figure, image_format)


def _draw_score(
    axes: Axes, runs: Sequence[RunScore], key: str, resolutions: Sequence[float], colour: str
) -> None:
    found: dict[int, list[float]] = {}
    for run in runs:
        value = run.scores.get(key)
        if value is not None and math.isfinite(value):
            found.setdefault(resolutions.index(run.resolution), []).append(value)
    if not found:
        return
    x = sorted(found)
    low, mean, high = ([f(found[i]) for i in x] for f in (min, lambda v: sum(v) / len(v), max))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, mean, color=colour, linewidth=2)
    points = [(i, value) for i in x for value in found[i]]
    axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=3, markeredgewidth=0)


def cluster_label_heatmap(
    clusters: Categories, labels: Categories, title: str = "", image_format: ImageFormat = "png"
) -> bytes:
    """Share of each cluster's cells by label; rows are ordered so that matches lie on the diagonal."""
    from matplotlib.colors import LinearSegmentedColormap

    row_names, column_names, table = cross_table(clusters, labels)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    longest = max([len(short_text(n, 22)) for n in column_names], default=1)
    cell = 0.38
    left = 0.55 + 0.07 * max([len(short_text(n, 16)) for n in row_names], default=1)
    right, top = 0.25 + 0.045 * longest, 0.55 + 0.05 * longest
    width, height = left + cell * len(column_names) + right, top + cell * len(row_names) + 0.15
    width = max(width, 3.2)
    figure = new_figure(width, height)
    axes = figure.add_axes(
        (left / width, 0.15 / height, cell * len(column_names) / width, cell * len(row_names) / height)
    )
    blues = LinearSegmentedColormap.from_list(
        "share", ["#FFFFFF", "#CFE3F1", "#5BA3CF", "#0072B2", "#00406B"]
    )
    axes.imshow(share, cmap=blues, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.005:
            colour = "white" if value > 0.45 else INK
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
    _dress_heatmap(axes, [short_text(n, 16) for n in row_names], [short_text(n, 22) for n in column_names])
    figure.text(
        0.1 / width, 1 - 0.22 / height, short_text(title, 60), fontsize=TITLE, fontweight="bold", color=INK
    )
    return export(figure, image_format)


def _dress_heatmap(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names at the top and the left, white lines between the cells."""
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=INK)
    axes.tick_params(axis="x", pad=1)
    axes.set_ylabel("cluster", fontsize=NORMAL, color=FAINT)
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(RULE)


def dot_plot(dots: pd.DataFrame, clusters: Sequence[str], image_format: ImageFormat = "png") -> bytes:
    """Genes by cluster: the size of a dot is the share of cells that show the gene, its colour the mean.

    Parameters
    ----------
    dots
        ``cluster``, ``gene``, ``mean``, ``share``; genes in the order in which they are drawn. The mean is relative to
        the gene's largest.
    clusters
        Rows, from the top.
    """
    from matplotlib.colors import LinearSegmentedColormap

    genes = list(dict.fromkeys(dots["gene"]))
    mean, share = (
        dots.pivot_table(index="cluster", columns="gene", values=name, sort=False).reindex(
            index=list(clusters), columns=genes
        )
        for name in ("mean", "share")
    )
    relative = (mean / mean.max().replace(0, 1)).to_numpy(float)
    rows = [short_text(name, 22) for name in clusters]
    cell, left = 0.19, 0.35 + 0.07 * max([len(name) for name in rows], default=1)
    top = 0.25 + 0.065 * max([len(short_text(name, 16)) for name in genes], default=1)
    width, height = max(left + cell * len(genes) + 0.2, 3.2), top + cell * len(rows) + 0.55
    figure = new_figure(width, height)
    box = (left / width, 0.55 / height, cell * len(genes) / width, cell * len(rows) / height)
    axes = figure.add_axes(box)
    colours = LinearSegmentedColormap.from_list("mean", ["#E6E6E6", "#F0B27A", "#D55E00", "#7A2E00"])
    x, y = np.meshgrid(np.arange(len(genes)), np.arange(len(rows)))
    axes.scatter(
        x.ravel(),
        y.ravel(),
        s=95 * np.nan_to_num(share.to_numpy(float)).ravel(),
        c=np.nan_to_num(relative).ravel(),
        cmap=colours,
        vmin=0,
        vmax=1,
        linewidths=0,
    )
    axes.set(xlim=(-0.6, len(genes) - 0.4), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xticks(range(len(genes)), [short_text(name, 16) for name in genes], rotation=90)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=SMALL - 1, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_color(RULE)
    figure.text(
        0.1 / width,
        0.2 / height,
        "size: share of cells; colour: mean, relative to the gene's largest",
        fontsize=SMALL,
        color=FAINT,
    )
    return export(figure, image_format)


def cross_table(rows: Categories, columns: Categories) -> tuple[list[str], list[str], npt.NDArray[np.int64]]:
    """Count pairs of categories; columns in natural order, rows by their most frequent column."""
    r, c = category_names(rows), category_names(columns)
    row_names, column_names = ordered(r), ordered(c)
    row_at = {name: i for i, name in enumerate(row_names)}
    column_at = {name: i for i, name in enumerate(column_names)}
    table = np.zeros((len(row_names), len(column_names)), dtype=np.int64)
    np.add.at(table, ([row_at[name] for name in r], [column_at[name] for name in c]), 1)
    if not table.size:
        return row_names, column_names, table
    best = table.argmax(axis=1)
    order = np.lexsort((-table.max(axis=1), best))
    return [row_names[i] for i in order], column_names, table[order]


def top_genes_markdown(factors: Mapping[str, Sequence[str]]) -> str:
    """Markdown table of the top genes of each factor, for asset metadata."""
    lines = ["| factor | top genes |", "|---|---|"]
    for factor, genes in factors.items():
        cells = [str(text).replace("|", "\\|").replace("\n", " ") for text in (factor, ", ".join(genes))]
        lines.append(f"| {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
