"""The one trainer: single-dataset and integrative NeuMF, pretraining, and mapping of new datasets.

A step takes a block of cells (of one dataset) x genes, differentiates the summed loss with respect to the
rows of the tables that the block uses, and moves them by Adam. Whatever is random in an epoch derives from
(seed, stage, epoch), so training that was killed continues bit for bit from its last checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.checkpoint import Checkpoint, fingerprint
from neumf_assets.core.neumf.compiled import WORTH_PAIRS
from neumf_assets.core.neumf.dimensions import FEWEST, MOST, MOST_TOGETHER, significant_axes
from neumf_assets.core.neumf.fused.tower import fused_block_loss
from neumf_assets.core.neumf.genes import (
    Part,
    RowSource,
    cell_totals,
    factors_of,
    gene_totals,
    median_of,
    members_of,
    select_genes,
)
from neumf_assets.core.neumf.model import NeuMFModel, provenance
from neumf_assets.core.neumf.network import (
    Block,
    Layout,
    Tables,
    Tower,
    block_scores,
    initial_statistics,
    initial_tables,
    pair_scores,
)
from neumf_assets.core.neumf.objectives import entry_loss, ranking_loss, sparse_poisson_loss
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import Epoch, HeldOut, Plan, SparseCounts, Step
from neumf_assets.core.neumf.training.optimiser import Adam, RowAdam, Rows
from neumf_assets.core.neumf.training.workers import ALONE, Workers
from neumf_assets.core.progress import Progress, silent

VALIDATION_PAIRS = 262_144
FUSION_SCALE = 0.1
GMF_SIZE_CELLS = 20_000
"""The number of significant axes is found on a sample of so many cells."""


@dataclass(frozen=True)
class Data:
    """Everything that stays the same while a model is trained.

    ``counts``, ``log_size``, ``dataset`` and ``held_out`` are those of the cells of this worker; ``everyone`` is
    the dataset of each cell of all workers (``None``: this one has them all).
    """

    settings: NeuMFSettings
    counts: SparseCounts
    log_size: Tensor
    dataset: NDArray[np.intp]
    held_out: HeldOut | None
    gene_bias: Tensor
    device: torch.device
    workers: Workers = ALONE
    everyone: NDArray[np.intp] | None = None

    @property
    def all_cells(self) -> NDArray[np.intp]:
        """Dataset of each cell of all workers."""
        return self.dataset if self.everyone is None else self.everyone

    @property
    def n_datasets(self) -> int:
        """Number of datasets."""
        return self.gene_bias.shape[0]


@dataclass
class State:
    """What training changes: the tables, running statistics and curves, with the best epoch so far."""

    layout: Layout
    tables: Tables
    statistics: Tables
    optimisers: dict[str, RowAdam]
    pretrained: tuple[str, ...] = ()
    history: list[dict[str, float | str]] = field(default_factory=list)
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best: Tables = field(default_factory=dict)

    def stored(self) -> tuple[Tables, dict[str, Any]]:
        """Return what a checkpoint keeps: all tensors, and how far training has come."""
        best = {f"best.{name}": value for name, value in self.best.items()}
        return self._changed() | best, {name: getattr(self, name) for name in _PROGRESS}

    def restore(self, tensors: Tables, progress: dict[str, Any]) -> None:
        """Become the state that a checkpoint has kept."""
        changed = self._changed()
        for name, target in changed.items():
            target.copy_(tensors[name])
        device = self.tables["cells"].device
        best = {name: value for name, value in tensors.items() if name not in changed}
        self.best = {name.removeprefix("best."): value.to(device) for name, value in best.items()}
        for name in _PROGRESS:
            setattr(self, name, progress[name])

    def _changed(self) -> Tables:
        """Return the tensors that every step changes."""
        tensors = {f"table.{name}": value for name, value in self.tables.items()}
        tensors |= {f"statistic.{name}": value for name, value in self.statistics.items()}
        for table, optimiser in self.optimisers.items():
            tensors |= {f"adam.{table}.{name}": value for name, value in optimiser.state().items()}
        return tensors


_PROGRESS = ("epoch", "history", "best_loss", "best_epoch")  # of a state: what is not a tensor


Training = Callable[[Data, Progress, Checkpoint[State]], State]


def fit(
    counts: csr_matrix,
    settings: NeuMFSettings,
    *,
    gene_names: NDArray[np.str_] | list[str],
    cell_names: NDArray[np.str_] | list[str],
    dataset: NDArray[np.intp] | None = None,
    dataset_names: list[str] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    checkpoint_dir: Path | None = None,
    training: Training | None = None,
) -> NeuMFModel:
    """Train a NeuMF on the counts of one dataset or of several together.

    Parameters
    ----------
    counts
        Cells x genes, non-negative.
    settings
        The model and how it is trained.
    gene_names, cell_names
        Names of columns and rows.
    dataset
        Dataset index of each cell, ``0 .. n_datasets - 1``; ``None``: one dataset. With two or more the model
        is integrative: a gene's embedding is shared plus dataset-specific, its bias belongs to the dataset.
    dataset_names
        Names of the datasets.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    progress
        Told after every epoch.
    checkpoint_dir
        Where checkpoints of this training are kept and looked for; removed from there at the end.
    training
        What trains the prepared data; by default this process alone (:func:`train_stages`).

    Returns
    -------
    The trained model, with the parameters of its best epoch where ``patience`` is set, else of its last.

    Raises
    ------
    BadSettings
        Where names, datasets and counts do not belong together.
    """
    counts = counts.tocsr()
    dataset = np.zeros(counts.shape[0], np.intp) if dataset is None else np.asarray(dataset, np.intp)
    names = dataset_names or [f"dataset {d}" for d in range(int(dataset.max(initial=0)) + 1)]
    check_values(counts.data)
    totals = cell_totals(counts)
    check_observed(totals)
    check_labels(counts.shape, gene_names, cell_names, dataset, names)
    genes = select_genes(counts, dataset, settings.n_genes, totals)
    factors = factors_of(totals) if settings.size_factors else np.ones(counts.shape[0], np.float32)
    used = counts if genes.size == counts.shape[1] else counts[:, genes]
    settings = with_gmf_size(settings, used.__getitem__, dataset)
    with torch_session(settings):
        data = prepare(used, factors, dataset, settings, torch.device(device))
        key = fingerprint(settings, used, dataset, device)
        checkpoint: Checkpoint[State] = Checkpoint(checkpoint_dir, key, settings.checkpoint_seconds)
        state = (training or train_stages)(data, progress, checkpoint)
    origin = provenance(used, settings, device)
    model = trained_model(data, state, totals, genes, gene_names, cell_names, names, origin)
    checkpoint.remove()
    return model


def trained_model(
    data: Data,
    state: State,
    totals: NDArray[np.float64],
    genes: NDArray[np.intp],
    gene_names: NDArray[np.str_] | list[str],
    cell_names: NDArray[np.str_] | list[str],
    dataset_names: list[str],
    origin: dict[str, str | int | float],
) -> NeuMFModel:
    """Return the model of a training that has ended.

    Parameters
    ----------
    data, state
        What it was trained on, and what it learnt.
    totals
        Sums of the cells over all genes.
    genes
        Positions of the trained genes among all.
    gene_names, cell_names, dataset_names
        Names, of all genes.
    origin
        Its provenance.
    """
    return NeuMFModel(
        settings=data.settings,
        layout=state.layout,
        tables=state.tables,
        statistics=state.statistics,
        log_size=data.log_size,
        dataset=data.dataset,
        dataset_names=list(dataset_names),
        median_total=median_of(totals),
        cell_names=np.asarray(cell_names, dtype=np.str_),
        gene_names=np.asarray(gene_names, dtype=np.str_)[genes],
        gene_positions=genes,
        reference_bias=state.tables["shifts"][..., -1].mean(0),
        history=state.history,
        provenance=origin,
    )


def with_gmf_size(
    settings: NeuMFSettings, take: Callable[[NDArray[np.intp]], csr_matrix], dataset: NDArray[np.intp]
) -> NeuMFSettings:
    """Return the settings with ``gmf_size`` found from the counts where it is not set.

    ``take`` returns the counts of some cells, given in ascending order.
    """
    if settings.gmf_size is not None:
        return settings
    most = MOST_TOGETHER if np.unique(dataset).size > 1 else MOST
    if settings.kind == "mlp":
        return settings.model_copy(update={"gmf_size": FEWEST})
    cells = np.arange(dataset.size)
    if cells.size > GMF_SIZE_CELLS:
        drawn = np.random.default_rng([settings.seed, 4]).permutation(cells)[:GMF_SIZE_CELLS]
        cells = np.sort(drawn)
    found = significant_axes(take(cells), dataset[cells], most)
    return settings.model_copy(update={"gmf_size": max(found, FEWEST)})


def check_values(values: NDArray[np.generic]) -> None:
    """Refuse counts that are negative or not finite.

    Raises
    ------
    BadSettings
        Where there are some.
    """
    if values.size and (values.min() < 0 or not np.isfinite(values).all()):
        raise BadSettings("counts: a negative or non-finite entry; give raw counts")


def check_labels(
    shape: tuple[int, int],
    gene_names: NDArray[np.str_] | list[str],
    cell_names: NDArray[np.str_] | list[str],
    dataset: NDArray[np.intp],
    dataset_names: list[str],
) -> None:
    """Refuse names and datasets that don't belong to the counts.

    Raises
    ------
    BadSettings
        Where lengths differ, or dataset indices leave one out.
    """
    if len(cell_names) != shape[0] or len(gene_names) != shape[1]:
        raise BadSettings(
            f"names: {len(cell_names)} cells and {len(gene_names)} genes are named, counts are {shape}"
        )
    if dataset.shape != (shape[0],):
        raise BadSettings(f"dataset: {dataset.shape} indices for {shape[0]} cells")
    if not np.array_equal(np.unique(dataset), np.arange(len(dataset_names))):
        raise BadSettings(
            f"dataset: indices must run from 0 to {len(dataset_names) - 1}, each with at least one cell"
        )


def check_observed(totals: NDArray[np.float64]) -> None:
    """Refuse counts of which none is above zero.

    Raises
    ------
    BadSettings
        Then.
    """
    if not totals.any():
        raise BadSettings("counts: nothing was observed; give at least one cell with one count")


@contextmanager
def torch_session(settings: NeuMFSettings) -> Iterator[None]:
    """Use the settings' threads, and leave torch's own threads and random state as they were."""
    with torch.random.fork_rng(), torch_threads(settings.threads or torch.get_num_threads()):
        yield


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch's operations use this many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(
    counts: csr_matrix,
    factors: NDArray[np.float32],
    dataset: NDArray[np.intp],
    settings: NeuMFSettings,
    device: torch.device,
) -> Data:
    """Bring the counts to the device, draw the held-out entries and compute the genes' starting biases."""
    return describe(counts, factors, dataset, settings, device, SparseCounts(counts, device))


