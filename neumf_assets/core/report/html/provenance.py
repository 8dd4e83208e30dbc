"""Section on where the results come from."""

from __future__ import annotations

import json
from typing import Any

from neumf_assets.core.report.content import ReportContent
from neumf_assets.core.report.wording import number


def provenance_section(content: ReportContent) -> dict[str, Any] | None:
    """Files, code, versions and settings that the results come from."""
    provenance = content.provenance
    sources = [(d.name, d.source, d.sha256) for d in content.datasets if d.sha256 or d.source]
    if provenance is None and not sources:
        return None
    facts: list[tuple[str, str]] = []
    versions: list[tuple[str, str]] = []
    settings = ""
    if provenance is not None:
        facts = [(k, v if isinstance(v, str) else number(v)) for k, v in provenance.facts.items()]
        facts += [(f"seed: {k}", str(v)) for k, v in provenance.seeds.items()]
        versions = [(k, str(v)) for k, v in provenance.versions.items()]
        if provenance.settings:
            settings = json.dumps(provenance.settings, indent=2, default=str, ensure_ascii=False)
    return {
        "id": "provenance",
        "title": "How this was made",
        "kind": "provenance",
        "sources": sources,
        "facts": facts,
        "versions": versions,
        "settings": settings,
    }
