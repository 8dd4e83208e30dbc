"""iNMF by two real processes, each with half of the cells: the factors of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from neumf_assets.core.liger.inmf import inmf
from neumf_assets.core.liger.settings import LigerSettings

WORKER = """
import sys
import numpy as np, scipy.sparse as sp, torch
from neumf_assets.core.liger.inmf import inmf
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.liger.shards import GroupShards

folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
shards = GroupShards()
settings = LigerSettings.model_validate_json(open(f"{folder}/settings").read())
mine = [sp.load_npz(f"{folder}/data-{d}.npz")[rank::2] for d in range(2)]
result = inmf(mine, settings, shards=shards)
np.savez(
    f"{folder}/result-{rank}.npz", W=result.W, objective=result.objective, kkt=result.kkt,
    bytes=shards.summed_bytes, **{f"V{d}": result.V[d] for d in range(2)}, **{f"H{d}": result.H[d] for d in range(2)},
)
"""


def _counts(cells: int, seed: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 1.0, (cells, 4)) @ rng.gamma(0.5, 1.0, (4, 30))
    return sp.csr_matrix(rng.poisson(means).astype(np.float32))


def _by_two(folder: Path, data: list[sp.csr_matrix], settings: LigerSettings) -> list[dict[str, np.ndarray]]:
    folder.mkdir()
    (folder / "settings").write_text(settings.model_dump_json())
    for number, matrix in enumerate(data):
        sp.save_npz(folder / f"data-{number}.npz", matrix)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [dict(np.load(folder / f"result-{rank}.npz")) for rank in range(2)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names Linux's loopback interface")
def test_two_processes_find_the_factors_of_one(tmp_path: Path) -> None:
    settings = LigerSettings(k=4, lam=1.0, iterations=25, restarts=2, trial_iterations=3, threads=1)
    sent = []
    for factor in (1, 3):
        data = [_counts(factor * 61, 0), _counts(factor * 40, 1)]
        alone = inmf(data, settings)
        first, second = _by_two(tmp_path / str(factor), data, settings)
        np.testing.assert_array_equal(first["W"], second["W"])
        np.testing.assert_allclose(first["objective"], alone.objective, rtol=1e-5)
        assert float(first["kkt"]) == pytest.approx(alone.kkt, rel=0.05)
        np.testing.assert_allclose(first["W"], alone.W, atol=1e-3)
        for d in range(2):
            np.testing.assert_allclose(first[f"V{d}"], alone.V[d], atol=1e-3)
            H = np.empty_like(alone.H[d])
            H[0::2], H[1::2] = first[f"H{d}"], second[f"H{d}"]
            np.testing.assert_allclose(H, alone.H[d], atol=1e-3 * alone.H[d].max())
        sent.append(float(first["bytes"]) / alone.n_iterations)
    assert sent[0] == pytest.approx(sent[1], rel=0.2), "bytes per iteration do not grow with the cells"
