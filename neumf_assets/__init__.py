"""Dagster data assets for single-cell RNA-seq: neural matrix factorization beside LIGER."""

from typing import Any

_COMPONENTS = ("RegisteredStudies", "Study")


def __getattr__(name: str) -> Any:
    # Lazily, so that neumf_assets.core stays usable without Dagster.
    if name in _COMPONENTS:
        from neumf_assets import study

        return getattr(study, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_COMPONENTS]
