"""Dagster data assets for single-cell RNA-seq: neural matrix factorization beside LIGER."""

import os
from importlib import import_module
from typing import Any

# Threads that wait in a spin loop take the processor from those that work: where several runs share a machine,
# training was seen to be 30 times slower. OpenMP reads this when it is loaded, so it is set before torch is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_COMPONENTS = ("RegisteredStudies", "Study")
_FUNCTIONS = {"read": "counts", "integrate": "tools"}
_NAMESPACES = {"tl": "tools", "pl": "plots"}


def __getattr__(name: str) -> Any:
    # Lazily, so that neumf_assets.core stays usable without Dagster.
    if name in _COMPONENTS:
        from neumf_assets.definitions import component

        return getattr(component, name)
    if name in _FUNCTIONS or name in _NAMESPACES:
        module = import_module(f"neumf_assets.scverse.{(_FUNCTIONS | _NAMESPACES)[name]}")
        return module if name in _NAMESPACES else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_COMPONENTS, *_FUNCTIONS, *_NAMESPACES]
