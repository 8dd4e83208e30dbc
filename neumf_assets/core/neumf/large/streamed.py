"""Training on more cells than fit in memory: a window of cells at a time, in the order of training in memory.

Counts are copied once into plain files, the cells' embeddings and their Adam state live in another. A window's
part of them is read, trained on, and written back. The arithmetic is that of
:mod:`neumf_assets.core.neumf.training.loop`, step for step, so the model is the same bit for bit.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neumf_assets.core import memory
from neumf_assets.core.counts.stored import StackedCounts
from neumf_assets.core.neumf.checkpoint import Checkpoint, fingerprint, publish
from neumf_assets.core.neumf.dimensions import MOST
from neumf_assets.core.neumf.genes import (
    BLOCK_CELLS,
    RowSource,
    cell_totals,
    factors_of,
    select_genes,
)
from neumf_assets.core.neumf.large.cell_files import CountFiles, EmbeddingFile
from neumf_assets.core.neumf.model import NeuMFModel, provenance
from neumf_assets.core.neumf.network import Layout
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import Epoch, SparseCounts, Step
from neumf_assets.core.neumf.training.checks import check_labels, check_observed
from neumf_assets.core.neumf.training.fit import Training, fit, trained_model
from neumf_assets.core.neumf.training.optimiser import RowAdam
from neumf_assets.core.neumf.training.preparation import describe, torch_session, with_gmf_size
from neumf_assets.core.neumf.training.stages import train_stages
from neumf_assets.core.neumf.training.state import Data, State
from neumf_assets.core.neumf.training.step import Stepper
from neumf_assets.core.progress import Progress, silent

_log = logging.getLogger(__name__)
BYTES_PER_ENTRY = 28
"""Peak memory of training in memory for each non-zero: the counts, the chosen genes', and theirs as tensors."""
SHARE_BYTES_PER_ENTRY = 20
"""Peak memory for each non-zero of the chosen genes in a window, or in a worker's share: as read, and as tensors."""
DEVICE_BYTES_PER_ENTRY = 8
DEVICE_SHARE = 0.8
"""Part of a GPU's free memory that counts and embeddings may take; blocks need the rest."""
TABLE_COPIES = 10
"""Copies of the cells' table while training in memory: Adam's state of two stages, and what is being saved."""


def fit_stored(
    counts: StackedCounts,
    settings: NeuMFSettings,
    *,
    folder: Path,
    device: str = "cpu",
    training: Training | None = None,
    machines: int = 1,
    **named: Any,
) -> NeuMFModel:
    """Train on counts on disk: in memory where they fit into the budget, else a window or a share at a time.

    Parameters
    ----------
    counts
        Datasets one after another.
    settings
        The model and how it is trained.
    folder
        For checkpoints and, where training is streamed, for counts and embeddings.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    training
        What trains counts in the memory of its workers, as for :func:`neumf_assets.core.neumf.training.fit.fit`.
        Counts that do not fit there either are trained by this process alone, a window at a time.
    machines
        On how many machines the workers are; each may use the budget.
    named
        As :func:`neumf_assets.core.neumf.training.fit.fit`: ``gene_names``, ``cell_names``, ``dataset``,
        ``dataset_names``, ``progress``.
    """
    cells = counts.shape[0]
    widest = settings.model_copy(update={"gmf_size": settings.gmf_size or MOST})
    columns = Layout.of(widest, len(counts.parts)).size + 1
    needed = BYTES_PER_ENTRY * counts.nnz + _table_bytes(columns, cells)
    if training is not None and machines == 1:  # workers on this machine hold their shares beside the whole
        needed += SHARE_BYTES_PER_ENTRY * counts.nnz + _table_bytes(columns, cells)
    on_device = DEVICE_BYTES_PER_ENTRY * counts.nnz + _table_bytes(columns, cells)
    if memory.exceeds(needed, f"Training on {cells} cells", "counts are read from disk") or _exceeds_device(
        device, on_device
    ):
        return fit_streamed(
            counts, settings, folder=folder, device=device, training=training, machines=machines, **named
        )
    whole = counts.rows(0, cells)
    return fit(whole, settings, device=device, checkpoint_dir=folder, training=training, **named)


