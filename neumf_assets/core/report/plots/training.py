"""Pictures of training: loss and objective curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neumf_assets.core.report.image import (
    ImageFormat,
    draw_legend,
    dress,
    export,
    legend_size,
    markdown_image,
    new_figure,
    short_text,
)
from neumf_assets.core.report.plots.basis import SERIES, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    colours = {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}
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
    colours = {name: SERIES[i % len(SERIES)] for i, name in enumerate(objectives)}
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
