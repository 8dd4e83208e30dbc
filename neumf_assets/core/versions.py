"""Versions of what results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version

_LIBRARIES = (
    "neumf-assets",
    "dagster",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "umap-learn",
    "anndata",
    "scanpy",
    "igraph",
    "harmonypy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
