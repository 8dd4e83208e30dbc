"""Online integrative NMF: the genes' factors learn after every mini-batch; no more of the data is in memory.

Gao et al. 2021 (Nat Biotechnol 39:1000). The sums ``HᵀH`` and ``HᵀX`` over all cells are kept up to date: a
mini-batch's part is replaced by its new one whenever it is visited. From the second pass on the sums are
those of all cells, so that every step lowers the objective of the whole data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import scipy.sparse as sp
import torch

from neumf_assets.core.liger.inmf.hals import gram, sweep, threads
from neumf_assets.core.liger.inmf.matrices import Block, ChunkedMatrix, ScaledMatrix
from neumf_assets.core.liger.inmf.solver import INMFResult, Run, Solver, check_shapes, finished
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.progress import Progress, silent

_FIRST_SWEEPS = 10  # loadings of cells that are met for the first time start at random


def online_inmf(
    datasets: Sequence[ScaledMatrix],
    settings: LigerSettings | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> INMFResult:
    """Factorise datasets that are read in mini-batches.

    Parameters
    ----------
    datasets
        One matrix per dataset, the same genes in all; their blocks are the mini-batches
        (:class:`~neumf_assets.core.liger.inmf.matrices.ChunkedMatrix`, or :func:`in_batches` of a CSR matrix).
        Cells should be in mixed order. A step visits one mini-batch of every dataset.
    settings
        ``k``, ``lam``, ``epochs``, ``sweeps``, ``threads`` and ``seed`` are used.

    Returns
    -------
    INMFResult
        ``objective`` has one value per pass, exact from the second on; it doesn't rise from there.
        Memory beyond a mini-batch, of one dataset at a time: ``k`` numbers per cell, a few per factor and gene.

    Raises
    ------
    NeumfError
        As :func:`~neumf_assets.core.liger.inmf.solver.inmf`.
    """
    settings = settings or LigerSettings()
    begun = time.perf_counter()
    with torch.no_grad(), threads(settings.threads):
        check_shapes(datasets, settings.k)
        solver = Solver(datasets, settings, torch.device(device), silent)
        run = solver.new_run(0)
        sums = _Sums(solver, run)
        for epoch in range(settings.epochs):
            streams = {number: matrix.blocks() for number, matrix in enumerate(datasets)}
            while sums.visit_next(streams, first=epoch == 0):
                run.W, run.V = solver.step_genes(run.W, run.V, sums.products, sums.grams)
            run.objective.append(solver.objective(run.W, run.V, sums.products, sums.grams))
            progress("online inmf", epoch + 1, settings.epochs, objective=run.objective[-1])
        solver.polish(run)
        result = finished(run, solver.kkt(run))
    return replace(result, seconds=time.perf_counter() - begun, online=True)


def in_batches(matrix: sp.csr_matrix, batch_cells: int, device: str | torch.device = "cpu") -> ChunkedMatrix:
    """Cut a CSR matrix into mini-batches of every so-manyth cell, so that each is a mixture.

    The rows are given in the order of the mini-batches; :func:`batch_order` tells which they are.
    """
    parts = batch_order(matrix.shape[0], batch_cells)
    return ChunkedMatrix(lambda: (matrix[part] for part in parts), device)


def batch_order(n_cells: int, batch_cells: int) -> list[slice]:
    """Return the cells of each mini-batch: cell b, b + n, b + 2n, … for n mini-batches."""
    number = max(1, -(-n_cells // batch_cells))
    return [slice(first, n_cells, number) for first in range(number)]


class _Sums:
    """``HᵀX`` and ``HᵀH`` of every dataset over the cells visited so far."""

    def __init__(self, solver: Solver, run: Run) -> None:
        self._run, self._settings = run, solver.settings
        self.products = [torch.zeros_like(V) for V in run.V]
        k = solver.settings.k
        self.grams = [torch.zeros(k, k, dtype=torch.float64, device=run.W.device) for _ in run.V]

    def visit_next(self, streams: dict[int, Iterator[tuple[slice, Block]]], *, first: bool) -> bool:
        """Visit the next mini-batch of each dataset that has any left; tell whether there was one.

        A mini-batch is read after the one before it has been let go: however many datasets there are, they do not
        lie in memory together.
        """
        visited = False
        for dataset in list(streams):
            if (found := next(streams[dataset], None)) is None:
                del streams[dataset]
                continue
            self.visit(dataset, *found, first=first)
            found, visited = None, True
        return visited

    def visit(self, dataset: int, rows: slice, block: Block, *, first: bool) -> None:
        """Bring the loadings of a mini-batch up to date, and its part of the sums."""
        V, H = self._run.V[dataset], self._run.H[dataset]
        together = self._run.W + V
        curvature = gram(together) + self._settings.lam * gram(V)
        old = H[:, rows].contiguous()
        new = old.clone()
        sweeps = _FIRST_SWEEPS if first else self._settings.sweeps
        sweep(new, block.times(together.T.contiguous()), curvature, sweeps)
        H[:, rows] = new
        if first:
            self.grams[dataset] += gram(new)
            self.products[dataset] += block.transposed_times(new)
        else:
            self.grams[dataset] += gram(new) - gram(old)
            self.products[dataset] += block.transposed_times(new - old)
