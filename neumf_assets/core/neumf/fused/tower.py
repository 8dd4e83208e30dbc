"""Loss, gradients and prediction of a block through the fused kernel, as PyTorch operations.

For cells ``b`` and genes ``g`` of a block: ``h1 = relu(a[b] + c[g])`` (the first layer separates into a cell
and a gene side), ``h2 = relu(W2 h1 + b2)`` and so on, ``f = f0[b, g] + out . hL``. No array larger than the
block itself is made: a tile of pairs runs forward, through its loss, and backward while it is in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from neumf_assets.core.neumf.fused.library import MAX_DEPTH, Block, KernelUnavailable, load

Objective = Literal["poisson", "nb", "mse", "bce"]
Precision = Literal["float32", "bfloat16"]

OBJECTIVES = {"poisson": 1, "nb": 2, "mse": 3, "bce": 4}
PRECISIONS = {"float32": 0, "bfloat16": 1}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
MAX_LOG_MEAN = 14.0

log = logging.getLogger(__name__)


class SparseTargets(NamedTuple):
    """Counts of the cells of a block, straight from a CSR matrix.

    Parameters
    ----------
    start, length
        Where each cell's entries begin in ``gene`` and how many they are, ``[B]`` int64.
    gene, value
        Column positions (int32) and counts (float32) of the whole matrix.
    column
        Where each column of the matrix lies in the block, int32; -1: outside. ``None``: the block's genes are
        the matrix's columns. It holds for ``held_out`` too.
    """

    start: Tensor
    length: Tensor
    gene: Tensor
    value: Tensor
    column: Tensor | None = None


def available(precision: Precision = "float32") -> tuple[bool, str]:
    """Tell whether the kernel can be used here with this precision, and why not.

    The first call builds the kernel (seconds, cached on disk) and compares it with float64 on a small block.
    """
    reason = _why_not(precision)
    return reason is None, reason or f"fused kernel, {precision}"


def best_precision() -> Precision | None:
    """Return the precision that is fastest here, ``None`` where the kernel cannot be used."""
    if available("bfloat16")[0]:
        return "bfloat16"
    return "float32" if available("float32")[0] else None


def fused_block_loss(
    f0: Tensor | None,
    a: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out: Tensor,
    log_size: Tensor | None,
    y: Tensor | SparseTargets,
    mask: Tensor | None = None,
    objective: Objective = "poisson",
    log_dispersion: Tensor | None = None,
    *,
    held_out: Tensor | None = None,
    precision: Precision = "float32",
    scale: float = 1.0,
    threads: int | None = None,
    overwrite_f0: bool = False,
) -> Tensor:
    """Return the loss summed over the entries of a block, differentiable by all parameters.

    Parameters
    ----------
    f0
        What the predictor holds besides the tower (GMF part, biases), ``[B, G]``; ``None``: nothing.
    a
        Cell side of the first layer with its bias, ``[B, H1]``.
    c
        Gene side of the first layer, ``[G, H1]``.
    weights, biases
        Hidden layers after the first, ``[H(l), H(l-1)]`` and ``[H(l)]``; at most four.
    out
        Output weights, ``[HL]``.
    log_size
        Log size factors, ``[B]``; ``None``: all size factors are 1.
    y
        Counts, dense ``[B, G]`` (NaN: the entry is left out) or as CSR.
    mask
        Entries to use, ``[B, G]`` bool or uint8; ``None``: all.
    objective
        With ``log_mu = min(f + log_size, 14)``: ``poisson`` is ``mu - y log_mu``; ``nb`` the negative log
        likelihood with variance ``mu + mu^2 / theta``, up to ``log y!``. ``mse``: ``(size f - y)^2``.
        ``bce``: cross entropy of ``y > 0`` under ``sigmoid(f)``.
    log_dispersion
        ``nb``: log theta of each gene, ``[G]``.
    held_out
        Gene positions that each cell leaves out, ``[B, S]`` int64; positions beyond the last mean none.
    precision
        Arithmetic of the matrix products: ``float32``, or ``bfloat16`` with float32 accumulation.
    scale
        Factor of the loss, applied to the gradients inside the kernel.
    threads
        CPU threads; ``None``: as torch is set. The result is the same bit for bit for the same number.
    overwrite_f0
        Whether ``f0``'s memory may take its gradient (its values are lost).

    Returns
    -------
    Scalar float64 tensor.

    Raises
    ------
    KernelUnavailable
        The kernel cannot be used here; `available` tells beforehand.
    """
    options = _Options(objective, precision, scale, threads, overwrite_f0)
    _check(precision)
    targets = y if isinstance(y, SparseTargets) else None
    dense = None if isinstance(y, SparseTargets) else y
    return _BlockLoss.apply(
        options, log_size, dense, targets, mask, held_out, f0, a, c, out, log_dispersion, *weights, *biases
    )


def fused_block_forward(
    f0: Tensor | None,
    a: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out: Tensor,
    *,
    precision: Precision = "float32",
    threads: int | None = None,
    result: Tensor | None = None,
) -> Tensor:
    """Return the predictor ``f`` of all pairs of a block, ``[B, G]`` float32, without gradients.

    Parameters are those of `fused_block_loss`; ``result`` (contiguous float32, may be ``f0``) takes it.
    """
    _check(precision)
    with torch.no_grad():
        call = _Call(a, c, weights, biases, out, _Options(None, precision, 1.0, threads, False))
        call.put(f0=f0)
        if result is None:
            result = torch.empty(a.shape[0], c.shape[0])
        call.put_result(f=result)
        call.run()
    return result


class _Options(NamedTuple):
    objective: Objective | None
    precision: Precision
    scale: float
    threads: int | None
    overwrite_f0: bool


class _Call:
    """Fills a block with pointers, and keeps what they point at alive until it has run."""

    def __init__(
        self,
        a: Tensor,
        c: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        out: Tensor,
        options: _Options,
    ) -> None:
        depth = len(weights) + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the kernel has at most {MAX_DEPTH} hidden layers, not {depth}")
        self.shape = (a.shape[0], c.shape[0])
        self.block = Block(cells=self.shape[0], genes=self.shape[1], depth=depth)
        self.block.objective = OBJECTIVES[options.objective] if options.objective else 0
        self.block.precision = PRECISIONS[options.precision]
        self.block.threads = options.threads or torch.get_num_threads()
        self.block.max_log_mean, self.block.scale = MAX_LOG_MEAN, options.scale
        self.kept: list[Tensor] = []
        widths = [a.shape[1], *(weight.shape[0] for weight in weights)]
        self.block.width[:depth] = widths
        self.put(a=a, c=c, out=out)
        _expect(c, (self.shape[1], widths[0]), "c")
        _expect(out, (widths[-1],), "out")
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
            _expect(weight, (widths[layer], widths[layer - 1]), f"weights[{layer - 1}]")
            _expect(bias, (widths[layer],), f"biases[{layer - 1}]")
            self.block.weight[layer] = self._pointer(weight, torch.float32)
            self.block.bias[layer] = self._pointer(bias, torch.float32)

    def put(self, dtype: torch.dtype = torch.float32, **tensors: Tensor | None) -> None:
        """Hand in inputs, converted and made contiguous where they are not."""
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(self.block, name, self._pointer(tensor, dtype))

    def put_result(self, **tensors: Tensor | None) -> None:
        """Hand in memory to be written."""
        for name, tensor in tensors.items():
            if tensor is not None:
                if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                    raise ValueError(f"{name} must be contiguous float32")
                setattr(self.block, name, self._pointer(tensor, torch.float32))

    def put_targets(self, dense: Tensor | None, sparse: SparseTargets | None) -> None:
        """Hand in the counts in either form."""
        if sparse is not None:
            self.put(torch.int64, y_start=sparse.start, y_length=sparse.length)
            self.put(torch.int32, y_index=sparse.gene)
            self.put(y_value=sparse.value)
            if sparse.column is not None:
                self.put(torch.int32, column=sparse.column)
                self.block.columns = sparse.column.numel()
        elif dense is not None:
            _expect(dense, self.shape, "y")
            self.put(y=dense)

    def put_left_out(self, mask: Tensor | None, held_out: Tensor | None) -> None:
        """Hand in which entries are not used."""
        if mask is not None:
            _expect(mask, self.shape, "mask")
            self.put(torch.uint8, mask=mask)
        if held_out is not None:
            self.put(torch.int64, held_out=held_out)
            self.block.held_out_width = held_out.shape[1]

    def run(self) -> float:
        """Run the kernel and return the loss."""
        if load().fused_block(ctypes.byref(self.block)) != 0:
            raise MemoryError("the fused kernel ran out of memory or threads")
        return float(self.block.loss)

    def _pointer(self, tensor: Tensor, dtype: torch.dtype) -> int:
        if tensor.device.type != "cpu":
            raise ValueError(f"the kernel runs on the CPU, not on {tensor.device}")
        tensor = tensor.detach().to(dtype).contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()


def _expect(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


class _BlockLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        options: _Options,
        log_size: Tensor | None,
        dense: Tensor | None,
        sparse: SparseTargets | None,
        mask: Tensor | None,
        held_out: Tensor | None,
        f0: Tensor | None,
        a: Tensor,
        c: Tensor,
        out: Tensor,
        log_dispersion: Tensor | None,
        *layers: Tensor,
    ) -> Tensor:
        half = len(layers) // 2
        call = _Call(a, c, layers[:half], layers[half:], out, options)
        _check_inputs(call.shape, options, f0, log_size, log_dispersion)
        call.put(f0=f0, log_size=log_size, log_dispersion=log_dispersion)
        call.put_targets(dense, sparse)
        call.put_left_out(mask, held_out)
        df = None if f0 is None else (f0.detach() if options.overwrite_f0 else torch.empty(call.shape))
        da, dc, dout = torch.zeros(a.shape), torch.empty(c.shape), torch.zeros(out.shape)
        dispersion = None if log_dispersion is None else torch.zeros(log_dispersion.shape)
        call.put_result(f=df, da=da, dc=dc, dout=dout, dlog_dispersion=dispersion)
        dlayers = [torch.zeros(layer.shape) for layer in layers]
        for layer in range(half):
            call.block.dweight[layer + 1] = dlayers[layer].data_ptr()
            call.block.dbias[layer + 1] = dlayers[half + layer].data_ptr()
        loss = call.run()
        ctx.gradients = (df, da, dc, dout, dispersion, *dlayers)
        return torch.tensor(loss * options.scale, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        factor = float(grad_output)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a fused block are handed out once")
        if factor != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor)
        return (None,) * 6 + gradients


def _check_inputs(
    shape: tuple[int, int],
    options: _Options,
    f0: Tensor | None,
    log_size: Tensor | None,
    log_dispersion: Tensor | None,
) -> None:
    if f0 is not None:
        _expect(f0, shape, "f0")
    if log_size is not None:
        _expect(log_size, shape[:1], "log_size")
    if (log_dispersion is not None) != (options.objective == "nb"):
        raise ValueError("log_dispersion goes with objective nb, and only with it")
    if log_dispersion is not None:
        _expect(log_dispersion, shape[1:], "log_dispersion")


def _check(precision: Precision) -> None:
    reason = _why_not(precision)
    if reason is not None:
        raise KernelUnavailable(reason)


@functools.cache
def _why_not(precision: Precision) -> str | None:
    """Return why the kernel cannot be used; ``None`` once a small block agreed with float64."""
    try:
        library = load()
    except KernelUnavailable as error:
        return str(error)
    if not library.fused_supports(PRECISIONS[precision]):
        return f"this CPU or this build has no {precision} matrix instructions"
    with torch.inference_mode(False), torch.enable_grad():  # the first to ask may be a prediction
        deviation = _self_check_error(precision)
    if deviation <= TOLERANCE[precision]:
        return None
    log.warning("The fused %s kernel is off by %.2g and is not used.", precision, deviation)
    return f"the {precision} kernel failed its self-check by {deviation:.2g}"


def _self_check_error(precision: Precision) -> float:
    """Return the largest relative deviation of loss and gradients from float64 on a small random block."""
    generator = torch.Generator().manual_seed(0)
    widths = (24, 16, 8)
    shapes = [(5, 70), (5, 24), (70, 24), (16, 24), (8, 16), (16,), (8,), (8,)]
    values = [0.3 * torch.randn(shape, generator=generator) for shape in shapes]
    y = torch.poisson(torch.ones(5, 70), generator=generator)
    ours = [value.clone().requires_grad_() for value in values]
    options = _Options("poisson", precision, 1.0, 2, False)
    loss = _BlockLoss.apply(options, None, y, None, None, None, *ours[:3], ours[7], None, *ours[3:7])
    loss.backward()
    exact = [value.double().requires_grad_() for value in values]
    hidden = (exact[1][:, None] + exact[2][None]).relu()
    for layer in range(len(widths) - 1):
        hidden = (hidden @ exact[3 + layer].T + exact[5 + layer]).relu()
    f = exact[0] + hidden @ exact[7]
    expected = (f.exp() - y * f).sum()
    expected.backward()
    pairs = [(loss.detach(), expected.detach())] + [
        (x.grad, e.grad) for x, e in zip(ours, exact, strict=True)
    ]
    return max(float((x - e).norm() / e.norm()) for x, e in pairs if x is not None and e is not None)
