"""The compiled tower: right where it is used, plain operations where it is wrong, slow or not to be had."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from neumf_assets.core.neumf import compiled
from neumf_assets.core.neumf.compiled import compiled_tower, deviation_from_float64, tower_output
from neumf_assets.core.neumf.network import Tower, block_scores
from neumf_assets_tests.core.neumf.test_network import block_of, parameters

CPU = torch.device("cpu")
TOWER = (16, 8)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    compiled_tower.cache_clear()
    yield
    compiled_tower.cache_clear()


def stand_in(monkeypatch: pytest.MonkeyPatch, way: object) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: way)


@pytest.mark.parametrize("kind", ["mlp", "neumf"])
def test_a_block_through_the_compiled_function_is_the_plain_block(kind: str) -> None:
    layout, tables = parameters(2, kind=kind)
    plain, leaves = block_of(layout, tables, 1)
    expected = block_scores(plain, Tower(layout), training=True)
    block, others = block_of(layout, tables, 1)
    way = partial(tower_output, dtype=torch.float64)
    found = block_scores(block, Tower(layout, compiled=way), training=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(score.square().sum(), list(own.values()))
        for score, own in ((expected, leaves), (found, others))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_operations_pass_the_check_and_are_no_faster_than_themselves(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deviation_from_float64(partial(tower_output, dtype=dtype), TOWER, CPU) < compiled.TOLERANCE[dtype]
    stand_in(monkeypatch, partial(tower_output, dtype=dtype))
    monkeypatch.setattr(compiled, "seconds_of", lambda *_: 1.0)
    assert compiled_tower(TOWER, dtype, CPU) is None


def test_a_faster_way_that_agrees_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = partial(tower_output, dtype=torch.float32)
    stand_in(monkeypatch, faster)
    monkeypatch.setattr(compiled, "seconds_of", lambda way, *_: 1.0 if way is faster else 2.0)
    assert compiled_tower(TOWER, torch.float32, CPU) is faster


def test_a_wrong_way_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*arguments: object) -> torch.Tensor:
        return 1.01 * tower_output(*arguments, dtype=torch.float32)  # type: ignore[arg-type]

    stand_in(monkeypatch, wrong)
    with caplog.at_level(logging.WARNING):
        assert compiled_tower(TOWER, torch.float32, CPU) is None
    assert "is off by" in caplog.text


def test_a_compiler_that_fails_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> torch.Tensor:
        raise RuntimeError("no compiler here\nand a long trace")

    stand_in(monkeypatch, failing)
    with caplog.at_level(logging.WARNING):
        assert compiled_tower(TOWER, torch.float32, CPU) is None
    assert "plain operations: no compiler here" in caplog.text


@pytest.mark.slow
def test_what_torch_compiles_agrees_with_float64() -> None:
    way = torch.compile(partial(tower_output, dtype=torch.float32), dynamic=True)
    assert deviation_from_float64(way, TOWER, CPU) < compiled.TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_torch_compiles_for_a_gpu_agrees_with_float64(dtype: torch.dtype) -> None:
    way = torch.compile(partial(tower_output, dtype=dtype), dynamic=True)
    assert deviation_from_float64(way, (64, 32, 16, 8), torch.device("cuda")) < compiled.TOLERANCE[dtype]
