"""What training changes, and what stays the same meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neumf_assets.core.neumf.network import Layout, Tables
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import HeldOut, SparseCounts
from neumf_assets.core.neumf.training.optimiser import RowAdam
from neumf_assets.core.neumf.training.workers import ALONE, Workers


@dataclass(frozen=True)
class Data:
    """Everything that stays the same while a model is trained.

    ``counts``, ``log_size``, ``dataset`` and ``held_out`` are those of the cells of this worker; ``everyone`` is
    the dataset of each cell of all workers (``None``: this one has them all).
    """

    settings: NeuMFSettings
    counts: SparseCounts
    log_size: Tensor
    dataset: NDArray[np.intp]
    held_out: HeldOut | None
    gene_bias: Tensor
    device: torch.device
    workers: Workers = ALONE
    everyone: NDArray[np.intp] | None = None

    @property
    def all_cells(self) -> NDArray[np.intp]:
        """Dataset of each cell of all workers."""
        return self.dataset if self.everyone is None else self.everyone

    @property
    def n_datasets(self) -> int:
        """Number of datasets."""
        return self.gene_bias.shape[0]


@dataclass
class State:
    """What training changes: the tables, running statistics and curves, with the best epoch so far."""

    layout: Layout
    tables: Tables
    statistics: Tables
    optimisers: dict[str, RowAdam]
    pretrained: tuple[str, ...] = ()
    history: list[dict[str, float | str]] = field(default_factory=list)
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best: Tables = field(default_factory=dict)

    def stored(self) -> tuple[Tables, dict[str, Any]]:
        """Return what a checkpoint keeps: all tensors, and how far training has come."""
        best = {f"best.{name}": value for name, value in self.best.items()}
        return self._changed() | best, {name: getattr(self, name) for name in _PROGRESS}

    def restore(self, tensors: Tables, progress: dict[str, Any]) -> None:
        """Become the state that a checkpoint has kept."""
        changed = self._changed()
        for name, target in changed.items():
            target.copy_(tensors[name])
        device = self.tables["cells"].device
        best = {name: value for name, value in tensors.items() if name not in changed}
        self.best = {name.removeprefix("best."): value.to(device) for name, value in best.items()}
        for name in _PROGRESS:
            setattr(self, name, progress[name])

    def _changed(self) -> Tables:
        """Return the tensors that every step changes."""
        tensors = {f"table.{name}": value for name, value in self.tables.items()}
        tensors |= {f"statistic.{name}": value for name, value in self.statistics.items()}
        for table, optimiser in self.optimisers.items():
            tensors |= {f"adam.{table}.{name}": value for name, value in optimiser.state().items()}
        return tensors


_PROGRESS = ("epoch", "history", "best_loss", "best_epoch")  # of a state: what is not a tensor


def new_state(
    layout: Layout, tables: Tables, statistics: Tables, history: list[dict[str, float | str]]
) -> State:
    """Return a state with fresh optimisers on the tables."""
    rows = {name: table.view(-1, table.shape[-1]) for name, table in tables.items()}
    return State(layout, tables, statistics, {n: RowAdam(t) for n, t in rows.items()}, history=list(history))
