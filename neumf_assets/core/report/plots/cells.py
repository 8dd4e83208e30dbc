"""Maps of cells, coloured by category: of one arm, and of all arms side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neumf_assets.core.report.image import (
    INK,
    NORMAL,
    RULE,
    TITLE,
    ImageFormat,
    draw_legend,
    export,
    legend_size,
    new_figure,
    short_text,
)
from neumf_assets.core.report.palette import MISSING_NAME, category_names, colour_map, ordered
from neumf_assets.core.report.plots.basis import Categories

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_NAMED_IN_PLACE = "cluster"

_MOST_POINTS = 200_000


@dataclass(frozen=True)
class EmbeddedCells:
    """Cells on a map: coordinates (cells × 2) and what to colour them by (name -> one value per cell)."""

    coordinates: npt.NDArray[Any]
    colourings: Mapping[str, Categories]


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
