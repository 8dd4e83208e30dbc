"""The Triton kernels against float64, run by Triton's interpreter: the arithmetic is the same on a card.

Triton has to be told before it is imported: :mod:`test_kernels` runs these tests in a process of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.neumf.fused.gmf import EpochCounts, EpochSteps, MovedTable
from neumf_assets.core.neumf.fused.tower import MAX_LOG_MEAN, SparseTargets
from neumf_assets.core.neumf.gpu import gmf, on_card
from neumf_assets.core.neumf.gpu.gmf import GmfOnCard
from neumf_assets.core.neumf.gpu.on_card import make_dense, type_of
from neumf_assets.core.neumf.gpu.steps import StepsOnCard, Trained
from neumf_assets.core.neumf.gpu.tower import TowerOnCard, fits
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.network import Layout
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

ADAM = (0.9, 0.999, 1e-8)


def test_the_interpreter_runs_the_kernels() -> None:
    from neumf_assets.core.neumf.gpu import kernels

    assert "Interpreted" in type(kernels.gmf_tile).__name__


class Problem:
    """Tables, counts and steps of a small training, and the same in float64."""

    def __init__(
        self,
        layout: Layout,
        cells: int,
        genes: int,
        seed: int = 0,
        held: int = 2,
        largest: int = 9,
        density: float = 0.2,
        objective: str = "poisson",
        frozen: tuple[str, ...] = (),
    ) -> None:
        rng = np.random.default_rng(seed)
        made = torch.Generator().manual_seed(seed)
        self.layout, self.objective, self.frozen, self.n_genes = layout, objective, frozen, genes
        datasets = layout.n_datasets
        shapes = {
            "cells": (cells, layout.size + 1),
            "genes": (genes, layout.gene_columns),
            "shifts": (datasets * genes, layout.shift_columns),
            "tower": (1, sum(math.prod(shape) for shape in layout.pieces.values())),
        }
        self.start = {name: 0.3 * torch.randn(shape, generator=made) for name, shape in shapes.items()}
        self.rate = {name: 0.02 * torch.rand(shape[1], generator=made) for name, shape in shapes.items()}
        self.decay = {name: torch.rand(shape[1], generator=made) for name, shape in shapes.items()}
        self.log_size = 0.3 * torch.randn(cells, generator=made)
        self.expected_bias = torch.randn(datasets * genes, generator=made)
        y = rng.integers(1, largest + 1, (cells, genes)) * (rng.random((cells, genes)) < density)
        self.y = torch.as_tensor(y, dtype=torch.float32)
        self.held = torch.as_tensor(rng.integers(0, genes + 1, (cells, held))) if held else None
        order = rng.permutation(cells)
        cuts = np.sort(rng.integers(0, cells + 1, 2))
        self.begin = torch.as_tensor([0, *cuts, cells])
        self.order = torch.as_tensor(order)
        self.dataset = torch.as_tensor(rng.integers(0, datasets, 3))
        self.rate_share, self.share, self.dataset_share = (torch.rand(3, generator=made) for _ in range(3))

    def trainer(self, kind: str = "gmf") -> StepsOnCard:
        tables = {}
        for name, value in self.start.items():
            moments = (torch.zeros_like(value), torch.zeros_like(value), torch.zeros(value.shape[0], 1))
            columns = (self.rate[name], self.decay[name])
            tables[name] = MovedTable(value.clone(), *moments, *columns, name not in self.frozen)
        counts = csr_matrix(self.y.numpy())
        entries = (counts.indptr[:-1], np.diff(counts.indptr), counts.indices, counts.data)
        rows = None if self.held is None else torch.arange(len(self.y))
        known = EpochCounts(
            self.log_size, SparseTargets(*(torch.as_tensor(one) for one in entries)), self.held, rows
        )
        given = Trained(tables, known, self.expected_bias, 0.7, ADAM, self.objective, "float32")
        return GmfOnCard(given) if kind == "gmf" else TowerOnCard(given, self.layout)

    def steps(self) -> EpochSteps:
        return EpochSteps(
            self.order, self.begin, self.dataset, self.rate_share, self.share, self.dataset_share
        )

    def exact(self) -> tuple[float, dict[str, dict[str, Tensor]]]:
        """Return loss and tables with their moments after the steps, one plain operation after the other."""
        tables = {
            name: {"value": value.double(), "first": 0 * value.double(), "second": 0 * value.double()}
            | {"steps": torch.zeros(value.shape[0], 1, dtype=torch.float64)}
            for name, value in self.start.items()
        }
        total, genes = 0.0, self.n_genes
        for step in range(3):
            cells = self.order[self.begin[step] : self.begin[step + 1]]
            shifts = int(self.dataset[step]) * genes + torch.arange(genes)
            rows = {"cells": cells, "genes": torch.arange(genes), "shifts": shifts, "tower": torch.arange(1)}
            leaves = {name: tables[name]["value"][rows[name]].requires_grad_() for name in tables}
            loss = self._loss(leaves, cells)
            found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            share = dict.fromkeys(tables, self.share[step]) | {"cells": torch.ones(())}
            share["shifts"] = self.dataset_share[step]
            with torch.no_grad():
                moved = leaves["shifts"][:, -1] - self.expected_bias[shifts]
                found["shifts"][:, -1] += 0.7 * share["shifts"] * moved
                for name, gradient in found.items():
                    if name not in self.frozen:
                        pulled = gradient + self.decay[name] * share[name] * leaves[name]
                        self._move(tables[name], rows[name], pulled, self.rate_share[step] * self.rate[name])
            total += float(loss.detach())
        return total, tables

    def _loss(self, leaves: dict[str, Tensor], cells: Tensor) -> Tensor:
        layout, parts = self.layout, self.layout.split_tower(leaves["tower"][0])
        embedding = leaves["genes"][:, : layout.size]
        if layout.shifted:
            embedding = embedding + leaves["shifts"][:, :-1]
        score = leaves["cells"][:, -1:] + leaves["shifts"][:, -1]
        if layout.gmf:
            mine, theirs = leaves["cells"][:, : layout.gmf], embedding[:, : layout.gmf]
            score = score + (mine * parts["out_gmf"]) @ theirs.T
        if layout.mlp:
            mine, theirs = leaves["cells"][:, layout.gmf : layout.size], embedding[:, layout.gmf :]
            hidden = (mine @ parts["w1_cell"].T + parts["b1"])[:, None] + (theirs @ parts["w1_gene"].T)[None]
            hidden = hidden.relu()
            for number in range(2, len(layout.tower) + 1):
                hidden = (hidden @ parts[f"w{number}"].T + parts[f"b{number}"]).relu()
            score = score + hidden @ parts["out_mlp"]
        y, log_size = self.y[cells].double(), self.log_size[cells].double()[:, None]
        if self.objective == "poisson":
            log_mean = (score + log_size).clamp(max=MAX_LOG_MEAN)
            loss = log_mean.exp() - y * log_mean
        elif self.objective == "mse":
            loss = (score * log_size.exp() - y) ** 2
        else:
            loss = torch.nn.functional.softplus(score) - score * (y > 0)
        used = torch.ones(len(cells), self.n_genes + 1, dtype=torch.float64)
        if self.held is not None:
            used.scatter_(1, self.held[cells], 0.0)
        return (loss * used[:, :-1]).sum()

    @staticmethod
    def _move(table: dict[str, Tensor], rows: Tensor, gradient: Tensor, rate: Tensor) -> None:
        table["steps"][rows] += 1
        taken = table["steps"][rows]
        table["first"][rows] = 0.9 * table["first"][rows] + 0.1 * gradient
        table["second"][rows] = 0.999 * table["second"][rows] + 0.001 * gradient**2
        scale = rate * (1 - 0.999**taken).sqrt() / (1 - 0.9**taken)
        table["value"][rows] -= scale * table["first"][rows] / (table["second"][rows].sqrt() + 1e-8)


def gmf_layout(size: int, datasets: int = 1) -> Layout:
    return Layout(size, 0, (), datasets, "none", False, datasets > 1)


def check(problem: Problem, kind: str = "gmf") -> None:
    """The moments are sums of gradients: right to float32's rounding of sums; so are parameters, but where a gradient
    is next to nothing, whose sign Adam makes a step of."""
    trainer = problem.trainer(kind)
    loss = trainer.epoch(problem.steps())
    wanted_loss, wanted = problem.exact()
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    for name, table in trainer.tables.items():
        expected = wanted[name]
        assert torch.equal(table.steps.double(), expected["steps"]), name
        for moment, ours in (("first", table.first), ("second", table.second)):
            size = expected[moment].abs().max() + 1e-12
            assert float((ours.double() - expected[moment]).abs().max() / size) < 2e-4, (name, moment)
        clear = expected["second"].sqrt() > 1e-4 * expected["second"].sqrt().max()
        change = (table.value.double() - expected["value"]).abs()
        assert float((change * clear).max()) <= 2e-3 * float(problem.rate[name].max()), name


@settings(max_examples=8, deadline=None)
@given(
    cells=st.integers(1, 80),
    genes=st.integers(1, 140),
    size=st.integers(1, 40),
    datasets=st.integers(1, 3),
    held=st.integers(0, 4),
    density=st.sampled_from([0.0, 0.1, 0.9]),
    largest=st.sampled_from([3, 255, 40_000]),
    seed=st.integers(0, 9),
)
def test_gmf_steps_are_those_of_float64(
    cells: int, genes: int, size: int, datasets: int, held: int, density: float, largest: int, seed: int
) -> None:
    check(Problem(gmf_layout(size, datasets), cells, genes, seed, held, largest, density))


@pytest.mark.parametrize("objective", ["mse", "bce"])
def test_gmf_steps_of_other_objectives_are_those_of_float64(objective: str) -> None:
    check(Problem(gmf_layout(7, 2), 70, 90, objective=objective))


@pytest.mark.parametrize("frozen", [("genes", "shifts", "tower"), ("cells",)])
def test_frozen_tables_stay(frozen: tuple[str, ...]) -> None:
    problem = Problem(gmf_layout(5, 2), 40, 30, frozen=frozen)
    trainer = problem.trainer()
    trainer.epoch(problem.steps())
    for name, table in trainer.tables.items():
        assert torch.equal(table.value, problem.start[name]) == (name in frozen)
        assert bool(table.steps.any()) != (name in frozen)
    check(problem)


@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_steps_beyond_the_last_do_nothing(kind: str) -> None:
    layout = gmf_layout(5, 2) if kind == "gmf" else Layout(3, 4, (9, 5), 2, "none", False, True)
    problem = Problem(layout, 30, 20)
    trainer = problem.trainer(kind)
    loss = trainer.epoch(problem.steps())
    before = {name: [one.clone() for one in table[:4]] for name, table in _tensors(trainer)}
    trainer.make_step()
    trainer.make_step()
    assert float(trainer.losses.sum()) == loss
    for name, table in _tensors(trainer):
        assert all(torch.equal(a, b) for a, b in zip(table[:4], before[name], strict=True)), name


@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_it_repeats_bit_for_bit(kind: str) -> None:
    layout = gmf_layout(5) if kind == "gmf" else Layout(3, 4, (9, 5), 1, "none", False, False)
    problem = Problem(layout, 70, 30)
    first, second = problem.trainer(kind), problem.trainer(kind)
    assert first.epoch(problem.steps()) == second.epoch(problem.steps())
    for (_, ours), (_, theirs) in zip(_tensors(first), _tensors(second), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_means_beyond_the_bound_have_no_gradient() -> None:
    problem = Problem(gmf_layout(3), 10, 20, held=0)
    problem.log_size += 40
    check(problem)


def test_an_epoch_may_have_larger_steps_than_the_one_before() -> None:
    problem = Problem(gmf_layout(4), 60, 30)
    trainer = problem.trainer()
    one = torch.ones(1)
    zero = torch.zeros(1, dtype=torch.int64)
    small = EpochSteps(torch.arange(3), torch.tensor([0, 3]), zero, one, one, one)
    whole = EpochSteps(torch.arange(60), torch.tensor([0, 60]), zero, one, one, one)
    for steps in (small, whole, small):
        assert math.isfinite(trainer.epoch(steps))
    assert trainer.tables["cells"].steps[:, 0].tolist() == [3.0] * 3 + [1.0] * 57


@pytest.mark.parametrize(
    ("tower", "sizes"),
    [((11,), (4, 3)), ((20, 12), (3, 5)), ((20, 16, 9), (0, 6)), ((64, 32, 16, 8), (5, 7))],
)
@pytest.mark.parametrize("datasets", [1, 2])
def test_tower_steps_are_those_of_float64(
    tower: tuple[int, ...], sizes: tuple[int, int], datasets: int
) -> None:
    layout = Layout(*sizes, tower, datasets, "none", False, datasets > 1)
    check(Problem(layout, 45, 21), "neumf")


@pytest.mark.parametrize("objective", ["mse", "bce"])
def test_tower_steps_of_other_objectives_are_those_of_float64(objective: str) -> None:
    check(Problem(Layout(3, 4, (12, 6), 1, "none", False, False), 30, 20, objective=objective), "neumf")


def test_towers_that_the_kernel_does_not_take() -> None:
    plain = (1, "none", False, False)
    assert fits(Layout(3, 4, (64, 32), *plain))
    assert not fits(Layout(3, 4, (65,), *plain))
    assert not fits(Layout(3, 4, (8, 8, 8, 8, 8), *plain))
    assert not fits(Layout(3, 4, (8,), 1, "none", True, False))


@pytest.mark.parametrize(
    ("largest", "whole", "kind"),
    [
        (254, True, torch.uint8),
        (255, True, torch.int16),
        (32_767, True, torch.float32),
        (3, False, torch.float32),
    ],
)
def test_counts_take_the_narrowest_type(largest: float, whole: bool, kind: torch.dtype) -> None:
    assert type_of(largest, whole)[0] == kind


@pytest.mark.parametrize("largest", [9.0, 255.0, 32_767.0, 1_200_000.0, 0.5])
def test_dense_counts_are_the_sparse_ones(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    monkeypatch.setattr(on_card, "ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    y = np.where(rng.random((23, 11)) < 0.3, 1.0, 0.0).astype(np.float32)
    y[4], y[5, 6] = 0.0, largest  # an empty cell
    counts = csr_matrix(y)
    held, row = torch.tensor([[0, 11], [10, 6], [11, 11]]), torch.full((23,), 2)
    row[3], row[5] = 0, 1
    entries = (counts.indptr[:-1], np.diff(counts.indptr), counts.indices, counts.data)
    dense = make_dense(*(torch.as_tensor(one) for one in entries), 11, held, row)
    for cell, gene in ((3, 0), (5, 10), (5, 6)):
        assert float(dense.values[cell, gene]) == dense.masked
        y[cell, gene] = dense.masked
    np.testing.assert_array_equal(dense.values.float().numpy(), y)


def test_a_kernel_that_is_off_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    on_card.passes.cache_clear()
    assert gmf.available(torch.device("cpu"))[0]
    assert not on_card.passes(lambda _: 0.5, 0.02, torch.device("cpu"), "A kernel")
    assert "A kernel is off by 0.5" in caplog.text

    def breaks(_: torch.device) -> float:
        raise RuntimeError("no such instruction")

    assert not on_card.passes(breaks, 0.02, torch.device("cpu"), "Another kernel")
    assert "Another kernel cannot be used (RuntimeError: no such instruction)" in caplog.text


def trained(**changes: Any) -> NeuMFModel:
    rng = np.random.default_rng(0)
    means = np.exp(0.5 * rng.normal(size=(90, 3)) @ rng.normal(size=(3, 50)) - 0.5)
    y = rng.poisson(means).astype(np.float32)
    dataset = (np.arange(90) >= 50).astype(np.intp)
    chosen = NeuMFSettings(
        **{"kind": "gmf", "gmf_size": 4, "epochs": 3, "threads": 1, "validation_cells": 60} | changes
    )
    names = ([f"gene {g}" for g in range(50)], [f"cell {c}" for c in range(90)])
    return fit(csr_matrix(y), chosen, gene_names=names[0], cell_names=names[1], dataset=dataset)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_cells": 40},
        {"objective": "mse", "link": "identity"},
        {
            "kind": "neumf",
            "pretrain": "gmf",
            "tower": (8, 6),
            "mlp_size": 4,
            "pretrain_epochs": 1,
            "fusion_epochs": 1,
        },
    ],
)
def test_a_whole_training_is_that_of_plain_operations(changes: dict[str, Any]) -> None:
    """Not bit for bit: sums have another order; so little that curves agree to four digits."""
    ours = trained(**changes, precision="float32")
    plain = trained(**changes, precision="float32", fused="off")
    for a, b in zip(ours.history, plain.history, strict=True):
        for name in ("train_loss", "validation_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (a["stage"], a["epoch"], name)
    torch.testing.assert_close(ours.tables["genes"], plain.tables["genes"], rtol=0, atol=5e-3)


def test_what_the_kernels_do_not_know_goes_the_plain_way_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_card.say_once.cache_clear()
    for _ in range(2):
        trained(objective="nb", epochs=1)
    said = [record.getMessage() for record in caplog.records if "plain way" in record.getMessage()]
    assert said == ["Training on cpu goes the plain way: objective nb with link exp."]


def _tensors(trainer: StepsOnCard) -> list[tuple[str, list[Tensor]]]:
    return [
        (name, [table.value, table.first, table.second, table.steps])
        for name, table in trainer.tables.items()
    ]
