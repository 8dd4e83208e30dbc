"""One step: a block of cells x genes, its loss, and the rows of the tables that it moves; and the held-out loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from neumf_assets.core.neumf.fused.gmf import EpochCounts, EpochSteps, MovedTable, gmf_epoch, gmf_gradients
from neumf_assets.core.neumf.fused.gmf import available as gmf_kernel
from neumf_assets.core.neumf.fused.tower import SparseTargets, fused_block_loss
from neumf_assets.core.neumf.gpu.gmf import MOST_SIZE, GmfOnCard
from neumf_assets.core.neumf.gpu.gmf import available as card_kernels
from neumf_assets.core.neumf.gpu.on_card import dense_bytes, interpreted, room_for, say_once
from neumf_assets.core.neumf.gpu.steps import StepsOnCard, Trained
from neumf_assets.core.neumf.gpu.tower import TowerOnCard, fits
from neumf_assets.core.neumf.network import Block, Tables, Tower, block_scores, pair_scores
from neumf_assets.core.neumf.objectives import entry_loss, ranking_loss, sparse_poisson_loss
from neumf_assets.core.neumf.training.batches import Epoch, Step
from neumf_assets.core.neumf.training.optimiser import Adam, Rows
from neumf_assets.core.neumf.training.state import Data, State

VALIDATION_PAIRS = {"cpu": 1 << 18, "cuda": 1 << 24}  # a CPU's caches want little at once, a GPU much


@dataclass(frozen=True)
class _HeldOutPart:
    """Held-out entries of some cells: position of the cell in the step, gene, count."""

    step: Step
    position: Tensor
    gene: Tensor
    y: Tensor


class Stepper:
    """Makes training steps on one state.

    Parameters
    ----------
    data, state
        What to train on, and what to train.
    frozen
        Tables that get no update.
    """

    def __init__(self, data: Data, state: State, frozen: frozenset[str] = frozenset()) -> None:
        self.data, self.state, self.settings = data, state, data.settings
        self.trained = [name for name in state.optimisers if name not in frozen]
        self.tower = Tower.of(state.layout, self.settings, state.statistics, data.device)
        self.fused = self._fused()
        self.training = "tower" not in frozen  # a frozen tower neither drops units nor renews its statistics
        self.members = np.bincount(data.all_cells, minlength=data.n_datasets)
        self.n_cells = data.all_cells.size
        self.decay = self._decay()
        self.expected_bias = data.gene_bias.to(data.device).view(-1)
        self.rates = self._column_rates()
        self.adam = Adam(self.settings.beta1, self.settings.beta2, self.settings.epsilon)
        kernel = data.device.type == "cpu" and self.settings.fused == "auto" and gmf_kernel()[0]
        self.by_gmf_kernel = kernel and self._is_plain_gmf()
        self.by_adam_kernel = kernel and self.settings.gradient_clip is None
        self.by_card = self._is_for_card()
        self.at_once = self.by_gmf_kernel and self.by_adam_kernel and data.workers.size == 1
        self._on_card: StepsOnCard | None = None
        for name, optimiser in state.optimisers.items():
            columns = optimiser.table.shape[1]
            self.rates[name] = self.rates[name].expand(columns).contiguous()
            self.decay[name] = self.decay[name].expand(columns).contiguous()

    @property
    def operation_threads(self) -> int:
        """Threads for torch's operations: one where they are small, since waking another takes as long as they do.

        The fused kernel splits a whole block over its own threads. The plain tower's operations are large.
        """
        light = self.data.device.type == "cpu" and (self.fused or not self.state.layout.mlp)
        return 1 if light else torch.get_num_threads()

    @contextmanager
    def window(self, order: Epoch, number: int) -> Iterator[None]:
        """Have the cells of a window of an epoch at hand in the body; here all cells always are."""
        yield

    def keep_best(self) -> None:
        """Remember the parameters as those of the best epoch."""
        state = self.state
        state.best = {n: t.clone() for n, t in (state.tables | state.statistics).items()}

    def return_to_best(self) -> None:
        """Put the parameters of the best epoch back."""
        for name, table in self.state.best.items():
            (self.state.tables | self.state.statistics)[name].copy_(table)

    def here(self, step: Step) -> Step:
        """Return a step with its cells at their places in the tables."""
        return step

    def run(
        self, steps: Sequence[Step], shares: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor | float, int]:
        """Make steps one after the other, each with its share of the step size; return loss and pairs of all."""
        trainer = self._trainer_on_card() if steps else None
        if steps and (self.at_once or trainer is not None):
            return self._run_at_once([self.here(step) for step in steps], shares, trainer)
        total, pairs = torch.zeros((), dtype=torch.float64, device=self.data.device), 0
        for step, share in zip(steps, shares, strict=True):
            loss, size = self(self.here(step), share, generator)
            total += loss
            pairs += size
        return total, pairs

    @torch.no_grad()
    def _run_at_once(
        self, steps: Sequence[Step], shares: Sequence[float], trainer: StepsOnCard | None
    ) -> tuple[float, int]:
        """Make all steps in one call, of the CPU's kernel or of what makes them on the card."""
        data = self.data
        sizes = np.array([step.cells.size for step in steps])
        datasets = np.array([step.dataset for step in steps])
        order = EpochSteps(
            torch.as_tensor(np.concatenate([step.cells for step in steps]), dtype=torch.int64),
            torch.as_tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int64),
            torch.as_tensor(datasets, dtype=torch.int64),
            torch.as_tensor(shares, dtype=torch.float32),
            torch.as_tensor(sizes / self.n_cells, dtype=torch.float32),
            torch.as_tensor(sizes / self.members[datasets], dtype=torch.float32),
        )
        pairs = int(sizes.sum()) * data.counts.n_genes
        if trainer is not None:
            return trainer.epoch(order), pairs
        prior = (self.expected_bias, self.settings.bias_prior)
        return gmf_epoch(*self._tables_and_counts(), order, *prior, self.adam, self.tower.threads), pairs

    def _tables_and_counts(self) -> tuple[dict[str, MovedTable], EpochCounts]:
        """Return what a kernel that makes many steps works on."""
        data, counts = self.data, self.data.counts
        tables = {
            name: MovedTable(
                *(opt.table, opt.first, opt.second, opt.steps),
                *(self.rates[name], self.decay[name], name in self.trained),
            )
            for name, opt in self.state.optimisers.items()
        }
        targets = SparseTargets(counts.indptr, counts.lengths, counts.indices, counts.values)
        held_out = (data.held_out.genes, data.held_out.row) if data.held_out else (None, None)
        return tables, EpochCounts(data.log_size, targets, *held_out)

    def _trainer_on_card(self) -> StepsOnCard | None:
        """Return what makes steps on the card, a new one where other cells are at hand than before.

        ``None``, which is said, where their counts do not fit there.
        """
        if not self.by_card:
            return None
        tables, counts = self._tables_and_counts()
        trainer = self._on_card
        if trainer is not None and trainer.is_of(tables, counts):
            return trainer
        self._on_card = None  # its counts go before others come
        every, settings, layout = self.data.counts, self.settings, self.state.layout
        self.by_card = room_for(dense_bytes(every.values, every.n_cells, every.n_genes), self.data.device)
        if not self.by_card:
            say_once(
                "Training goes the plain way: dense counts would not fit on the card; fewer window_cells would."
            )
            return None
        given = Trained(
            tables,
            counts,
            self.expected_bias,
            settings.bias_prior,
            self.adam,
            settings.objective,
            settings.precision,
        )
        self._on_card = TowerOnCard(given, layout) if layout.mlp else GmfOnCard(given)
        return self._on_card

    def __call__(self, step: Step, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
        """Make one step, its cells given by their places.

        Returns the summed loss (detached) and the number of pairs it was summed over.

        With several workers, both are those of this worker's cells of the step.
        """
        own = self.data.workers.own(step)
        cells, genes, rows = self.locate(own)
        if self.by_gmf_kernel and own.cells.size:
            leaves = {name: opt.table[rows[name]] for name, opt in self.state.optimisers.items()}
            loss, gradients = self._by_kernel(self.block(leaves), cells)
            pairs = cells.numel() * self.data.counts.n_genes
            gradients = {name: gradients[name] for name in self.trained}
            all_pairs = self.data.workers.sum_gradients(gradients, pairs)
            self._update(step, rows, leaves, gradients, share, all_pairs)
            return loss, pairs
        leaves = {name: opt.take(rows[name]) for name, opt in self.state.optimisers.items()}
        loss, pairs = self.loss(self.block(leaves), own, cells, genes, generator)
        trained = [leaves[name] for name in self.trained]
        if own.cells.size:
            found = torch.autograd.grad(loss, trained)
        else:  # all cells of the step are other workers'
            found = tuple(torch.zeros_like(leaf) for leaf in trained)
        gradients = dict(zip(self.trained, found, strict=True))
        all_pairs = self.data.workers.sum_gradients(gradients, pairs)
        self._update(step, rows, leaves, gradients, share, all_pairs)
        return loss.detach(), pairs

    def loss(
        self,
        block: Block,
        step: Step,
        cells: Tensor,
        genes: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, int]:
        """Return the summed loss of a block and the number of pairs it was summed over."""
        if not step.cells.size:
            return torch.zeros((), device=self.data.device), 0
        if self.settings.pairs == "sampled":
            return self.sampled_loss(block, step, cells, generator)
        return self.full_loss(block, step, cells, genes)

    def locate(self, step: Step) -> tuple[Tensor, Tensor | None, dict[str, Rows]]:
        """Return a step's cells and genes on the device, and the rows of each table that it uses."""
        device, n_genes = self.data.device, self.data.counts.n_genes
        cells = torch.as_tensor(step.cells, device=device)
        start = step.dataset * n_genes
        rows: dict[str, Rows] = {"cells": cells, "tower": slice(None)}
        if step.genes is None:
            return cells, None, rows | {"genes": slice(None), "shifts": slice(start, start + n_genes)}
        genes = torch.as_tensor(step.genes, device=device)
        return cells, genes, rows | {"genes": genes, "shifts": genes + start}

    def block(self, leaves: Tables) -> Block:
        """Return the block of the taken rows."""
        return Block(
            self.state.layout, leaves["cells"], leaves["genes"], leaves["shifts"], leaves["tower"].view(-1)
        )

    def full_loss(self, block: Block, step: Step, cells: Tensor, genes: Tensor | None) -> tuple[Tensor, int]:
        """Return the summed loss of all entries of a block that are not held out."""
        data = self.data
        if self.fused and genes is None:
            return self._fused_loss(block, cells), cells.numel() * data.counts.n_genes
        if self.settings.objective == "poisson" and self.settings.link == "exp" and genes is None:
            return self._sparse_loss(block, step, cells), cells.numel() * data.counts.n_genes
        y = data.counts.dense(cells, int(data.counts.observed[step.cells].sum()), genes)
        mask = data.held_out.mask(cells, genes) if data.held_out else None
        score = block_scores(block, self.tower, training=self.training)
        loss = entry_loss(score, data.log_size[cells][:, None], y, self.settings, block.log_dispersion)
        return (loss if mask is None else loss * mask).sum(), y.numel()

    def _is_whole(self) -> bool:
        """Tell whether steps take all entries of their cells."""
        genes = self.data.counts.n_genes
        return self.settings.pairs == "full" and (self.settings.block_genes or genes) >= genes

    def _is_plain_gmf(self) -> bool:
        """Tell whether the kernel of the GMF part knows all of this model's loss."""
        poisson = self.settings.objective == "poisson" and self.settings.link == "exp"
        return not self.state.layout.mlp and self._is_whole() and poisson

    def _is_for_card(self) -> bool:
        """Tell whether the GPU's kernels make the steps of this training; say so where they cannot."""
        settings, device = self.settings, self.data.device
        if device.type != "cuda" and not interpreted():
            return False
        usable, reason = card_kernels(device) if settings.fused == "auto" else (False, "fused: off")
        link = {"poisson": "exp", "mse": "identity", "bce": settings.link}.get(settings.objective)
        for missing, why in (
            (settings.dropout > 0 and self.state.layout.mlp, "a tower with dropout"),
            (self.state.layout.mlp and not fits(self.state.layout), f"a tower {self.state.layout.tower}"),
            (link != settings.link, f"objective {settings.objective} with link {settings.link}"),
            (not self._is_whole(), "steps that take some entries of their cells"),
            (self.state.layout.gmf > MOST_SIZE, f"more than {MOST_SIZE} dimensions"),
            (settings.gradient_clip is not None, "clipped gradients"),
            (self.data.workers.size > 1, "several workers"),
            (not usable, reason),
        ):
            if missing:
                say_once(f"Training on {device} goes the plain way: {why}.")
                return False
        return True

    @torch.no_grad()
    def _by_kernel(self, block: Block, cells: Tensor) -> tuple[Tensor, Tables]:
        """Return a block's loss and the gradients of its tables' rows, by the kernel."""
        data, layout = self.data, self.state.layout
        out = block.parts["out_gmf"]
        held_out = data.held_out.genes[data.held_out.row[cells]] if data.held_out else None
        found = gmf_gradients(
            block.cell_gmf * out,
            block.gene_gmf,
            block.cell_bias + data.log_size[cells],
            block.gene_bias,
            data.counts.sparse(cells),
            held_out,
            self.tower.threads,
        )
        bias = found.gene_bias[:, None]
        return found.loss, {
            "cells": torch.cat([found.cell * out, found.cell_offset[:, None]], 1),
            "genes": found.gene,
            "shifts": torch.cat([found.gene, bias], 1) if layout.shifted else bias,
            "tower": (found.cell * block.cell_gmf).sum(0)[None],
        }

    def _fused(self) -> bool:
        """Tell whether the fused kernel knows this objective and link."""
        link = {"mse": "identity"}.get(self.settings.objective, "exp")
        known = self.settings.objective == "bce" or self.settings.link == link
        return self.tower.fused is not None and known

    def _fused_loss(self, block: Block, cells: Tensor) -> Tensor:
        data = self.data
        assert self.tower.fused is not None
        return fused_block_loss(
            block.linear_part(),
            *block.first_layer(),
            *block.hidden_layers(),
            block.parts["out_mlp"],
            data.log_size[cells],
            data.counts.sparse(cells),
            objective=self.settings.objective,  # type: ignore[arg-type]
            log_dispersion=block.log_dispersion,
            held_out=data.held_out.genes[data.held_out.row[cells]] if data.held_out else None,
            precision=self.tower.fused,
            threads=self.tower.threads,
            overwrite_f0=True,
        )

    def _sparse_loss(self, block: Block, step: Step, cells: Tensor) -> Tensor:
        data = self.data
        score = block_scores(block, self.tower, training=self.training)
        entries = data.counts.entries(cells, int(data.counts.observed[step.cells].sum()))
        held_out = data.held_out.genes[data.held_out.row[cells]] if data.held_out else None
        return sparse_poisson_loss(score, data.log_size[cells], *entries, held_out)

    def sampled_loss(
        self, block: Block, step: Step, cells: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Return an unbiased estimate of the summed loss, from all observed entries and some drawn zeros."""
        data, draws = self.data, self.settings.num_negatives
        row, gene, y = data.counts.entries(cells, int(data.counts.observed[step.cells].sum()))
        if self.settings.objective == "bpr":
            other = data.counts.draw_zeros(cells[row], draws, generator)
            pair = row.repeat_interleave(draws)
            observed = pair_scores(block, self.tower, row, gene, training=self.training).repeat_interleave(
                draws
            )
            unobserved = pair_scores(block, self.tower, pair, other.view(-1), training=self.training)
            kept = self._keeps(cells[row], gene).repeat_interleave(draws)
            weight = kept * self._keeps(cells[pair], other.view(-1))
            return (ranking_loss(observed, unobserved) * weight).sum(), pair.numel()
        empty = data.counts.lengths[cells] == 0
        drawing = torch.cat([row, empty.nonzero()[:, 0]]).sort(stable=True).values
        zero = data.counts.draw_zeros(cells[drawing], draws, generator).view(-1)
        lengths = data.counts.lengths[cells]
        weight = (data.counts.n_genes - lengths).to(block.cells.dtype) / (draws * lengths.clamp_min(1))
        row_all = torch.cat([row, drawing.repeat_interleave(draws)])
        gene_all = torch.cat([gene, zero])
        weights = torch.cat([weight.new_ones(y.shape), weight[row_all[row.numel() :]]])
        weights = weights * self._keeps(cells[row_all], gene_all)
        score = pair_scores(block, self.tower, row_all, gene_all, training=self.training)
        dispersion = block.log_dispersion[gene_all] if block.log_dispersion is not None else None
        target = torch.cat([y, torch.zeros_like(zero, dtype=y.dtype)])
        loss = entry_loss(score, data.log_size[cells][row_all], target, self.settings, dispersion)
        return (loss * weights).sum(), cells.numel() * data.counts.n_genes

    def _keeps(self, cells: Tensor, genes: Tensor) -> Tensor:
        if self.data.held_out is None:
            return torch.ones(genes.shape, device=genes.device)
        return self.data.held_out.keeps(cells, genes)

    def _decay(self) -> dict[str, Tensor]:
        """Return the prior precision of every column of every table."""
        layout, device = self.state.layout, self.data.device
        prior, prior_mlp = self.settings.weight_decay, self.settings.tower_weight_decay
        cells = torch.full((layout.size + 1,), prior, device=device)
        cells[list(layout.span("mlp"))] = prior_mlp
        genes = torch.full((layout.gene_columns,), prior, device=device)
        genes[list(layout.span("mlp"))] = prior_mlp
        genes[layout.size :] = 0
        shifts = torch.full((layout.shift_columns,), 2 * self.settings.shift_penalty, device=device)
        shifts[-1] = 0
        tower = torch.full((1,), prior_mlp, device=device)
        return {"cells": cells, "genes": genes, "shifts": shifts, "tower": tower}

    def _column_rates(self) -> dict[str, Tensor]:
        """Return the peak step size of every column of every table."""
        layout, settings, device = self.state.layout, self.settings, self.data.device
        branches = torch.full((layout.size,), settings.learning_rate, device=device)
        branches[[i for name in self.state.pretrained for i in layout.span(name)]] *= settings.pretrained_rate
        give_way = settings.pretrained_rate if self.state.pretrained else 1.0
        one = branches.new_full((1,), settings.learning_rate * give_way)
        shifted = branches if layout.shifted else one[:0]
        extra = one if layout.dispersion == "gene" else one[:0]
        return {
            "cells": torch.cat([branches, one]) * (settings.cell_learning_rate / settings.learning_rate),
            "genes": torch.cat([branches, extra]),
            "shifts": torch.cat([shifted, one]),
            "tower": self._tower_rates(),
        }

    def _tower_rates(self) -> Tensor:
        """Return the peak step size of every weight of the tower and of the output."""
        layout, settings = self.state.layout, self.settings
        columns = self.state.optimisers["tower"].table.shape[1]
        rates = torch.full((columns,), settings.tower_learning_rate, device=self.data.device)
        for name, part in layout.split_tower(rates).items():
            if name != "log_dispersion" and ("gmf" if name == "out_gmf" else "mlp") in self.state.pretrained:
                part.mul_(settings.pretrained_rate)
        return rates

    def _update(
        self,
        step: Step,
        rows: dict[str, Rows],
        leaves: Tables,
        gradients: Tables,
        rate_share: float,
        pairs: float,
    ) -> None:
        share_genes = 1.0 if step.genes is None else step.genes.size / self.data.counts.n_genes
        share_cells = step.cells.size / self.n_cells
        share = {
            "cells": share_genes,
            "genes": share_cells,
            "shifts": step.cells.size / self.members[step.dataset],
            "tower": share_cells * share_genes,
        }
        if not self.by_adam_kernel:
            for name, gradient in gradients.items():
                gradient.addcmul_(leaves[name].detach(), self.decay[name], value=share[name])
        if self.settings.bias_prior and "shifts" in gradients:
            moved = leaves["shifts"].detach()[:, -1] - self.expected_bias[rows["shifts"]]
            gradients["shifts"][:, -1].add_(moved, alpha=self.settings.bias_prior * share["shifts"])
        if self.settings.gradient_clip is not None:
            norms = [self.data.workers.norm(name, gradient) for name, gradient in gradients.items()]
            norm = torch.stack(norms).norm() / pairs
            factor = (self.settings.gradient_clip / (norm + 1e-12)).clamp(max=1.0)
            for gradient in gradients.values():
                gradient.mul_(factor)
        for name, gradient in gradients.items():
            optimiser, rate = self.state.optimisers[name], self.rates[name]
            if self.by_adam_kernel:
                optimiser.move(
                    rows[name],
                    gradient,
                    rate,
                    self.decay[name],
                    share[name],
                    self.adam,
                    rate_share,
                    self.tower.threads,
                )
            else:
                optimiser.update(rows[name], leaves[name], gradient, rate_share * rate, self.adam)

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Return the mean loss of the held-out entries, or ``None`` without any."""
        if self.data.held_out is None:
            return None
        losses = [self._held_out_loss(part) for part in self.held_out_parts]
        total, pairs = self.data.workers.sum(sum(loss for loss, _ in losses), sum(size for _, size in losses))
        return total / max(pairs, 1)

    @cached_property
    def held_out_parts(self) -> list[_HeldOutPart]:
        """The held-out entries with their counts, some cells of one dataset at a time."""
        data, parts = self.data, []
        assert data.held_out is not None
        chunk = max(1, VALIDATION_PAIRS[data.device.type] // data.counts.n_genes)
        for d in range(data.n_datasets):
            members = data.held_out.cells[data.dataset[data.held_out.cells] == d]
            for start in range(0, members.size, chunk):
                step = Step(d, members[start : start + chunk], None)
                cells = torch.as_tensor(step.cells, device=data.device)
                held = data.held_out.genes[data.held_out.row[cells]]
                kept = held < data.counts.n_genes
                position, gene = kept.nonzero()[:, 0], held[kept]
                y = data.counts.dense(cells, int(data.counts.observed[step.cells].sum()))[position, gene]
                parts.append(_HeldOutPart(step, position, gene, y))
        return parts

    def _held_out_loss(self, part: _HeldOutPart) -> tuple[float, int]:
        cells, _, rows = self.locate(part.step)
        block = self.block({name: opt.table[rows[name]] for name, opt in self.state.optimisers.items()})
        if self.tower.fused or not block.layout.mlp:
            score = block_scores(block, self.tower)[part.position, part.gene]
        else:
            score = pair_scores(block, self.tower, part.position, part.gene)
        if self.settings.objective == "bpr":
            return self._held_out_ranking(score, part.position, part.y)
        dispersion = block.log_dispersion[part.gene] if block.log_dispersion is not None else None
        log_size = self.data.log_size[cells][part.position]
        loss = entry_loss(score, log_size, part.y, self.settings, dispersion)
        return float(loss.double().sum()), part.gene.numel()

    @staticmethod
    def _held_out_ranking(score: Tensor, position: Tensor, y: Tensor) -> tuple[float, int]:
        """Return the ranking loss of held-out observed entries against held-out zeros of the same cell."""
        observed, zero = (y > 0).nonzero()[:, 0], (y == 0).nonzero()[:, 0]
        if not observed.numel() or not zero.numel():
            return 0.0, 0
        partner = zero[torch.searchsorted(position[zero], position[observed]).clamp(max=zero.numel() - 1)]
        same = position[partner] == position[observed]
        loss = ranking_loss(score[observed], score[partner])[same]
        return float(loss.double().sum()), int(same.sum())
