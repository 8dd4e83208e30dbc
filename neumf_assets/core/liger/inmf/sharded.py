"""iNMF by several processes of this machine or a cluster, each with its share of every dataset's cells.

What the processes sum in an iteration are ``HᵀX`` and ``HᵀH`` (:mod:`neumf_assets.core.liger.inmf.shards`). Processes
that are lost are replaced; all then go on from the last checkpoint, and so come to the same result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.liger.inmf.shards import GroupShards
from neumf_assets.core.liger.inmf.solver import INMFResult, Search, inmf
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.neumf.checkpoint import data_hash
from neumf_assets.core.neumf.large.parallel import Group, PartCheckpoint, main
from neumf_assets.core.processes import Follow, Launch, told_by
from neumf_assets.core.progress import Progress, silent
from neumf_assets.core.store import remove_left

PREFIX = "inmf-"


def inmf_by_workers(
    datasets: Sequence[sp.csr_matrix],
    settings: LigerSettings,
    launch: Launch,
    *,
    folder: Path | None = None,
    progress: Progress = silent,
    checkpoint_seconds: float = 60.0,
) -> INMFResult:
    """Factorise as :func:`~neumf_assets.core.liger.inmf.solver.inmf` does, by ``settings.workers`` processes.

    The result is that of one process up to the order in which float32 sums are taken.

    Parameters
    ----------
    datasets
        One scaled cells × genes matrix per dataset.
    launch
        Runs :func:`work` for every process in the folder it is given, to the end, and calls its last argument
        now and then.
    folder
        For what the processes read and write, here only; the same on all their machines. A factorisation that
        was broken off goes on from its last checkpoint there. A temporary one by default.
    checkpoint_seconds
        Least time between two checkpoints; 0: after every iteration.

    Raises
    ------
    BadSettings
        A process would have fewer cells of a dataset than there are factors.
    """
    size, fewest = settings.workers, min(matrix.shape[0] for matrix in datasets)
    if fewest // size < settings.k:
        raise BadSettings(
            f"liger.workers: {size} processes for {fewest} cells of a dataset leave some with fewer than the "
            f"{settings.k} factors; set fewer"
        )
    key = _fingerprint(datasets, settings)
    with _folder_of(key, folder) as shared:
        origin = {
            "settings": settings.model_dump_json(),
            "key": key,
            "checkpoint_seconds": checkpoint_seconds,
        }
        (shared / "origin").write_text(json.dumps(origin))
        for number, matrix in enumerate(datasets):
            for rank in range(size):
                sp.save_npz(shared / f"shard-{rank}-{number}.npz", matrix[rank::size], compressed=False)
        launch(shared, size, Follow(shared / "progress", progress))
        return _joined(shared, size, [matrix.shape[0] for matrix in datasets])


def _fingerprint(datasets: Sequence[sp.csr_matrix], settings: LigerSettings) -> str:
    """Return what a factorisation must agree in with one that was broken off, to go on from there."""
    hashes = [data_hash(matrix) for matrix in datasets]
    text = json.dumps([settings.model_dump(mode="json"), hashes, torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _folder_of(key: str, folder: Path | None) -> Iterator[Path]:
    """Give a factorisation's own folder in ``folder``, or a temporary one; removed at the end, kept on an error."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
            yield Path(name)
        return
    own = folder / f"{PREFIX}{key[:16]}"
    remove_left(folder, PREFIX, but=own)  # others were broken off, and are no longer wanted
    own.mkdir(parents=True, exist_ok=True)
    yield own
    shutil.rmtree(own, ignore_errors=True)


def work(folder: Path, rank: int, size: int) -> None:
    """Be one process of a prepared factorisation, as a member of torch's default process group."""
    origin = json.loads((folder / "origin").read_text())
    settings = LigerSettings.model_validate_json(origin["settings"])
    mine = [
        sp.load_npz(folder / f"shard-{rank}-{number}.npz")
        for number in range(len(list(folder.glob(f"shard-{rank}-*"))))
    ]
    group = Group(rank, size, torch.device("cpu"))
    keeper: PartCheckpoint[Search] = PartCheckpoint(
        folder, origin["key"], origin["checkpoint_seconds"], group
    )
    result = inmf(mine, settings, progress=told_by(rank, folder), shards=GroupShards(), keeper=keeper)
    arrays: dict[str, Any] = {f"H{number}": h for number, h in enumerate(result.H)}
    if rank == 0:
        arrays |= {f"V{number}": v for number, v in enumerate(result.V)}
        arrays |= {"W": result.W, "objective": result.objective, "trials": np.asarray(result.trials)}
        arrays |= {"figures": np.array([result.seconds, result.kkt, result.converged])}
    with (folder / f"result-{rank}.npz").open("wb") as file:
        np.savez(file, **arrays)


def _joined(folder: Path, size: int, cells: list[int]) -> INMFResult:
    found = [dict(np.load(folder / f"result-{rank}.npz", allow_pickle=False)) for rank in range(size)]
    first = found[0]
    seconds, kkt, converged = first["figures"].tolist()
    result = INMFResult(
        W=first["W"],
        V=[first[f"V{number}"] for number in range(len(cells))],
        H=[np.empty((n, first["W"].shape[0]), np.float32) for n in cells],
        objective=first["objective"],
        seconds=seconds,
        kkt=kkt,
        converged=bool(converged),
    )
    for rank, own in enumerate(found):
        for number, h in enumerate(result.H):
            h[rank::size] = own[f"H{number}"]
    return replace(result, trials=tuple(first["trials"].tolist()))


if __name__ == "__main__":
    main(work, *sys.argv[1:])
