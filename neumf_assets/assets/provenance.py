"""Where a result comes from: every dataset's SHA-256, code, seeds, device and library versions."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from neumf_assets.assets.stage import Product, Stage, Step
from neumf_assets.core.store import Artifact
from neumf_assets.core.versions import versions

_SEEDS = ("seed", "seeds")


def provenance(declared: Stage, step: Step, inputs: Mapping[str, Any], product: Product) -> dict[str, Any]:
    """What has to be known to make a result again."""
    return {
        "datasets": dataset_digests(step, inputs, product),
        "code_version": declared.code_version(step.study),
        "seeds": _seeds(declared.settings_of(step.study)),
        "device": step.device,
        "versions": _versions(),
    }


def dataset_digests(step: Step, inputs: Mapping[str, Any], product: Product) -> dict[str, str]:
    """SHA-256 of the source of every dataset that went into a result, by dataset."""
    if not inputs:
        return {step.dataset or "": str(product.figures.get("sha256", ""))}
    found: dict[str, str] = {}
    for value in inputs.values():
        for artifact in [value] if isinstance(value, Artifact) else value.values():
            found |= artifact.manifest.figures.get("provenance", {}).get("datasets", {})
    return dict(sorted(found.items()))


def _seeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name.rpartition(".")[2] in _SEEDS:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": value[key] for key in _SEEDS if key in value}
    return found


@cache
def _versions() -> dict[str, str]:
    return versions()
