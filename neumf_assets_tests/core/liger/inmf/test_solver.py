"""Integrative NMF against dense float64 arithmetic, optimality conditions and planted factors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, nnls

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.inmf.matrices import ChunkedMatrix, DenseMatrix
from neumf_assets.core.liger.inmf.solver import INMFResult, inmf, kkt_residual
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets_tests.core.liger.conftest import Planted, plant

SMALL = LigerSettings(k=4, lam=5.0, restarts=1, iterations=200, tol=1e-7)


def dense_objective(
    X: list[sp.csr_matrix], W: NDArray, V: list[NDArray], H: list[NDArray], lam: float
) -> float:
    total = 0.0
    for x, v, h in zip(X, V, H, strict=True):
        h, v, w = h.astype(np.float64), v.astype(np.float64), W.astype(np.float64)
        total += np.sum((x.toarray() - h @ (w + v)) ** 2) + lam * np.sum((h @ v) ** 2)
    return float(total)


def objective_of(X: list[sp.csr_matrix], result: INMFResult, lam: float) -> float:
    return dense_objective(X, result.W, result.V, result.H, lam)


def reference_als(X: list[NDArray], result: INMFResult, lam: float, rounds: int) -> float:
    """Alternate exact non-negative least squares, row by row, in float64 (Welch et al. 2019)."""
    W, V, H = result.W.astype(float), [v.astype(float) for v in result.V], [h.astype(float) for h in result.H]
    root = np.sqrt(lam)
    for _ in range(rounds):
        for i, x in enumerate(X):
            A = np.vstack([(W + V[i]).T, root * V[i].T])
            H[i] = np.array([nnls(A, np.concatenate([row, np.zeros(x.shape[1])]))[0] for row in x])
        for i, x in enumerate(X):
            A = np.vstack([H[i], root * H[i]])
            B = np.vstack([x - H[i] @ W, np.zeros_like(x)])
            V[i] = np.array([nnls(A, column)[0] for column in B.T]).T
        A = np.vstack(H)
        B = np.vstack([x - h @ v for x, h, v in zip(X, H, V, strict=True)])
        W = np.array([nnls(A, column)[0] for column in B.T]).T
    return dense_objective([sp.csr_matrix(x) for x in X], W, V, H, lam)


def test_factors_are_non_negative_and_finite(planted: Planted) -> None:
    result = inmf(planted.X, SMALL)
    for array in (result.W, *result.V, *result.H):
        assert np.isfinite(array).all() and array.min() >= 0
    assert result.W.shape == (4, 80)
    assert [h.shape for h in result.H] == [(150, 4), (110, 4)]


@pytest.mark.parametrize("extrapolate", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.5, 5.0])
def test_objective_never_rises_and_equals_the_dense_one(
    planted: Planted, lam: float, extrapolate: bool
) -> None:
    chosen = SMALL.model_copy(update={"lam": lam, "extrapolate": extrapolate})
    result = inmf(planted.X, chosen)
    assert np.diff(result.objective).max() <= 1e-6 * result.objective[-1]
    assert result.objective[-1] == pytest.approx(objective_of(planted.X, result, lam), rel=1e-5)


@pytest.mark.parametrize("sweeps", [1, 2, 4])
def test_converged_factors_are_stationary(planted: Planted, sweeps: int) -> None:
    chosen = SMALL.model_copy(update={"sweeps": sweeps, "iterations": 3000, "tol": 1e-9})
    result = inmf(planted.X, chosen)
    assert result.converged
    assert result.kkt < 5e-3
    early = inmf(planted.X, chosen.model_copy(update={"iterations": 3}))
    assert result.kkt < early.kkt / 5


def test_kkt_residual_is_that_of_dense_gradients(planted: Planted) -> None:
    lam, result = 5.0, inmf(planted.X, SMALL.model_copy(update={"iterations": 4}))
    violated, size = 0.0, 0.0
    W, gradient_W, curvature_W = result.W.astype(float), 0.0, 0.0
    for x, v, h in zip([x.toarray().astype(float) for x in planted.X], result.V, result.H, strict=True):
        v, h = v.astype(float), h.astype(float)
        residual = h @ (W + v) - x
        parts = [
            (h, residual @ (W + v).T + lam * h @ v @ v.T, ((W + v) ** 2 + lam * v**2).sum(1)[None, :]),
            (v, h.T @ residual + lam * h.T @ h @ v, (1 + lam) * (h**2).sum(0)[:, None]),
        ]
        gradient_W, curvature_W = gradient_W + h.T @ residual, curvature_W + (h**2).sum(0)[:, None]
        for factor, gradient, curvature in parts:
            violated += (curvature * np.minimum(factor, gradient / curvature) ** 2).sum()
            size += (curvature * factor**2).sum()
    violated += (curvature_W * np.minimum(W, gradient_W / curvature_W) ** 2).sum()
    size += (curvature_W * W**2).sum()
    assert kkt_residual(planted.X, result, lam) == pytest.approx(np.sqrt(violated / size), rel=1e-3)
    assert result.kkt == pytest.approx(np.sqrt(violated / size), rel=1e-3)


def test_exact_alternating_least_squares_finds_no_more(planted: Planted) -> None:
    """Exact rounds from the converged factors hardly lower the objective; other starts end no lower."""
    result = inmf(planted.X, SMALL.model_copy(update={"iterations": 2000, "tol": 1e-9}))
    dense = [x.toarray().astype(float) for x in planted.X]
    after = reference_als(dense, result, 5.0, rounds=3)
    assert result.objective[-1] <= after * (1 + 2e-4)
    start = inmf(planted.X, SMALL.model_copy(update={"iterations": 1}))
    assert result.objective[-1] <= reference_als(dense, start, 5.0, rounds=25) * 1.005


def test_planted_factors_are_recovered(planted: Planted) -> None:
    result = inmf(planted.X, SMALL.model_copy(update={"restarts": 4}))
    found, true = result.W + np.mean(result.V, axis=0), planted.W + np.mean(planted.V, axis=0)
    cosine = found @ true.T / np.outer(np.linalg.norm(found, axis=1), np.linalg.norm(true, axis=1))
    rows, columns = linear_sum_assignment(-cosine)
    assert cosine[rows, columns].min() > 0.97
    for h, planted_h in zip(result.H, planted.H, strict=True):
        correlations = [
            np.corrcoef(h[:, r], planted_h[:, c])[0, 1] for r, c in zip(rows, columns, strict=True)
        ]
        assert min(correlations) > 0.95


def test_dataset_specific_genes_are_found_in_v(planted: Planted) -> None:
    result = inmf(planted.X, SMALL.model_copy(update={"lam": 0.5, "restarts": 4}))
    for number in (0, 1):
        specific = (planted.V[number] - planted.V[1 - number]).sum(axis=0)
        found = (result.V[number] - result.V[1 - number]).sum(axis=0)
        assert np.corrcoef(specific, found)[0, 1] > 0.8


def test_permuted_cells_permute_h(planted: Planted) -> None:
    """Started from the same factors, the order of the cells changes nothing but the order of H."""
    start = inmf(planted.X, SMALL.model_copy(update={"iterations": 2}))
    orders = [np.random.default_rng(i).permutation(x.shape[0]) for i, x in enumerate(planted.X)]
    moved = [x[order] for x, order in zip(planted.X, orders, strict=True)]
    moved_start = replace(start, H=[h[order] for h, order in zip(start.H, orders, strict=True)])
    chosen = SMALL.model_copy(update={"iterations": 30})
    one, other = inmf(planted.X, chosen, start=start), inmf(moved, chosen, start=moved_start)
    np.testing.assert_allclose(other.W, one.W, atol=2e-4)
    for h, h_moved, order in zip(one.H, other.H, orders, strict=True):
        np.testing.assert_allclose(h_moved, h[order], atol=5e-3 * h.max())


def test_large_lambda_suppresses_and_zero_frees_the_specific_part(planted: Planted) -> None:
    sizes = []
    for lam in (0.0, 5.0, 1e5):
        result = inmf(planted.X, SMALL.model_copy(update={"lam": lam}))
        pairs = list(zip(result.H, result.V, strict=True))
        specific = sum(np.sum((h @ v) ** 2) for h, v in pairs)
        sizes.append(specific / sum(np.sum((h @ (result.W + v)) ** 2) for h, v in pairs))
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-6 * sizes[0]


def test_infinitely_penalised_inmf_is_joint_nmf(planted: Planted) -> None:
    from sklearn.decomposition import NMF

    result = inmf(planted.X, SMALL.model_copy(update={"lam": 1e6, "restarts": 4, "iterations": 500}))
    nmf = NMF(4, init="nndsvda", max_iter=2000, tol=1e-6, random_state=0).fit(sp.vstack(planted.X).toarray())
    assert result.objective[-1] == pytest.approx(nmf.reconstruction_err_**2, rel=0.01)


def test_same_seed_same_bits_other_seed_other_start(planted: Planted) -> None:
    chosen = SMALL.model_copy(update={"restarts": 3, "trial_iterations": 3, "iterations": 12})
    one, again = inmf(planted.X, chosen), inmf(planted.X, chosen)
    assert np.array_equal(one.W, again.W)
    assert all(np.array_equal(a, b) for a, b in zip(one.H, again.H, strict=True))
    assert np.array_equal(one.objective, again.objective)
    other = inmf(planted.X, chosen.model_copy(update={"seed": 1}))
    assert not np.array_equal(one.W, other.W)


def test_best_of_several_starts_is_kept() -> None:
    planted = plant((60, 60), 40, 5, seed=3)
    chosen = SMALL.model_copy(update={"k": 5, "iterations": 10, "trial_iterations": 10, "tol": 0.0})
    result = inmf(planted.X, chosen.model_copy(update={"restarts": 4}))
    assert len(result.trials) == 3
    assert result.n_iterations == 10
    assert result.objective[-1] <= min(result.trials) * (1 + 1e-5)


MEMORY = """
import scipy.sparse as sp
from neumf_assets.core.liger.inmf.solver import inmf
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.measure import measured

