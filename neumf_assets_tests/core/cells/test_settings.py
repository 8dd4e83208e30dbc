from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from neumf_assets.core.cells.settings import ClusterSettings, MetricsSettings, UmapSettings


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (ClusterSettings, {"default_resolution": 0.5}),
        (ClusterSettings, {"resolutions": ()}),
        (ClusterSettings, {"resolutions": (0.4, 0.4)}),
        (ClusterSettings, {"resolutions": (0.4, -1)}),
        (ClusterSettings, {"seeds": ()}),
        (ClusterSettings, {"methods": ("kmeans",)}),
        (ClusterSettings, {"methods": ("leiden", "dbscan")}),
        (ClusterSettings, {"kmeans_k": 1}),
        (ClusterSettings, {"neighbours": 20}),
        (UmapSettings, {"min_dist": 0.9, "spread": 0.5}),
        (UmapSettings, {"n_neighbors": 1}),
        (MetricsSettings, {"vote_neighbors": 0}),
    ],
)
def test_refuses_what_makes_no_sense(cls: type, change: dict) -> None:
    with pytest.raises(ValidationError):
        cls(**change)


def test_defaults_are_the_protocol() -> None:
    settings = ClusterSettings()
    assert settings.resolutions == (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    assert settings.n_neighbors == 20
    assert settings.metric == "cosine"
    assert settings.graph == "shared"
    assert len(settings.seeds) >= 3


def test_every_setting_is_explained() -> None:
    for cls in (ClusterSettings, UmapSettings, MetricsSettings):
        for name, field in cls.model_fields.items():
            assert field.description, f"{cls.__name__}.{name}"


def test_settings_and_scores_load_nothing_heavy() -> None:
    code = (
        "import sys, neumf_assets.core.cells.settings, neumf_assets.core.cells.scoring.scores\n"
        "import neumf_assets.core.cells.scoring.comparison\n"
        "print([m for m in ('numpy', 'pandas', 'scipy', 'sklearn', 'umap', 'numba') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
