"""Adam by rows against torch's Adam."""

from __future__ import annotations

import torch

from neumf_assets.core.neumf.training.optimiser import Adam, RowAdam


def gradients(steps: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, rows, columns, generator=generator, dtype=torch.float64)


def reference(start: torch.Tensor, taken: torch.Tensor, rate: float) -> torch.Tensor:
    parameter = start.clone().requires_grad_()
    adam = torch.optim.Adam([parameter], lr=rate, eps=1e-12)
    for gradient in taken:
        parameter.grad = gradient.clone()
        adam.step()
    return parameter.detach()


def test_the_dense_step_is_adam() -> None:
    start, taken = torch.ones(5, 3, dtype=torch.float64), gradients(20, 5, 3)
    table = start.clone()
    adam = RowAdam(table)
    for gradient in taken:
        rows = slice(None)
        adam.update(rows, adam.take(rows), gradient.clone(), 0.05)
    torch.testing.assert_close(table, reference(start, taken, 0.05), rtol=1e-5, atol=1e-6)


def test_its_constants_are_those_given() -> None:
    start, taken = torch.ones(5, 3, dtype=torch.float64), gradients(20, 5, 3)
    table, parameter = start.clone(), start.clone().requires_grad_()
    adam, theirs = RowAdam(table), torch.optim.Adam([parameter], lr=0.05, betas=(0.5, 0.9), eps=1e-12)
    for gradient in taken:
        adam.update(slice(None), adam.take(slice(None)), gradient.clone(), 0.05, Adam(0.5, 0.9, 1e-12))
        parameter.grad = gradient.clone()
        theirs.step()
    torch.testing.assert_close(table, parameter.detach(), rtol=1e-5, atol=1e-6)
    one = torch.zeros(1, 1, dtype=torch.float64)
    first = RowAdam(one)
    first.update(slice(None), first.take(slice(None)), torch.full_like(one, 2.0), 0.1, Adam(0.5, 0.75, 3.0))
    torch.testing.assert_close(one, torch.full_like(one, -0.1 * 1.0 / (1.0 + 3.0)))


def test_each_row_is_an_adam_of_its_own_steps() -> None:
    start, taken = torch.ones(6, 3, dtype=torch.float64), gradients(30, 6, 3)
    table = start.clone()
    adam = RowAdam(table)
    for step, gradient in enumerate(taken):
        rows = torch.tensor([0, 3] if step % 2 else [3, 5])
        adam.update(rows, adam.take(rows), gradient[rows].clone(), 0.05)
    used = {0: taken[1::2], 3: taken, 5: taken[0::2]}
    for row, its in used.items():
        expected = reference(start[row : row + 1], its[:, row : row + 1], 0.05)
        torch.testing.assert_close(table[row : row + 1], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(table[[1, 2, 4]], start[[1, 2, 4]])


def test_state_continues_bit_for_bit() -> None:
    taken = gradients(10, 4, 2)
    whole, halves = torch.ones(4, 2, dtype=torch.float64), torch.ones(4, 2, dtype=torch.float64)
    adam, first = RowAdam(whole), RowAdam(halves)
    for gradient in taken:
        adam.update(slice(None), adam.take(slice(None)), gradient.clone(), 0.1)
    for gradient in taken[:5]:
        first.update(slice(None), first.take(slice(None)), gradient.clone(), 0.1)
    second = RowAdam(halves)
    second.load({name: value.clone() for name, value in first.state().items()})
    for gradient in taken[5:]:
        second.update(slice(None), second.take(slice(None)), gradient.clone(), 0.1)
    assert torch.equal(whole, halves)
