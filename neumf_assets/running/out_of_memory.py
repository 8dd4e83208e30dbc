"""What happens when a step runs out of memory: once more, with half the block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from neumf_assets.assets.stage import Product, Stage, Step
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.settings import Settings
from neumf_assets.core.store import Artifact
from neumf_assets.running.device_lock import free_device_memory
from neumf_assets.study.settings import StudySettings


def computed(declared: Stage, step: Step) -> Product:
    """Compute a stage; when memory runs out, give back what is held and try once more with half the block.

    The block is the part of a matrix that a model is trained on at a time. A product of the second try says
    so in its figures (``block_cells_after_out_of_memory``), since it differs a little from one of the first.

    Raises
    ------
    NeumfError
        If memory runs out again.
    """
    try:
        return declared.compute(step)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Outside of the handler, whose traceback would keep the first try's arrays alive.
    free_device_memory()
    study, blocks = with_half_blocks(declared, step)
    sizes = ", ".join(f"{name} = {size}" for name, size in blocks.items())
    step.log.warning(
        f"Out of memory on {step.device} ({reason}); trying once more with {sizes or 'it freed'}."
    )
    try:
        product = declared.compute(replace(step, study=study))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NeumfError(_mend(declared, step, blocks)) from None
    product.figures = {**product.figures, "block_cells_after_out_of_memory": max(blocks.values(), default=0)}
    return product


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is used up."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error).lower()
        or "can't allocate memory" in str(error)
    )


def with_half_blocks(declared: Stage, step: Step) -> tuple[StudySettings, dict[str, int]]:
    """The study with half the block in every setting that the stage uses, and the new sizes in cells."""
    changed: dict[str, Settings] = {}
    sizes: dict[str, int] = {}
    for name in dict.fromkeys(path.split(".")[0] for path in declared.settings):
        section = getattr(step.study, name)
        if isinstance(section, NeuMFSettings):
            key, size = "block_cells", max(1, _block_cells(section, step) // 2)
        elif isinstance(section, LigerSettings):
            key, size = "batch_cells", max(1, section.batch_cells // 2)
        else:
            continue
        changed[name] = section.model_copy(update={key: size})
        sizes[f"{name}.{key}"] = size
    return step.study.model_copy(update=changed), sizes


def _block_cells(settings: NeuMFSettings, step: Step) -> int:
    from neumf_assets.core.neumf.training.batches import largest_block

    counts = step.inputs.get("counts")
    artifacts = [counts] if isinstance(counts, Artifact) else list((counts or {}).values())
    figures = [artifact.manifest.figures for artifact in artifacts]
    cells = sum(int(of_one.get("cells", 0)) for of_one in figures)
    genes = min([int(of_one.get("genes", 1)) for of_one in figures], default=1)
    return largest_block(settings, cells, min(genes, settings.n_genes or genes), step.device)[0]


def _mend(declared: Stage, step: Step, blocks: Mapping[str, int]) -> str:
    tried = " and ".join(f"{name} = {size}" for name, size in blocks.items())
    second = f", the second time with {tried}" if tried else ""
    lower = " and ".join(blocks) or "the number of genes (model.n_genes)"
    return (
        f"{declared.path}: out of memory on {step.device}, twice{second}. "
        f"Lower {lower} in the study's settings, free the device of other work, or set NEUMF_DEVICE=cpu."
    )
