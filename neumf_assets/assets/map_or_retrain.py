"""When datasets arrive: whether the integrative model is trained anew, or their cells are mapped onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.stage import Stage, Step
from neumf_assets.core import memory
from neumf_assets.core.store import Artifact

if TYPE_CHECKING:
    from neumf_assets.core.counts.stored import StoredCounts
    from neumf_assets.core.neumf.model import NeuMFModel

BYTES_PER_ENTRY = 28
"""Peak memory of mapping for each non-zero of a dataset: its counts, those of the model's genes, and as tensors."""
TRAINED_ON = "trained_on"
MAPPED = "mapped"


@dataclass(frozen=True)
class MappingPlan:
    """What can be mapped.

    Attributes
    ----------
    onto
        The stored model.
    trained
        Datasets that it was trained on, all of them unchanged.
    new
        Datasets to map: not in it yet, or changed since they were mapped.
    """

    onto: Artifact
    trained: tuple[str, ...]
    new: tuple[str, ...]


def mapping_plan(declared: Stage, step: Step, cells: Mapping[str, int]) -> MappingPlan | None:
    """How to bring the stored model up to date by mapping, or None where it has to be trained.

    It is trained where the study's ``update`` says so, where there is no model or its settings or code changed,
    where a dataset that it was trained on changed or is gone, where nothing is new, and with ``auto`` where
    the mapped cells would exceed the share ``map_share`` of those trained on.

    Parameters
    ----------
    declared, step
        The model's stage, and its step.
    cells
        Number of cells by dataset.
    """
    study, stored = step.study, step.replaced
    if study.update == "retrain" or stored is None or TRAINED_ON not in stored.manifest.figures:
        return None
    now = {name: artifact.fingerprint for name, artifact in step.all("counts").items()}
    before, trained = stored.manifest.inputs["counts"], tuple(stored.manifest.figures[TRAINED_ON])
    same = {name for name in now if now[name] == before.get(name)}
    if stored.manifest.code_version != declared.code_version(study) or not same.issuperset(trained):
        return None
    mapped_cells = sum(count for name, count in cells.items() if name not in trained)
    if study.update == "auto" and mapped_cells > study.map_share * sum(cells[name] for name in trained):
        return None
    new = tuple(name for name in now if name not in same)
    if _too_large(step, new):
        return None
    return MappingPlan(stored, trained, new) if new or set(now) != set(before) else None


def _too_large(step: Step, new: tuple[str, ...]) -> bool:
    """Whether to train anew for want of memory; where the study wants to map all the same, a warning."""
    counts = step.all("counts")
    for name in new:
        needed = BYTES_PER_ENTRY * int(counts[name].manifest.figures.get("nonzero", 0))
        if step.study.update == "map":
            mend = "With update: auto or retrain the model is trained anew, from disk."
            memory.warn_if_exceeds(needed, f"Mapping {name}", mend)
        elif memory.exceeds(needed, f"Mapping {name}", "the model is trained anew"):
            return True
    return False


def mapped_model(plan: MappingPlan, step: Step, counts: Mapping[str, StoredCounts]) -> NeuMFModel:
    """The stored model with the new datasets mapped onto it, datasets in the order of ``counts``.

    Only the new ones are read, one after another.
    """
    import numpy as np

    from neumf_assets.core.counts.stack import shared_genes
    from neumf_assets.core.counts.stored import StackedCounts
    from neumf_assets.core.neumf.mapping.joined_model import join
    from neumf_assets.core.neumf.mapping.map_cells import map_dataset
    from neumf_assets.core.neumf.model import NeuMFModel

    base = NeuMFModel.load(plan.onto.path, device=step.device)
    trained_genes = set(shared_genes({name: counts[name] for name in plan.trained}))
    mapped = []
    for name in plan.new:
        data = counts[name]
        genes = [gene for gene in data.var_names if gene in trained_genes]
        mapped.append(
            map_dataset(
                base,
                StackedCounts.of({name: data}, genes).rows(0, data.shape[0]),
                gene_names=np.asarray(genes, dtype=np.str_),
                cell_names=data.obs_names.to_numpy(str),
                name=name,
                progress=step.progress,
                checkpoint_dir=step.scratch / name,
            )
        )
    return join(base, mapped, list(counts))


def update_figures(plan: MappingPlan | None, cells: Mapping[str, int]) -> dict[str, Any]:
    """What the figures say about how a model came to its datasets."""
    trained = dict(cells) if plan is None else {name: cells[name] for name in plan.trained}
    mapped = {name: count for name, count in cells.items() if name not in trained}
    return {
        TRAINED_ON: trained,
        MAPPED: mapped,
        "trained_cells": sum(trained.values()),
        "mapped_cells": sum(mapped.values()),
    }
