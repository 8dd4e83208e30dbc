"""Pretraining and fusion: the branches first where the settings ask for it, then the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from neumf_assets.core.neumf.checkpoint import Checkpoint
from neumf_assets.core.neumf.network import Layout, Tables, initial_statistics, initial_tables
from neumf_assets.core.neumf.training.loop import Cells, run_stage
from neumf_assets.core.neumf.training.state import Data, State, new_state
from neumf_assets.core.neumf.training.workers import Workers
from neumf_assets.core.progress import Progress

FUSION_SCALE = 0.0
"""Of the tower's output beside a trained GMF part: the whole starts as good as that part is."""


def train_stages(
    data: Data, progress: Progress, checkpoint: Checkpoint[State], elsewhere: Cells | None = None
) -> State:
    """Train the branches first where the settings ask for it, then the model itself.

    Of the model made of trained branches that epoch is kept, or the start, which predicts held-out entries best: a
    tower that gains nothing changes nothing.

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
        fused = final and bool(trained)
        run_stage(
            data, state, kind, number, epochs, progress, checkpoint, elsewhere=elsewhere, start_counts=fused
        )
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
