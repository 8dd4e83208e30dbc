"""Pictures: right kind and size, the same every time, and true to what they are given."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image

from neumf_assets.core.report import image as image_module
from neumf_assets.core.report import plots
from neumf_assets.core.report.image import markdown_image
from neumf_assets.core.report.palette import (
    COLOURS,
    MISSING,
    MISSING_NAME,
    category_names,
    colour_map,
    ordered,
)
from neumf_assets.core.report.plots import cells as maps

AWKWARD = ["$x_1$", "_hidden", "<b>", "a" * 200, "line\nbreak", "50 %", "β cells", ""]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)


def share_of_colour(png: bytes, colour: str, tolerance: int = 40) -> float:
    target = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels(png).astype(int) - target).max(axis=1) <= tolerance).mean())


def cells(n: int, seed: int = 0, types: int = 5) -> plots.EmbeddedCells:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, types, n)
    places = np.array([[np.cos(k), np.sin(k)] for k in range(types)])[label] * 5 + rng.normal(size=(n, 2))
    dataset = np.array(["ctrl", "stim"])[rng.integers(0, 2, n)]
    return plots.EmbeddedCells(places, {"dataset": dataset, "label": label, "cluster": label})


def qc(seed: int) -> plots.CellQC:
    rng = np.random.default_rng(seed)
    return plots.CellQC(rng.poisson(900, 300), rng.poisson(400, 300), rng.beta(2, 30, 300))


HISTORY = {"train": np.exp(-np.arange(20) / 4), "validation": 0.1 + np.exp(-np.arange(20) / 5)}
RUNS = [
    plots.RunScore(arm, resolution, seed, {"ari": base + 0.01 * seed, "ami": None})
    for arm, base in (("liger", 0.4), ("ineumf", 0.7))
    for resolution in (0.1, 0.4, 1.0)
    for seed in range(3)
]
DRAWN = {
    "qc": lambda **k: plots.qc_histograms({"a": qc(0), "b": qc(1)}, {"genes_per_cell": 350}, **k),
    "loss": lambda **k: plots.loss_curves({"a": HISTORY, "b": HISTORY}, **k),
    "objective": lambda **k: plots.objective_curve({"liger": 1e6 * np.exp(-np.arange(9))}, **k),
    "calibration": lambda **k: plots.calibration(np.arange(1, 99), np.arange(1, 99), "a", **k),
    "panel": lambda **k: plots.umap_panel(np.eye(2)[[0, 1, 0]], ["a", "b", None], **k),
    "panels": lambda **k: plots.umap_panels(cells(200), "liger", **k),
    "grid": lambda **k: plots.umap_grid({"liger": cells(200), "ineumf": cells(200, 1)}, **k),
    "comparison": lambda **k: plots.comparison(RUNS, **k),
    "heatmap": lambda **k: plots.cluster_label_heatmap([0, 1, 1], ["B", "T", "NK"], "x", **k),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_is_a_png_of_bounded_size_and_repeats_itself(name):
    image = DRAWN[name]()
    picture = Image.open(io.BytesIO(image))
    assert picture.format == "PNG"
    assert min(picture.size) >= 200
    assert len(image) < image_module.MAX_PNG_BYTES
    assert len(np.unique(pixels(image), axis=0)) > 2
    assert DRAWN[name]() == image
    assert image_module.inches_wide(image) == pytest.approx(picture.size[0] / picture.info["dpi"][0])


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_can_be_svg(name):
    image = DRAWN[name](image_format="svg")
    assert b"<svg" in image[:1000]
    assert DRAWN[name](image_format="svg") == image


def test_many_cells_stay_small_and_are_rasterised():
    many = {f"arm {i}": cells(15_000, i, types=13) for i in range(3)}
    assert len(plots.umap_grid(many)) < 300_000
    svg = plots.umap_panel(many["arm 0"].coordinates, many["arm 0"].colourings["label"], image_format="svg")
    assert len(svg) < 1_000_000  # points as vectors would need several


def test_no_dataset_hides_another():
    """Two datasets at the same places show about equally, whichever comes first in the data."""
    places = np.random.default_rng(0).normal(size=(6000, 2))
    both = np.concatenate([places, places])
    for names in (["a"] * 6000 + ["b"] * 6000, ["b"] * 6000 + ["a"] * 6000):
        image = plots.umap_panel(both, names)
        red, _, blue = pixels(image).astype(int).T
        a, b = (blue - red > 60).mean(), (red - blue > 60).mean()  # the first colour is blue, the next orange
        assert a > 0.02 and 0.7 < a / b < 1.4


def test_order_of_drawing_follows_the_seed():
    many = cells(3000)
    first, second = (plots.umap_panel(many.coordinates, many.colourings["dataset"], seed=s) for s in (0, 1))
    assert first != second


def test_every_category_keeps_its_colour_in_the_packed_picture():
    spots = np.array([[i % 4, i // 4] for i in range(14)], dtype=float).repeat(300, axis=0)
    spots += np.random.default_rng(0).normal(scale=0.12, size=spots.shape)
    names = [f"t{i:02d}" for i in range(14) for _ in range(300)]
    image = plots.umap_panel(spots, names)
    for colour in COLOURS:
        assert share_of_colour(image, colour, 30) > 0.002


def test_paper_stays_white():
    image = pixels(
        plots.umap_panel(cells(5000, types=13).coordinates, cells(5000, types=13).colourings["label"])
    )
    assert (image == 255).all(axis=1).mean() > 0.2


def test_cluster_names_do_not_overlap():
    """Clusters at one place: their names are pushed apart and stay inside."""
    figure = image_module.new_figure(4, 4)
    axes = figure.add_axes((0, 0, 1, 1))
    names = np.array([str(i) for i in range(12)], dtype=object)
    maps._draw_cells(axes, np.zeros((12, 2)) + 1e-3, names, None, named_in_place=True, seed=0)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == 12
    for i, box in enumerate(boxes):
        assert axes.get_window_extent(renderer).contains(*box.min)
        for other in boxes[:i]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 0.5 or height <= 0.5


def test_names_in_place_lie_on_their_own_cells_when_a_cluster_is_split():
    rng = np.random.default_rng(1)
    split = np.concatenate([rng.normal(-9, 0.5, (300, 2)), rng.normal(9, 0.5, (310, 2))])
    x, y = maps._densest_place(split)
    assert np.hypot(split[:, 0] - x, split[:, 1] - y).min() < 0.5
    assert abs(x) > 7


@pytest.mark.parametrize("awkward", AWKWARD)
def test_any_name_can_be_drawn(awkward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # Matplotlib's, of what it builds on
        few = np.zeros((3, 2))
        grid = {awkward: plots.EmbeddedCells(few, {awkward: [awkward] * 3, "cluster": [awkward] * 3})}
        assert plots.umap_grid(grid)
        assert plots.qc_histograms({awkward: qc(0)})
        assert plots.quality_violins({awkward: qc(0), "other": qc(1)})
        assert plots.knee_plot([5, 3, 0], np.array([True, False, False]), 4.0, 1.0, awkward)
        assert plots.loss_curves({awkward: {awkward: [1, 2]}})
        assert plots.cluster_label_heatmap([awkward], [awkward], awkward)
        assert plots.comparison([plots.RunScore(awkward, 1.0, 0, {"ari": 0.5})])
        assert plots.calibration([1.0], [1.0], awkward)


def test_pictures_survive_missing_and_degenerate_values():
    nothing = np.zeros((0, 2))
    assert plots.umap_panel(nothing, [])
    assert plots.loss_curves({"a": {"train": [np.nan, 1.0], "validation": []}})
    assert plots.objective_curve({"a": [1.0]})
    assert plots.calibration([0.0], [0.0])
    assert plots.qc_histograms({"a": plots.CellQC([5, 5, 5], [0, 0, 1])})
    assert plots.comparison([plots.RunScore("a", 0.1, 0, {"ari": float("nan")})])
    assert plots.comparison([])


# --- small texts ----------------------------------------------------------------------------------


def svg_of(markdown: str) -> str:
    found = re.fullmatch(r"!\[loss\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found
    return base64.b64decode(found[1]).decode()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=400),
    st.lists(st.floats(-1e30, 1e30), max_size=400),
)
def test_small_loss_curve_is_always_short_enough_for_dagster(train, validation):
    text = plots.loss_curve_svg({"train": train, "validation": validation})
    assert len(text) < 1000
    if np.isfinite(train).any() or validation:
        assert svg_of(text).startswith("<svg")
    else:
        assert text == ""


def test_small_loss_curve_shows_the_curve():
    svg = svg_of(plots.loss_curve_svg({"train": [4.0, 2.0, 1.0], "validation": [5.0, 3.0, 2.0]}))
    lines = [
        [tuple(map(float, point.split(","))) for point in line.split()]
        for line in re.findall(r"points='([^']+)'", svg)
    ]
    assert [len(line) for line in lines] == [3, 3]
    for line in lines:
        assert [x for x, _ in line] == [0, 95, 190]
        assert sorted((y for _, y in line)) == [y for _, y in line]  # falling loss: down on the screen
    assert lines[1][0][1] == 5 and lines[0][-1][1] == 60  # the highest at the top, the lowest at the bottom
    assert ">5<" in svg and ">1<" in svg


def test_markdown_image_names_its_kind():
    png = plots.calibration([1, 2], [1, 2])
    text = markdown_image(png, "a [picture]")
    assert text.startswith("![a picture](data:image/png;base64,") and text.endswith(")")
    assert base64.b64decode(text.split(",", 1)[1][:-1]) == png
    assert markdown_image(b"<svg/>").startswith("![](data:image/svg+xml;base64,")


def test_top_genes_as_markdown_table():
    text = plots.top_genes_markdown({"1": ["ISG15", "MX1"], "a|b": ["x|y"]})
    assert text.splitlines() == [
        "| factor | top genes |",
        "|---|---|",
        "| 1 | ISG15, MX1 |",
        "| a\\|b | x\\|y |",
    ]


def test_cross_table_counts_pairs():
    rows, columns, table = plots.cross_table([1, 0, 1, 10, 1], ["B", "T", "B", "T", "NA"])
    assert columns == ["B", "T", MISSING_NAME]
    assert dict(zip(rows, table.tolist(), strict=True)) == {"0": [0, 1, 0], "1": [2, 0, 1], "10": [0, 1, 0]}
    assert rows[0] == "1"  # its most frequent column comes first
    assert plots.cross_table([], [])[2].shape == (0, 0)


# --- colours --------------------------------------------------------------------------------------


def test_categories_are_in_natural_order_with_the_unlabelled_last_and_grey():
    names = category_names(["c10", "c2", None, "NA", float("nan"), "c1", ""])
    assert ordered(names) == ["c1", "c2", "c10", MISSING_NAME]
    assert colour_map(names) == {
        "c1": COLOURS[0],
        "c2": COLOURS[1],
        "c10": COLOURS[2],
        MISSING_NAME: MISSING,
    }


def test_colours_are_distinct_for_42_categories():
    colours = colour_map([f"{i:02d}" for i in range(42)])
    assert len(set(colours.values())) == 42
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours.values())


def test_first_colours_differ_for_the_colour_blind():
    """Distances after simulated deuteranopia and protanopia (Viénot, Brettel & Mollon 1999)."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS[:7]])
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    for lacking in (np.eye(3), deutan, protan):
        seen = np.linalg.inv(to_lms) @ lacking @ to_lms @ (rgb**2.2).T
        seen = np.clip(seen, 0, 1).T ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 9 * np.eye(len(seen))
        assert distance.min() > 0.12


