"""A step that runs out of memory is tried once more with half the block, and says so."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from neumf_assets.assets.model import dense_counts, neumf_model
from neumf_assets.assets.stage import Product, Step, stage
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.neumf.training.batches import Plan
from neumf_assets.core.store import Draft, Store
from neumf_assets.running.out_of_memory import computed, is_out_of_memory, with_half_blocks
from neumf_assets.study.settings import StudySettings

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB."


class OutOfMemoryError(RuntimeError):
    """What torch calls it."""


def _step(tmp_path: Path, cells: int = 6000, genes: int = 2000, **settings: object) -> Step:
    draft = Draft(fingerprint="x", figures={"cells": cells, "genes": genes})
    artifact = Store(tmp_path).publish(("s", "counts", "d"), lambda folder: None, draft)
    study = StudySettings.model_validate({"name": "s", **settings})
    return Step(study=study, inputs={"counts": artifact}, dataset="d", device="cpu")


def _stage_that_needs(most: int, seen: list[int | None], error: BaseException):  # type: ignore[no-untyped-def]
    @stage(group="model", inputs=("counts",), settings=("model",), per_dataset=True)
    def hungry(step: Step) -> Product:
        """Train."""
        seen.append(step.study.model.block_cells)
        if (step.study.model.block_cells or 10**6) > most:
            raise error
        return Product(lambda folder: None, {"loss": 1.0})

    return hungry


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("x"), RuntimeError(OUT_OF_MEMORY)])
def test_half_the_block_is_tried_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    seen: list[int | None] = []
    with caplog.at_level(logging.WARNING):
        product = computed(_stage_that_needs(50, seen, error), _step(tmp_path, model={"block_cells": 100}))
    assert seen == [100, 50]
    assert product.figures == {"loss": 1.0, "block_cells_after_out_of_memory": 50}
    assert "model.block_cells = 50" in caplog.text


@pytest.mark.parametrize(
    ("genes", "settings", "half"),
    [
        (2000, {}, 32),
        (20_000, {"n_genes": None}, 13),  # 2**19 pairs are 26 cells
        (20_000, {"n_genes": 10_000}, 26),
        (20_000, {"n_genes": None, "block_genes": 2000}, 32),
    ],
    ids=str,
)
def test_the_automatic_block_is_halved_too(
    tmp_path: Path, genes: int, settings: dict[str, object], half: int
) -> None:
    step = _step(tmp_path, genes=genes, model=settings)
    trained = min(genes, step.study.model.n_genes or genes)
    used = Plan.of(np.zeros(6000, np.intp), trained, step.study.model, torch.device("cpu")).block_cells
    assert (
        with_half_blocks(neumf_model, step)[1]
        == {"model.block_cells": half}
        == {"model.block_cells": used // 2}
    )


def test_a_second_time_is_an_error_with_the_mend(tmp_path: Path) -> None:
    seen: list[int | None] = []
    hungry = _stage_that_needs(10, seen, MemoryError())
    with pytest.raises(NeumfError, match=r"model\.block_cells = 50.*Lower model\.block_cells"):
        computed(hungry, _step(tmp_path, model={"block_cells": 100}))
    assert seen == [100, 50]


def test_other_errors_pass_untouched(tmp_path: Path) -> None:
    seen: list[int | None] = []
    with pytest.raises(RuntimeError, match="shapes differ"):
        computed(_stage_that_needs(10, seen, RuntimeError("shapes differ")), _step(tmp_path))
    assert len(seen) == 1


def test_a_stage_without_a_block_has_nothing_to_halve(tmp_path: Path) -> None:
    assert with_half_blocks(dense_counts, _step(tmp_path))[1] == {}


def test_the_declared_settings_are_not_changed(tmp_path: Path) -> None:
    step = _step(tmp_path, model={"block_cells": 100})
    study, _ = with_half_blocks(neumf_model, step)
    assert study.model.block_cells == 50
    assert step.study.model.block_cells == 100


def test_torch_errors_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