def describe(
    counts: csr_matrix | RowSource,
    factors: NDArray[np.float32],
    dataset: NDArray[np.intp],
    settings: NeuMFSettings,
    device: torch.device,
    trained: SparseCounts,
) -> Data:
    """Return what training needs to know besides the counts ``trained``, from ``counts`` read in blocks."""
    observed = settings.objective == "bce"
    parts = [Part(counts, own) for own in members_of(dataset)]
    totals = [gene_totals(part, observed=observed) for part in parts]
    bias = [
        _mean_score(total, factors[part.cells], settings) for total, part in zip(totals, parts, strict=True)
    ]
    whole = np.sum([gene_totals(part) for part in parts] if observed else totals, axis=0)
    return Data(
        settings=settings,
        counts=trained,
        log_size=torch.as_tensor(np.log(factors), device=device),
        dataset=dataset,
        held_out=HeldOut.draw(whole, dataset, settings, device),
        gene_bias=torch.as_tensor(np.stack(bias), dtype=torch.float32),
        device=device,
    )


def _mean_score(
    total: NDArray[np.float64], factors: NDArray[np.float32], settings: NeuMFSettings
) -> NDArray[np.float64]:
    """Return each gene's score at which the model predicts its mean (or its share of cells, for ``bce``).

    ``total`` is the gene's sum, for ``bce`` the number of its cells.
    """
    if settings.objective == "bce":
        share = (total + 0.5) / (factors.size + 1)
        return np.log(share / (1 - share))
    if settings.objective == "bpr" or settings.link == "exp":
        return np.log((total + 0.1) / factors.sum())
    mean = (total + (0.0 if settings.link == "identity" else 0.1)) / factors.sum()
    return mean if settings.link == "identity" else mean + np.log(-np.expm1(-mean))