X = [sp.random(cells, 2000, 0.05, "csr", "float32", rng=cells) for cells in (6000, 3000)]
settings = LigerSettings(k=10, restarts=2, trial_iterations=2, iterations=4)
inmf([x[:100] for x in X], settings)  # loads what is loaded late
with measured() as idle:
    pass
with measured() as cost:
    inmf(X, settings)
print(cost.peak_mib - idle.peak_mib)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_memory_stays_below_one_dense_copy() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    dense = 9000 * 2000 * 4 / 2**20
    assert float(done.stdout) < dense


def test_threads_of_the_caller_are_given_back(planted: Planted) -> None:
    before = torch.get_num_threads()
    inmf(planted.X, SMALL.model_copy(update={"iterations": 2, "threads": 1 + before % 2}))
    assert torch.get_num_threads() == before


def test_warm_start_goes_on_from_the_given_factors(planted: Planted) -> None:
    done = inmf(planted.X, SMALL.model_copy(update={"restarts": 4}))
    again = inmf(planted.X, SMALL, start=done)
    assert again.objective[0] <= done.objective[-1] * (1 + 1e-5)
    assert again.n_iterations <= 12


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(5, 30), min_size=1, max_size=4),
    st.integers(6, 25),
    st.integers(2, 5),
    st.floats(0, 50),
    st.integers(0, 10_000),
)
def test_any_shape_keeps_the_invariants(sizes: list[int], genes: int, k: int, lam: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = [sp.random(n, genes, 0.3, format="csr", dtype=np.float32, random_state=rng) for n in sizes]
    result = inmf(X, LigerSettings(k=k, lam=lam, restarts=2, trial_iterations=2, iterations=15, seed=seed))
    scale = sum(float(x.multiply(x).sum()) for x in X)
    assert all(np.isfinite(a).all() and (a >= 0).all() for a in (result.W, *result.V, *result.H))
    assert np.diff(result.objective).max(initial=0) <= 1e-5 * max(scale, 1e-9)
    assert result.objective[-1] == pytest.approx(objective_of(X, result, lam), rel=1e-3, abs=1e-4 * scale)


def test_dense_and_chunked_data_give_what_sparse_data_give(planted: Planted) -> None:
    """Same products from another form of the matrix: only the rounding differs.

    Ten iterations, in which the objective falls by far more than its rounding: near convergence, rounding
    decides when the stopping rule is met.
    """
    chosen = SMALL.model_copy(update={"iterations": 10, "tol": 0.0})
    sparse = inmf(planted.X, chosen)
    rng = np.random.default_rng(0)
    dense = []
    for x in planted.X:
        rows, columns = rng.uniform(0.5, 2, x.shape[0]), rng.uniform(0.5, 2, 80)
        padded = np.zeros((x.shape[0], 85))
        genes = np.sort(rng.permutation(85)[:80])
        padded[:, genes] = x.toarray() / rows[:, None] / columns
        total, squares = float(x.sum()), float(x.multiply(x).sum())
        factors = rows.astype(np.float32), columns.astype(np.float32)
        dense.append(DenseMatrix(padded.astype(np.float32), genes, *factors, total, squares, block_cells=37))
    chunked = [
        ChunkedMatrix(lambda x=x: (x[i : i + 40] for i in range(0, x.shape[0], 40))) for x in planted.X
    ]
    for other in (inmf(dense, chosen), inmf(chunked, chosen)):
        # Sums of float32 products of some hundred terms: relative errors of 1e-6 to 1e-5 in the objective; in
        # W they grow with each sweep by the condition of the Gram matrices, and stay far below its entries.
        np.testing.assert_allclose(other.objective, sparse.objective, rtol=1e-4)
        np.testing.assert_allclose(other.W, sparse.W, atol=5e-3 * sparse.W.max())


def test_a_dense_matrix_that_is_kept_is_read_once_and_gives_the_same() -> None:
    class Source:
        """Counts how often rows of it are read."""

        def __init__(self) -> None:
            self.values = np.random.default_rng(0).poisson(1.0, (90, 12)).astype(np.float32)
            self.shape, self.reads = self.values.shape, 0

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.reads += 1
            return self.values[rows]

    genes, factors = np.arange(1, 11), (np.full(90, 0.5, np.float32), np.full(10, 2.0, np.float32))
    made = [Source(), Source()]
    plain, kept = (DenseMatrix(source, genes, *factors, 1.0, 1.0, block_cells=40) for source in made)
    kept.keep()
    assert kept.bytes == 90 * 10 * 4
    right = torch.ones(10, 3)
    for _ in range(3):
        for (rows, one), (other_rows, other) in zip(plain.blocks(), kept.blocks(), strict=True):
            assert rows == other_rows
            assert torch.equal(one.times(right), other.times(right))
    assert (made[0].reads, made[1].reads) == (9, 3)


def test_empty_cells_and_unseen_genes_are_carried_along() -> None:
    X = plant().X
    X = [x.tolil() for x in X]
    X[0][:3], X[1][:, :2] = 0, 0
    result = inmf([x.tocsr() for x in X], SMALL)
    assert np.isfinite(result.H[0]).all() and np.abs(result.H[0][:3]).max() == 0


@pytest.mark.parametrize(
    ("X", "k", "says"),
    [
        ([], 4, "at least one dataset"),
        ([sp.csr_matrix(np.ones((30, 9))), sp.csr_matrix(np.ones((30, 8)))], 4, "same genes"),
        ([sp.csr_matrix(np.ones((3, 9)))], 4, "smaller k"),
        ([sp.csr_matrix(np.ones((0, 9)))], 4, "smaller k"),
        ([sp.csr_matrix(np.full((9, 9), -1.0))], 4, "non-negative"),
        ([sp.csr_matrix(np.full((9, 9), np.nan))], 4, "finite"),
    ],
)
def test_unusable_data_are_refused(X: list[sp.csr_matrix], k: int, says: str) -> None:
    with pytest.raises(NeumfError, match=says):
        inmf(X, LigerSettings(k=k))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_reaches_the_cpu_objective(planted: Planted) -> None:
    on_cpu, on_gpu = inmf(planted.X, SMALL), inmf(planted.X, SMALL, device="cuda")
    assert on_gpu.objective[-1] == pytest.approx(on_cpu.objective[-1], rel=1e-3)
