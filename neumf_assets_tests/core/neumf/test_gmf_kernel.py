"""The GMF kernel and its Adam against float64 and plain torch, on every path that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, random_array
from torch import Tensor

from neumf_assets.core.neumf.fused import library
from neumf_assets.core.neumf.fused.gmf import GmfGradients, available, gmf_gradients
from neumf_assets.core.neumf.fused.tower import MAX_LOG_MEAN
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import Plan, SparseCounts, Step
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.neumf.training.optimiser import RowAdam
from neumf_assets.core.neumf.training.preparation import prepare
from neumf_assets.core.neumf.training.schedule import rate_shares
from neumf_assets.core.neumf.training.stages import initial_state
from neumf_assets.core.neumf.training.state import Data, State
from neumf_assets.core.neumf.training.step import Stepper

usable, reason = available()
pytestmark = pytest.mark.skipif(not usable, reason=reason)

FLAGS_OF_PATH = {"avx2": "avx2", "avx512": "avx512f", "avx512bf16": "avx512_bf16", "amx": "amx_tile"}


class Problem:
    """A block with its counts."""

    def __init__(
        self,
        cells: int,
        genes: int,
        size: int,
        seed: int = 0,
        held: int = 3,
        density: float = 0.1,
        scale: float = 0.5,
    ) -> None:
        rng = np.random.default_rng(seed)
        made = torch.Generator().manual_seed(seed)
        shapes = ((cells, size), (genes, size), (cells,), (genes,))
        self.values = [scale * torch.randn(shape, generator=made) for shape in shapes]
        counts = random_array((cells, genes), density=density, rng=rng, format="csr")
        counts.data = rng.integers(1, 400, counts.nnz).astype(np.float32)
        self.counts = SparseCounts(csr_matrix(counts), torch.device("cpu"))
        self.y = torch.as_tensor(counts.toarray(), dtype=torch.float64)
        self.held = torch.as_tensor(rng.integers(0, genes + 1, (cells, held)))

    def ours(self, threads: int = 2) -> GmfGradients:
        targets = self.counts.sparse(torch.arange(self.counts.n_cells))
        cell, gene, offset, bias = self.values
        return gmf_gradients(
            cell, gene, offset, bias, targets, self.held if self.held.numel() else None, threads
        )

    def exact(self) -> list[Tensor]:
        leaves = [value.double().clone().requires_grad_() for value in self.values]
        log_mean = (leaves[0] @ leaves[1].T + leaves[2][:, None] + leaves[3]).clamp(max=MAX_LOG_MEAN)
        mask = torch.ones(self.y.shape[0], self.y.shape[1] + 1, dtype=torch.float64)
        mask.scatter_(1, self.held, 0.0)
        loss = ((log_mean.exp() - self.y * log_mean) * mask[:, :-1]).sum()
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    def sizes(self) -> list[Tensor]:
        """Sums of the sizes of all terms that loss and gradients add up: what their rounding is relative to."""
        cell, gene, offset, bias = (value.double() for value in self.values)
        log_mean = (cell @ gene.T + offset[:, None] + bias).clamp(max=MAX_LOG_MEAN)
        steps = (cell.abs() @ gene.abs().T + offset.abs()[:, None] + bias.abs()).clamp_min(1.0)
        slopes = (log_mean.exp() + self.y) * steps
        loss = ((log_mean.exp() + self.y * log_mean.abs()) * steps).sum()
        return [loss, slopes @ gene.abs(), slopes.T @ cell.abs(), slopes.sum(1), slopes.sum(0)]


def deviations(problem: Problem, threads: int = 2) -> list[float]:
    pairs = zip(problem.ours(threads), problem.exact(), strict=True)
    return [float((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)) for ours, exact in pairs]


@settings(max_examples=60, deadline=None)
@given(
    cells=st.integers(1, 70),
    genes=st.integers(1, 200),
    size=st.integers(1, 70),
    held=st.integers(0, 5),
    density=st.sampled_from([0.0, 0.05, 0.9]),
    threads=st.integers(1, 4),
)
def test_loss_and_gradients_are_those_of_float64(
    cells: int, genes: int, size: int, held: int, density: float, threads: int
) -> None:
    """Half a unit in the last place for each of the terms that are added one after the other, of their sizes' sum."""
    problem = Problem(cells, genes, size, held=held, density=density, scale=0.5 / size**0.5)
    bound = 6e-8 * (size + cells + genes + 16)
    for ours, exact, most in zip(problem.ours(threads), problem.exact(), problem.sizes(), strict=True):
        assert ((ours.double() - exact).abs() <= bound * most + 1e-30).all()


