"""Figures to bytes: a bare figure, its common dress and legend, and small PNGs with exact colours."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

ImageFormat = Literal["png", "svg"]

INK, FAINT, RULE = "#222222", "#6B6B6B", "#D9D9D9"
SMALL, NORMAL, TITLE = 8.0, 9.0, 10.5
MAX_PNG_BYTES = 300_000  # what a browser and the run storage hold without effort


def markdown_image(image: bytes, alt: str = "") -> str:
    """Markdown that shows a PNG or SVG in place, without any file beside it."""
    return f"![{''.join(c for c in alt if c not in '[]')}]({data_uri(image)})"


def data_uri(image: bytes) -> str:
    """``data:`` address of a PNG or SVG."""
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def inches_wide(png: bytes) -> float:
    """Width that a PNG from this module was drawn for."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        return float(picture.width / picture.info["dpi"][0])


def new_figure(width: float, height: float) -> Figure:
    """A blank figure (inches) that belongs to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def export(figure: Figure, image_format: ImageFormat, dpi: float = 130) -> bytes:
    """PNG with at most 256 colours, made coarser until it is small enough; or SVG."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    if image_format == "svg":
        with rc_context({"svg.hashsalt": "neumf"}):  # ids from content, not from chance
            figure.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None})
        return buffer.getvalue()
    while True:
        image = _small_png(figure, dpi)
        if len(image) <= MAX_PNG_BYTES or dpi < 40:
            return image
        dpi *= max(0.5, 0.95 * math.sqrt(MAX_PNG_BYTES / len(image)))  # bytes go with the area


def _small_png(figure: Figure, dpi: float) -> bytes:
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, metadata={"Software": None})
    packed = io.BytesIO()
    with Image.open(raw) as picture:
        rgb = picture.convert("RGB")
    palette, codes = _palette_and_codes(rgb)
    flat = Image.fromarray(codes, mode="P")
    flat.putpalette(palette.tobytes())
    flat.save(packed, format="PNG", optimize=True, dpi=(dpi, dpi))
    return packed.getvalue()


def _palette_and_codes(rgb: Image) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """At most 256 colours and each pixel's nearest one; the most frequent colours stay exact."""
    from PIL.Image import Quantize, Resampling
    from scipy.spatial import KDTree

    pixels = np.asarray(rgb, dtype=np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    found, inverse, count = np.unique(pixels, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)
    if len(colours) <= 256:
        return colours, inverse.reshape(pixels.shape).astype(np.uint8)
    # a third of the rows and columns has the colours of the whole, in a ninth of the time
    few = rgb.resize((max(1, rgb.width // 3), max(1, rgb.height // 3)), Resampling.NEAREST)
    chosen = few.quantize(224, method=Quantize.MAXCOVERAGE, kmeans=1).getpalette() or []
    frequent = colours[np.argsort(-count, kind="stable")[:32]]
    palette = np.concatenate([frequent, np.array(chosen[: 224 * 3], dtype=np.uint8).reshape(-1, 3)])
    nearest = KDTree(palette.astype(np.float64)).query(colours.astype(np.float64))[1]
    return palette, nearest[inverse].reshape(pixels.shape).astype(np.uint8)


def short_text(value: object, longest: int = 28) -> str:
    """A name as it may be drawn: no mathematical markup, one line, not too long."""
    plain = " ".join(str(value).split()).replace("$", r"\$")
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def dress(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Quiet axes: no box, thin grid behind the data, legible sizes."""
    axes.set_title(title, fontsize=TITLE, color=INK, loc="left", pad=8, fontweight="bold")
    axes.set_xlabel(x, fontsize=NORMAL, color=FAINT)
    axes.set_ylabel(y, fontsize=NORMAL, color=FAINT)
    axes.tick_params(labelsize=SMALL, colors=FAINT, length=3, width=0.6)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)


def legend_size(names: Sequence[str], width: float) -> tuple[int, float]:
    """Columns that fit into ``width`` inches, and the legend's height in inches."""
    longest = max([len(short_text(name)) for name in names], default=1)
    columns = max(1, min(len(names), int(width // (0.3 + 0.068 * longest))))
    return columns, 0.19 * math.ceil(len(names) / columns) + 0.06


def draw_legend(
    figure: Figure, names: Sequence[str], colours: Mapping[str, str], box: tuple[float, float, float, float]
) -> None:
    """Dots and names in columns, in a box (left, bottom, width, height; inches)."""
    left, bottom, width, height = box
    columns, _ = legend_size(names, width)
    rows = math.ceil(len(names) / columns)
    longest = max([len(short_text(name)) for name in names], default=1)
    step = min(width / columns, 0.3 + 0.075 * longest)
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    for position, name in enumerate(names):
        column, row = divmod(position, rows)
        y = height - 0.1 - 0.19 * row
        axes.plot(column * step + 0.07, y, "o", color=colours[name], markersize=5.5, markeredgewidth=0)
        axes.text(column * step + 0.17, y, short_text(name), fontsize=SMALL, color=INK, va="center_baseline")