class Cells(Protocol):
    """Where the cells' embeddings are while they are trained."""

    def keep(self, kind: str, drawn: Iterator[Tensor]) -> Tensor:
        """Take the starting values of a stage; return the table that the state holds."""

    def fuse(self, put: Callable[[Tensor, Mapping[str, Tensor]], None], kinds: tuple[str, ...]) -> None:
        """Have trained branches' embeddings put into those of the stage that starts."""

    def stepper(self, data: Data, state: State, frozen: frozenset[str]) -> Stepper:
        """Return what makes the steps of a stage."""


def train_stages(
    data: Data, progress: Progress, checkpoint: Checkpoint[State], elsewhere: Cells | None = None
) -> State:
    """Train the branches first where the settings ask for it, then the model itself.

    The cells' embeddings are in the state, or ``elsewhere``.
    """
    settings = data.settings
    branches: dict[str, list[str]] = {"none": [], "gmf": ["gmf"], "both": ["gmf", "mlp"]}
    kinds = [*(branches[settings.pretrain] if settings.kind == "neumf" else []), settings.kind]
    trained: dict[str, State] = {}
    for number, kind in enumerate(kinds):
        final = number == len(kinds) - 1
        state = initial_state(data, kind, number, trained, elsewhere)
        epochs = settings.pretrain_epochs if not final else settings.epochs
        if final and trained:
            epochs = settings.fusion_epochs
        run_stage(data, state, kind, number, epochs, progress, checkpoint, elsewhere=elsewhere)
        trained[kind] = state
    return trained[settings.kind]