def fit_streamed(
    counts: RowSource,
    settings: NeuMFSettings,
    *,
    gene_names: NDArray[np.str_] | list[str],
    cell_names: NDArray[np.str_] | list[str],
    folder: Path,
    dataset: NDArray[np.intp] | None = None,
    dataset_names: list[str] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    training: Training | None = None,
    machines: int = 1,
) -> NeuMFModel:
    """Train a NeuMF with memory bounded by a window of cells, or by workers' shares; else as :func:`train.fit`.

    Beside a window, a few numbers for each cell are in memory. ``folder`` takes the counts of the chosen genes
    and three copies of the cells' embeddings, and twice as much of these in checkpoints. ``training`` and
    ``machines`` are as for :func:`fit_stored`; by default windows are trained.
    """
    n_cells = counts.shape[0]
    dataset = np.zeros(n_cells, np.intp) if dataset is None else np.asarray(dataset, np.intp)
    names = dataset_names or [f"dataset {d}" for d in range(int(dataset.max(initial=0)) + 1)]
    check_labels(counts.shape, gene_names, cell_names, dataset, names)
    totals = cell_totals(counts)
    check_observed(totals)
    genes = select_genes(counts, dataset, settings.n_genes, totals)
    factors = factors_of(totals) if settings.size_factors else np.ones(n_cells, np.float32)
    files = CountFiles(folder / "streamed", counts, genes)
    settings = with_gmf_size(settings, files.of, dataset)
    with torch_session(settings):
        # what the trainer asks of all counts is their size; those of a window are brought in when it is trained
        data = describe(files, factors, dataset, settings, torch.device(device), cast(SparseCounts, files))
        sha256 = files.sha256
        key = fingerprint(settings, sha256, dataset, device)
        if training is not None and _shares_fit(files, settings, len(names), machines):
            checkpoint: Checkpoint[State] = Checkpoint(folder, key, settings.checkpoint_seconds)
            mapped = SparseCounts(files.mapped(), torch.device("cpu"))
            state = training(replace(data, counts=mapped), progress, checkpoint)
        else:
            _say_window(files, settings, len(names), training is not None)
            cells = _Cells(folder / "streamed", n_cells)
            checkpoint = _Checkpoint(folder, key, settings.checkpoint_seconds, cells)
            state = train_stages(data, progress, checkpoint, cells)
            state.tables = state.tables | {"cells": cells.mapped()}
    origin = provenance(sha256, settings, device)
    model = trained_model(data, state, totals, genes, gene_names, cell_names, names, origin)
    checkpoint.remove()
    files.remove()
    return model


def _exceeds_device(device: str, needed: int) -> bool:
    """Tell whether counts and embeddings exceed the free memory of a GPU, and say so."""
    if torch.device(device).type != "cuda":
        return False
    free = torch.cuda.mem_get_info(device)[0]
    if needed <= DEVICE_SHARE * free:
        return False
    sizes = memory.readable(needed), memory.readable(free)
    _log.info(
        "The counts would take about %s of the %s that %s has free: they are read from disk.", *sizes, device
    )
    return True


def _table_bytes(columns: int, cells: int) -> int:
    return 4 * TABLE_COPIES * columns * cells


def _bytes_of(files: CountFiles, settings: NeuMFSettings, n_datasets: int, share: float) -> int:
    """Estimate what training a share of the cells in memory takes."""
    columns = Layout.of(settings, n_datasets).size + 1
    return round(share * (SHARE_BYTES_PER_ENTRY * files.nnz + _table_bytes(columns, files.n_cells)))


def _shares_fit(files: CountFiles, settings: NeuMFSettings, n_datasets: int, machines: int) -> bool:
    """Tell whether workers can have their cells in memory, and say so."""
    needed = _bytes_of(files, settings, n_datasets, 1 / machines)
    fit = needed <= memory.budget()
    if fit:
        _log.info(
            "%d workers get their cells from disk, about %s of memory on each of %d machines.",
            settings.workers,
            memory.readable(needed),
            machines,
        )
    return fit


def _say_window(files: CountFiles, settings: NeuMFSettings, n_datasets: int, for_workers: bool) -> None:
    """Say that windows are trained, and warn where one of them exceeds the budget."""
    window = min(settings.window_cells, files.n_cells)
    alone = (
        f" by one process, not by {settings.workers} workers, whose cells would not fit"
        if for_workers
        else ""
    )
    _log.info("Windows of %d cells are read from disk and trained%s.", window, alone)
    memory.warn_if_exceeds(
        _bytes_of(files, settings, n_datasets, window / files.n_cells),
        f"Training on a window of {window} cells",
        "Set fewer window_cells; the order of the cells, and with it the model, changes a little.",
    )


class _Cells:
    """The cells' embeddings of every stage of a training, each in a file; keeps them instead of a tensor."""

    def __init__(self, folder: Path, n_cells: int) -> None:
        self.folder, self.n_cells = folder, n_cells
        self.files: dict[str, EmbeddingFile] = {}
        self.current: EmbeddingFile

    def keep(self, kind: str, drawn: Iterator[Tensor]) -> Tensor:
        """Write the starting values of a stage to its file; return a table without rows in their place."""
        first, columns = 0, 0
        for part in drawn:
            if not first:
                columns = part.shape[1]
                self.current = EmbeddingFile(self.folder / f"cells-{kind}", self.n_cells, columns)
                self.files[kind] = self.current
            self.current.set_table(np.arange(first, first + len(part)), part)
            first += len(part)
        return torch.empty(0, columns)

    def fuse(self, put: Callable[[Tensor, Mapping[str, Tensor]], None], kinds: tuple[str, ...]) -> None:
        """Put the trained branches' embeddings into those of the stage that starts."""
        for start in range(0, self.n_cells, BLOCK_CELLS):
            rows = np.arange(start, min(start + BLOCK_CELLS, self.n_cells))
            table = self.current.table(rows)
            put(table, {kind: self.files[kind].table(rows) for kind in kinds})
            self.current.set_table(rows, table)

    def stepper(self, data: Data, state: State, frozen: frozenset[str]) -> Stepper:
        """Return what makes training steps."""
        return _WindowStepper(data, state, frozen, self.current)

    def mapped(self) -> Tensor:
        """Return the trained embeddings as a tensor that is read from disk when it is used.

        Its file has no name any more, so that it goes when the tensor does; all others are removed.
        """
        path, columns = self.folder / "cells", self.current.columns
        with path.open("wb") as file:
            for start in range(0, self.n_cells, BLOCK_CELLS):
                rows = np.arange(start, min(start + BLOCK_CELLS, self.n_cells))
                self.current.table(rows).numpy().tofile(file)
        for one in self.files.values():
            one.remove()
        table = torch.from_file(str(path), shared=True, size=self.n_cells * columns)
        path.unlink()
        return table.view(self.n_cells, columns)


