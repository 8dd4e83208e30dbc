"""The tower of a block compiled by torch, for a GPU: checked against float64 and timed before it is used.

Layer by layer in plain torch operations, a pair of the default tower reads and writes about 2.5 kB of activations
and their gradients in bfloat16; it needs 16 kFLOP. A GPU that moves 4 TB/s and multiplies 800 TFLOP/s could do 1.6
billion pairs a second by its memory and 50 by its arithmetic, so the memory decides. Compiled, the element-wise
operations between the products (the sum of the first layer's sides, conversions, rectifiers, their gradients) are
one pass each instead of several, which about halves the traffic.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

CompiledTower = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]

WORTH_PAIRS = 2e10
"""Compiling takes about half a minute: only a training of so many pairs (of all epochs) is worth it."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
GAIN = 1.05
TIMED_PAIRS = (128, 2048)

log = logging.getLogger(__name__)


def tower_output(
    cell_side: Tensor,
    gene_side: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Return the MLP's output for all pairs of a block, ``[B, G]``; products in ``dtype``.

    Parameters
    ----------
    cell_side, gene_side
        First layer's sides, ``[B, H1]`` (with its bias) and ``[G, H1]``.
    weights, biases
        Hidden layers after the first.
    out
        Output weights.
    dtype
        ``bfloat16`` or ``float32`` (for the check, ``float64``).
    """
    hidden = (cell_side[:, None, :] + gene_side[None, :, :]).to(dtype).relu()
    for weight, bias in zip(weights, biases, strict=True):
        hidden = linear(hidden, weight.to(dtype), bias.to(dtype)).relu()
    return (hidden @ out.to(dtype)).to(out.dtype)


@functools.cache
def compiled_tower(tower: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> CompiledTower | None:
    """Return the compiled tower, or ``None`` where it cannot be had, is wrong, or is no faster than plain operations.

    The first call compiles (about half a minute), compares loss and gradients with float64 on a small block, and
    times both ways on a larger one; its verdict is logged and holds for this process.

    Parameters
    ----------
    tower
        Hidden layer sizes.
    dtype
        Arithmetic of the products.
    device
        Where it runs.
    """
    plain = functools.partial(tower_output, dtype=dtype)
    compiled = torch.compile(plain, dynamic=True)
    try:
        deviation = deviation_from_float64(compiled, tower, device)
        if not deviation <= TOLERANCE[dtype]:
            log.warning("The compiled tower is off by %.2g and is not used.", deviation)
            return None
        seconds = [seconds_of(way, tower, device) for way in (plain, compiled)]
    except (
        RuntimeError
    ) as error:  # what torch's compiler raises; so is running out of memory, which plain may not
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("The tower cannot be compiled here and runs in plain operations: %s", reason)
        return None
    faster = seconds[0] / seconds[1]
    log.info("The compiled tower takes 1/%.2f of the time of plain operations.", faster)
    return compiled if faster >= GAIN else None


def random_block(tower: tuple[int, ...], cells: int, genes: int, device: torch.device) -> list[Tensor]:
    """Return sides, weights, biases and output weights of a random block, as leaves, in this order."""
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(tower[1:], tower, strict=False))
    shapes: list[tuple[int, ...]] = [(cells, tower[0]), (genes, tower[0])]
    shapes += [*pairs, *((n,) for n, _ in pairs), (tower[-1],)]
    drawn = [0.3 * torch.randn(shape, generator=generator) for shape in shapes]
    return [value.to(device).requires_grad_() for value in drawn]


def step(way: CompiledTower, leaves: list[Tensor]) -> list[Tensor]:
    """Return a Poisson-like loss of the block and its gradients by all leaves."""
    hidden = (len(leaves) - 3) // 2
    weights, biases = leaves[2 : 2 + hidden], leaves[2 + hidden : 2 + 2 * hidden]
    score = way(leaves[0], leaves[1], weights, biases, leaves[-1])
    loss = (score.clamp(max=10.0).exp() - 0.5 * score).sum()
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def deviation_from_float64(way: CompiledTower, tower: tuple[int, ...], device: torch.device) -> float:
    """Return the largest relative deviation of loss and gradients from float64, on blocks of two sizes."""
    worst = 0.0
    exact_way = functools.partial(tower_output, dtype=torch.float64)
    with torch.enable_grad():
        for cells, genes in ((5, 70), (12, 33)):
            leaves = random_block(tower, cells, genes, device)
            exact = step(exact_way, [leaf.detach().double().requires_grad_() for leaf in leaves])
            found = step(way, leaves)
            worst = max(worst, *(float((x - e).norm() / e.norm()) for x, e in zip(found, exact, strict=True)))
    return worst


def seconds_of(way: CompiledTower, tower: tuple[int, ...], device: torch.device, repeats: int = 7) -> float:
    """Return the least time of a step on a block of about the size that training uses."""
    leaves, best = random_block(tower, *TIMED_PAIRS, device), float("inf")

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.enable_grad():
        for _ in range(repeats):
            settle()
            begin = time.perf_counter()
            step(way, leaves)
            settle()
            best = min(best, time.perf_counter() - begin)
    return best
