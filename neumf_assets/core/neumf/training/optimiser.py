"""Adam on tables of which a step touches only some rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neumf_assets.core.neumf.fused.gmf import adam_step

Rows = Tensor | slice


class Adam(NamedTuple):
    """Adam's constants: decay of the gradients' mean and of that of their squares, and what is added to its root.

    As in the efficient form of Kingma and Ba (2015, section 2), the last is added before the bias is corrected.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


USUAL = Adam()


class RowAdam:
    """Adam (Kingma and Ba 2015) with its state kept for each row, so that untouched rows cost nothing.

    A row's moments and its bias correction advance only when the row is used. Rows given as a slice are
    updated in place (the fused dense step); rows given as indices are gathered, updated and written back.

    Parameters
    ----------
    table
        Parameters ``[rows, columns]``, updated in place.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.first = torch.zeros_like(table)
        self.second = torch.zeros_like(table)
        self.steps = torch.zeros(table.shape[0], 1, device=table.device, dtype=table.dtype)

    def take(self, rows: Rows) -> Tensor:
        """Return the rows as a leaf that gradients can be asked for."""
        return self.table[rows].detach().requires_grad_()

    def move(
        self,
        rows: Rows,
        gradient: Tensor,
        rate: Tensor,
        decay: Tensor,
        share: float,
        adam: Adam = USUAL,
        rate_share: float = 1.0,
        threads: int = 1,
    ) -> None:
        """As :meth:`update`, with the pull of a prior added to the gradient, in one pass of the kernel.

        ``rate`` and ``decay``, the prior's precision, are those of each column; ``rate_share`` is a factor of all
        rates, ``share`` says how much of the prior's pull belongs to this step.
        """
        adam_step(
            self.table,
            self.first,
            self.second,
            self.steps,
            rows,
            gradient,
            rate,
            decay,
            share,
            (adam.beta1, adam.beta2, adam.epsilon),
            rate_share,
            threads,
        )

    @torch.no_grad()
    def update(
        self, rows: Rows, values: Tensor, gradient: Tensor, rate: Tensor | float, adam: Adam = USUAL
    ) -> None:
        """Move the rows (their ``values`` as taken) against ``gradient`` by at most about ``rate`` (of each
        column)."""
        first, second, steps = self.first[rows], self.second[rows], self.steps[rows]
        steps += 1
        first.lerp_(gradient, 1 - adam.beta1)
        second.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        scale = rate * (1 - adam.beta2**steps).sqrt_() / (1 - adam.beta1**steps)
        step = first / second.sqrt().add_(adam.epsilon)
        new = values.detach().addcmul_(step, scale, value=-1)
        if isinstance(rows, Tensor):
            self.table.index_copy_(0, rows, new)
            self.first.index_copy_(0, rows, first)
            self.second.index_copy_(0, rows, second)
            self.steps.index_copy_(0, rows, steps)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint needs beside the table itself."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that :meth:`state` returned."""
        for name, value in self.state().items():
            value.copy_(state[name])
