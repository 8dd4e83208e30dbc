"""Training of one model by several processes, each with its own share of the cells.

Cell ``c`` belongs to worker ``c % workers``, which alone holds its counts, its embedding and the embedding's Adam
state. The workers go through the same steps in the same order as a single process would. Each differentiates the
loss of its own cells of the step; the gradients of what all share (gene embeddings, shifts, tower) are added up
over the workers in one all-reduce, and every worker makes the same update of its copy. What is sent in a step
thus depends on the genes and the network, never on the number of cells.

The model is the one of a single process up to the order in which float32 sums are taken. Where training draws
at random (dropout, drawn zeros) every worker draws its own, and it is equal in distribution only.

A training is prepared in one folder, which all workers see: ``shard-R`` is what worker ``R`` trains on, ``part-*``
its checkpoints, ``result-R`` what it learnt, ``progress`` the epochs that are done.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from torch import Tensor, distributed

from neumf_assets.core.errors import BadSettings, NeumfError
from neumf_assets.core.neumf.checkpoint import Checkpoint, KeptT, publish
from neumf_assets.core.neumf.network import Layout, Tables
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import HeldOut, SparseCounts, Step
from neumf_assets.core.neumf.training.preparation import torch_session
from neumf_assets.core.neumf.training.stages import train_stages
from neumf_assets.core.neumf.training.state import Data, State, new_state
from neumf_assets.core.neumf.training.workers import Workers
from neumf_assets.core.processes import Follow, Launch, LocalProcesses, closing_of_input, end_after, told_by
from neumf_assets.core.progress import Progress

PATIENCE = timedelta(minutes=10)  # for another worker's part of a sum; only a hung machine takes that long


@dataclass
class Traffic:
    """What was summed over workers: number of steps, and bytes of the summed tensors in all of them.

    A ring all-reduce among ``n`` workers sends ``2 (n - 1) / n`` times as many bytes from each worker.
    """

    steps: int = 0
    summed_bytes: int = 0

    @property
    def bytes_per_step(self) -> float:
        """Bytes of the tensors that are summed in a step."""
        return self.summed_bytes / max(self.steps, 1)


class Group(Workers):
    """One of several workers, joined by torch's default process group.

    Parameters
    ----------
    rank, size
        This worker's number, and how many there are.
    device
        Where tensors have to be for the group's backend.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.traffic = Traffic()

    @property
    def seed(self) -> tuple[int, ...]:
        """The rank, but for the first worker, which draws what a single process would."""
        return (self.rank,) if self.rank else ()

    def own(self, step: Step) -> Step:
        """Return a step with only the cells of this worker, at their places in its tables."""
        mine = step.cells[step.cells % self.size == self.rank]
        return Step(step.dataset, mine // self.size, step.genes)

    def own_rows(self, table: Tensor) -> Tensor:
        """Return this worker's rows of a table of all cells."""
        return table[self.rank :: self.size].clone()

    def sum_gradients(self, gradients: Tables, pairs: int) -> float:
        """Add up, in place, the gradients of all tables but the cells'; return the pairs of all workers."""
        shared = [gradient for name, gradient in gradients.items() if name != "cells"]
        flat = torch.cat([*(gradient.reshape(-1) for gradient in shared), self._tensor([pairs]).float()])
        distributed.all_reduce(flat)
        self.traffic.steps += 1
        self.traffic.summed_bytes += flat.nbytes
        parts = flat.split([*(gradient.numel() for gradient in shared), 1])
        for gradient, part in zip(shared, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        return float(parts[-1])

    def norm(self, name: str, gradient: Tensor) -> Tensor:
        """Return the norm of a table's gradient over the cells of all workers."""
        if name != "cells":
            return gradient.norm()
        squares = gradient.square().sum()
        distributed.all_reduce(squares)
        return squares.sqrt()

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """Return each number's sum over all workers."""
        tensor = self._tensor(numbers)
        distributed.all_reduce(tensor)
        return tuple(tensor.tolist())

    def least(self, number: float) -> float:
        """Return the smallest of all workers' numbers."""
        tensor = self._tensor([number])
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MIN)
        return float(tensor)

    def _tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)


