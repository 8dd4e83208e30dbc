"""Integrate: what each arm does before the stages that all arms share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from neumf_assets.assets.inputs import load_all_counts
from neumf_assets.assets.model import loss_pictures, model_figures
from neumf_assets.assets.stage import Product, Step, stage
from neumf_assets.settings import Arm

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from neumf_assets.core.report.content import Curves, FactorGenes

_EMBEDDING_SETTINGS = ("clusters", "umap", "metrics", "batch_column")


@stage(
    name=("ineumf", "model"),
    group="integrate",
    inputs=("counts",),
    settings=("ineumf",),
    kinds=("pytorch", "safetensors"),
    uses_device=True,
)
def ineumf_model(step: Step) -> Product:
    """One NeuMF over all datasets: the integrative model.

    A gene has a part that all datasets share and a part of its own in each dataset, kept small by a penalty.
    What differs between datasets goes there, so that the cells of all of them lie in one common space.
    """
    import numpy as np

    from neumf_assets.core.counts.stack import stack_shared
    from neumf_assets.core.neumf.train import fit

    counts = load_all_counts(step)
    matrix, genes = stack_shared(counts)
    model = fit(
        matrix,
        step.study.ineumf,
        gene_names=np.asarray(genes, dtype=np.str_),
        cell_names=np.concatenate([data.obs_names.to_numpy(str) for data in counts.values()]),
        dataset=np.repeat(np.arange(len(counts)), [data.n_obs for data in counts.values()]),
        dataset_names=list(counts),
        device=step.device,
        progress=step.progress,
        checkpoint_dir=step.scratch,
    )
    return Product(model.save, model_figures(model), pictures=loss_pictures(model))


@stage(
    name=("ineumf", "cell_embedding"),
    group="integrate",
    inputs=("ineumf/model", "counts"),
    settings=("align", *_EMBEDDING_SETTINGS),
    kinds=("numpy", "parquet"),
)
def ineumf_cell_embedding(step: Step) -> Product:
    """Every cell in the integrative model's common space, datasets aligned.

    The model's cell embeddings, in the metric of the genes; Harmony moves each dataset's cells so that cells
    of one kind come to lie together. With each cell's nearest neighbours.
    """
    from neumf_assets.core.cells.align import harmony_align
    from neumf_assets.core.cells.store import DATASET, cell_table
    from neumf_assets.core.neumf.model import NeuMFModel

    model = NeuMFModel.load(step.one("ineumf/model").path)
    cells = cell_table(load_all_counts(step))
    batch = cells[step.study.batch_column or DATASET].to_numpy(str)
    embedding = harmony_align(model.cell_embedding("gmf", metric="gene"), batch, step.study.align)
    return _embedding_product(step, cells, embedding)


def _embedding_product(step: Step, cells: pd.DataFrame, embedding: np.ndarray) -> Product:
    from neumf_assets.core.cells.neighbours import find_neighbours, neighbours_needed
    from neumf_assets.core.cells.store import CellEmbedding

    study = step.study
    needed = neighbours_needed(study.clusters, study.umap, study.metrics)
    neighbours = find_neighbours(embedding, needed, metric=study.clusters.metric)
    found = CellEmbedding(cells, embedding, neighbours)
    return Product(found.save, {"cells": len(cells), "dimensions": int(embedding.shape[1])})


def curve_of(step: Step, arm: Arm) -> Curves:
    """How an arm's first stage came to its result: loss by epoch, or objective by iteration."""
    from neumf_assets.assets.report_content import loss_history_of
    from neumf_assets.core.report.content import Curves

    history = json.loads((step.one("ineumf/model").path / "model.json").read_text())["history"]
    return Curves("integrative NeuMF", loss_history_of(history))


def factor_genes(step: Step, arm: Arm) -> list[FactorGenes]:
    """The top genes of each factor of an arm."""
    return []


def loadings(step: Step, arm: Arm) -> dict[str, pd.DataFrame]:
    """Gene loadings of an arm by name, genes × factors."""
    return {}


STAGES = {"liger": (), "neumf_liger": (), "ineumf": (ineumf_model, ineumf_cell_embedding)}
