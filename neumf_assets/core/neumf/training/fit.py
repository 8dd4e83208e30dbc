"""Counts in, trained model out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.checkpoint import Checkpoint, fingerprint
from neumf_assets.core.neumf.genes import cell_totals, factors_of, median_of, select_genes
from neumf_assets.core.neumf.model import NeuMFModel, provenance
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.checks import check_labels, check_observed, check_values
from neumf_assets.core.neumf.training.preparation import prepare, torch_session, with_gmf_size
from neumf_assets.core.neumf.training.stages import train_stages
from neumf_assets.core.neumf.training.state import Data, State
from neumf_assets.core.progress import Progress, silent

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