class PartCheckpoint(Checkpoint[KeptT]):
    """One worker's part of a training's checkpoints: all workers continue from the same epoch, or none does.

    A part of an earlier epoch is removed only after every worker has written its part of the next one, so at
    any moment the newest epoch of the worker that is furthest behind is there in full.
    """

    def __init__(self, folder: Path, key: str, seconds: float, group: Workers) -> None:
        super().__init__(folder, f"{key} {group.rank}/{group.size}", seconds)
        self.parts, self.group = folder, group

    def restore(self, stage: int, state: KeptT) -> bool:
        """Bring ``state`` to the newest epoch of which all workers have their part; tell if there is one."""
        epoch = int(self.group.least(max(self._epochs(stage), default=0)))
        read = epoch > 0 and self._read(self._part(stage, epoch), state)
        if self.group.least(float(read)) == float(read):
            return read
        raise NeumfError(f"{self.parts}: the workers' checkpoints do not belong together; remove the folder")

    def write(self, stage: int, state: KeptT, now: bool = False) -> None:
        """Write this worker's part if the first worker finds it time to, or ``now``; all do or none does."""
        wanted = now or (self.group.rank == 0 and self.due(False))
        if not self.group.sum(float(wanted))[0]:
            return
        self._write(self._part(stage, state.epoch), state)
        self.group.sum(1.0)  # everybody's part is there
        for epoch in self._epochs(stage):
            if epoch < state.epoch:
                self._part(stage, epoch).unlink()

    def _part(self, stage: int, epoch: int) -> Path:
        return self.parts / f"part-{self.group.rank}.stage-{stage}.epoch-{epoch}.safetensors"

    def _epochs(self, stage: int) -> list[int]:
        """Return the epochs of which this worker has a readable part."""
        prefix = f"part-{self.group.rank}.stage-{stage}.epoch-"
        found = []
        for file in self.parts.glob(f"{prefix}*.safetensors"):
            try:
                with safe_open(file, "pt") as part:
                    if part.metadata().get("key") == self.key:
                        found.append(int(file.name.removeprefix(prefix).partition(".")[0]))
            except SafetensorError:
                file.unlink()  # not written by us to the end
        return found


class ParallelTraining:
    """Trains prepared data with several workers; to be given to :func:`neumf_assets.core.neumf.training.fit.fit`.

    Parameters
    ----------
    workers
        How many.
    launch
        Runs :func:`work` for every worker in the folder it is given, to the end, replacing workers that are
        lost; calls its last argument now and then. By default processes of this machine.

    Attributes
    ----------
    traffic
        After training: what was summed over workers since they were started last.
    """

    def __init__(self, workers: int, launch: Launch | None = None) -> None:
        self.workers, self.launch = workers, launch or LocalProcesses(__name__)
        self.traffic = Traffic()

    def __call__(self, data: Data, progress: Progress, checkpoint: Checkpoint[State]) -> State:
        """Train all stages.

        Raises
        ------
        BadSettings
            For batch normalisation, whose statistics are those of a whole block.
        NeumfError
            If workers fail again and again.
        """
        if data.settings.batch_norm:
            raise BadSettings("batch_norm: not with several workers; set workers to 1 or batch_norm to false")
        if self.workers > data.counts.n_cells:
            raise BadSettings(f"workers: {self.workers} for {data.counts.n_cells} cells; set fewer")
        if checkpoint.folder is None:
            with tempfile.TemporaryDirectory() as folder:
                return self._train(data, progress, checkpoint.key, Path(folder))
        return self._train(data, progress, checkpoint.key, checkpoint.folder)

    def _train(self, data: Data, progress: Progress, key: str, folder: Path) -> State:
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.workers):
            write_shard(data, key, rank, self.workers, folder)
        report = Follow(folder / "progress", progress)
        self.launch(folder, self.workers, report)
        report()
        state, self.traffic = join_results(data, self.workers, folder)
        for kind in ("shard-", "result-", "part-", "progress"):
            # hidden: broken off in writing
            for file in (*folder.glob(f"{kind}*"), *folder.glob(f".{kind}*")):
                file.unlink(missing_ok=True)
        return state


