"""Steps in the card's memory, made one after another: in graphs of several on a GPU."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from neumf_assets.core.neumf.fused.gmf import EpochCounts, EpochSteps, MovedTable
from neumf_assets.core.neumf.gpu.on_card import make_dense, say_once

OBJECTIVES: dict[str, int] = {"poisson": 1, "mse": 3, "bce": 4}
STEPS_IN_GRAPH = 16


class Trained(NamedTuple):
    """What is trained on the card, and how.

    Parameters
    ----------
    tables
        As for :func:`neumf_assets.core.neumf.fused.gmf.gmf_epoch`; their memory is changed.
    counts
        What is trained on, with what is held out.
    expected_bias, bias_prior
        ``[D x G]``, around which the biases have a Gaussian prior, and its precision.
    constants
        Adam's two decays and epsilon.
    objective
        ``poisson`` with the exponential link, ``mse`` with the identity, or ``bce``.
    precision
        ``auto``, ``float32`` or ``bfloat16``: of the factors of matrix products; sums are float32.
    """

    tables: dict[str, MovedTable]
    counts: EpochCounts
    expected_bias: Tensor
    bias_prior: float
    constants: tuple[float, float, float]
    objective: str = "poisson"
    precision: str = "auto"


class StepsOnCard(ABC):
    """Makes training steps with tables, counts and the order of the steps in the card's memory.

    Which cells a step has is read on the card, so that one graph of steps serves a whole training. Steps beyond the
    last do nothing: a graph of sixteen makes any number.
    """

    def __init__(self, given: Trained) -> None:
        tables, counts = given.tables, given.counts
        self.tables, self.bias_prior = tables, given.bias_prior
        self.expected_bias = given.expected_bias.contiguous()
        targets = counts.targets
        self.value = targets.value
        self.device = self.value.device
        self.n_genes = tables["genes"].value.shape[0]
        self.log_size = counts.log_size.contiguous()
        entries = (targets.start, targets.length, targets.gene, targets.value)
        self.counts = make_dense(*entries, self.n_genes, counts.held_out, counts.held_out_row)
        beta1, beta2, epsilon = given.constants
        self.adam = (beta1, beta2, epsilon, math.log(beta1), math.log(beta2))
        self.objective = OBJECTIVES[given.objective]
        self.at_step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.n_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.most, self.capacity = 0, (0, 0)  # cells of a step; steps, and cells of all steps
        self.graph: torch.cuda.CUDAGraph | None = None
        self.replays = True

    @abstractmethod
    def make_step(self) -> None:
        """Make the step that :attr:`at_step` numbers, without the host looking at any value, and go on to the next."""

    @abstractmethod
    def make_room(self) -> Tensor:
        """Have memory for steps of up to :attr:`most` cells; return that of the losses, float64."""

    def is_of(self, tables: dict[str, MovedTable], counts: EpochCounts) -> bool:
        """Tell whether these are the tables and the counts whose memory the steps work on."""
        same = all(table.value is self.tables[name].value for name, table in tables.items())
        return same and counts.targets.value is self.value

    def epoch(self, steps: EpochSteps) -> float:
        """Make steps one after the other; return the loss summed over all entries."""
        count = steps.dataset.numel()
        if not count:
            return 0.0
        most = int((steps.begin[1:] - steps.begin[:-1]).max())
        wanted = (count, steps.cells.numel())
        if most > self.most or any(new > old for new, old in zip(wanted, self.capacity, strict=True)):
            most, before = max(most, self.most), self.capacity
            self._make_room_for(most, max(count, before[0]), max(wanted[1], before[1]))
        for kept, given in zip(self.order, steps, strict=True):
            kept[: given.numel()].copy_(given, non_blocking=True)
        self.losses.zero_()
        self.at_step.zero_()
        self.n_steps.fill_(count)
        graph = self._graph(count)
        if graph is not None:
            for _ in range(0, count, STEPS_IN_GRAPH):
                graph.replay()
        else:
            for _ in range(count):
                self.make_step()
        return float(self.losses.sum())

    def _graph(self, count: int) -> torch.cuda.CUDAGraph | None:
        """Return the graph of steps, made if need be, ``None`` where none can be; ``count`` steps are left then."""
        if self.device.type != "cuda" or not self.replays:
            return None
        if self.graph is None:
            try:
                self.graph = self._captured()
            except RuntimeError as error:  # a driver or a version of torch that it was never tried on
                self.replays = False
                say_once(f"Training steps cannot be made a CUDA graph and are launched one by one ({error}).")
            self.losses.zero_()
            self.at_step.zero_()
            self.n_steps.fill_(count)
        return self.graph

    def _make_room_for(self, most: int, steps: int, cells: int) -> None:
        """Have memory for such steps; a graph made before holds memory that is given up."""
        self.graph = None
        self.most, self.capacity = most, (steps, cells)
        whole = torch.int64
        self.order = EpochSteps(
            self.room(cells, dtype=whole),
            self.room(steps + 1, dtype=whole),
            self.room(steps, dtype=whole),
            *(self.room(steps) for _ in range(3)),
        )
        self.losses = self.make_room()

    def room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return zeros on the card."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Return a graph of some steps; steps beyond the last do nothing, so that any number can be made of them."""
        self.n_steps.zero_()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.make_step()  # compiles; no step is left, so nothing moves
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(STEPS_IN_GRAPH):
                self.make_step()
        return graph
