"""The Triton kernels: by interpreter everywhere, on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neumf_assets.core.neumf.gpu import gmf

HERE = Path(__file__).parent
has_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason='Triton is not installed (pip install "neumf-assets[gpu]")',
)


@has_triton
def test_kernels_agree_with_float64_by_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "by_interpreter.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,  # about 60 s alone; a machine that is busy with other tests takes several times as long
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "passed" in result.stdout


def test_without_a_gpu_the_cpu_trains() -> None:
    usable, reason = gmf.available(torch.device("cpu"))
    assert not usable and reason == "the device is cpu"


SCALARS = dict.fromkeys(("n_genes", "size", "most", "masked", "n_rows", "columns"), "i32") | dict.fromkeys(
    ("max_log_mean", "bias_prior", "beta1", "beta2", "epsilon", "log_beta1", "log_beta2"), "fp32"
)
WHOLE = ("order", "begin", "dataset", "at_step", "n_steps", "taken_at")
GMF: dict[str, object] = {"SHIFTED": True, "PADDED": 32, "TILE_CELLS": 64, "TILE_GENES": 64, "OBJECTIVE": 1}
TOWER: dict[str, object] = {
    "CHUNK": 64,
    "TILE_CELLS": 16,
    "TILE_GENES": 8,
    "H1": 64,
    "H2": 32,
    "H3": 16,
    "H4": 16,
}
MOVES: dict[str, object] = {"PARTS": 8, "SHIFTED": True, "GENES_MOVE": True, "SHIFTS_MOVE": True}


@has_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("gmf_tile", GMF | {"PRECISION": "tf32"}),
        ("gmf_tile", GMF | {"PRECISION": "bf16"}),
        ("gmf_tile", GMF | {"PRECISION": "tf32x3"}),
        ("move_genes", MOVES | {"PADDED": 32, "TILE": 16}),
        ("move_genes", MOVES | {"SHIFTED": False, "PADDED": 16, "TILE": 16}),
        ("move_cells", {"PARTS": 32, "CELLS_MOVE": True, "PADDED": 32, "TILE": 8}),
        ("end_step", {"PARTS": 64, "OUT_MOVES": True, "PADDED": 32}),
        ("tower_tile", TOWER | {"OBJECTIVE": 1, "PRECISION": "bf16"}),
        ("move_rows", {"ROWS": 0, "TILE": 8, "WIDTH": 64}),
        ("move_rows", {"ROWS": 1, "TILE": 8, "WIDTH": 64}),
        ("move_rows", {"ROWS": 2, "TILE": 8, "WIDTH": 64}),
        ("count_rows", {"ROWS": 1, "TILE": 128}),
        ("advance", {}),
    ],
)
def test_kernels_compile_for_cards(
    name: str, constants: dict[str, object], capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the interpreter takes, a card's compiler may refuse; it needs no card, and tells the memory of a block."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from neumf_assets.core.neumf.gpu import kernels

    kernel = getattr(kernels, name)

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        whole = argument in WHOLE or (argument == "cells" and name == "tower_tile")
        pointer = {"counts": "*u8", "losses": "*fp64" if name == "gmf_tile" else "*fp32"}.get(
            argument, "*fp32"
        )
        return SCALARS.get(argument) or ("*i64" if whole else pointer)

    source = ASTSource(
        fn=kernel,
        signature={argument: kind(argument) for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(given),): value for given, value in constants.items()},
    )
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 99 * 1024  # what a block has on the smallest card of these


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_card_runs_them() -> None:
    assert gmf.available(torch.device("cuda")) == (True, "Triton kernels")