def write_shard(data: Data, key: str, rank: int, size: int, folder: Path) -> None:
    """Write what one worker trains on: its cells' counts and held-out entries, and what all workers need."""
    mine = np.arange(rank, data.counts.n_cells, size)
    counts = _csr(data.counts)[mine]
    tensors = {
        "indptr": torch.as_tensor(counts.indptr.astype(np.int64)),
        "indices": torch.as_tensor(counts.indices.astype(np.int32)),
        "values": torch.as_tensor(counts.data.astype(np.float32)),
        "log_size": data.log_size.cpu()[mine],
        "everyone": torch.as_tensor(data.dataset.astype(np.int64)),
        "gene_bias": data.gene_bias.cpu(),
    }
    if data.held_out is not None:
        here = data.held_out.cells % size == rank
        tensors["held_out_cells"] = torch.as_tensor(data.held_out.cells[here] // size)
        tensors["held_out_genes"] = data.held_out.genes.cpu()[np.append(here, True)]
    origin = {"settings": data.settings.model_dump_json(), "key": key, "device": data.device.type}
    origin["n_genes"] = str(data.counts.n_genes)
    _save(tensors, folder / f"shard-{rank}.safetensors", origin)


def _csr(counts: SparseCounts) -> csr_matrix:
    indptr = np.append(counts.indptr.cpu().numpy(), counts.values.numel())
    parts = (counts.values.cpu().numpy(), counts.indices.cpu().numpy(), indptr)
    return csr_matrix(parts, shape=(counts.n_cells, counts.n_genes))


def read_shard(folder: Path, rank: int, size: int) -> tuple[Data, str]:
    """Return what a worker trains on, as a member of the default process group, and its training's key."""
    with safe_open(folder / f"shard-{rank}.safetensors", "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    device = torch.device(meta["device"])
    everyone: NDArray[np.intp] = tensors["everyone"].numpy().astype(np.intp)
    n_cells, n_genes = tensors["log_size"].numel(), int(meta["n_genes"])
    parts = tuple(tensors[name].numpy() for name in ("values", "indices", "indptr"))
    held_out = None
    if "held_out_cells" in tensors:
        cells = tensors["held_out_cells"].numpy().astype(np.intp)
        row = torch.full((n_cells,), cells.size)
        row[cells] = torch.arange(cells.size)
        held_out = HeldOut(cells, tensors["held_out_genes"].to(device), row.to(device), n_genes)
    data = Data(
        settings=NeuMFSettings.model_validate_json(meta["settings"]),
        counts=SparseCounts(csr_matrix(parts, shape=(n_cells, n_genes)), device),
        log_size=tensors["log_size"].to(device),
        dataset=everyone[rank::size],
        held_out=held_out,
        gene_bias=tensors["gene_bias"],
        device=device,
        workers=Group(rank, size, device),
        everyone=everyone,
    )
    return data, meta["key"]


def work(folder: Path, rank: int, size: int, after_epoch: Callable[[], None] | None = None) -> None:
    """Be one worker of a prepared training, from its last checkpoint to the end.

    Parameters
    ----------
    folder
        Where the training was prepared; the same for all workers.
    rank, size
        Number of this worker, and how many there are, as in torch's default process group, which must be
        ready.
    after_epoch
        Called after every epoch.
    """
    data, key = read_shard(folder, rank, size)
    assert isinstance(data.workers, Group)

    tell = told_by(rank, folder)

    def progress(stage: str, done: int, total: int, **figures: float) -> None:
        tell(stage, done, total, **figures)
        if after_epoch is not None:
            after_epoch()

    with torch_session(data.settings):
        checkpoint: PartCheckpoint[State] = PartCheckpoint(
            folder, key, data.settings.checkpoint_seconds, data.workers
        )
        state = train_stages(data, progress, checkpoint)
    traffic = data.workers.traffic
    meta = {"history": json.dumps(state.history), "key": key, "size": str(size)}
    meta |= {"steps": str(traffic.steps), "summed_bytes": str(traffic.summed_bytes)}
    _save(state.tables | state.statistics, folder / f"result-{rank}.safetensors", meta)


def join_results(data: Data, size: int, folder: Path) -> tuple[State, Traffic]:
    """Return the trained state of all cells from what the workers have written."""
    found: list[Tables] = []
    for rank in range(size):
        with safe_open(folder / f"result-{rank}.safetensors", "pt") as file:
            meta = file.metadata()
            found.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    cells = found[0]["cells"].new_empty(data.counts.n_cells, found[0]["cells"].shape[1])
    for rank, result in enumerate(found):
        cells[rank::size] = result["cells"]
    tables = {"cells": cells, **{name: found[0][name] for name in ("genes", "shifts", "tower")}}
    tables = {name: table.to(data.device) for name, table in tables.items()}
    layout = Layout.of(data.settings, data.n_datasets, data.settings.kind)
    state = new_state(layout, tables, {}, json.loads(meta["history"]))
    return state, Traffic(int(meta["steps"]), int(meta["summed_bytes"]))


def _save(tensors: Tables, file: Path, meta: dict[str, str]) -> None:
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, unfinished, metadata=meta)
    publish(unfinished, file)


def main(work: Callable[[Path, int, int], None], folder: str, rank: str, size: str, store: str) -> None:
    """Do ``work`` as a worker that :class:`LocalProcesses` has started."""
    end_after(closing_of_input)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{store}",
        rank=int(rank),
        world_size=int(size),
        timeout=PATIENCE,
    )
    try:
        work(Path(folder), int(rank), int(size))
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(work, *sys.argv[1:])