def test_importing_plots_does_not_load_matplotlib():
    code = (
        "import sys, neumf_assets.core.report.plots, neumf_assets.core.report.html.page;"
        "print([m for m in ('matplotlib', 'jinja2', 'PIL', 'torch', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_of_very_many_cells_a_random_part_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    scatter = Axes.scatter

    def counted(self: Axes, x: Any, *args: Any, **options: Any) -> Any:
        drawn.append(len(x))
        return scatter(self, x, *args, **options)

    monkeypatch.setattr(Axes, "scatter", counted)
    monkeypatch.setattr(maps, "_MOST_POINTS", 100)
    plots.umap_panel(cells(80).coordinates, cells(80).colourings["dataset"])
    plots.umap_panel(cells(300).coordinates, cells(300).colourings["dataset"])
    assert drawn == [80, 100]


def test_marked_cells_are_drawn_with_their_number():
    values = np.arange(1, 51, dtype=float)
    marked = values > 45
    plain = plots.quality_scatter(values, values, values / 100)
    both = plots.quality_scatter(values, values, values / 100, marked, ~marked, image_format="svg")
    assert plain.startswith(b"\x89PNG")
    assert b"<svg" in both
    assert plots.quality_scatter(values, values, None, marked).startswith(b"\x89PNG")


@pytest.mark.parametrize("totals", [[0, 0], [1], [7, 7, 7]])
def test_a_knee_of_next_to_nothing_is_drawn(totals):
    assert plots.knee_plot(totals, np.array(totals) > 3, float("inf"), 100.0).startswith(b"\x89PNG")


def test_dots_are_drawn_for_every_cluster_and_gene() -> None:
    dots = pd.DataFrame(
        {
            "cluster": ["0", "0", "1", "1"],
            "gene": ["CD74", "GNLY", "CD74", "GNLY"],
            "mean": [2.0, 0.0, 0.1, 3.0],
            "share": [0.9, 0.0, 0.1, 1.0],
        }
    )
    drawn = plots.dot_plot(dots, ["0", "1"])
    assert drawn.startswith(b"\x89PNG") and drawn == plots.dot_plot(dots, ["0", "1"])
    assert drawn != plots.dot_plot(dots.assign(share=0.5), ["0", "1"])
    assert b"GNLY" in plots.dot_plot(dots, ["0", "1"], image_format="svg")
