"""Integrative NMF by HALS on sparse data: no dense copy, one sparse product each way per step.

The objective (Welch et al. 2019, Cell 177:1873, equation 1; cells × genes)::

    Σ_i ||X_i − H_i (W + V_i)||² + λ Σ_i ||H_i V_i||²      W, V_i, H_i ≥ 0

``H_i`` needs ``X_i (W+V_i)ᵀ``; ``V_i`` and ``W`` share ``H_iᵀX_i``, and the objective follows from the same
products and the Gram matrices, which are summed in float64. Factors are held as k × cells and k × genes, so
that a HALS step runs along memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.inmf.hals import gram, sweep, threads, violation
from neumf_assets.core.liger.inmf.matrices import ScaledMatrix, as_scaled
from neumf_assets.core.liger.inmf.shards import ALONE, Shards
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.progress import Progress, silent

_WINDOW = 5  # iterations over which convergence is judged
_POLISH_SWEEPS = 20
_PLAIN_FIRST = 8  # extrapolating while the factors take shape ends in poorer optima


@dataclass(frozen=True)
class INMFResult:
    """Factors of integrative NMF, factors in falling order of the cells' total loading.

    Parameters
    ----------
    W
        Shared gene loadings, k × genes, float32. Rows of ``W + mean(V)`` have length 1, so that the size of a
        factor is in H.
    V
        Dataset-specific gene loadings, one k × genes per dataset.
    H
        Cell loadings, one cells × k per dataset.
    objective
        After every iteration of the start that was kept; never rises. The last value belongs to the factors.
    seconds
        Wall time, restarts included.
    kkt
        Relative violation of the Karush-Kuhn-Tucker conditions (0 at a stationary point), see
        :func:`kkt_residual`.
    converged
        Whether the tolerance was met before the iterations ran out.
    trials
        Objectives at which the other starts were dropped.
    online
        Whether it was learnt from mini-batches.
    """

    W: NDArray[np.float32]
    V: list[NDArray[np.float32]]
    H: list[NDArray[np.float32]]
    objective: NDArray[np.float64]
    seconds: float
    kkt: float
    converged: bool
    trials: tuple[float, ...] = ()
    online: bool = False

    @property
    def k(self) -> int:
        """Number of factors."""
        return int(self.W.shape[0])

    @property
    def n_iterations(self) -> int:
        """Iterations of the start that was kept."""
        return int(self.objective.size)


def inmf(
    datasets: Sequence[sp.csr_matrix | ScaledMatrix],
    settings: LigerSettings | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
    start: INMFResult | None = None,
    shards: Shards = ALONE,
    keeper: Keeper | None = None,
) -> INMFResult:
    """Factorise all datasets together.

    Parameters
    ----------
    datasets
        One scaled cells × genes matrix per dataset, the same genes in all: CSR (kept whole, about
        16 bytes per non-zero) or any :class:`ScaledMatrix` (read in blocks, once per iteration).
    settings
        ``k``, ``lam``, ``iterations``, ``tol``, ``restarts``, ``trial_iterations``, ``sweeps``,
        ``extrapolate``, ``threads`` and ``seed`` are used.
    device
        Where to compute; "cpu" gives the same result bit for bit on every run.
    start
        Factors to start from instead of random ones (no restarts then). With fewer factors than ``k``, random
        ones are added.
    shards
        The processes that factorise together: ``datasets`` are then this process's cells of each, and so is H in
        the result; all else is the same in every process, and that of one process up to the order of float32
        sums. Not with ``start``.
    keeper
        Where the search goes on from, and what it is given after every iteration.

    Raises
    ------
    NeumfError
        Matrices without cells, with different genes, with negative or non-finite values; ``k`` too large.
    """
    settings = settings or LigerSettings()
    begun = time.perf_counter()
    with torch.no_grad(), threads(settings.threads):
        matrices = [as_scaled(matrix, device) for matrix in datasets]
        check_shapes(matrices, settings.k)
        solver = Solver(matrices, settings, torch.device(device), progress, shards)
        number = settings.restarts if start is None else 1
        search = Search([solver.new_run(n, start) for n in range(number)])
        run = solver.best_of(search, keeper)
        solver.polish(run)
        result = finished(run, solver.kkt(run), shards)
    return replace(result, seconds=time.perf_counter() - begun, trials=tuple(search.trials))


def kkt_residual(datasets: Sequence[sp.csr_matrix | ScaledMatrix], result: INMFResult, lam: float) -> float:
    """Measure how far factors are from a stationary point.

    With gradient ``g`` and curvature ``d`` (the diagonal of the Hessian) of each factor row, the violation of
    an entry ``x`` is ``min(x, g/d)``; the residual is its length over that of the factors, both weighted by
    ``d``. It does not depend on how a factor's size is split between H and W, V.
    """
    settings = LigerSettings(k=result.k, lam=lam)
    with torch.no_grad():
        matrices = [as_scaled(matrix, "cpu") for matrix in datasets]
        solver = Solver(matrices, settings, torch.device("cpu"), silent)
        return solver.kkt(solver.new_run(0, result))


@dataclass
class Run:
    """One start: the accepted factors, the point to go on from, and the curve so far."""

    W: torch.Tensor
    V: list[torch.Tensor]
    H: list[torch.Tensor]
    ahead_W: torch.Tensor
    ahead_V: list[torch.Tensor]
    objective: list[float] = field(default_factory=list)
    step: float = 0.5
    step_limit: float = 1.0
    plain: bool = False
    converged: bool = False

    def stopped(self, settings: LigerSettings) -> bool:
        """Tell whether the run is over, and note whether it converged."""
        if len(self.objective) > _WINDOW:
            before, now = self.objective[-1 - _WINDOW], self.objective[-1]
            self.converged = before - now < settings.tol * _WINDOW * abs(now)
        return self.converged or len(self.objective) >= settings.iterations


_TENSORS, _LISTS = ("W", "ahead_W"), ("V", "H", "ahead_V")
_REST = ("objective", "step", "step_limit", "plain", "converged")


@dataclass
class Search:
    """The starts that are left, with the objectives at which others were dropped.

    Parameters
    ----------
    runs
        The starts that are left.
    trials
        Objectives of the others.
    rounds
        How often the worse half was dropped.
    epoch
        Iterations of all starts.
    """

    runs: list[Run]
    trials: list[float] = field(default_factory=list)
    rounds: int = 0
    epoch: int = 0

    def drop_worse(self) -> None:
        """Drop the half of the starts with the higher objective."""
        self.runs.sort(key=lambda run: run.objective[-1])
        self.trials += [run.objective[-1] for run in self.runs[len(self.runs) // 2 :]]
        self.runs = self.runs[: len(self.runs) // 2]
        self.rounds += 1

    def stored(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what a checkpoint keeps: all tensors, none of which shares memory, and all else."""
        tensors: dict[str, torch.Tensor] = {}
        for number, run in enumerate(self.runs):
            tensors |= {f"{number}.{name}": getattr(run, name).clone() for name in _TENSORS}
            for name in _LISTS:
                parts = enumerate(getattr(run, name))
                tensors |= {f"{number}.{name}.{dataset}": part.clone() for dataset, part in parts}
        rest = [{name: getattr(run, name) for name in _REST} for run in self.runs]
        return tensors, {"runs": rest, "trials": self.trials, "rounds": self.rounds, "epoch": self.epoch}

    def restore(self, tensors: dict[str, torch.Tensor], progress: dict[str, Any]) -> None:
        """Become the search that a checkpoint has kept, of the same datasets."""
        device, datasets = self.runs[0].W.device, range(len(self.runs[0].V))
        self.runs = []
        for number, rest in enumerate(progress["runs"]):
            values: dict[str, Any] = {name: tensors[f"{number}.{name}"].to(device) for name in _TENSORS}
            for name in _LISTS:
                values[name] = [tensors[f"{number}.{name}.{dataset}"].to(device) for dataset in datasets]
            self.runs.append(Run(**values, **rest))
        self.trials, self.rounds, self.epoch = progress["trials"], progress["rounds"], progress["epoch"]