def initial_state(
    data: Data, kind: str, stage: int, trained: dict[str, State], elsewhere: Cells | None = None
) -> State:
    """Return the state a stage starts from: drawn by seed, with what earlier stages learnt put in."""
    settings = data.settings
    layout = Layout.of(settings, data.n_datasets, kind)
    generator = torch.Generator().manual_seed(settings.seed * 1009 + stage)
    tables = initial_tables(
        layout,
        data.all_cells.size,
        data.gene_bias,
        generator,
        embedding_scale=settings.initial_scale,
        output_scale=FUSION_SCALE if settings.pretrain == "gmf" and kind == "neumf" else 1.0,
        keep=partial(elsewhere.keep, kind) if elsewhere else partial(_own_cells, data.workers),
    )
    tables = {name: table.to(data.device) for name, table in tables.items()}
    if kind == "neumf" and trained:
        _fuse(layout, tables, trained, settings.alpha, elsewhere)
    history = list(trained.values())[-1].history if trained else []
    source = trained["mlp"].statistics if "mlp" in trained else initial_statistics(layout)
    statistics = {name: value.clone().to(data.device) for name, value in source.items()}
    state = new_state(layout, tables, statistics, history)
    state.pretrained = tuple(trained) if kind == "neumf" else ()
    return state


def new_state(
    layout: Layout, tables: Tables, statistics: Tables, history: list[dict[str, float | str]]
) -> State:
    """Return a state with fresh optimisers on the tables."""
    rows = {name: table.view(-1, table.shape[-1]) for name, table in tables.items()}
    return State(layout, tables, statistics, {n: RowAdam(t) for n, t in rows.items()}, history=list(history))


def _own_cells(workers: Workers, drawn: Iterator[Tensor]) -> Tensor:
    """Put a worker's rows of the drawn values together; those of all cells are never in its memory at once."""
    own: list[Tensor] = []
    rest: Tensor | None = None
    for part in drawn:
        rows = part if rest is None else torch.cat([rest, part])
        whole = len(rows) // workers.size * workers.size  # the next ones begin with the first worker's
        own.append(workers.own_rows(rows[:whole]))
        rest = rows[whole:]
    return torch.cat(own if rest is None else [*own, workers.own_rows(rest)])


def _fuse(
    layout: Layout, tables: Tables, trained: dict[str, State], alpha: float, elsewhere: Cells | None
) -> None:
    """Put the trained branches together (He et al. 2017, section 3.4.1)."""
    shares = {"gmf": alpha, "mlp": 1 - alpha} if "mlp" in trained else {"gmf": 1.0}
    span = {kind: slice(layout.span(kind).start, layout.span(kind).stop) for kind in shares}
    tower = layout.split_tower(tables["tower"])
    tables["shifts"][..., -1] = 0

    def put_cells(cells: Tensor, sources: Mapping[str, Tensor]) -> None:
        for kind, share in shares.items():
            cells[:, span[kind]] = sources[kind][:, : trained[kind].layout.size]
            cells[:, -1] += share * sources[kind][:, -1]

    if elsewhere:
        elsewhere.fuse(put_cells, tuple(shares))
    else:
        put_cells(tables["cells"], {kind: trained[kind].tables["cells"] for kind in shares})
    for kind, share in shares.items():
        source = trained[kind].tables
        size = trained[kind].layout.size
        tables["genes"][:, span[kind]] = source["genes"][:, :size]
        if layout.dispersion == "gene":
            tables["genes"][:, -1] += share * (source["genes"][:, -1] - tables["genes"][:, -1])
        if layout.shifted:
            tables["shifts"][..., span[kind]] = source["shifts"][..., :size]
        tables["shifts"][..., -1] += share * source["shifts"][..., -1]
        for name, part in trained[kind].layout.split_tower(source["tower"]).items():
            if name == "log_dispersion":
                tower[name].add_(share * part)
            else:
                tower[name].copy_(share * part if name.startswith("out_") else part)


