"""The loop of a stage: epochs from the last checkpoint on, their curves, the best of them kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from neumf_assets.core.neumf.checkpoint import Checkpoint
from neumf_assets.core.neumf.training.batches import Epoch, Plan
from neumf_assets.core.neumf.training.preparation import torch_threads
from neumf_assets.core.neumf.training.schedule import rate_shares, stalled
from neumf_assets.core.neumf.training.state import Data, State
from neumf_assets.core.neumf.training.step import Stepper
from neumf_assets.core.progress import Progress


class Cells(Protocol):
    """Where the cells' embeddings are while they are trained."""

    def keep(self, kind: str, drawn: Iterator[Tensor]) -> Tensor:
        """Take the starting values of a stage; return the table that the state holds."""

    def fuse(self, put: Callable[[Tensor, Mapping[str, Tensor]], None], kinds: tuple[str, ...]) -> None:
        """Have trained branches' embeddings put into those of the stage that starts."""

    def stepper(self, data: Data, state: State, frozen: frozenset[str]) -> Stepper:
        """Return what makes the steps of a stage."""


def run_stage(
    data: Data,
    state: State,
    kind: str,
    stage: int,
    epochs: int,
    progress: Progress,
    checkpoint: Checkpoint[State],
    frozen: frozenset[str] = frozenset(),
    elsewhere: Cells | None = None,
    start_counts: bool = False,
) -> None:
    """Train ``state`` for ``epochs``, from the checkpoint of this stage where there is one.

    Parameters
    ----------
    data
        Counts and what belongs to them.
    state
        Changed in place.
    kind
        Branch that is trained; names the stage in the curves.
    stage
        Number of the stage.
    epochs
        Passes over all entries, at most.
    progress
        Told after every epoch.
    checkpoint
        Where to continue from and to write to.
    frozen
        Tables that must not change.
    elsewhere
        Where the cells' embeddings are, if not in the state.
    start_counts
        Keep the epoch with the least held-out loss, or the start where none is better.
    """
    settings = data.settings
    checkpoint.restore(stage, state)
    plan = Plan.of(data.all_cells, data.counts.n_genes, settings, data.device)
    stepper = elsewhere.stepper(data, state, frozen) if elsewhere else Stepper(data, state, frozen)
    keeping = start_counts or settings.patience is not None
    with torch_threads(stepper.operation_threads):
        if start_counts and state.epoch == 0:
            _keep_start(stepper)
        while state.epoch < epochs and not stalled(state, settings):
            order = plan.epoch((settings.seed, 2, stage, state.epoch))
            shares = rate_shares(settings, state.epoch, epochs, order.n_steps)
            row = _run_epoch(stepper, order, stage, shares)
            state.epoch += 1
            row |= {"stage": kind, "epoch": state.epoch, "learning_rate": shares[-1] * settings.learning_rate}
            if _record(state, row, stepper.validation_loss(), keeping):
                stepper.keep_best()
            progress(f"train {kind}", state.epoch, epochs, **_figures(row))
            checkpoint.write(stage, state)
    if kind != settings.kind:
        checkpoint.write(stage, state, now=True)
    if state.best:
        stepper.return_to_best()


def _run_epoch(stepper: Stepper, order: Epoch, stage: int, shares: list[float]) -> dict[str, float | str]:
    """Make all steps of an epoch; return its mean loss per entry, seconds and rate."""
    data, epoch, begin = stepper.data, stepper.state.epoch, time.perf_counter()
    seed = data.settings.seed
    drawn = _mix(seed, stage, epoch, *data.workers.seed)
    generator = torch.Generator(data.device).manual_seed(drawn)
    torch.manual_seed(drawn)
    total, pairs = torch.zeros((), dtype=torch.float64, device=data.device), 0
    remaining = iter(shares)
    for window in range(len(order.windows)):
        with stepper.window(order, window):
            steps = list(order.steps(window))
            loss, size = stepper.run(steps, list(islice(remaining, len(steps))), generator)
            total += loss
            pairs += size
    loss_sum, pairs_sum = data.workers.sum(float(total), pairs)
    mean_loss = loss_sum / max(pairs_sum, 1)
    seconds = time.perf_counter() - begin
    return {"train_loss": mean_loss, "seconds": seconds, "pairs_per_second": pairs_sum / seconds}


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def _keep_start(stepper: Stepper) -> None:
    """Take the parameters that a stage starts from for the best so far."""
    loss = stepper.validation_loss()
    if loss is not None:
        stepper.state.best_loss, stepper.state.best_epoch = loss, 0
        stepper.keep_best()


def _record(state: State, row: dict[str, float | str], validation: float | None, keeping: bool) -> bool:
    """Add a row to the curves; tell whether the epoch was the best so far and must be kept."""
    better = validation is not None and validation < state.best_loss
    if validation is not None:
        row["validation_loss"] = validation
        if better:
            state.best_loss, state.best_epoch = validation, state.epoch
    state.history.append(row)
    return better and keeping


def _figures(row: dict[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in ("stage", "epoch")}