class Keeper(Protocol):
    """Keeps a search, so that it can go on; :class:`neumf_assets.core.neumf.large.parallel.PartCheckpoint` does."""

    def restore(self, stage: int, state: Search) -> bool:
        """Bring the search to where it was kept last; return whether it was."""

    def write(self, stage: int, state: Search) -> None:
        """Keep the search if it is time to."""


class Solver:
    """HALS with extrapolation over one set of matrices."""

    def __init__(
        self,
        matrices: Sequence[ScaledMatrix],
        settings: LigerSettings,
        device: torch.device,
        progress: Progress,
        shards: Shards = ALONE,
    ) -> None:
        self.matrices, self.settings, self.device, self.progress = matrices, settings, device, progress
        self.shards = shards
        self.sum_squares = shards.sum(sum(matrix.sum_squares for matrix in matrices))[0]

    def best_of(self, search: Search, keeper: Keeper | None = None) -> Run:
        """Run every start for a few iterations, drop the worse half, and so on; run the one left to the end."""
        if keeper is not None:
            keeper.restore(0, search)
        while True:
            last, trial = len(search.runs) == 1, (search.rounds + 1) * self.settings.trial_iterations
            for run in search.runs:
                while not run.stopped(self.settings) and (last or len(run.objective) < trial):
                    self.iterate(run)
                    search.epoch += 1
                    if keeper is not None:
                        keeper.write(0, search)
            if last:
                return search.runs[0]
            search.drop_worse()

    def new_run(self, number: int, start: INMFResult | None = None) -> Run:
        """Draw random factors of the data's size, the given ones first."""
        seed = np.random.SeedSequence([self.settings.seed, number]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
        k, n_genes = self.settings.k, self.matrices[0].n_genes

        def draw(columns: int, size: float) -> torch.Tensor:
            return torch.randn(k, columns, generator=generator).abs_().mul_(size)

        H, V, shared = [], [], torch.zeros(k, n_genes)
        for matrix in self.matrices:
            # H (W + V) then has about the data's mean; a larger start lets the first step empty whole factors
            total, n_cells = self.shards.sum(matrix.total, matrix.n_cells)
            size = (total / (n_cells * n_genes) / k) ** 0.5
            H.append(self.shards.own(draw(int(n_cells), size)))
            V.append(draw(n_genes, size / 2))
            shared += draw(n_genes, size / 2) / len(self.matrices)
        if start is not None:
            _fill(shared, start.W)
            for mine, given in zip(V, start.V, strict=True):
                _fill(mine, given)
            for mine, given in zip(H, start.H, strict=True):
                _fill(mine, given.T)
        W, V, H = shared.to(self.device), [v.to(self.device) for v in V], [h.to(self.device) for h in H]
        return Run(W, V, H, W, V)

    def iterate(self, run: Run) -> None:
        """Take one step of H, then of V and W; reject it where extrapolation raised the objective."""
        free = self.settings.extrapolate and not run.plain and len(run.objective) >= _PLAIN_FIRST
        step = run.step if free else 0.0
        H, products, grams = self._step_cells(run, step)
        W, V = self.step_genes(run.ahead_W, run.ahead_V, products, grams)
        value = self.objective(W, V, products, grams)
        if step > 0 and value > run.objective[-1]:
            run.step /= 1.5
            run.step_limit, run.plain = run.step, True
            run.ahead_W, run.ahead_V = run.W, run.V
            run.objective.append(run.objective[-1])
        else:
            run.ahead_W = _extrapolated(W, run.W, step)
            run.ahead_V = [_extrapolated(new, old, step) for new, old in zip(V, run.V, strict=True)]
            run.W, run.V, run.H, run.plain = W, V, H, False
            run.step = min(run.step_limit, run.step * 1.05)
            run.step_limit = min(1.0, run.step_limit * 1.01)
            run.objective.append(value)
        done = len(run.objective)
        self.progress("inmf", done, self.settings.iterations, objective=run.objective[-1])

    def polish(self, run: Run) -> None:
        """Bring H to its optimum for the final W and V."""
        run.ahead_W, run.ahead_V = run.W, run.V
        run.H, products, grams = self._step_cells(run, 0.0, _POLISH_SWEEPS)
        if run.objective:
            run.objective[-1] = self.objective(run.W, run.V, products, grams)

    def kkt(self, run: Run) -> float:
        """Compute the relative residual of :func:`kkt_residual` at the run's factors."""
        lam, seen, of_cells = self.settings.lam, [], []
        gradient_W, curvature_W = torch.zeros_like(run.W), torch.zeros(run.W.shape[0], device=self.device)
        for matrix, V, H in zip(self.matrices, run.V, run.H, strict=True):
            together = run.W + V
            right, curvature = together.T.contiguous(), (gram(together) + lam * gram(V)).float()
            HH, HX = gram(H), torch.zeros_like(V)
            for rows, block in matrix.blocks():
                part = H[:, rows].contiguous()
                HX += block.transposed_times(part)
                of_cells.append(violation(part, curvature @ part - block.times(right), curvature.diagonal()))
            self.shards.add_up([HX, HH])
            HH = HH.float()
            seen.append(violation(V, HH @ (together + lam * V) - HX, (1 + lam) * HH.diagonal()))
            gradient_W += HH @ together - HX
            curvature_W += HH.diagonal()
        seen.append(violation(run.W, gradient_W, curvature_W))
        violated, size = np.sum([*seen, self.shards.sum(*np.sum(of_cells, axis=0))], axis=0)
        return float(np.sqrt(violated / max(size, 1e-300)))

    def _step_cells(
        self, run: Run, step: float, sweeps: int | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Pass over the data once; return H, extrapolated by ``step``, its products ``HᵀX`` and Grams."""
        all_H, products, grams = [], [], []
        for matrix, V, old in zip(self.matrices, run.ahead_V, run.H, strict=True):
            together = run.ahead_W + V
            right = together.T.contiguous()
            curvature = gram(together) + self.settings.lam * gram(V)
            H, product = torch.empty_like(old), torch.zeros_like(V)
            for rows, block in matrix.blocks():
                before = old[:, rows].contiguous()
                part = before.clone()
                sweep(part, block.times(right), curvature, sweeps or self.settings.sweeps)
                part = _extrapolated(part, before, step)
                product += block.transposed_times(part)
                H[:, rows] = part
            all_H.append(H)
            products.append(product)
            grams.append(gram(H))
        self.shards.add_up([*products, *grams])
        return all_H, products, grams

    def step_genes(
        self, W: torch.Tensor, V: list[torch.Tensor], products: list[torch.Tensor], grams: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return V and W after alternating sweeps; the data are not needed, only ``HᵀX``."""
        W, V = W.clone(), [v.clone() for v in V]
        narrow = [gram.float() for gram in grams]
        total, lam = torch.stack(grams).sum(0), self.settings.lam
        for _ in range(self.settings.sweeps):
            rest = torch.zeros_like(W)
            for v, product, cells, small in zip(V, products, grams, narrow, strict=True):
                sweep(v, product - small @ W, (1 + lam) * cells, 1)
                rest += product - small @ v
            sweep(W, rest, total, 1)
        return W, V

    def objective(
        self, W: torch.Tensor, V: list[torch.Tensor], products: list[torch.Tensor], grams: list[torch.Tensor]
    ) -> float:
        """Compute the objective from traces: ``||X||² − 2⟨HᵀX, W+V⟩ + ⟨HᵀH, (W+V)(W+V)ᵀ + λVVᵀ⟩``."""
        value = torch.tensor(self.sum_squares, dtype=torch.float64, device=self.device)
        for v, product, cells in zip(V, products, grams, strict=True):
            together = W + v
            value -= 2 * (product.double() * together.double()).sum()
            value += (cells * (gram(together) + self.settings.lam * gram(v))).sum()
        return float(value)


def _extrapolated(new: torch.Tensor, old: torch.Tensor, step: float) -> torch.Tensor:
    return new if step == 0 else torch.lerp(old, new, 1 + step).clamp_min_(0)


def _fill(target: torch.Tensor, given: NDArray[np.float32]) -> None:
    rows = min(len(target), len(given))
    if target.shape[1] != given.shape[1]:
        raise NeumfError(f"The start has {given.shape[1]} columns where the data have {target.shape[1]}.")
    target[:rows] = torch.from_numpy(np.ascontiguousarray(given[:rows], dtype=np.float32))


def finished(run: Run, kkt: float, shards: Shards = ALONE) -> INMFResult:
    """Give every factor length 1 over the genes and sort the factors by size."""
    W = run.W.cpu().double().numpy()
    V = [v.cpu().double().numpy() for v in run.V]
    H = [h.cpu().double().numpy() for h in run.H]
    length = np.linalg.norm(W + np.mean(V, axis=0), axis=1)
    length[length == 0] = 1
    total = np.array(shards.sum(*sum(h.sum(axis=1) for h in H))) * length
    order = np.argsort(-total, kind="stable")
    scale = length[order, None]
    return INMFResult(
        W=(W[order] / scale).astype(np.float32),
        V=[(v[order] / scale).astype(np.float32) for v in V],
        H=[np.ascontiguousarray((h[order] * scale).T, dtype=np.float32) for h in H],
        objective=np.asarray(run.objective),
        seconds=0.0,
        kkt=kkt,
        converged=run.converged,
    )


def check_shapes(matrices: Sequence[ScaledMatrix], k: int) -> None:
    """Refuse datasets without cells or with different genes, and a k that they cannot carry."""
    if not matrices:
        raise NeumfError("LIGER needs at least one dataset.")
    genes = {matrix.n_genes for matrix in matrices}
    if len(genes) > 1:
        raise NeumfError(f"The datasets must have the same genes; they have {sorted(genes)} of them.")
    smallest = min(matrix.n_cells for matrix in matrices)
    if smallest == 0 or k > min(*genes, smallest):
        raise NeumfError(
            f"k = {k} factors need at least as many genes ({min(genes)}) and cells in every dataset "
            f"(fewest: {smallest}); set a smaller k."
        )
