"""Blocks, drawn zeros, held-out entries and the order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import Epoch, HeldOut, Plan, SparseCounts, Step

CPU = torch.device("cpu")


def sparse(seed: int, cells: int, genes: int, share: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.poisson(2.0, (cells, genes)) * (rng.random((cells, genes)) < share)).astype(np.int32)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 15), st.booleans())
def test_a_block_is_the_slice_of_the_matrix(seed: int, cells: int, genes: int, part: bool) -> None:
    counts, rng = sparse(seed, cells, genes), np.random.default_rng(seed)
    rows = rng.permutation(cells)[: rng.integers(1, cells + 1)]
    columns = rng.permutation(genes)[: rng.integers(1, genes + 1)] if part else None
    data = SparseCounts(csr_matrix(counts), CPU)
    total = int(data.observed[rows].sum())
    block = data.dense(torch.as_tensor(rows), total, None if columns is None else torch.as_tensor(columns))
    expected = counts[rows] if columns is None else counts[np.ix_(rows, columns)]
    np.testing.assert_array_equal(block.numpy(), expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 8), st.integers(2, 12))
def test_drawn_genes_are_unobserved(seed: int, cells: int, genes: int) -> None:
    counts = sparse(seed, cells, genes, share=0.5)
    counts[0, :] = 1  # a cell without zeros must not break the others
    data = SparseCounts(csr_matrix(counts), CPU)
    rows = torch.arange(cells).repeat_interleave(2)
    drawn = data.draw_zeros(rows, 5, torch.Generator().manual_seed(seed))
    assert drawn.shape == (2 * cells, 5)
    has_zeros = (counts == 0).any(axis=1)[rows.numpy()]
    assert (counts[rows.numpy()[:, None], drawn.numpy()][has_zeros] == 0).all()


def test_every_zero_is_drawn_alike() -> None:
    counts = csr_matrix(np.array([[0, 3, 0, 0, 1, 0], [1, 0, 0, 2, 2, 0]]))
    data = SparseCounts(counts, CPU)
    drawn = data.draw_zeros(torch.tensor([0, 1]), 40_000, torch.Generator().manual_seed(0))
    for row, zeros in enumerate(([0, 2, 3, 5], [1, 2, 5])):
        found = np.bincount(drawn[row].numpy(), minlength=6)[zeros] / 40_000
        np.testing.assert_allclose(found, 1 / len(zeros), atol=0.01)


def held_out(counts: np.ndarray, dataset: np.ndarray, **changes: object) -> HeldOut:
    drawn = HeldOut.draw(counts.sum(axis=0), dataset, NeuMFSettings(**changes), CPU)
    assert drawn is not None
    return drawn


def test_held_out_entries_are_stratified_over_cells_genes_and_datasets() -> None:
    counts = np.random.default_rng(0).poisson(np.linspace(0.1, 5, 100), (400, 100))
    dataset = np.repeat([0, 1], [300, 100])
    held = held_out(counts, dataset, validation_share=0.1, validation_cells=200)
    assert np.bincount(dataset[held.cells]).tolist() == [150, 50]
    mask = held.mask(torch.arange(400), None).numpy()
    left_out = mask == 0
    assert (left_out[held.cells].sum(axis=1) == 10).all()
    assert left_out.sum() == 10 * held.cells.size
    by_expression = np.argsort(counts.mean(axis=0), kind="stable").reshape(10, 10)
    assert (left_out[held.cells][:, by_expression].sum(axis=2) == 1).all()  # one of each stratum
    assert left_out.sum(axis=0).max() < 2.5 * left_out.sum(axis=0).mean()  # not one gene in all cells


def test_mask_and_single_pairs_agree() -> None:
    counts = sparse(1, 30, 23)
    held = held_out(counts, np.zeros(30, int), validation_share=0.2)
    cells, genes = (torch.as_tensor(x) for x in np.divmod(np.arange(30 * 23), 23))
    mask = held.mask(torch.arange(30), None)
    assert torch.equal(held.keeps(cells, genes), mask.reshape(-1))
    part = torch.tensor([4, 2, 20])
    assert torch.equal(held.mask(torch.arange(30), part), mask[:, part])


def test_no_validation_where_none_is_asked_for() -> None:
    chosen = NeuMFSettings(validation_share=0.0)
    assert HeldOut.draw(sparse(0, 5, 5).sum(axis=0), np.zeros(5, int), chosen, CPU) is None


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(32, 64),
    st.integers(0, 99),
)
def test_an_epoch_has_every_entry_once(
    cells: int, genes: int, block_cells: int, block_genes: int, n_datasets: int, window_cells: int, seed: int
) -> None:
    dataset = np.random.default_rng(seed).permutation(np.arange(cells) % min(n_datasets, cells))
    chosen = NeuMFSettings(block_cells=block_cells, block_genes=block_genes, window_cells=window_cells)
    order = Plan.of(dataset, genes, chosen, CPU).epoch((seed,))
    seen = np.zeros((cells, genes), int)
    steps = list(steps_of(order))
    for step in steps:
        assert (dataset[step.cells] == step.dataset).all()
        assert step.cells.size <= block_cells
        columns = np.arange(genes) if step.genes is None else step.genes
        seen[np.ix_(step.cells, columns)] += 1
    assert (seen == 1).all()
    assert len(steps) == order.n_steps
    assert all(order.cells(window).size <= window_cells for window in range(len(order.windows)))


def steps_of(order: Epoch) -> Iterator[Step]:
    for window in range(len(order.windows)):
        yield from order.steps(window)


def test_a_window_is_a_few_chunks_of_consecutive_cells_shuffled() -> None:
    plan = Plan.of(np.repeat([0, 1], [3000, 2000]), 10, NeuMFSettings(block_cells=16, window_cells=1024), CPU)
    order = plan.epoch((1,))
    assert len(order.windows) == 5
    for window in range(5):
        cells = order.cells(window)
        assert 1 + (np.diff(cells) > 1).sum() <= 32
        assert cells[-1] - cells[0] > 1024  # chunks come from all over
        visited = np.concatenate([step.cells for step in order.steps(window)])
        assert (np.diff(visited) == 1).mean() < 0.1
    again = plan.epoch((2,))
    assert not np.array_equal(order.cells(0), again.cells(0))


def test_the_order_differs_between_epochs_and_repeats_by_seed() -> None:
    plan = Plan.of(np.zeros(100, int), 10, NeuMFSettings(block_cells=10), CPU)
    first, again, other = (
        np.concatenate([s.cells for s in steps_of(plan.epoch(seed))]) for seed in ((1,), (1,), (2,))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