class _WindowStepper(Stepper):
    """Makes steps on the cells of one window, which it reads and writes back."""

    def __init__(self, data: Data, state: State, frozen: frozenset[str], cells: EmbeddingFile) -> None:
        super().__init__(data, state, frozen)
        self._whole, self._file = data, cells
        self._cells = np.zeros(0, np.intp)

    @contextmanager
    def window(self, order: Epoch, number: int) -> Iterator[None]:
        """Have the cells of a window at hand in the body, and write them back after it."""
        with self._at_hand(order.cells(number)) as rows:
            yield
            self._file.write(self._cells, rows)

    @contextmanager
    def _at_hand(self, cells: NDArray[np.intp]) -> Iterator[RowAdam]:
        whole, optimisers, without_rows = self._whole, self.state.optimisers, self.state.optimisers["cells"]
        files = cast(CountFiles, whole.counts)
        self.data = replace(
            whole,
            counts=SparseCounts(files.of(cells), whole.device),
            log_size=whole.log_size[torch.as_tensor(cells, device=whole.device)],
            dataset=whole.dataset[cells],
            held_out=whole.held_out.among(cells) if whole.held_out else None,
        )
        optimisers["cells"], self._cells = self._file.read(cells, whole.device), cells
        try:
            yield optimisers["cells"]
        finally:
            self.data, optimisers["cells"] = whole, without_rows

    def here(self, step: Step) -> Step:
        """Return a step with its cells at their places in the window's tables."""
        return replace(step, cells=np.searchsorted(self._cells, step.cells))

    def validation_loss(self) -> float | None:
        """Return the mean loss of the held-out entries, or ``None`` without any."""
        if self._whole.held_out is None:
            return None
        with self._at_hand(self._whole.held_out.cells):
            return super().validation_loss()

    def keep_best(self) -> None:
        """Remember the parameters as those of the best epoch."""
        super().keep_best()
        self._file.save(best_of(self._file))

    def return_to_best(self) -> None:
        """Put the parameters of the best epoch back."""
        super().return_to_best()
        self._file.load(best_of(self._file))
        best_of(self._file).unlink()


def best_of(file: EmbeddingFile) -> Path:
    """Return where the embeddings of the best epoch are kept."""
    return file.path.with_name(f"{file.path.name}.best")


class _Checkpoint(Checkpoint[State]):
    """Checkpoints with copies of the embeddings' file beside them; the file that names them is written last."""

    def __init__(self, folder: Path, key: str, seconds: float, cells: _Cells) -> None:
        super().__init__(folder, key, seconds)
        self._cells, self._folder = cells, folder

    def _copies(self, stage: int, state: State) -> dict[Path, Path]:
        file, name = self._cells.current, f"stage-{stage}-cells"
        copies = {file.path: self._folder / f"{name}-{state.epoch}"}
        if state.best:
            copies[best_of(file)] = self._folder / f"{name}-best-{state.best_epoch}"
        return copies

    def restore(self, stage: int, state: State) -> bool:
        """Bring ``state`` and the embeddings to where the stage's file left them."""
        if not super().restore(stage, state):
            return False
        for target, copy in self._copies(stage, state).items():
            shutil.copyfile(copy, target)
        return True

    def write(self, stage: int, state: State, now: bool = False) -> None:
        """Write state and embeddings if the last write is long enough ago, or ``now``."""
        if not self.due(now):
            return
        copies = self._copies(stage, state)
        for source, copy in copies.items():
            if not copy.exists() or not copy.stem.startswith(f"stage-{stage}-cells-best"):
                shutil.copyfile(source, self._folder / f".{copy.name}")
                publish(self._folder / f".{copy.name}", copy)
        super().write(stage, state, now=True)
        for old in self._folder.glob(f"stage-{stage}-cells-*"):
            if old not in copies.values():
                old.unlink()

    def remove(self) -> None:
        """Remove the files of a training that has ended."""
        super().remove()
        for copy in self._folder.glob("stage-*-cells-*"):
            copy.unlink()
