"""What a training step sees: blocks of the sparse counts, drawn zeros, held-out entries, and their order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.neumf.fused.tower import SparseTargets
from neumf_assets.core.neumf.settings import NeuMFSettings

WINDOW_CHUNKS = 32
# cells and pairs: a GPU needs much work in a step, a CPU's caches and the number of steps want little
LARGEST_BLOCK = {"cpu": (64, 1 << 19), "cuda": (512, 1 << 21)}


class SparseCounts:
    """Counts as CSR on one device, from which blocks are made dense one at a time.

    Parameters
    ----------
    counts
        Cells x genes.
    device
        Where the three arrays live; only a block of them is ever dense.
    """

    def __init__(self, counts: csr_matrix, device: torch.device) -> None:
        counts = counts.tocsr()
        if not counts.has_canonical_format or not counts.data.all():
            counts = counts.copy()
            counts.sum_duplicates()
            counts.eliminate_zeros()
        self.n_cells, self.n_genes = counts.shape
        self.device = device
        self.observed = np.diff(counts.indptr)
        self.indptr = torch.as_tensor(counts.indptr[:-1].astype(np.int64), device=device)
        self.lengths = torch.as_tensor(self.observed.astype(np.int64), device=device)
        self.indices = torch.as_tensor(counts.indices.astype(np.int32, copy=False), device=device)
        self.values = torch.as_tensor(counts.data.astype(np.float32, copy=False), device=device)

    def entries(self, cells: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return row (position in ``cells``), gene and count of every observed entry of some cells.

        ``total`` is their number, known on the host, so that a GPU need not be waited for.
        """
        lengths = self.lengths[cells]
        starts = lengths.cumsum(0) - lengths
        row = torch.repeat_interleave(
            torch.arange(cells.numel(), device=self.device), lengths, output_size=total
        )
        position = torch.arange(total, device=self.device) + (self.indptr[cells] - starts)[row]
        return row, self.indices[position].long(), self.values[position]

    def sparse(self, cells: Tensor) -> SparseTargets:
        """Return the counts of some cells as they lie, for the fused kernel."""
        return SparseTargets(self.indptr[cells], self.lengths[cells], self.indices, self.values)

    def dense(self, cells: Tensor, total: int, genes: Tensor | None = None) -> Tensor:
        """Return the counts of a block, ``[len(cells), n_genes or len(genes)]``.

        Parameters
        ----------
        cells
            Rows.
        total
            Number of observed entries in these rows.
        genes
            Columns; ``None`` for all.
        """
        row, gene, value = self.entries(cells, total)
        width = self.n_genes
        if genes is not None:
            width = genes.numel() + 1  # one column more collects what is outside the block
            column = torch.full((self.n_genes,), width - 1, device=self.device)
            column[genes] = torch.arange(width - 1, device=self.device)
            gene = column[gene]
        block = torch.zeros(cells.numel() * width, device=self.device)
        block[row * width + gene] = value
        block = block.view(cells.numel(), width)
        return block if genes is None else block[:, :-1].contiguous()

    def draw_zeros(self, cells: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Draw unobserved genes of each cell uniformly, with replacement and without rejection.

        The r-th zero of a row with sorted observed columns ``i_0 < i_1 < ...`` is ``r + #{j: i_j - j <= r}``:
        a search in the sorted values ``i_j - j``, made ascending over rows by adding ``row * n_genes``.

        Parameters
        ----------
        cells
            A row for every draw to make, ascending positions allowed to repeat, ``[n]``.
        draws
            Draws for each element of ``cells``.
        generator
            On the device of the counts.

        Returns
        -------
        Gene positions ``[n, draws]``; for a cell without zeros an observed gene (its weight is 0).
        """
        unique, inverse = torch.unique_consecutive(cells, return_inverse=True)
        total = int(self.observed[unique.cpu().numpy()].sum())
        row, gene, _ = self.entries(unique, total)
        lengths = self.lengths[unique]
        starts = lengths.cumsum(0) - lengths
        key = row * self.n_genes + gene - (torch.arange(total, device=self.device) - starts[row])
        zeros = (self.n_genes - lengths).clamp_min(1)
        uniform = torch.rand(
            cells.numel(), draws, generator=generator, device=self.device, dtype=torch.float64
        )
        rank = (uniform * zeros[inverse][:, None]).long()
        passed = torch.searchsorted(key, rank + inverse[:, None] * self.n_genes, right=True)
        return (rank + passed - starts[inverse][:, None]).clamp(0, self.n_genes - 1)


@dataclass(frozen=True)
class HeldOut:
    """Entries kept from training, stratified over cells, datasets and the genes' mean expression.

    Genes are ordered by mean expression and cut into strata of ``1 / share`` genes; each validation cell
    holds out one gene of every stratum, drawn by seed. So each cell gives up the same share at every level of
    expression, and different genes in different cells.

    Parameters
    ----------
    cells
        Validation cells, ascending, ``[n]``.
    genes
        Held-out gene positions of each, ``[n + 1, strata]``; ``n_genes`` where a stratum is cut short, and in
        the whole last row, which stands for cells that hold out nothing.
    row
        Row of ``genes`` for every cell of the data.
    """

    cells: NDArray[np.intp]
    genes: Tensor
    row: Tensor
    n_genes: int

    @classmethod
    def draw(
        cls,
        gene_totals: NDArray[np.float64],
        dataset: NDArray[np.intp],
        settings: NeuMFSettings,
        device: torch.device,
    ) -> HeldOut | None:
        """Draw the held-out entries by ``settings.seed``; ``None`` where the settings ask for none."""
        n_cells, n_genes = dataset.size, gene_totals.size
        if settings.validation_share == 0 or n_cells < 2 or n_genes < 2:
            return None
        rng = np.random.default_rng([settings.seed, 1])
        stratum = max(2, round(1 / settings.validation_share))
        take = min(1.0, settings.validation_cells / n_cells)
        chosen = []
        for d in np.unique(dataset):
            members = np.flatnonzero(dataset == d)
            chosen.append(rng.permutation(members)[: max(1, int(take * members.size))])
        cells = np.sort(np.concatenate(chosen))
        order = np.append(np.argsort(gene_totals, kind="stable"), n_genes)
        first = np.arange(0, n_genes, stratum)
        position = np.minimum(first + rng.integers(stratum, size=(cells.size, first.size)), n_genes)
        genes = np.vstack([order[position], np.full(first.size, n_genes)])
        row = np.full(n_cells, cells.size)
        row[cells] = np.arange(cells.size)
        return cls(cells, torch.as_tensor(genes, device=device), torch.as_tensor(row, device=device), n_genes)

    def among(self, cells: NDArray[np.intp]) -> HeldOut:
        """Return the held-out entries of some cells (ascending), which are counted from 0 then."""
        inside = np.isin(cells, self.cells, assume_unique=True)
        row = self.row[torch.as_tensor(cells, device=self.row.device)]
        return HeldOut(np.flatnonzero(inside), self.genes, row, self.n_genes)

    def mask(self, cells: Tensor, genes: Tensor | None) -> Tensor:
        """Return 1 for entries to train on and 0 for held-out ones, ``[len(cells), genes]``."""
        mask = torch.ones(cells.numel(), self.n_genes + 1, device=cells.device)
        mask.scatter_(1, self.genes[self.row[cells]], 0.0)
        return mask[:, :-1].contiguous() if genes is None else mask[:, genes]

    def keeps(self, cells: Tensor, genes: Tensor) -> Tensor:
        """Return 1 for single pairs to train on and 0 for held-out ones."""
        held = self.genes[self.row[cells]]
        return (held != genes[:, None]).all(1).float()


@dataclass(frozen=True)
class Step:
    """One block: cells of one dataset, and genes (``None``: all)."""

    dataset: int
    cells: NDArray[np.intp]
    genes: NDArray[np.intp] | None


def largest_block(settings: NeuMFSettings, n_cells: int, n_genes: int, device: str) -> tuple[int, int]:
    """Return the cells and the genes of a training's largest block.

    Where ``block_cells`` is not set there are at least 40 blocks, none of more cells or pairs than the kind of
    device is given.
    """
    genes = n_genes if settings.pairs == "sampled" else min(settings.block_genes or n_genes, n_genes)
    cells, pairs = LARGEST_BLOCK["cpu" if device == "cpu" else "cuda"]
    automatic = min(int(np.clip(n_cells // 40, 16, cells)), max(1, pairs // genes))
    return settings.block_cells or automatic, genes


@dataclass(frozen=True)
class Plan:
    """How the entries are cut into blocks.

    Parameters
    ----------
    members
        Cells of each dataset.
    n_genes
        Number of genes.
    block_cells, block_genes
        Largest block.
    window_cells
        Cells that are shuffled together.
    """

    members: list[NDArray[np.intp]]
    n_genes: int
    block_cells: int
    block_genes: int
    window_cells: int

    @classmethod
    def of(
        cls, dataset: NDArray[np.intp], n_genes: int, settings: NeuMFSettings, device: torch.device
    ) -> Plan:
        """Return the plan of ``settings``, with block sizes by the size of the data where they are not
        set."""
        members = [np.flatnonzero(dataset == d) for d in range(int(dataset.max()) + 1)]
        by_cells, by_genes = largest_block(settings, dataset.size, n_genes, device.type)
        return cls(members, n_genes, by_cells, by_genes, settings.window_cells)

    def epoch(self, seed: tuple[int, ...]) -> Epoch:
        """Return the order of an epoch, which visits every entry once in blocks drawn by ``seed``.

        Where there are more cells than a window holds, chunks of consecutive cells are put together to windows
        by chance, and cells are shuffled within their window, so that a window can be read from disk in a few
        pieces. The order is the same wherever the cells lie.
        """
        rng = np.random.default_rng(seed)
        windows = []
        for members in self._windows(rng):
            parts = []
            for d, own in enumerate(members):
                number = max(math.ceil(own.size / self.block_cells), 1)
                parts += [(d, part) for part in np.array_split(rng.permutation(own), number) if part.size]
            windows.append([parts[i] for i in rng.permutation(len(parts))])
        return Epoch(windows, self.n_genes, math.ceil(self.n_genes / self.block_genes), rng)

    def _windows(self, rng: np.random.Generator) -> Iterator[list[NDArray[np.intp]]]:
        """Yield the cells of each dataset in each window, ascending."""
        if sum(own.size for own in self.members) <= self.window_cells:
            yield self.members
            return
        size = max(1, self.window_cells // WINDOW_CHUNKS)
        chunks = [
            (d, own[start : start + size])
            for d, own in enumerate(self.members)
            for start in range(0, own.size, size)
        ]
        order = rng.permutation(len(chunks))
        for first in range(0, len(chunks), WINDOW_CHUNKS):
            window = [chunks[i] for i in np.sort(order[first : first + WINDOW_CHUNKS])]
            yield [
                np.concatenate([np.zeros(0, np.intp), *(cells for owner, cells in window if owner == d)])
                for d in range(len(self.members))
            ]


@dataclass
class Epoch:
    """The order of one epoch: windows of blocks of cells, each block with its dataset.

    Parameters
    ----------
    windows
        (dataset, cells) of every block of every window.
    n_genes, gene_blocks
        Number of genes, and of the blocks that they are cut into for every block of cells.
    rng
        Draws the blocks of genes.
    """

    windows: list[list[tuple[int, NDArray[np.intp]]]]
    n_genes: int
    gene_blocks: int
    rng: np.random.Generator

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return self.gene_blocks * sum(len(window) for window in self.windows)

    def steps(self, window: int) -> Iterator[Step]:
        """Yield the steps of a window; windows are asked for in their order, each once."""
        for d, cells in self.windows[window]:
            if self.gene_blocks == 1:
                yield Step(d, cells, None)
                continue
            for genes in np.array_split(self.rng.permutation(self.n_genes), self.gene_blocks):
                yield Step(d, cells, genes)

    def cells(self, window: int) -> NDArray[np.intp]:
        """Return the cells of a window, ascending."""
        return np.sort(np.concatenate([cells for _, cells in self.windows[window]]))
