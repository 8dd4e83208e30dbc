"""The tower of one block, forward and backward: plain torch operations against the fused CPU kernel.

One block of 64 cells x 2,000 genes, the default tower, Poisson loss; everything from the separated first
layer to the gradients of all parameters. Methods take turns, and the best round of each counts.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import harness
from neumf_assets.core.neumf.fused.tower import Precision, available, fused_block_forward, fused_block_loss

CELLS, GENES = 64, 2000
TOWER = (64, 32, 16, 8)
FLOPS_FORWARD = 2 * sum(a * b for a, b in zip(TOWER, (*TOWER[1:], 1), strict=True))


class Inputs:
    """A block's tensors, parameters as leaves."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 0.3) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

        self.f0 = normal(CELLS, GENES)
        self.a, self.c = normal(CELLS, TOWER[0]), normal(GENES, TOWER[0])
        sizes = list(itertools.pairwise(TOWER))
        self.weights = [normal(n, m, scale=(2 / m) ** 0.5) for m, n in sizes]
        self.biases = [normal(n) for _, n in sizes]
        self.out = normal(TOWER[-1])
        self.log_size = torch.zeros(CELLS)
        self.y = torch.poisson(torch.full((CELLS, GENES), 0.1), generator=generator)

    def tower(self) -> dict[str, Any]:
        """Return the arguments of the kernel that training and prediction share."""
        names = ("f0", "a", "c", "weights", "biases", "out")
        return {name: getattr(self, name) for name in names}

    def gradients(self, loss: Tensor) -> None:
        """Differentiate by everything that is trained."""
        torch.autograd.grad(loss, [self.f0, self.a, self.c, *self.weights, *self.biases, self.out])


def torch_scores(inputs: Inputs, autocast: bool) -> Tensor:
    """Return the predictor by plain torch operations."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = (inputs.a[:, None] + inputs.c[None]).relu()
        for weight, bias in zip(inputs.weights, inputs.biases, strict=True):
            hidden = linear(hidden, weight, bias).relu()
        tower = hidden @ inputs.out
    return inputs.f0 + tower.float()


def torch_step(inputs: Inputs, autocast: bool) -> None:
    """Loss and gradients by plain torch operations."""
    log_mean = (torch_scores(inputs, autocast) + inputs.log_size[:, None]).clamp(max=14.0)
    inputs.gradients((log_mean.exp() - inputs.y * log_mean).sum())


def torch_prediction(inputs: Inputs, autocast: bool) -> None:
    """Forward alone by plain torch operations."""
    with torch.no_grad():
        torch_scores(inputs, autocast)


def fused_step(inputs: Inputs, precision: Precision) -> None:
    """Loss and gradients by the kernel."""
    tower = inputs.tower()
    inputs.gradients(fused_block_loss(**tower, log_size=inputs.log_size, y=inputs.y, precision=precision))


def fused_prediction(inputs: Inputs, precision: Precision) -> None:
    """Forward alone by the kernel."""
    fused_block_forward(**inputs.tower(), precision=precision)


def methods(
    inputs: Inputs,
) -> tuple[dict[str, tuple[Callable[[], None], Callable[[], None]]], dict[str, str]]:
    """Return training and prediction of each method, the leanest first, and what is skipped."""
    found: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {}
    skipped: dict[str, str] = {}
    for precision in reversed(get_args(Precision)):
        usable, reason = available(precision)
        if usable:
            steps = (fused_step, fused_prediction)
            found[f"fused, {precision}"] = tuple(functools.partial(f, inputs, precision) for f in steps)  # type: ignore[assignment]
        else:
            skipped[f"fused, {precision}"] = reason
    for name, autocast in (("torch, bfloat16 autocast", True), ("torch, float32", False)):
        steps_torch = (torch_step, torch_prediction)
        found[name] = tuple(functools.partial(f, inputs, autocast) for f in steps_torch)  # type: ignore[assignment]
    return found, skipped


def best_seconds(call: Callable[[], None], budget: float) -> float:
    """Return the fastest call within a time budget (other work on the machine only ever adds)."""
    call()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def main(quick: bool = False) -> dict[str, Any]:
    """Measure all methods in turns."""
    rounds, budget = (2, 0.5) if quick else (5, 1.0)
    found, skipped = methods(Inputs())
    seconds = {name: [float("inf"), float("inf")] for name in found}
    peak: dict[str, float] = {}
    for _ in range(rounds):
        for name, calls in found.items():
            for i, call in enumerate(calls):
                seconds[name][i] = min(seconds[name][i], best_seconds(call, budget))
            peak.setdefault(name, harness.peak_rss_mib())
    pairs = CELLS * GENES
    rows = [
        {
            "method": name,
            "training_pairs_per_second": harness.significant(pairs / training),
            "prediction_pairs_per_second": harness.significant(pairs / prediction),
            "training_gflops": harness.significant(3 * FLOPS_FORWARD * pairs / training / 1e9),
            "peak_rss_mib_so_far": peak[name],
        }
        for name, (training, prediction) in seconds.items()
    ]
    return {"title": "The tower of one block", "rows": rows, "ratios": ratios(seconds), "skipped": skipped}


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return how much faster the kernel is than the faster of torch's two ways."""
    torch_training = min(times[0] for name, times in seconds.items() if name.startswith("torch"))
    torch_prediction = min(times[1] for name, times in seconds.items() if name.startswith("torch"))
    found = {}
    for name, (training, prediction) in seconds.items():
        if name.startswith("fused"):
            found[f"{name} / torch, training"] = harness.significant(torch_training / training)
            found[f"{name} / torch, prediction"] = harness.significant(torch_prediction / prediction)
            found[f"{name}, prediction / training"] = harness.significant(training / prediction)
    return found


if __name__ == "__main__":
    harness.script(main)