def run_stage(
    data: Data,
    state: State,
    kind: str,
    stage: int,
    epochs: int,
    progress: Progress,
    checkpoint: Checkpoint[State],
    frozen: frozenset[str] = frozenset(),
    elsewhere: Cells | None = None,
) -> None:
    """Train ``state`` for ``epochs``, from the checkpoint of this stage where there is one.

    Parameters
    ----------
    data
        Counts and what belongs to them.
    state
        Changed in place.
    kind
        Branch that is trained; names the stage in the curves.
    stage
        Number of the stage.
    epochs
        Passes over all entries, at most.
    progress
        Told after every epoch.
    checkpoint
        Where to continue from and to write to.
    frozen
        Tables that must not change.
    elsewhere
        Where the cells' embeddings are, if not in the state.
    """
    settings = data.settings
    checkpoint.restore(stage, state)
    plan = Plan.of(data.all_cells, data.counts.n_genes, settings, data.device)
    stepper = elsewhere.stepper(data, state, frozen) if elsewhere else Stepper(data, state, frozen)
    with torch_threads(stepper.operation_threads):
        while state.epoch < epochs and not _stalled(state, settings):
            order = plan.epoch((settings.seed, 2, stage, state.epoch))
            shares = _rate_shares(settings, state.epoch, epochs, order.n_steps)
            row = _run_epoch(stepper, order, stage, shares)
            state.epoch += 1
            row |= {"stage": kind, "epoch": state.epoch, "learning_rate": shares[-1] * settings.learning_rate}
            if _record(state, row, stepper.validation_loss(), settings.patience is not None):
                stepper.keep_best()
            progress(f"train {kind}", state.epoch, epochs, **_figures(row))
            checkpoint.write(stage, state)
    if kind != settings.kind:
        checkpoint.write(stage, state, now=True)
    if state.best:
        stepper.return_to_best()


def _run_epoch(stepper: Stepper, order: Epoch, stage: int, shares: list[float]) -> dict[str, float | str]:
    """Make all steps of an epoch; return its mean loss per entry, seconds and rate."""
    data, epoch, begin = stepper.data, stepper.state.epoch, time.perf_counter()
    seed = data.settings.seed
    drawn = _mix(seed, stage, epoch, *data.workers.seed)
    generator = torch.Generator(data.device).manual_seed(drawn)
    torch.manual_seed(drawn)
    total, pairs = torch.zeros((), dtype=torch.float64, device=data.device), 0
    remaining = iter(shares)
    for window in range(len(order.windows)):
        with stepper.window(order, window):
            for step in order.steps(window):
                loss, size = stepper(step, next(remaining), generator)
                total += loss
                pairs += size
    loss_sum, pairs_sum = data.workers.sum(float(total), pairs)
    mean_loss = loss_sum / max(pairs_sum, 1)
    seconds = time.perf_counter() - begin
    return {"train_loss": mean_loss, "seconds": seconds, "pairs_per_second": pairs_sum / seconds}


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def _stalled(state: State, settings: NeuMFSettings) -> bool:
    return bool(state.best and settings.patience and state.epoch - state.best_epoch >= settings.patience)


def _rate_shares(settings: NeuMFSettings, epoch: int, epochs: int, steps: int) -> list[float]:
    """Return the share of its peak that the step size has in every step of an epoch."""
    done = (epoch * steps + np.arange(steps) + 1) / (epochs * steps)
    last = settings.final_rate
    shape = {
        "constant": np.ones(steps),
        "linear": 1 - (1 - last) * done,
        "cosine": last + (1 - last) * 0.5 * (1 + np.cos(np.pi * done)),
    }[settings.schedule]
    rise = np.minimum(1.0, done / settings.warmup) if settings.warmup else 1.0
    return [float(share) for share in shape * rise]


def _record(state: State, row: dict[str, float | str], validation: float | None, patience: bool) -> bool:
    """Add a row to the curves; tell whether the epoch was the best so far and must be kept."""
    better = validation is not None and validation < state.best_loss
    if validation is not None:
        row["validation_loss"] = validation
        if better:
            state.best_loss, state.best_epoch = validation, state.epoch
    state.history.append(row)
    return better and patience


