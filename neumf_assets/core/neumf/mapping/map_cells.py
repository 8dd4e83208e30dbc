"""Mapping of new cells onto a trained model: its genes and its tower stay, only what is new learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.checkpoint import Checkpoint, fingerprint
from neumf_assets.core.neumf.genes import size_factors
from neumf_assets.core.neumf.model import NeuMFModel, provenance
from neumf_assets.core.neumf.network import Layout
from neumf_assets.core.neumf.training.loop import run_stage
from neumf_assets.core.neumf.training.preparation import prepare, torch_session
from neumf_assets.core.neumf.training.state import Data, State, new_state
from neumf_assets.core.progress import Progress, silent


def map_dataset(
    model: NeuMFModel,
    counts: csr_matrix,
    *,
    gene_names: NDArray[np.str_] | list[str],
    cell_names: NDArray[np.str_] | list[str],
    name: str,
    like: str | None = None,
    epochs: int | None = None,
    progress: Progress = silent,
    checkpoint_dir: Path | None = None,
) -> NeuMFModel:
    """Map the cells of a dataset onto a trained model.

    Shared gene embeddings, tower and output weights are frozen, so the cost follows the new cells alone, and
    their embedding lies in the space of the model's cells.

    Parameters
    ----------
    model
        The trained model; not changed.
    counts
        Cells x genes of the new dataset, with the genes that training was given (their totals make the size
        factors).
    gene_names, cell_names
        Names of columns and rows. Genes are matched by name; a gene of the model that is missing is left out
        of the loss, genes that the model doesn't know are ignored.
    name
        Name of the new dataset.
    like
        A dataset of the model that the cells belong to: its gene shifts and biases are kept, and only the
        cells learn. ``None``: the dataset gets shifts and biases of its own.
    epochs
        Passes over the new entries; as the model's own training by default.
    progress, checkpoint_dir
        As in :func:`neumf_assets.core.neumf.training.fit.fit`.

    Returns
    -------
    A model of the new cells alone, on the genes of ``model`` that the counts have.

    Raises
    ------
    BadSettings
        Where no gene is known to the model, or ``like`` is not one of its datasets.
    """
    known, columns = _match(model, gene_names)
    used = counts.tocsr()[:, columns]
    settings = model.settings.model_copy(
        update={"pretrain": "none", "epochs": epochs or model.settings.epochs, "n_genes": None}
    )
    device = model.log_size.device
    dataset = np.zeros(used.shape[0], np.intp)
    factors = (
        size_factors(counts.tocsr(), model.median_total)
        if settings.size_factors
        else np.ones(used.shape[0], np.float32)
    )
    with torch_session(settings):
        data = prepare(used, factors, dataset, settings, device)
        state = _initial_state(model, data, known, like)
        key = fingerprint(
            settings, used, dataset, f"{device} onto {model.provenance['data_sha256']} like {like}"
        )
        checkpoint: Checkpoint[State] = Checkpoint(checkpoint_dir, key, settings.checkpoint_seconds)
        frozen = frozenset({"genes", "tower"} | ({"shifts"} if like is not None else set()))
        run_stage(data, state, settings.kind, 0, settings.epochs, progress, checkpoint, frozen)
    mapped = NeuMFModel(
        settings=settings,
        layout=state.layout,
        tables=state.tables,
        statistics=state.statistics,
        log_size=data.log_size,
        dataset=dataset,
        dataset_names=[name],
        median_total=model.median_total,
        cell_names=np.asarray(cell_names, dtype=np.str_),
        gene_names=model.gene_names[known],
        gene_positions=columns,
        reference_bias=model.reference_bias[torch.as_tensor(known, device=device)],
        history=state.history,
        provenance=provenance(used, settings, str(device)) | {"mapped_onto": model.provenance["data_sha256"]},
    )
    checkpoint.remove()
    return mapped


def _match(
    model: NeuMFModel, gene_names: NDArray[np.str_] | list[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return positions in the model's genes and in the new columns of the genes that both have."""
    place = {str(gene): column for column, gene in reversed(list(enumerate(gene_names)))}
    known = np.flatnonzero([str(gene) in place for gene in model.gene_names])
    if not known.size:
        raise BadSettings("gene_names: none of them is a gene of the model; name genes as it was trained")
    return known, np.array([place[str(model.gene_names[g])] for g in known], np.intp)


def _initial_state(model: NeuMFModel, data: Data, known: NDArray[np.intp], like: str | None) -> State:
    """Return new cells at the mean of the model's cells, on its frozen genes and tower."""
    layout = Layout.of(model.settings, 1, shifted=model.layout.shifted)
    genes = torch.as_tensor(known, device=data.device)
    shifts = model.tables["shifts"].new_zeros(1, known.size, layout.shift_columns)
    if like is None:
        shifts[0, :, -1] = model.reference_bias[genes]
    elif like in model.dataset_names:
        shifts[0] = model.tables["shifts"][model.dataset_names.index(like), genes]
    else:
        raise BadSettings(f"like: {like} is not one of {', '.join(model.dataset_names)}")
    cells = model.tables["cells"].mean(0).repeat(data.counts.n_cells, 1)
    tables: dict[str, Tensor] = {
        "cells": cells,
        "genes": model.tables["genes"][genes].clone(),
        "shifts": shifts,
        "tower": model.tables["tower"].clone(),
    }
    statistics = {name: value.clone() for name, value in model.statistics.items()}
    return new_state(layout, tables, statistics, [])
