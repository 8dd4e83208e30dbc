"""Steps of NeuMF on the card: a fused kernel for the tower's pairs, torch's operations for all that is small."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from neumf_assets.core.neumf.fused.tower import MAX_LOG_MEAN
from neumf_assets.core.neumf.gpu.on_card import DenseCounts, interpreted
from neumf_assets.core.neumf.gpu.steps import StepsOnCard, Trained
from neumf_assets.core.neumf.network import Block, Layout

DEPTH = 4
WIDEST = 64
"""Widest layer: a tile's activations of all layers have to fit into the registers of a multiprocessor."""
NARROWEST = 16
TILE_CELLS, TILE_GENES = 16, 8
CHUNK_CELLS = 64
ROWS = {"cells": 1, "genes": 0, "shifts": 2, "tower": 0}
MOVED_ROWS, MOVED_COLUMNS = 8, 64


def fits(layout: Layout) -> bool:
    """Tell whether the kernel takes a tower: up to four layers, none wider than 64, neither normalised nor dropped."""
    return 1 <= len(layout.tower) <= DEPTH and max(layout.tower) <= WIDEST and not layout.batch_norm


class _Entries(NamedTuple):
    """What a step's pairs are compared with."""

    counts: DenseCounts
    log_size: Tensor
    cells: Tensor
    taken: Tensor
    objective: int
    precision: str


