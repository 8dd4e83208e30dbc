"""The GMF part by a kernel of its own: loss and gradients of a block under the Poisson likelihood, and Adam's step.

For cells ``b`` and genes ``g``: ``log mu = p_b . q_g + offset_b + bias_g``, at most 14. Product, exponential and both
gradients of a tile of pairs are computed while it lies in registers; what was observed is added entry by entry.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from neumf_assets.core.neumf.fused.library import (
    AdamStep,
    EpochTable,
    GmfBlock,
    GmfEpoch,
    KernelUnavailable,
    load,
)
from neumf_assets.core.neumf.fused.tower import MAX_LOG_MEAN, SparseTargets

TOLERANCE = 1e-4

log = logging.getLogger(__name__)


class GmfGradients(NamedTuple):
    """Loss summed over the entries of a block, and its gradients.

    Parameters
    ----------
    loss
        Scalar float64.
    cell, gene
        By the embeddings, ``[B, d]`` and ``[G, d]``.
    cell_offset, gene_bias
        By what is added to the log mean, ``[B]`` and ``[G]``.
    """

    loss: Tensor
    cell: Tensor
    gene: Tensor
    cell_offset: Tensor
    gene_bias: Tensor


def available() -> tuple[bool, str]:
    """Tell whether the kernel can be used here, and why not; the first call builds it and compares it with float64."""
    reason = _why_not()
    return reason is None, reason or "GMF kernel"


def gmf_gradients(
    cell: Tensor,
    gene: Tensor,
    cell_offset: Tensor,
    gene_bias: Tensor,
    targets: SparseTargets,
    held_out: Tensor | None,
    threads: int,
) -> GmfGradients:
    """Compute the Poisson loss ``mu - y log mu`` of a block and its gradients.

    Parameters
    ----------
    cell, gene
        Embeddings, ``[B, d]`` and ``[G, d]``.
    cell_offset, gene_bias
        What is added to the log mean, ``[B]`` (biases and log sizes) and ``[G]``.
    targets
        The counts, entries of a cell by ascending gene.
    held_out
        Genes that each cell leaves out, ``[B, S]`` int64; positions beyond the last mean none.
    threads
        CPU threads. The result is the same bit for bit for the same number.

    Raises
    ------
    KernelUnavailable
        The kernel cannot be used here; :func:`available` tells beforehand.
    """
    reason = _why_not()
    if reason is not None:
        raise KernelUnavailable(reason)
    return _gradients(cell, gene, cell_offset, gene_bias, targets, held_out, threads)


def adam_step(
    table: Tensor,
    first: Tensor,
    second: Tensor,
    steps: Tensor,
    rows: Tensor | slice,
    gradient: Tensor,
    rate: Tensor,
    decay: Tensor,
    share: float,
    constants: tuple[float, float, float],
    rate_share: float = 1.0,
    threads: int = 1,
) -> None:
    """Move rows of a table against a gradient and the pull of a prior, as :class:`RowAdam` does, in one pass.

    Parameters
    ----------
    table, first, second, steps
        Parameters, moments and counts of steps of all rows, contiguous float32, changed in place.
    rows
        Positions of the rows (int64), or a slice of them.
    gradient
        ``[rows, columns]``.
    rate, decay
        Step size and prior precision of each column.
    share
        How much of the prior's pull belongs to this step.
    constants
        Adam's two decays and epsilon.
    rate_share
        Factor of all rates.
    threads
        CPU threads.
    """
    if isinstance(rows, slice):
        table, first, second, steps = table[rows], first[rows], second[rows], steps[rows]
    columns = table.shape[1]
    if rate.numel() != columns or decay.numel() != columns:
        raise ValueError(f"a rate and a decay are needed for each of {columns} columns")
    kept = [gradient.contiguous(), rate, decay]
    call = AdamStep(
        rows=gradient.shape[0], columns=columns, share=share, rate_share=rate_share, threads=threads
    )
    call.beta1, call.beta2, call.epsilon = constants
    if isinstance(rows, Tensor):
        kept.append(rows.to(torch.int64).contiguous())
        call.row = kept[-1].data_ptr()
    call.gradient, call.rate, call.decay = (tensor.data_ptr() for tensor in kept[:3])
    call.table, call.first = table.data_ptr(), first.data_ptr()
    call.second, call.steps = second.data_ptr(), steps.data_ptr()
    if load().fused_adam(ctypes.byref(call)) != 0:
        raise MemoryError("the fused kernel ran out of memory")


@dataclass(frozen=True)
class MovedTable:
    """A table of parameters with Adam's state of its rows, all contiguous float32 and changed in place.

    Parameters
    ----------
    value, first, second
        Parameters and moments, ``[rows, columns]``.
    steps
        Counts of steps, ``[rows, 1]``.
    rate, decay
        Step size and prior precision of each column.
    moved
        Whether it is trained at all.
    """

    value: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor
    rate: Tensor
    decay: Tensor
    moved: bool

    def fields(self) -> EpochTable:
        """As the kernel takes it."""
        columns = self.value.shape[1]
        if self.rate.numel() != columns or self.decay.numel() != columns:
            raise ValueError(f"a rate and a decay are needed for each of {columns} columns")
        tensors = (self.value, self.first, self.second, self.steps, self.rate, self.decay)
        if not all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors):
            raise ValueError("a table that the kernel moves has to be contiguous and float32")
        return EpochTable(*(tensor.data_ptr() for tensor in tensors), columns, int(self.moved))


class EpochCounts(NamedTuple):
    """What the steps of an epoch see of each cell.

    Parameters
    ----------
    log_size
        Log size factors, ``[cells]``.
    targets
        The counts of all cells, entries of a cell by ascending gene.
    held_out, held_out_row
        Genes that are left out, ``[R, S]`` int64, positions beyond the last mean none; and the row of each cell.
    """

    log_size: Tensor
    targets: SparseTargets
    held_out: Tensor | None
    held_out_row: Tensor | None


class EpochSteps(NamedTuple):
    """The steps of an epoch, one after the other.

    Parameters
    ----------
    cells
        Cells of all steps, int64, and ``begin`` (``[steps + 1]``) where those of each begin.
    dataset
        Dataset of each, int64.
    rate_share, share, dataset_share
        Factor of the rates, and share of all cells and of the dataset's, float32.
    """

    cells: Tensor
    begin: Tensor
    dataset: Tensor
    rate_share: Tensor
    share: Tensor
    dataset_share: Tensor


def gmf_epoch(
    tables: dict[str, MovedTable],
    counts: EpochCounts,
    steps: EpochSteps,
    expected_bias: Tensor,
    bias_prior: float,
    constants: tuple[float, float, float],
    threads: int,
) -> float:
    """Make many training steps of a GMF under the Poisson likelihood, each with all genes, in one call.

    The same as :func:`gmf_gradients` and :func:`adam_step` on ``cells``, ``genes``, ``shifts`` and ``tower`` for each
    step in turn, up to the order of sums in float32.

    Parameters
    ----------
    tables
        ``cells`` ``[N, d + 1]`` with the bias last, ``genes`` ``[G, d]``, ``shifts`` ``[D x G, d + 1]`` (or 1 column,
        the bias alone), ``tower`` ``[1, d]``, the output's weights.
    counts, steps
        What is trained on, and in which order.
    expected_bias
        ``[D x G]``, around which the biases have a Gaussian prior of precision ``bias_prior``.
    constants
        Adam's two decays and epsilon.
    threads
        CPU threads. The result is the same bit for bit for the same number.

    Returns
    -------
    Loss summed over all entries.
    """
    columns = {name: table.value.shape[1] for name, table in tables.items()}
    size, genes = columns["genes"], tables["genes"].value.shape[0]
    if columns["cells"] != size + 1 or columns["shifts"] not in (1, size + 1) or columns["tower"] != size:
        raise ValueError(f"tables of {columns} columns do not belong together")
    targets = counts.targets
    entries = (targets.start, targets.length, targets.gene, targets.value)
    kept = [tensor.contiguous() for tensor in (counts.log_size, *entries, expected_bias, *steps)]
    call = GmfEpoch(steps=steps.dataset.numel(), genes=genes, size=size, threads=threads)
    call.shifted, call.max_log_mean, call.bias_prior = int(columns["shifts"] > 1), MAX_LOG_MEAN, bias_prior
    call.beta1, call.beta2, call.epsilon = constants
    call.cell, call.gene = tables["cells"].fields(), tables["genes"].fields()
    call.shift, call.out = tables["shifts"].fields(), tables["tower"].fields()
    names = ["log_size", "y_start", "y_length", "y_index", "y_value", "expected_bias"]
    names += ["order", "begin", "dataset", "rate_share", "share", "dataset_share"]
    for name, tensor in zip(names, kept, strict=True):
        setattr(call, name, tensor.data_ptr())
    if counts.held_out is not None and counts.held_out_row is not None:
        kept += [counts.held_out.contiguous(), counts.held_out_row.contiguous()]
        call.held_out, call.held_out_row = kept[-2].data_ptr(), kept[-1].data_ptr()
        call.held_out_width = counts.held_out.shape[1]
    if load().fused_gmf_epoch(ctypes.byref(call)) != 0:
        raise MemoryError("the fused kernel ran out of memory or threads")
    return float(call.loss)


def _gradients(
    cell: Tensor,
    gene: Tensor,
    cell_offset: Tensor,
    gene_bias: Tensor,
    targets: SparseTargets,
    held_out: Tensor | None,
    threads: int,
) -> GmfGradients:
    inputs = [
        tensor.detach().to(torch.float32).contiguous() for tensor in (cell, gene, cell_offset, gene_bias)
    ]
    lists = [targets.start.contiguous(), targets.length.contiguous(), targets.gene, targets.value]
    results = [torch.zeros_like(inputs[0]), torch.empty_like(inputs[1])]
    results += [torch.zeros_like(inputs[2]), torch.empty_like(inputs[3])]
    call = GmfBlock(cells=cell.shape[0], genes=gene.shape[0], size=cell.shape[1], threads=threads)
    call.max_log_mean = MAX_LOG_MEAN
    names = ("cell", "gene", "cell_offset", "gene_bias", "y_start", "y_length", "y_index", "y_value")
    for name, tensor in zip(names, [*inputs, *lists], strict=True):
        setattr(call, name, tensor.data_ptr())
    if held_out is not None:
        lists.append(held_out.contiguous())
        call.held_out, call.held_out_width = lists[-1].data_ptr(), held_out.shape[1]
    for name, tensor in zip(("dcell", "dgene", "dcell_offset", "dgene_bias"), results, strict=True):
        setattr(call, name, tensor.data_ptr())
    if load().fused_gmf(ctypes.byref(call)) != 0:
        raise MemoryError("the fused kernel ran out of memory or threads")
    return GmfGradients(torch.tensor(call.loss, dtype=torch.float64), *results)


@functools.cache
def _why_not() -> str | None:
    """Return why the kernel cannot be used; ``None`` once a small block agreed with float64."""
    try:
        load()
    except KernelUnavailable as error:
        return str(error)
    deviation = _self_check_error()
    if deviation <= TOLERANCE:
        return None
    log.warning("The GMF kernel is off by %.2g and is not used.", deviation)
    return f"the GMF kernel failed its self-check by {deviation:.2g}"


def _self_check_error() -> float:
    """Return the largest relative deviation of loss and gradients from float64 on a small random block."""
    generator = torch.Generator().manual_seed(0)
    values = [0.5 * torch.randn(shape, generator=generator) for shape in ((11, 9), (71, 9), (11,), (71,))]
    y = torch.poisson(0.3 * torch.ones(11, 71), generator=generator)
    cells, genes = y.nonzero(as_tuple=True)
    length = (y > 0).sum(1)
    targets = SparseTargets(length.cumsum(0) - length, length, genes.to(torch.int32), y[cells, genes])
    held_out = torch.randint(0, 72, (11, 5), generator=generator)
    cell, gene, cell_offset, gene_bias = values
    found = _gradients(cell, gene, cell_offset, gene_bias, targets, held_out, 2)
    with torch.inference_mode(False), torch.enable_grad():
        exact = [value.double().clone().requires_grad_() for value in values]
        score = exact[0] @ exact[1].T + exact[2][:, None] + exact[3]
        mask = torch.ones(11, 72, dtype=torch.float64).scatter_(1, held_out, 0.0)[:, :-1]
        loss = ((score.exp() - y * score) * mask).sum()
        expected = [loss.detach(), *torch.autograd.grad(loss, exact)]
    return max(
        float((ours.double() - wanted).norm() / wanted.norm())
        for ours, wanted in zip(found, expected, strict=True)
    )
