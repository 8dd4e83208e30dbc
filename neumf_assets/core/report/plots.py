"""Pictures for the report and for asset metadata, as bytes.

Figures are built without pyplot, so nothing global is changed and drawing is safe in threads. The same input
gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    data_uri,
    draw_legend,
    dress,
    export,
    legend_size,
    markdown_image,
    new_figure,
    short_text,
)
from neumf_assets.core.report.palette import MISSING_NAME, category_names, colour_map, ordered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = [
    "CellQC",
    "EmbeddedCells",
    "RunScore",
    "calibration",
    "cluster_label_heatmap",
    "comparison",
    "cross_table",
    "data_uri",
    "loss_curve_svg",
    "loss_curves",
    "markdown_image",
    "objective_curve",
    "qc_histograms",
    "top_genes_markdown",
    "umap_grid",
    "umap_panel",
    "umap_panels",
]

Values = Sequence[float] | npt.NDArray[Any]
Categories = Sequence[object] | npt.NDArray[Any]

_NAMED_IN_PLACE = "cluster"
_MOST_POINTS = 200_000
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#332288")


@dataclass(frozen=True)
class CellQC:
    """Per-cell figures of one dataset for :func:`qc_histograms`; arrays of one value per cell."""

    total_counts: Values
    genes_per_cell: Values
    mito_share: Values | None = None


@dataclass(frozen=True)
class EmbeddedCells:
    """Cells on a map: coordinates (cells × 2) and what to colour them by (name -> one value per cell)."""

    coordinates: npt.NDArray[Any]
    colourings: Mapping[str, Categories]


@dataclass(frozen=True)
class RunScore:
    """Scores of one clustering: one arm, one resolution, one seed."""

    arm: str
    resolution: float
    seed: int
    scores: Mapping[str, float | None] = field(default_factory=dict)


# --- small SVG ------------------------------------------------------------------------------------


def loss_curve_svg(history: Mapping[str, Values], limit: int = 1000) -> str:
    """Markdown with a small loss curve of fewer than ``limit`` characters, which Dagster renders in place.

    Parameters
    ----------
    history
        Series name (``train``, ``validation``) -> value per epoch; not-finite values are left out.
    limit
        Upper bound of the length of the text; curves are thinned to meet it.

    Returns
    -------
    Markdown image with an SVG in its ``data:`` address; empty without any finite value.
    """
    series = [_finite(values) for values in list(history.values())[:2]]
    series = [(x, y) for x, y in series if len(y)]
    if not series:
        return ""
    for points in (40, 30, 22, 16, 12, 8, 5, 3):
        text = markdown_image(_sparkline(series, points).encode(), "loss")
        if len(text) < limit:
            return text
    return ""


def _finite(values: Values) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y = np.asarray(values, dtype=np.float64)
    x = np.arange(1, len(y) + 1, dtype=np.float64)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def _sparkline(series: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], points: int) -> str:
    every = np.concatenate([y for _, y in series])
    low, high, last = float(every.min()), float(every.max()), max(x.max() for x, _ in series)
    size = max(abs(low), abs(high)) or 1.0  # differences of scaled values cannot overflow
    reach = high / size - low / size or 1.0
    lines = []
    for (x, y), colour in zip(series, ("#07b", "#d60"), strict=False):
        chosen = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
        across = 190 * (x[chosen] - 1) / max(last - 1, 1)
        down = 60 - 55 * ((y[chosen] / size - low / size) / reach)
        path = " ".join(f"{a:.0f},{d:.0f}" for a, d in zip(across, down, strict=True))
        lines.append(f"<polyline points='{path}' stroke='{colour}'/>")
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' width='240' height='66'>"
        f"<g fill='none' stroke-width='2'>{''.join(lines)}</g>"
        f"<g fill='#888' font-size='10'><text x='196' y='10'>{high:.4g}</text>"
        f"<text x='196' y='62'>{low:.4g}</text></g></svg>"
    )


# --- curves ---------------------------------------------------------------------------------------


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


def loss_curves(
    histories: Mapping[str, Mapping[str, Values]],
    y: str = "loss per entry",
    x: str = "epoch",
    image_format: ImageFormat = "png",
) -> bytes:
    """Curves of training, one panel per model.

    Parameters
    ----------
    histories
        Model or dataset -> series name (``train``, ``validation``, ``objective``) -> value per epoch.
    y, x
        Names of the axes.
    image_format
        ``png`` or ``svg``.
    """
    columns = min(3, len(histories))
    rows = math.ceil(len(histories) / columns)
    names = list(dict.fromkeys(name for history in histories.values() for name in history))
    colours = {name: _SERIES[i % len(_SERIES)] for i, name in enumerate(names)}
    legend = legend_size(names, 3.4 * columns) if len(names) > 1 else (1, 0.0)
    width, height = 3.4 * columns, 2.5 * rows + legend[1]
    figure = new_figure(width, height)
    for position, (title, history) in enumerate(histories.items()):
        row, column = divmod(position, columns)
        bottom = legend[1] + 2.5 * (rows - 1 - row) + 0.55
        axes = figure.add_axes(((3.4 * column + 0.75) / width, bottom / height, 2.5 / width, 1.6 / height))
        dress(axes, short_text(title), x=x, y=y if column == 0 else "")
        for name, values in history.items():
            epochs, known = _finite(values)
            marker = "o" if len(known) < 15 else ""
            axes.plot(epochs, known, color=colours[name], linewidth=1.8, marker=marker, markersize=3)
        _whole_ticks(axes)
        _short_numbers(axes)
    if len(names) > 1:
        draw_legend(figure, names, colours, (0.7, 0.05, width - 0.7, legend[1]))
    return export(figure, image_format)


def objective_curve(objectives: Mapping[str, Values], image_format: ImageFormat = "png") -> bytes:
    """Objective of integrative NMF by iteration; one line per arm or restart."""
    colours = {name: _SERIES[i % len(_SERIES)] for i, name in enumerate(objectives)}
    legend = legend_size(list(objectives), 5.0) if len(objectives) > 1 else (1, 0.0)
    height = 2.7 + legend[1]
    figure = new_figure(5.0, height)
    axes = figure.add_axes((0.85 / 5, (0.55 + legend[1]) / height, 4.0 / 5, 1.8 / height))
    dress(axes, "Objective", x="iteration", y="objective (lower is better)")
    for name, values in objectives.items():
        iterations, known = _finite(values)
        axes.plot(iterations, known, color=colours[name], linewidth=1.8)
    _whole_ticks(axes)
    _short_numbers(axes)
    if len(objectives) > 1:
        draw_legend(figure, list(objectives), colours, (0.8, 0.05, 4.2, legend[1]))
    return export(figure, image_format)


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _short_numbers(axes: Axes) -> None:
    """Write large y values as 1.2 M instead of with an offset in the corner."""
    top = max(abs(v) for v in axes.get_ylim())
    units = ((1e9, " G"), (1e6, " M"), (1e4, " k"))
    unit, suffix = next(((u, s) for u, s in units if top >= u), (1.0, ""))
    scale = 1e3 if suffix == " k" else unit
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / scale:.4g}{suffix}")


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
        axes.plot(p[keep], o[keep], "o", color=_SERIES[0], markersize=4.5, alpha=0.9, markeredgewidth=0)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.text(
            0.98, 0.03, "dashed: perfect", transform=axes.transAxes, fontsize=SMALL, color=FAINT, ha="right"
        )
        axes.minorticks_off()
    return export(figure, image_format)


# --- maps -----------------------------------------------------------------------------------------


def umap_panel(
    coordinates: npt.NDArray[Any],
    values: Categories,
    colours: Mapping[str, str] | None = None,
    *,
    named_in_place: bool = False,
    seed: int = 0,
    size: float = 3.4,
    image_format: ImageFormat = "png",
) -> bytes:
    """One map of cells without a legend (:func:`~neumf_assets.core.report.palette.colour_map` gives it).

    Parameters
    ----------
    coordinates
        Cells × 2.
    values
        Category of each cell.
    colours
        Category -> colour; by default from the categories.
    named_in_place
        Write the category's name onto its cells (for cluster numbers).
    seed
        Seed of the order in which cells are drawn.
    size
        Width and height, inches.
    image_format
        ``png`` or ``svg``.
    """
    figure = new_figure(size, size)
    axes = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    _draw_cells(axes, coordinates, values, colours, named_in_place=named_in_place, seed=seed)
    return export(figure, image_format, dpi=150)


def umap_panels(
    cells: EmbeddedCells, title: str = "", seed: int = 0, image_format: ImageFormat = "png"
) -> bytes:
    """Maps of one arm side by side, one per colouring (dataset, label, cluster), with legends below."""
    return umap_grid({title: cells}, seed=seed, image_format=image_format)


def umap_grid(arms: Mapping[str, EmbeddedCells], seed: int = 0, image_format: ImageFormat = "png") -> bytes:
    """Maps of several arms: one row per arm, one column per colouring.

    A column's colours are the same in all rows, with one legend below; a colouring called ``cluster`` gets
    its names written onto the cells instead, since clusters of different arms have nothing in common.
    """
    categories: dict[str, list[str]] = {}
    for cells in arms.values():
        for name, values in cells.colourings.items():
            categories[name] = ordered([*categories.get(name, []), *category_names(values)])
    grid = _Grid(len(arms), len(categories), 0.35 if any(arms) else 0.1, _grid_foot(categories))
    figure = new_figure(grid.width, grid.height)
    for row, (arm, cells) in enumerate(arms.items()):
        left, bottom = grid.corner(row, 0)
        figure.text(
            0.18 / grid.width,
            (bottom + grid.panel / 2) / grid.height,
            short_text(arm),
            rotation=90,
            va="center",
            ha="center",
            fontsize=TITLE,
            color=INK,
        )
        for column, name in enumerate(categories):
            if name in cells.colourings:
                left, bottom = grid.corner(row, column)
                sides = (grid.panel / grid.width, grid.panel / grid.height)
                axes = figure.add_axes((left / grid.width, bottom / grid.height, *sides))
                colours = colour_map(categories[name])
                values, in_place = cells.colourings[name], name == _NAMED_IN_PLACE
                _draw_cells(axes, cells.coordinates, values, colours, named_in_place=in_place, seed=seed)
    _draw_grid_names(figure, grid, categories)
    return export(figure, image_format, dpi=110)


@dataclass(frozen=True)
class _Grid:
    """Where the panels of :func:`umap_grid` lie, in inches."""

    rows: int
    columns: int
    side: float
    foot: float
    panel: float = 3.0
    gap: float = 0.12

    @property
    def width(self) -> float:
        return self.side + self.columns * (self.panel + self.gap)

    @property
    def height(self) -> float:
        return 0.42 + self.rows * (self.panel + self.gap) + self.foot

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """Left and bottom of a panel."""
        step = self.panel + self.gap
        return self.side + column * step, self.foot + self.gap + (self.rows - 1 - row) * step


def _grid_foot(categories: Mapping[str, Sequence[str]]) -> float:
    """Room for the highest legend."""
    legends = [
        legend_size(names, _Grid.panel)[1] for key, names in categories.items() if key != _NAMED_IN_PLACE
    ]
    return max(legends, default=0.0) + 0.08


def _draw_grid_names(figure: Figure, grid: _Grid, categories: Mapping[str, Sequence[str]]) -> None:
    for column, (name, shown) in enumerate(categories.items()):
        left, _ = grid.corner(0, column)
        figure.text(
            left / grid.width,
            1 - 0.27 / grid.height,
            f"by {short_text(name)}",
            fontsize=TITLE,
            color=INK,
            fontweight="bold",
        )
        if name != _NAMED_IN_PLACE:
            height = legend_size(shown, grid.panel)[1]
            draw_legend(
                figure, shown, colour_map(shown), (left, grid.foot - 0.02 - height, grid.panel, height)
            )


def _draw_cells(
    axes: Axes,
    coordinates: npt.NDArray[Any],
    values: Categories,
    colours: Mapping[str, str] | None,
    *,
    named_in_place: bool,
    seed: int,
) -> None:
    """Points in random order, so that no dataset hides another; the unlabelled lie below all others.

    Of more cells than a panel has pixels a random part is drawn.
    """
    from matplotlib.colors import to_rgb

    places = np.asarray(coordinates, dtype=np.float64)
    names = np.array(category_names(values), dtype=object)
    colours = dict(colours or colour_map([str(n) for n in names]))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(RULE)
        spine.set_linewidth(0.8)
    if not len(places):
        return
    order = np.random.default_rng(seed).permutation(len(places))[:_MOST_POINTS]
    order = order[np.argsort(names[order] != MISSING_NAME, kind="stable")]
    rgb = {name: to_rgb(colour) for name, colour in colours.items()}
    area = float(np.clip(14000 / len(places), 1.2, 14))
    axes.scatter(
        places[order, 0],
        places[order, 1],
        c=[rgb[name] for name in names[order]],
        s=area,
        linewidths=0,
        rasterized=True,
    )
    _square_limits(axes, places)
    if named_in_place:
        _name_in_place(axes, places, names)


def _square_limits(axes: Axes, places: npt.NDArray[np.float64]) -> None:
    """The same scale in x and y, with the cells in the middle."""
    finite = places[np.isfinite(places).all(axis=1)]
    low, high = finite.min(axis=0), finite.max(axis=0)
    reach = max(float((high - low).max()), 1e-6) * 0.53
    centre = (low + high) / 2
    axes.set_xlim(centre[0] - reach, centre[0] + reach)
    axes.set_ylim(centre[1] - reach, centre[1] + reach)


def _name_in_place(axes: Axes, places: npt.NDArray[np.float64], names: npt.NDArray[Any]) -> None:
    from matplotlib.patheffects import withStroke

    texts: list[Text] = []
    for name in ordered(names):
        if name == MISSING_NAME:
            continue
        text = axes.text(
            *_densest_place(places[names == name]),
            short_text(name, 18),
            fontsize=NORMAL,
            color=INK,
            ha="center",
            va="center",
        )
        text.set_fontweight("bold")
        text.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        texts.append(text)
    _part_texts(axes, texts)


def _densest_place(places: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where most of the cells lie: the middle may lie outside a bent or split cluster."""
    bins = int(np.clip(math.sqrt(len(places)) / 3, 1, 12))
    count, x, y = np.histogram2d(places[:, 0], places[:, 1], bins=bins)
    i, j = divmod(int(count.argmax()), bins)
    near_x = (places[:, 0] >= x[max(i - 1, 0)]) & (places[:, 0] <= x[min(i + 2, bins)])
    near_y = (places[:, 1] >= y[max(j - 1, 0)]) & (places[:, 1] <= y[min(j + 2, bins)])
    middle = np.median(places[near_x & near_y], axis=0)
    return float(middle[0]), float(middle[1])


def _part_texts(axes: Axes, texts: Sequence[Text], rounds: int = 80) -> None:
    """Push overlapping texts apart, along the shorter way, inside the axes."""
    if len(texts) < 2:
        return
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    size = (boxes[:, 2:] - boxes[:, :2]) / 2 + 1.0
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2
    frame = axes.get_window_extent(renderer)
    for _ in range(rounds):
        moved = False
        for i in range(len(texts)):
            for j in range(i):
                apart = centre[i] - centre[j]
                overlap = size[i] + size[j] - np.abs(apart)
                if (overlap > 0).all():
                    way = int(np.argmin(overlap))
                    step = 0.5 * overlap[way] * (1.0 if apart[way] >= 0 else -1.0)
                    centre[i, way] += step
                    centre[j, way] -= step
                    moved = True
        centre = np.clip(centre, np.array([frame.x0, frame.y0]) + size, np.array([frame.x1, frame.y1]) - size)
        if not moved:
            break
    for text, place in zip(texts, axes.transData.inverted().transform(centre), strict=True):
        text.set_position((float(place[0]), float(place[1])))


# --- comparison -----------------------------------------------------------------------------------


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