def test_means_beyond_the_bound_have_no_gradient() -> None:
    problem = Problem(4, 40, 3)
    problem.values[2] += 30
    found = problem.ours()
    assert torch.isfinite(found.loss) and not found.cell.any() and not found.gene_bias.any()
    assert max(deviations(problem)) < 1e-5


def test_what_is_held_out_moves_nothing() -> None:
    problem = Problem(5, 30, 4, held=0)
    problem.held = torch.arange(30).expand(5, 30)
    found = problem.ours()
    assert abs(float(found.loss)) < 1e-2
    for gradient in found[1:]:
        assert float(gradient.abs().max()) < 1e-2  # what is added and taken away again rounds


def test_it_repeats_bit_for_bit() -> None:
    problem = Problem(40, 300, 20)
    first, second = problem.ours(3), problem.ours(3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("rows", [slice(None), slice(2, 7), torch.tensor([5, 1, 8])])
def test_adam_is_that_of_plain_torch(rows: slice | Tensor) -> None:
    made = torch.Generator().manual_seed(0)
    table = torch.randn(10, 7, generator=made)
    ours, plain = RowAdam(table.clone()), RowAdam(table.double())
    rate, decay, share = torch.rand(7, generator=made) * 0.1, torch.rand(7, generator=made), 0.3
    for number in range(5):
        at = rows if number % 2 else slice(None)
        values = plain.table[at]
        gradient = torch.randn(values.shape, generator=made)  # of float32
        ours.move(at, gradient.clone(), 2 * rate, decay, share, rate_share=0.5, threads=2)
        plain.update(at, values, gradient.double() + share * decay * values, rate.double())
    for name in ("table", "first", "second", "steps"):
        wanted = getattr(plain, name).float()  # in float64 until here
        torch.testing.assert_close(getattr(ours, name), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("datasets", [1, 2])
def test_a_training_comes_out_as_by_plain_torch(datasets: int) -> None:
    """Rounding differs, and grows over the steps of a training; its result stays the same to four digits."""
    rng = np.random.default_rng(1)
    cells, genes = 120, 90
    mean = np.exp(rng.normal(-1, 1, genes) + rng.normal(0, 0.7, (cells, 2)) @ rng.normal(0, 0.7, (2, genes)))
    counts = csr_matrix(rng.poisson(mean).astype(np.float32))
    found = {}
    for fused in ("auto", "off"):
        found[fused] = fit(
            counts,
            NeuMFSettings(kind="gmf", gmf_size=4, epochs=6, fused=fused, threads=2, block_cells=32),
            gene_names=[f"g{n}" for n in range(genes)],
            cell_names=[f"c{n}" for n in range(cells)],
            dataset=np.arange(cells) % datasets,
        )
    for key in ("train_loss", "validation_loss"):
        ours, plain = ([row[key] for row in found[fused].history] for fused in ("auto", "off"))
        np.testing.assert_allclose(ours, plain, rtol=1e-4)


def training_data(cells: int, genes: int, datasets: int, **chosen: Any) -> tuple[Data, Plan]:
    """Counts of several datasets, prepared for a GMF; and how its epochs are cut into steps."""
    rng = np.random.default_rng(cells + genes)
    counts = csr_matrix(rng.poisson(rng.gamma(0.5, 1.0, (cells, genes))).astype(np.float32))
    settings = NeuMFSettings(kind="gmf", **{"gmf_size": 5, "block_cells": 16, "threads": 2, **chosen})
    dataset = np.sort(np.arange(cells) % datasets)
    factors = rng.gamma(5, 0.2, cells).astype(np.float32)
    data = prepare(counts, factors, dataset, settings, torch.device("cpu"))
    return data, Plan.of(dataset, genes, settings, data.device)


def three_epochs(data: Data, plan: Plan, frozen: frozenset[str], at_once: bool) -> tuple[list[float], State]:
    """Losses of three epochs, and the state after them."""
    stepper = Stepper(data, initial_state(data, "gmf", 0, {}), frozen)
    assert stepper.at_once
    stepper.at_once = at_once
    losses = []
    for number in range(3):
        order = plan.epoch((number,))
        steps, shares = list(order.steps(0)), rate_shares(data.settings, number, 3, order.n_steps)
        loss, pairs = stepper.run(steps, shares, torch.Generator())
        assert pairs == data.counts.n_cells * data.counts.n_genes
        losses.append(float(loss))
    return losses, stepper.state


@pytest.mark.parametrize("frozen", [frozenset(), frozenset({"genes", "tower"})], ids=["all", "mapping"])
@pytest.mark.parametrize(
    ("datasets", "chosen"),
    [
        (1, {}),
        (1, {"gmf_size": 1, "validation_share": 0.0}),
        (3, {"gmf_size": 17, "threads": 3}),
        (2, {"threads": 1, "bias_prior": 0.0, "beta1": 0.5}),
    ],
)
def test_an_epoch_in_one_call_is_that_of_its_steps(
    datasets: int, chosen: dict[str, Any], frozen: frozenset[str]
) -> None:
    data, plan = training_data(90, 131, datasets, **chosen)
    ours, state = three_epochs(data, plan, frozen, at_once=True)
    theirs, wanted = three_epochs(data, plan, frozen, at_once=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for name, optimiser in wanted.optimisers.items():
        found = state.optimisers[name]
        torch.testing.assert_close(found.steps, optimiser.steps)
        torch.testing.assert_close(found.table, optimiser.table, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_epoch_in_one_call_repeats_bit_for_bit(threads: int) -> None:
    data, plan = training_data(70, 200, 2, threads=threads)
    first, second = (three_epochs(data, plan, frozenset(), at_once=True) for _ in range(2))
    assert first[0] == second[0]
    for name, optimiser in first[1].optimisers.items():
        assert torch.equal(optimiser.table, second[1].optimisers[name].table)


def test_a_table_that_does_not_fit_is_refused() -> None:
    data, _ = training_data(30, 20, 1)
    state = initial_state(data, "gmf", 0, {})
    for optimiser in state.optimisers.values():
        optimiser.table = optimiser.table.double()
    stepper = Stepper(data, state)
    with pytest.raises(ValueError, match="contiguous and float32"):
        stepper.run([Step(0, np.arange(9), None)], [1.0], torch.Generator())


def paths_here() -> list[str]:
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set(known.split())
    return ["portable", *(path for path, flag in FLAGS_OF_PATH.items() if flag in flags)]


@pytest.mark.parametrize("path", ["portable", *FLAGS_OF_PATH])
def test_every_path_that_the_processor_has_passes_its_self_checks(path: str, tmp_path: Path) -> None:
    if path not in paths_here():
        pytest.skip(f"this processor has no {FLAGS_OF_PATH[path]}")
    program = (
        "from neumf_assets.core.neumf.fused import gmf, tower\n"
        "assert gmf.available()[0], gmf.available()\n"
        "assert tower.available('float32')[0], tower.available('float32')\n"
        "from neumf_assets_tests.core.neumf.test_gmf_kernel import three_epochs, training_data\n"
        "import numpy as np\n"
        "data, plan = training_data(40, 77, 2)\n"
        "losses = [three_epochs(data, plan, frozenset(), at_once)[0] for at_once in (True, False)]\n"
        "np.testing.assert_allclose(*losses, rtol=1e-5)\n"
        "print(gmf._self_check_error(), tower.available('bfloat16'))\n"
    )
    environment = {**os.environ, library.KERNEL: path, "NEUMF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < 1e-5
    if path in ("portable", "avx2", "avx512"):
        assert "(False" in done.stdout, "the bfloat16 tower needs tiles"


def test_an_unknown_path_is_told(tmp_path: Path) -> None:
    program = "from neumf_assets.core.neumf.fused import gmf; print(gmf.available())"
    environment = {**os.environ, library.KERNEL: "mmx", "NEUMF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "NEUMF_KERNEL=mmx is no path; there are avx2, avx512" in done.stdout
