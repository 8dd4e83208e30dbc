"""Steps of matrix factorisation on the card: scores, objective, gradients and Adam in four kernels."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from neumf_assets.core.neumf.fused.gmf import EpochCounts, EpochSteps, MovedTable
from neumf_assets.core.neumf.fused.tower import MAX_LOG_MEAN, SparseTargets
from neumf_assets.core.neumf.gpu.on_card import passes, why_not
from neumf_assets.core.neumf.gpu.steps import StepsOnCard, Trained

PRODUCTS = {"auto": "tf32", "float32": "tf32x3", "bfloat16": "bf16"}
"""How factors of matrix products are rounded: tf32 keeps 11 bits, bf16 8; tf32x3, three products, next to all 24."""
TOLERANCE = 0.02
MOST_SIZE = 128
"""Longest embedding: a tile of cells and of genes with it has to fit into the registers of a multiprocessor."""
TILE = 64
GENES_TILE, CELLS_TILE = 16, 8


def available(device: torch.device) -> tuple[bool, str]:
    """Tell whether the kernels can be used on a device, and why not; the first call compares them with float64."""
    reason = why_not(device.type)
    if reason is None and not passes(_deviation, TOLERANCE, device, "The GPU kernel of the GMF part"):
        reason = "the kernels failed their self-check"
    return reason is None, reason or "Triton kernels"


class GmfOnCard(StepsOnCard):
    """Steps of a GMF alone: four kernels each.

    The same as :func:`neumf_assets.core.neumf.fused.gmf.gmf_epoch` up to the order of sums and the rounding of
    products; it repeats bit for bit on the same kind of card.
    """

    def __init__(self, given: Trained) -> None:
        super().__init__(given)
        self.size = given.tables["genes"].value.shape[1]
        if self.size > MOST_SIZE:
            raise ValueError(f"embeddings of {self.size} numbers; the kernel takes at most {MOST_SIZE}")
        self.padded = max(16, 1 << (self.size - 1).bit_length())
        self.product = PRODUCTS[given.precision]
        self.shifted = given.tables["shifts"].value.shape[1] > 1

    def make_room(self) -> Tensor:
        """Have memory for the parts of gradients that tiles find."""
        self.row_tiles, self.gene_tiles = -(-self.most // TILE), -(-self.n_genes // TILE)
        self.cell_tiles = -(-self.most // CELLS_TILE)
        self.cell_parts = self.room(self.gene_tiles, self.most, self.padded)
        self.offset_parts = self.room(self.gene_tiles, self.most)
        self.gene_parts = self.room(self.row_tiles, self.n_genes, self.padded)
        self.bias_parts = self.room(self.row_tiles, self.n_genes)
        self.out_parts = self.room(self.cell_tiles, self.padded)
        return self.room(self.row_tiles * self.gene_tiles, dtype=torch.float64)

    def make_step(self) -> None:
        """Make a step."""
        from neumf_assets.core.neumf.gpu import kernels

        run = cast(Any, kernels)
        cells, genes, shifts, out = (self.tables[name] for name in ("cells", "genes", "shifts", "tower"))
        order = self.order
        now = (self.at_step, self.n_steps)
        run.gmf_tile[(self.row_tiles, self.gene_tiles)](
            *(cells.value, genes.value, shifts.value, out.value, self.log_size, self.counts.values),
            *(order.cells, order.begin, order.dataset, *now),
            *(self.cell_parts, self.gene_parts, self.offset_parts, self.bias_parts, self.losses),
            *(self.n_genes, self.size, self.most, MAX_LOG_MEAN, self.counts.masked),
            SHIFTED=self.shifted,
            PADDED=self.padded,
            TILE_CELLS=TILE,
            TILE_GENES=TILE,
            OBJECTIVE=self.objective,
            PRECISION=self.product,
            num_warps=4,
        )
        run.move_genes[(-(-self.n_genes // GENES_TILE),)](
            *_state(genes),
            *_state(shifts),
            *(self.expected_bias, self.gene_parts, self.bias_parts),
            *(order.dataset, order.rate_share, order.share, order.dataset_share, *now),
            *(self.n_genes, self.size, self.bias_prior, *self.adam),
            PARTS=self.row_tiles,
            SHIFTED=self.shifted,
            GENES_MOVE=genes.moved,
            SHIFTS_MOVE=shifts.moved,
            PADDED=self.padded,
            TILE=GENES_TILE,
            num_warps=2,
        )
        run.move_cells[(self.cell_tiles,)](
            *_state(cells),
            *(out.value, self.cell_parts, self.offset_parts, self.out_parts),
            *(order.cells, order.begin, order.rate_share, *now, self.size, self.most, *self.adam),
            PARTS=self.gene_tiles,
            CELLS_MOVE=cells.moved,
            PADDED=self.padded,
            TILE=CELLS_TILE,
            num_warps=2,
        )
        run.end_step[(1,)](
            *_state(out),
            *(self.out_parts, order.rate_share, order.share, *now, self.size, *self.adam),
            PARTS=self.cell_tiles,
            OUT_MOVES=out.moved,
            PADDED=self.padded,
            num_warps=1,
        )


def _state(table: MovedTable) -> tuple[Tensor, ...]:
    return table.value, table.first, table.second, table.steps, table.rate, table.decay


def _deviation(device: torch.device) -> float:
    """Return the largest relative deviation of loss and gradients from float64, for one step of a small problem.

    Adam's first moments of new tables are a tenth of the gradients.
    """
    n_cells, n_genes, size = 70, 90, 12
    made = torch.Generator().manual_seed(0)
    shapes = {
        "cells": (n_cells, size + 1),
        "genes": (n_genes, size),
        "shifts": (n_genes, size + 1),
        "tower": (1, size),
    }
    start = {name: 0.3 * torch.randn(shape, generator=made) for name, shape in shapes.items()}
    y = torch.poisson(torch.full((n_cells, n_genes), 0.3), generator=made)
    log_size = 0.2 * torch.randn(n_cells, generator=made)
    leaves = {name: value.double().requires_grad_() for name, value in start.items()}
    cells, shifts = leaves["cells"], leaves["shifts"]
    log_mean = (cells[:, :-1] * leaves["tower"]) @ (leaves["genes"] + shifts[:, :-1]).T
    log_mean = log_mean + cells[:, -1:] + shifts[:, -1] + log_size.double()[:, None]
    wanted_loss = (log_mean.exp() - y * log_mean).sum()
    wanted = dict(zip(leaves, torch.autograd.grad(wanted_loss, list(leaves.values())), strict=True))

    def on_card(value: Tensor) -> Tensor:
        return value.to(device).contiguous()

    def table(value: Tensor) -> MovedTable:
        columns = torch.zeros(value.shape[1])
        parts = (value.clone(), *(torch.zeros_like(value) for _ in range(2)), torch.zeros(value.shape[0], 1))
        value, first, second, steps = (on_card(part) for part in parts)
        return MovedTable(value, first, second, steps, on_card(columns), on_card(columns), moved=True)

    tables = {name: table(value) for name, value in start.items()}
    row, gene = y.nonzero(as_tuple=True)
    length = (y > 0).sum(1)
    targets = SparseTargets(
        on_card(length.cumsum(0) - length), on_card(length), on_card(gene.int()), on_card(y[row, gene])
    )
    counts = EpochCounts(on_card(log_size), targets, None, None)
    trainer = GmfOnCard(Trained(tables, counts, on_card(torch.zeros(n_genes)), 0.0, (0.9, 0.999, 1e-8)))
    one = torch.ones(1)
    loss = trainer.epoch(
        EpochSteps(
            torch.arange(n_cells),
            torch.tensor([0, n_cells]),
            torch.zeros(1, dtype=torch.int64),
            one,
            one,
            one,
        )
    )
    off = [abs(loss - float(wanted_loss.detach())) / abs(float(wanted_loss.detach()))]
    for name, gradient in wanted.items():
        found = 10 * tables[name].first.double().cpu()
        off.append(float((found - gradient).norm() / gradient.norm()))
    return max(off) if all(math.isfinite(value) for value in off) else math.inf
