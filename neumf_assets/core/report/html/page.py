"""The page: all sections in their order, put into the template."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neumf_assets.core.report.content import ReportContent
from neumf_assets.core.report.html.answers import (
    composition_section,
    differences_section,
    labels_section,
)
from neumf_assets.core.report.html.clusters import clusters_section, factors_section, markers_section
from neumf_assets.core.report.html.datasets import data_section
from neumf_assets.core.report.html.maps import maps_section
from neumf_assets.core.report.html.models import denoising_section, training_section
from neumf_assets.core.report.html.provenance import provenance_section
from neumf_assets.core.report.html.scores import comparison_section, explained_section, sweep_section
from neumf_assets.core.report.html.summary import headline_section, summary, tiles
from neumf_assets.core.report.wording import number, percent


def render_report(content: ReportContent, path: str | Path) -> Path:
    """Write the report of a study.

    Parameters
    ----------
    content
        What to show; sections without data are left out.
    path
        The HTML file; replaced atomically, its folder made if absent.

    Returns
    -------
    The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(report_html(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def report_html(content: ReportContent) -> str:
    """The report of a study as text; the same content gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent)
    sections = [section for build in _SECTIONS if (section := build(content)) is not None]
    return environment.get_template("report.html").render(
        content=content,
        heading=content.title or content.study,
        tiles=tiles(content),
        summary=summary(content),
        sections=sections,
    )


_SECTIONS: tuple[Callable[[ReportContent], dict[str, Any] | None], ...] = (
    headline_section,
    data_section,
    maps_section,
    comparison_section,
    explained_section,
    denoising_section,
    training_section,
    clusters_section,
    markers_section,
    labels_section,
    composition_section,
    differences_section,
    factors_section,
    sweep_section,
    provenance_section,
)
