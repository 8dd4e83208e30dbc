"""Checkpoints of a training: one file, written atomically, removed when the training has ended."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.neumf.settings import NeuMFSettings

FORMAT = 1
WITHOUT_EFFECT = {"checkpoint_seconds"}


def data_hash(counts: csr_matrix) -> str:
    """Return the SHA-256 of a CSR matrix: shape, structure and values."""
    digest = hashlib.sha256(repr(counts.shape).encode())
    for array, kind in ((counts.indptr, np.int64), (counts.indices, np.int32), (counts.data, np.float32)):
        digest.update(np.ascontiguousarray(array, dtype=kind).data)
    return digest.hexdigest()


def fingerprint(
    settings: NeuMFSettings, counts: csr_matrix | str, dataset: NDArray[np.intp], device: str
) -> str:
    """Return what a checkpoint must agree in with the training that wants to continue from it.

    ``counts`` are the matrix or its hash.
    """
    text = json.dumps(
        [
            FORMAT,
            settings.model_dump(mode="json", exclude=WITHOUT_EFFECT),
            counts if isinstance(counts, str) else data_hash(counts),
            hashlib.sha256(np.ascontiguousarray(dataset, dtype=np.int64).data).hexdigest(),
            device,
            torch.__version__,
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()


class Kept(Protocol):
    """What changes while something is trained, and how far that has come."""

    epoch: int

    def stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors, and all else, which JSON can say, that training needs to go on."""

    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Become what :meth:`stored` was said of."""


KeptT = TypeVar("KeptT", bound=Kept)


class Checkpoint(Generic[KeptT]):
    """The checkpoints of one training, one file for each of its stages; does nothing without a folder.

    Parameters
    ----------
    folder
        Where the files lie, or ``None``.
    key
        Fingerprint of the training; a file with another one is ignored and overwritten.
    seconds
        Least time between two writes.
    """

    def __init__(self, folder: Path | None, key: str, seconds: float) -> None:
        self.folder, self.key, self.seconds = folder, key, seconds
        self._written = time.monotonic()

    def _file(self, stage: int) -> Path:
        assert self.folder is not None
        return self.folder / f"stage-{stage}.safetensors"

    def restore(self, stage: int, state: KeptT) -> bool:
        """Bring ``state`` to where the stage's file left it; return whether there was one."""
        return self.folder is not None and self._read(self._file(stage), state)

    def _read(self, path: Path, state: KeptT) -> bool:
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata()
                if meta.get("key") != self.key:
                    return False
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            return False  # not written by us to the end: start again
        state.restore(tensors, json.loads(meta["progress"]))
        return True

    def due(self, now: bool) -> bool:
        """Tell whether the last write is long enough ago, or must not be waited for."""
        return now or time.monotonic() - self._written >= self.seconds

    def write(self, stage: int, state: KeptT, now: bool = False) -> None:
        """Write the state of a stage if the last write is long enough ago, or ``now``."""
        if self.folder is not None and self.due(now):
            self._write(self._file(stage), state)

    def _write(self, path: Path, state: KeptT) -> None:
        tensors, progress = state.stored()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.parent / f".{path.stem}.{os.getpid()}"
        save_file(
            {name: value.contiguous().cpu() for name, value in tensors.items()},
            unfinished,
            metadata={"key": self.key, "progress": json.dumps(progress)},
        )
        publish(unfinished, path)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the files of a training that has ended."""
        if self.folder is not None:
            for file in [*self.folder.glob("stage-*.safetensors"), *self.folder.glob(".stage-*")]:
                file.unlink(missing_ok=True)


def publish(unfinished: Path, file: Path) -> None:
    """Give a written file its name, so that after a crash it is either whole or not there."""
    with unfinished.open("rb") as handle:
        os.fsync(handle.fileno())
    unfinished.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
