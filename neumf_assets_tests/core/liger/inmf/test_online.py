"""Online iNMF: as good as batch, monotone after the first pass, and blind to all but its mini-batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.chain import factorise
from neumf_assets.core.liger.inmf.matrices import ChunkedMatrix
from neumf_assets.core.liger.inmf.online import batch_order, in_batches, online_inmf
from neumf_assets.core.liger.inmf.solver import inmf
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets_tests.core.liger.conftest import Planted, plant

CHOSEN = LigerSettings(k=4, restarts=4, epochs=6, batch_cells=40, iterations=200)


def test_online_comes_close_to_batch(planted: Planted) -> None:
    batch = inmf(planted.X, CHOSEN)
    online = online_inmf([in_batches(x, 40) for x in planted.X], CHOSEN)
    assert online.objective[-1] <= 1.03 * batch.objective[-1]
    assert online.objective.size == CHOSEN.epochs


def test_objective_falls_after_the_first_pass_and_is_exact(planted: Planted) -> None:
    online = online_inmf([in_batches(x, 40) for x in planted.X], CHOSEN)
    assert (np.diff(online.objective[1:]) <= 1e-5 * online.objective[-1]).all()
    exact = 0.0
    for number, x in enumerate(planted.X):
        order = np.concatenate([np.arange(x.shape[0])[part] for part in batch_order(x.shape[0], 40)])
        h, v = online.H[number], online.V[number]
        exact += np.sum((x[order].toarray() - h @ (online.W + v)) ** 2) + 5 * np.sum((h @ v) ** 2)
    assert online.objective[-1] == pytest.approx(exact, rel=1e-4)


def test_cells_come_back_in_their_own_order(planted: Planted) -> None:
    result = factorise(planted.X, CHOSEN.model_copy(update={"online": True}))
    for x, h, v in zip(planted.X, result.H, result.V, strict=True):
        own = np.linalg.norm(x.toarray() - h @ (result.W + v))
        shifted = np.linalg.norm(x.toarray() - np.roll(h, 1, axis=0) @ (result.W + v))
        assert own < 0.8 * shifted


def test_every_cell_is_in_one_batch() -> None:
    for n, size in ((10, 3), (7, 7), (5, 100), (100, 1)):
        parts = [np.arange(n)[part] for part in batch_order(n, size)]
        assert sorted(np.concatenate(parts)) == list(range(n))
        assert max(len(part) for part in parts) <= size


def test_chunks_are_read_one_at_a_time() -> None:
    """No chunk is alive when the next but one is asked for, so memory stays that of a mini-batch."""
    whole = [x.tocsr() for x in plant((200, 160)).X]
    alive: list[weakref.ref[sp.csr_matrix]] = []
    most = 0

    def chunks(x: sp.csr_matrix) -> Iterator[sp.csr_matrix]:
        nonlocal most
        for start in range(0, x.shape[0], 20):
            chunk = x[start : start + 20]
            alive.append(weakref.ref(chunk))
            most = max(most, sum(ref() is not None for ref in alive))
            yield chunk

    datasets = [ChunkedMatrix(lambda x=x: chunks(x)) for x in whole]
    online_inmf(datasets, CHOSEN.model_copy(update={"epochs": 2}))
    assert most <= 2 * len(whole) + 1 < len(alive) // 4


def test_batches_of_many_datasets_do_not_lie_in_memory_together() -> None:
    whole = [x.astype(np.float32).tocsr() for x in plant((60,) * 7).X]
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def read(x: sp.csr_matrix, start: int) -> sp.csr_matrix:
        nonlocal most
        chunk = x[start : start + 20]
        alive.append(weakref.ref(chunk.data))
        most = max(most, sum(ref() is not None for ref in alive))
        return chunk

    datasets = [ChunkedMatrix(lambda x=x: (read(x, start) for start in (0, 20, 40))) for x in whole]
    online_inmf(datasets, CHOSEN.model_copy(update={"epochs": 2}))
    assert len(alive) >= 7 * 3 * 3
    assert most <= 2


def test_same_seed_same_bits(planted: Planted) -> None:
    one, again = (online_inmf([in_batches(x, 40) for x in planted.X], CHOSEN) for _ in range(2))
    assert np.array_equal(one.W, again.W)
    assert all(np.array_equal(a, b) for a, b in zip(one.H, again.H, strict=True))


def test_datasets_of_very_different_size_all_learn() -> None:
    planted = plant((600, 30), seed=2)
    online = online_inmf([in_batches(x, 25) for x in planted.X], CHOSEN)
    batch = inmf(planted.X, CHOSEN)
    assert online.objective[-1] <= 1.05 * batch.objective[-1]
    assert online.H[1].sum() > 0


def test_chunks_must_agree_on_the_genes() -> None:
    with pytest.raises(NeumfError, match="same genes"):
        ChunkedMatrix(lambda: iter([sp.csr_matrix(np.ones((3, 4))), sp.csr_matrix(np.ones((3, 5)))]))
    with pytest.raises(NeumfError, match="same genes"):
        ChunkedMatrix(lambda: iter([]))