class TowerOnCard(StepsOnCard):
    """Steps of a model with a tower; ``layout`` says where the parameters lie in the tables.

    The precisions ``auto`` and ``bfloat16`` round the factors of matrix products to bfloat16, ``float32`` does not.
    """

    def __init__(self, given: Trained, layout: Layout) -> None:
        super().__init__(given)
        self.layout = layout
        self.precision = "tf32x3" if interpreted() or given.precision == "float32" else "bf16"

    def make_room(self) -> Tensor:
        """Have memory for the positions of a step's cells."""
        self.positions = torch.arange(self.most, device=self.device)
        return self.room(1, dtype=torch.float64)

    def make_step(self) -> None:
        """Make a step."""
        leaves, cells, dataset, taken = self._taken()
        entries = _Entries(self.counts, self.log_size, cells, taken, self.objective, self.precision)
        with torch.enable_grad():
            block = Block(
                self.layout, leaves["cells"], leaves["genes"], leaves["shifts"], leaves["tower"].view(-1)
            )
            weights, biases = block.hidden_layers()
            inputs = (block.linear_part(), *block.first_layer(), block.parts["out_mlp"], *weights, *biases)
            loss = cast(Tensor, _TowerLoss.apply(entries, *inputs))
            found = torch.autograd.grad(loss, list(leaves.values()))
        self.losses += loss.detach()
        gradients = dict(zip(leaves, found, strict=True))
        self._pull_biases(gradients["shifts"], leaves["shifts"].detach(), dataset)
        for name, gradient in gradients.items():
            if self.tables[name].moved:
                self._move(name, gradient.contiguous())
        _kernels().advance[(1,)](self.at_step, num_warps=1)

    def _taken(self) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Return a step's rows of all tables as leaves, its cells (the first again for those it lacks), its dataset,
        and how many cells it has (none where no step is left)."""
        order, last = self.order, (self.n_steps - 1).clamp(min=0)
        step = torch.minimum(self.at_step, last).view(1)
        start, end = order.begin.index_select(0, step), order.begin.index_select(0, step + 1)
        taken = torch.where(self.at_step < self.n_steps, end - start, 0)
        position = start + torch.where(self.positions < taken, self.positions, 0)
        cells = order.cells.index_select(0, position)
        dataset = order.dataset.index_select(0, step)
        shifts = self.tables["shifts"].value
        own = shifts.view(-1, self.n_genes * shifts.shape[1]).index_select(0, dataset).view(self.n_genes, -1)
        rows = {
            "cells": self.tables["cells"].value.index_select(0, cells),
            "genes": self.tables["genes"].value.clone(),
            "shifts": own,
            "tower": self.tables["tower"].value.clone(),
        }
        return {name: value.requires_grad_() for name, value in rows.items()}, cells, dataset, taken

    def _pull_biases(self, gradient: Tensor, shifts: Tensor, dataset: Tensor) -> None:
        """Add the pull of the biases' prior to their gradient."""
        if self.bias_prior:
            step = torch.minimum(self.at_step, (self.n_steps - 1).clamp(min=0)).view(1)
            own = self.bias_prior * self.order.dataset_share.index_select(0, step)
            expected = self.expected_bias.view(-1, self.n_genes).index_select(0, dataset)[0]
            gradient[:, -1] += own * (shifts[:, -1] - expected)

    def _move(self, name: str, gradient: Tensor) -> None:
        """Move the rows of a table that the step has used, and count the step for them."""
        table, order, rows = self.tables[name], self.order, gradient.shape[0]
        shares = order.dataset_share if name == "shifts" else order.share
        columns = table.value.shape[1]
        now = (self.at_step, self.n_steps, rows)
        where = (order.cells, order.begin, order.dataset)
        grid = (-(-rows // MOVED_ROWS), -(-columns // MOVED_COLUMNS))
        _kernels().move_rows[grid](
            *(table.value, table.first, table.second, table.steps, table.rate, table.decay, gradient),
            *(*where, order.rate_share, shares, *now, columns, *self.adam),
            ROWS=ROWS[name],
            TILE=MOVED_ROWS,
            WIDTH=MOVED_COLUMNS,
            num_warps=2,
        )
        _kernels().count_rows[(-(-rows // 128),)](
            table.steps, *where, *now, ROWS=ROWS[name], TILE=128, num_warps=1
        )


class _TowerLoss(torch.autograd.Function):
    """The loss of a step's pairs, whose gradients are found along with it and handed out once, as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        entries: _Entries,
        linear: Tensor,
        cell_side: Tensor,
        gene_side: Tensor,
        out: Tensor,
        *layers: Tensor,
    ) -> Tensor:
        half = len(layers) // 2
        sizes = [cell_side.shape[1], *(layer.shape[0] for layer in layers[:half])]
        widths = _padded(sizes)
        sides = [_wide(side, widths[0]) for side in (cell_side, gene_side)]
        inner = _deep(list(layers[:half]), list(layers[half:]), widths, out.device)
        weight_out = _wide(out, widths[-1])
        (most, n_genes), device = linear.shape, linear.device
        gene_tiles, chunks = -(-n_genes // TILE_GENES), -(-most // CHUNK_CELLS)
        programs = gene_tiles * chunks

        def room(*shape: int) -> Tensor:
            return torch.empty(shape, device=device)

        by_linear = room(most, n_genes)
        sides_parts = [room(gene_tiles, most, widths[0]), room(chunks, n_genes, widths[0])]
        inner_parts = [room(programs, *value.shape) for value in inner]
        out_parts, losses = room(programs, widths[-1]), room(programs)
        _kernels().tower_tile[(gene_tiles, chunks)](
            *(
                *sides,
                linear.contiguous(),
                entries.log_size,
                entries.counts.values,
                entries.cells,
                entries.taken,
            ),
            *(*inner, weight_out, by_linear, *sides_parts, *inner_parts, out_parts, losses),
            *(n_genes, most, MAX_LOG_MEAN, entries.counts.masked),
            CHUNK=CHUNK_CELLS,
            TILE_CELLS=TILE_CELLS,
            TILE_GENES=TILE_GENES,
            H1=widths[0],
            H2=widths[1],
            H3=widths[2],
            H4=widths[3],
            OBJECTIVE=entries.objective,
            PRECISION=entries.precision,
            num_warps=4,
        )
        by_sides = [part.sum(0)[:, : sizes[0]] for part in sides_parts]
        found = [part.sum(0) for part in inner_parts]
        by_weights = [found[2 * i][: sizes[i + 1], : sizes[i]] for i in range(half)]
        by_biases = [found[2 * i + 1][: sizes[i + 1]] for i in range(half)]
        by_out = out_parts.sum(0)[: sizes[-1]]
        ctx.gradients = (by_linear, *by_sides, by_out, *by_weights, *by_biases)
        return losses.double().sum()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, *gradients


def _padded(sizes: list[int]) -> list[int]:
    """Return the widths of four layers as the kernel takes them: powers of two; what a tower lacks is its last."""
    widths = [max(NARROWEST, 1 << (size - 1).bit_length()) for size in sizes]
    return widths + [widths[-1]] * (DEPTH - len(widths))


def _deep(
    weights: list[Tensor], biases: list[Tensor], widths: list[int], device: torch.device
) -> list[Tensor]:
    """Return weights and biases of layers 2 to 4, padded by zeros; a layer that a tower lacks hands on what it gets."""
    layers: list[Tensor] = []
    for number in range(DEPTH - 1):
        wide = widths[number + 1]
        if number < len(weights):
            weight = weights[number]
            missing = (0, widths[number] - weight.shape[1], 0, wide - weight.shape[0])
            layers += [pad(weight, missing).contiguous(), _wide(biases[number], wide)]
        else:
            layers += [torch.eye(wide, device=device), torch.zeros(wide, device=device)]
    return layers


def _wide(value: Tensor, width: int) -> Tensor:
    """Return a tensor with zeros added to its last dimension."""
    return pad(value, (0, width - value.shape[-1])).contiguous()


def _kernels() -> Any:
    from neumf_assets.core.neumf.gpu import kernels

    return kernels