def _figures(row: dict[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in ("stage", "epoch")}


@dataclass(frozen=True)
class _HeldOutPart:
    """Held-out entries of some cells: position of the cell in the step, gene, count."""

    step: Step
    position: Tensor
    gene: Tensor
    y: Tensor


class Stepper:
    """Makes training steps on one state.

    Parameters
    ----------
    data, state
        What to train on, and what to train.
    frozen
        Tables that get no update.
    """

    def __init__(self, data: Data, state: State, frozen: frozenset[str] = frozenset()) -> None:
        self.data, self.state, self.settings = data, state, data.settings
        self.trained = [name for name in state.optimisers if name not in frozen]
        self.tower = Tower.of(state.layout, self.settings, state.statistics, data.device, self._is_long())
        self.fused = self._fused()
        self.training = "tower" not in frozen  # a frozen tower neither drops units nor renews its statistics
        self.members = np.bincount(data.all_cells, minlength=data.n_datasets)
        self.n_cells = data.all_cells.size
        self.decay = self._decay()
        self.expected_bias = data.gene_bias.to(data.device).view(-1)
        self.rates = self._column_rates()
        self.adam = Adam(self.settings.beta1, self.settings.beta2, self.settings.epsilon)

    @property
    def operation_threads(self) -> int:
        """Threads for torch's operations: one where they are small, since waking another takes as long as they do.

        The fused kernel splits a whole block over its own threads. The plain tower's operations are large.
        """
        light = self.data.device.type == "cpu" and (self.fused or not self.state.layout.mlp)
        return 1 if light else torch.get_num_threads()

    @contextmanager
    def window(self, order: Epoch, number: int) -> Iterator[None]:
        """Have the cells of a window of an epoch at hand in the body; here all cells always are."""
        yield

    def keep_best(self) -> None:
        """Remember the parameters as those of the best epoch."""
        state = self.state
        state.best = {n: t.clone() for n, t in (state.tables | state.statistics).items()}

    def return_to_best(self) -> None:
        """Put the parameters of the best epoch back."""
        for name, table in self.state.best.items():
            (self.state.tables | self.state.statistics)[name].copy_(table)

    def __call__(self, step: Step, share: float, generator: torch.Generator) -> tuple[Tensor, int]:
        """Make one step; return the summed loss (detached) and the number of pairs it was summed over.

        With several workers, both are those of this worker's cells of the step.
        """
        own = self.data.workers.own(step)
        cells, genes, rows = self.locate(own)
        leaves = {name: opt.take(rows[name]) for name, opt in self.state.optimisers.items()}
        loss, pairs = self.loss(self.block(leaves), own, cells, genes, generator)
        trained = [leaves[name] for name in self.trained]
        if own.cells.size:
            found = torch.autograd.grad(loss, trained)
        else:  # all cells of the step are other workers'
            found = tuple(torch.zeros_like(leaf) for leaf in trained)
        gradients = dict(zip(self.trained, found, strict=True))
        all_pairs = self.data.workers.sum_gradients(gradients, pairs)
        self._update(step, rows, leaves, gradients, share, all_pairs)
        return loss.detach(), pairs

    def loss(
        self,
        block: Block,
        step: Step,
        cells: Tensor,
        genes: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, int]:
        """Return the summed loss of a block and the number of pairs it was summed over."""
        if not step.cells.size:
            return torch.zeros((), device=self.data.device), 0
        if self.settings.pairs == "sampled":
            return self.sampled_loss(block, step, cells, generator)
        return self.full_loss(block, step, cells, genes)

    def locate(self, step: Step) -> tuple[Tensor, Tensor | None, dict[str, Rows]]:
        """Return a step's cells and genes on the device, and the rows of each table that it uses."""
        device, n_genes = self.data.device, self.data.counts.n_genes
        cells = torch.as_tensor(step.cells, device=device)
        start = step.dataset * n_genes
        rows: dict[str, Rows] = {"cells": cells, "tower": slice(None)}
        if step.genes is None:
            return cells, None, rows | {"genes": slice(None), "shifts": slice(start, start + n_genes)}
        genes = torch.as_tensor(step.genes, device=device)
        return cells, genes, rows | {"genes": genes, "shifts": genes + start}

    def block(self, leaves: Tables) -> Block:
        """Return the block of the taken rows."""
        return Block(
            self.state.layout, leaves["cells"], leaves["genes"], leaves["shifts"], leaves["tower"].view(-1)
        )

    def full_loss(self, block: Block, step: Step, cells: Tensor, genes: Tensor | None) -> tuple[Tensor, int]:
        """Return the summed loss of all entries of a block that are not held out."""
        data = self.data
        if self.fused and genes is None:
            return self._fused_loss(block, cells), cells.numel() * data.counts.n_genes
        if self.settings.objective == "poisson" and self.settings.link == "exp" and genes is None:
            return self._sparse_loss(block, step, cells), cells.numel() * data.counts.n_genes
        y = data.counts.dense(cells, int(data.counts.observed[step.cells].sum()), genes)
        mask = data.held_out.mask(cells, genes) if data.held_out else None
        score = block_scores(block, self.tower, training=self.training)
        loss = entry_loss(score, data.log_size[cells][:, None], y, self.settings, block.log_dispersion)
        return (loss if mask is None else loss * mask).sum(), y.numel()

    def _is_long(self) -> bool:
        """Tell whether there is so much to train that compiling the tower is worth it."""
        pairs = float(self.data.counts.n_cells) * self.data.counts.n_genes
        return self.settings.pairs == "full" and pairs * self.settings.epochs >= WORTH_PAIRS

    def _fused(self) -> bool:
        """Tell whether the fused kernel knows this objective and link."""
        link = {"mse": "identity"}.get(self.settings.objective, "exp")
        known = self.settings.objective == "bce" or self.settings.link == link
        return self.tower.fused is not None and known

    def _fused_loss(self, block: Block, cells: Tensor) -> Tensor:
        data = self.data
        assert self.tower.fused is not None
        return fused_block_loss(
            block.linear_part(),
            *block.first_layer(),
            *block.hidden_layers(),
            block.parts["out_mlp"],
            data.log_size[cells],
            data.counts.sparse(cells),
            objective=self.settings.objective,  # type: ignore[arg-type]
            log_dispersion=block.log_dispersion,
            held_out=data.held_out.genes[data.held_out.row[cells]] if data.held_out else None,
            precision=self.tower.fused,
            threads=self.tower.threads,
            overwrite_f0=True,
        )

    def _sparse_loss(self, block: Block, step: Step, cells: Tensor) -> Tensor:
        data = self.data
        score = block_scores(block, self.tower, training=self.training)
        entries = data.counts.entries(cells, int(data.counts.observed[step.cells].sum()))
        held_out = data.held_out.genes[data.held_out.row[cells]] if data.held_out else None
        return sparse_poisson_loss(score, data.log_size[cells], *entries, held_out)

    def sampled_loss(
        self, block: Block, step: Step, cells: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Return an unbiased estimate of the summed loss, from all observed entries and some drawn zeros."""
        data, draws = self.data, self.settings.num_negatives
        row, gene, y = data.counts.entries(cells, int(data.counts.observed[step.cells].sum()))
        if self.settings.objective == "bpr":
            other = data.counts.draw_zeros(cells[row], draws, generator)
            pair = row.repeat_interleave(draws)
            observed = pair_scores(block, self.tower, row, gene, training=self.training).repeat_interleave(
                draws
            )
            unobserved = pair_scores(block, self.tower, pair, other.view(-1), training=self.training)
            kept = self._keeps(cells[row], gene).repeat_interleave(draws)
            weight = kept * self._keeps(cells[pair], other.view(-1))
            return (ranking_loss(observed, unobserved) * weight).sum(), pair.numel()
        empty = data.counts.lengths[cells] == 0
        drawing = torch.cat([row, empty.nonzero()[:, 0]]).sort(stable=True).values
        zero = data.counts.draw_zeros(cells[drawing], draws, generator).view(-1)
        lengths = data.counts.lengths[cells]
        weight = (data.counts.n_genes - lengths).to(block.cells.dtype) / (draws * lengths.clamp_min(1))
        row_all = torch.cat([row, drawing.repeat_interleave(draws)])
        gene_all = torch.cat([gene, zero])
        weights = torch.cat([weight.new_ones(y.shape), weight[row_all[row.numel() :]]])
        weights = weights * self._keeps(cells[row_all], gene_all)
        score = pair_scores(block, self.tower, row_all, gene_all, training=self.training)
        dispersion = block.log_dispersion[gene_all] if block.log_dispersion is not None else None
        target = torch.cat([y, torch.zeros_like(zero, dtype=y.dtype)])
        loss = entry_loss(score, data.log_size[cells][row_all], target, self.settings, dispersion)
        return (loss * weights).sum(), cells.numel() * data.counts.n_genes

    def _keeps(self, cells: Tensor, genes: Tensor) -> Tensor:
        if self.data.held_out is None:
            return torch.ones(genes.shape, device=genes.device)
        return self.data.held_out.keeps(cells, genes)

    def _decay(self) -> dict[str, Tensor]:
        """Return the prior precision of every column of every table."""
        layout, device = self.state.layout, self.data.device
        prior, prior_mlp = self.settings.weight_decay, self.settings.tower_weight_decay
        cells = torch.full((layout.size + 1,), prior, device=device)
        cells[list(layout.span("mlp"))] = prior_mlp
        genes = torch.full((layout.gene_columns,), prior, device=device)
        genes[list(layout.span("mlp"))] = prior_mlp
        genes[layout.size :] = 0
        shifts = torch.full((layout.shift_columns,), 2 * self.settings.shift_penalty, device=device)
        shifts[-1] = 0
        tower = torch.full((1,), prior_mlp, device=device)
        return {"cells": cells, "genes": genes, "shifts": shifts, "tower": tower}

    def _column_rates(self) -> dict[str, Tensor]:
        """Return the peak step size of every column of every table."""
        layout, settings, device = self.state.layout, self.settings, self.data.device
        branches = torch.full((layout.size,), settings.learning_rate, device=device)
        branches[[i for name in self.state.pretrained for i in layout.span(name)]] *= settings.pretrained_rate
        one = branches.new_full((1,), settings.learning_rate)
        shifted = branches if layout.shifted else one[:0]
        extra = one if layout.dispersion == "gene" else one[:0]
        return {
            "cells": torch.cat([branches, one]) * (settings.cell_learning_rate / settings.learning_rate),
            "genes": torch.cat([branches, extra]),
            "shifts": torch.cat([shifted, one]),
            "tower": branches.new_full((1,), settings.tower_learning_rate),
        }

    def _update(
        self,
        step: Step,
        rows: dict[str, Rows],
        leaves: Tables,
        gradients: Tables,
        rate_share: float,
        pairs: float,
    ) -> None:
        share_genes = 1.0 if step.genes is None else step.genes.size / self.data.counts.n_genes
        share_cells = step.cells.size / self.n_cells
        share = {
            "cells": share_genes,
            "genes": share_cells,
            "shifts": step.cells.size / self.members[step.dataset],
            "tower": share_cells * share_genes,
        }
        for name, gradient in gradients.items():
            gradient.addcmul_(leaves[name].detach(), self.decay[name], value=share[name])
        if self.settings.bias_prior and "shifts" in gradients:
            moved = leaves["shifts"].detach()[:, -1] - self.expected_bias[rows["shifts"]]
            gradients["shifts"][:, -1].add_(moved, alpha=self.settings.bias_prior * share["shifts"])
        if self.settings.gradient_clip is not None:
            norms = [self.data.workers.norm(name, gradient) for name, gradient in gradients.items()]
            norm = torch.stack(norms).norm() / pairs
            factor = (self.settings.gradient_clip / (norm + 1e-12)).clamp(max=1.0)
            for gradient in gradients.values():
                gradient.mul_(factor)
        for name, gradient in gradients.items():
            self.state.optimisers[name].update(
                rows[name], leaves[name], gradient, rate_share * self.rates[name], self.adam
            )

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Return the mean loss of the held-out entries, or ``None`` without any."""
        if self.data.held_out is None:
            return None
        losses = [self._held_out_loss(part) for part in self.held_out_parts]
        total, pairs = self.data.workers.sum(sum(loss for loss, _ in losses), sum(size for _, size in losses))
        return total / max(pairs, 1)

    @cached_property
    def held_out_parts(self) -> list[_HeldOutPart]:
        """The held-out entries with their counts, some cells of one dataset at a time."""
        data, parts = self.data, []
        assert data.held_out is not None
        chunk = max(1, VALIDATION_PAIRS // data.counts.n_genes)
        for d in range(data.n_datasets):
            members = data.held_out.cells[data.dataset[data.held_out.cells] == d]
            for start in range(0, members.size, chunk):
                step = Step(d, members[start : start + chunk], None)
                cells = torch.as_tensor(step.cells, device=data.device)
                held = data.held_out.genes[data.held_out.row[cells]]
                kept = held < data.counts.n_genes
                position, gene = kept.nonzero()[:, 0], held[kept]
                y = data.counts.dense(cells, int(data.counts.observed[step.cells].sum()))[position, gene]
                parts.append(_HeldOutPart(step, position, gene, y))
        return parts

    def _held_out_loss(self, part: _HeldOutPart) -> tuple[float, int]:
        cells, _, rows = self.locate(part.step)
        block = self.block({name: opt.table[rows[name]] for name, opt in self.state.optimisers.items()})
        if self.tower.fused or not block.layout.mlp:
            score = block_scores(block, self.tower)[part.position, part.gene]
        else:
            score = pair_scores(block, self.tower, part.position, part.gene)
        if self.settings.objective == "bpr":
            return self._held_out_ranking(score, part.position, part.y)
        dispersion = block.log_dispersion[part.gene] if block.log_dispersion is not None else None
        log_size = self.data.log_size[cells][part.position]
        loss = entry_loss(score, log_size, part.y, self.settings, dispersion)
        return float(loss.double().sum()), part.gene.numel()

    @staticmethod
    def _held_out_ranking(score: Tensor, position: Tensor, y: Tensor) -> tuple[float, int]:
        """Return the ranking loss of held-out observed entries against held-out zeros of the same cell."""
        observed, zero = (y > 0).nonzero()[:, 0], (y == 0).nonzero()[:, 0]
        if not observed.numel() or not zero.numel():
            return 0.0, 0
        partner = zero[torch.searchsorted(position[zero], position[observed]).clamp(max=zero.numel() - 1)]
        same = position[partner] == position[observed]
        loss = ranking_loss(score[observed], score[partner])[same]
        return float(loss.double().sum()), int(same.sum())
