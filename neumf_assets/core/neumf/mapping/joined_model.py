"""A trained model together with the datasets that were mapped onto it, as one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.model import NeuMFModel


def join(base: NeuMFModel, mapped: Sequence[NeuMFModel], names: Sequence[str]) -> NeuMFModel:
    """Put mapped datasets beside those of the model that they were mapped onto.

    Genes, tower and reference are those of ``base``; what each dataset has of its own (cells, gene shifts and
    biases) is taken over. A gene that a mapped dataset lacks has no shift there, and the reference bias.

    Parameters
    ----------
    base
        The model; not changed.
    mapped
        Models of one dataset each, as :func:`neumf_assets.core.neumf.mapping.map_cells.map_dataset` returns them.
        One with the name of a dataset of ``base`` takes its place.
    names
        The datasets of the result, in their order; others are left out.

    Raises
    ------
    BadSettings
        If a name is neither a dataset of ``base`` nor of ``mapped``.
    """
    own = {name: (base, index) for index, name in enumerate(base.dataset_names)}
    own |= {model.dataset_names[0]: (model, 0) for model in mapped}
    if unknown := [name for name in names if name not in own]:
        raise BadSettings(f"names: {', '.join(unknown)} is no dataset of these models")
    parts = [own[name] for name in names]
    rows = [np.flatnonzero(model.dataset == index) for model, index in parts]
    shifts = torch.stack([_shifts(base, model, index) for model, index in parts])
    cells = torch.cat([m.tables["cells"][_at(r, m)] for (m, _), r in zip(parts, rows, strict=True)])
    log_size = torch.cat([m.log_size[_at(r, m)] for (m, _), r in zip(parts, rows, strict=True)])
    return replace(
        base,
        layout=replace(base.layout, n_datasets=len(names)),
        tables={**base.tables, "cells": cells, "shifts": shifts},
        log_size=log_size,
        dataset=np.repeat(np.arange(len(names)), [found.size for found in rows]),
        dataset_names=list(names),
        cell_names=np.concatenate([m.cell_names[r] for (m, _), r in zip(parts, rows, strict=True)]),
    )


def _shifts(base: NeuMFModel, model: NeuMFModel, index: int) -> Tensor:
    """The gene shifts and biases of one dataset, on the genes of ``base``."""
    if model is base:
        return base.tables["shifts"][index]
    place = {str(name): column for column, name in enumerate(base.gene_names)}
    columns = np.array([place[str(name)] for name in model.gene_names], np.intp)
    full = torch.zeros_like(base.tables["shifts"][0])
    full[:, -1] = base.reference_bias
    full[_at(columns, base)] = model.tables["shifts"][0]
    return full


def _at(rows: NDArray[np.intp], model: NeuMFModel) -> Tensor:
    return torch.as_tensor(rows, device=model.log_size.device)
