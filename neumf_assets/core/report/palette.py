"""Colours that people with colour vision deficiencies can tell apart, always the same for the same name."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Sequence

# Okabe & Ito's colours without black and yellow (invisible on white), then Paul Tol's "muted" scheme
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#332288",
    "#999933",
    "#882255",
    "#44AA99",
    "#DDCC77",
    "#AA4499",
    "#117733",
    "#CC6677",
)
MISSING = "#C8C8C8"
MISSING_NAME = "unlabelled"


def category_names(values: Iterable[object]) -> list[str]:
    """Values as text; missing ones (None, NaN, empty, ``NA``) as :data:`MISSING_NAME`."""
    return [_category_name(value) for value in values]


def _category_name(value: object) -> str:
    missing = value is None or value != value or str(value) in ("", "NA", "nan", "<NA>")
    return MISSING_NAME if missing else str(value)


def ordered(categories: Iterable[str]) -> list[str]:
    """Distinct names in natural order (``c2`` before ``c10``), the unlabelled last."""
    return sorted(set(categories), key=lambda name: (name == MISSING_NAME, _natural(name), name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part.lower()) for part in parts
    ]


def colour_map(categories: Sequence[str]) -> dict[str, str]:
    """Colour of each category, by its natural order.

    The first 14 are the palette; further rounds repeat it darker and lighter: no two among 42 are equal.
    """
    colours: dict[str, str] = {}
    for name in ordered(categories):
        colours[name] = MISSING if name == MISSING_NAME else _colour(len(colours))
    return colours


def _colour(position: int) -> str:
    base = COLOURS[position % len(COLOURS)]
    lightness = {0: 1.0, 1: 0.62, 2: 1.35}[position // len(COLOURS) % 3]
    red, green, blue = (int(base[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    changed = colorsys.hls_to_rgb(hue, min(0.88, light * lightness), saturation)
    return "#" + "".join(f"{round(255 * part):02X}" for part in changed) if lightness != 1.0 else base
