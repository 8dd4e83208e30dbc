"""Sums over the processes that factorise together, each with some cells of every dataset; here also: one alone.

HALS needs of the cells only ``HᵀX`` and ``HᵀH`` (k × genes and k × k for each dataset), which are sums over cells.
Processes that add theirs up all make the same step of W and V, each then of its own cells' H, and what is sent
does not depend on the number of cells.
"""

from __future__ import annotations

import torch


class Shards:
    """A process that is alone: all cells are its own, and sums are its own values."""

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace every tensor by its sum over processes, in place."""

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """Return each number's sum over processes."""
        return numbers

    def own(self, columns: torch.Tensor) -> torch.Tensor:
        """Return those columns (one for each cell of a dataset) that are this process's."""
        return columns


class GroupShards(Shards):
    """A process of torch's default process group; cell ``c`` of a dataset belongs to process ``c % size``.

    Attributes
    ----------
    summed_bytes
        Bytes of the tensors that were added up.
    """

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.summed_bytes = 0

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace every tensor by its sum over processes, in place; all of one kind in one message."""
        for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            torch.distributed.all_reduce(flat)
            self.summed_bytes += flat.nbytes
            parts = flat.split([tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """Return each number's sum over processes."""
        tensor = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return tuple(tensor.tolist())

    def own(self, columns: torch.Tensor) -> torch.Tensor:
        """Return every ``size``-th column from the ``rank``-th on."""
        return columns[:, self.rank :: self.size].contiguous()


ALONE = Shards()
