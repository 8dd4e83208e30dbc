"""The base of all settings: immutable, and strict about names, types and ranges."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Validated settings of one stage.

    Each stage declares its own subclass in its ``settings.py``, which imports nothing heavy: Dagster
    definitions load these classes, so they must not pull in torch, scikit-learn, umap or numba.
    Every field has a ``Field(default, ge=…, le=…, description=…)``; the description explains the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
