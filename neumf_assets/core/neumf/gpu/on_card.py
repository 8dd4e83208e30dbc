"""Whether the Triton kernels can be used, and the counts as they lie on the card."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 1 << 14
SHARE_OF_FREE = 0.6
"""Part of the card's free memory that dense counts may take."""

log = logging.getLogger(__name__)


class DenseCounts(NamedTuple):
    """Counts of all cells with what is held out.

    Parameters
    ----------
    values
        ``[cells, genes]``, in the narrowest type that holds them: uint8, int16 or float32.
    masked
        What stands where an entry is held out.
    """

    values: Tensor
    masked: int


def interpreted() -> bool:
    """Tell whether kernels are run by Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def why_not(device_type: str) -> str | None:
    """Return why Triton's kernels cannot be used with tensors of a device, ``None`` where they can."""
    if device_type != "cuda" and not (device_type == "cpu" and interpreted()):
        return f"the device is {device_type}"
    if importlib.util.find_spec("triton") is None:
        return 'Triton is not installed (pip install "neumf-assets[gpu]")'
    if device_type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        name = torch.cuda.get_device_name()
        return f"{name} is older than the kernels' matrix instructions (compute capability 8.0)"
    return None


@functools.cache
def say_once(message: str) -> None:
    """Write to the log, once in a process."""
    log.warning(message)


@functools.cache
def passes(check: Callable[[torch.device], float], tolerance: float, device: torch.device, what: str) -> bool:
    """Tell whether a kernel's deviation from float64, found on a small block, is within tolerance."""
    try:
        deviation = check(device)
    except (
        Exception
    ) as error:  # a card or a Triton that the kernel was never tried on: the plain way always works
        say_once(f"{what} cannot be used ({type(error).__name__}: {error}); training goes the plain way.")
        return False
    if deviation <= tolerance:
        return True
    say_once(f"{what} is off by {deviation:.2g} on this card and is not used; training goes the plain way.")
    return False


def type_of(largest: float, whole: bool) -> tuple[torch.dtype, int]:
    """Return the narrowest type for counts up to ``largest``, and its value that stands for what is held out."""
    if not whole or largest > 32_766:
        return torch.float32, -1
    return (torch.uint8, 255) if largest <= 254 else (torch.int16, 32_767)


def dense_bytes(values: Tensor, n_cells: int, n_genes: int) -> int:
    """Return what counts would take on the card when dense; ``values`` are those that are not zero."""
    return n_cells * n_genes * _type_of(values)[0].itemsize


def room_for(needed: int, device: torch.device) -> bool:
    """Tell whether so many bytes have room on the card beside what training needs."""
    if device.type != "cuda":
        return True
    return needed <= SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]


def make_dense(
    start: Tensor,
    length: Tensor,
    gene: Tensor,
    value: Tensor,
    n_genes: int,
    held_out: Tensor | None,
    held_out_row: Tensor | None,
) -> DenseCounts:
    """Return CSR counts as a dense array, what is held out marked.

    Parameters
    ----------
    start, length
        Where the entries of each cell begin and how many they are, ``[cells]``.
    gene, value
        Position and count of each entry.
    n_genes
        Columns.
    held_out, held_out_row
        Genes that are left out, ``[R, S]``, positions beyond the last mean none; and the row of each cell.
    """
    kind, masked = _type_of(value)
    cells = start.numel()
    dense = torch.zeros(cells, n_genes, dtype=kind, device=value.device)
    for first in range(0, cells, ROWS_AT_ONCE):
        part = dense[first : first + ROWS_AT_ONCE]
        lengths = length[first : first + ROWS_AT_ONCE]
        row = torch.repeat_interleave(torch.arange(lengths.numel(), device=value.device), lengths)
        begins = lengths.cumsum(0) - lengths
        at = (
            torch.arange(row.numel(), device=value.device)
            + (start[first : first + ROWS_AT_ONCE] - begins)[row]
        )
        part[row, gene[at].long()] = value[at].to(kind)
        if held_out is not None and held_out_row is not None:
            left_out = held_out[held_out_row[first : first + ROWS_AT_ONCE]]
            row, column = (left_out < n_genes).nonzero(as_tuple=True)
            part[row, left_out[row, column]] = masked
    return DenseCounts(dense, masked)


def _type_of(values: Tensor) -> tuple[torch.dtype, int]:
    if not values.numel():
        return torch.uint8, 255
    return type_of(float(values.max()), bool((values == values.round()).all()))
