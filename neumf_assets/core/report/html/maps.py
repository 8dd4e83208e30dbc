"""Section with the maps of all arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumf_assets.core.report import plots
from neumf_assets.core.report.content import ArmResult, ReportContent
from neumf_assets.core.report.html.parts import Picture
from neumf_assets.core.report.palette import MISSING_NAME, category_names, colour_map, ordered
from neumf_assets.core.report.wording import ARMS, arm_title


def maps_section(content: ReportContent) -> dict[str, Any] | None:
    """The maps of all arms, side by side."""
    arms = [arm for arm in content.arms if arm.coordinates is not None and len(arm.coordinates)]
    groups = [
        ("By dataset", "dataset", "Well-integrated datasets overlap: no colour keeps to itself.", False),
        ("By cell label", "label", "Cells of one type lie together, whatever their dataset.", False),
        (
            "By cluster",
            "cluster",
            "Found from the embedding alone; numbers of different arms are unrelated.",
            True,
        ),
    ]
    views = []
    for title, key, hint, in_place in groups:
        coloured = [arm for arm in arms if getattr(arm, key) is not None]
        names = ordered(n for arm in coloured for n in category_names(getattr(arm, key)))
        if not coloured or (key == "dataset" and len(names) < 2) or set(names) <= {MISSING_NAME}:
            continue
        colours = colour_map(names)
        pictures = [
            Picture(
                _map_panel(arm, key, colours, in_place),
                f"Map of the cells by {arm_title(arm.name)}, coloured {title.lower()}",
                arm_title(arm.name),
            )
            for arm in coloured
        ]
        legend = [] if in_place else list(colours.items())
        views.append({"title": title, "hint": hint, "pictures": pictures, "legend": legend})
    if not views:
        return None
    return {
        "id": "maps",
        "title": "Maps of the cells",
        "kind": "maps",
        "views": views,
        "arms": [(arm_title(a.name), ARMS[a.name][1]) for a in arms if a.name in ARMS],
    }


def _map_panel(arm: ArmResult, key: str, colours: Mapping[str, str], in_place: bool) -> bytes:
    assert arm.coordinates is not None
    return plots.umap_panel(arm.coordinates, getattr(arm, key), colours, named_in_place=in_place)
