"""Integrate: what each arm does before the stages that all arms share."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.gene_space import renamed_genes
from neumf_assets.assets.inputs import (
    read_table,
    scaled_counts,
    selected_genes,
    stored_counts,
)
from neumf_assets.assets.map_or_retrain import MappingPlan, mapped_model, mapping_plan, update_figures
from neumf_assets.assets.model import loss_history_of, loss_pictures, model_figures, say_if_diverged
from neumf_assets.assets.stage import Product, Stage, Step, stage
from neumf_assets.core import memory
from neumf_assets.study.settings import Arm

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from neumf_assets.core.cells.settings import AlignSettings
    from neumf_assets.core.liger.inmf.solver import INMFResult
    from neumf_assets.core.liger.settings import LigerSettings
    from neumf_assets.core.neumf.model import NeuMFModel
    from neumf_assets.core.report.content import Curves, FactorGenes

_logger = logging.getLogger(__name__)
_GENES_SHOWN = 10
CELL_COLUMNS = (
    ("cell", "string", "name of the cell; cells.parquet has the rows of the embedding, in its order"),
    ("dataset", "string", "its dataset"),
    ("*", "string", "every label column that came with the counts"),
)
EMBEDDING_SETTINGS = (
    "batch_column",
    "clusters.metric",
    "clusters.n_neighbors",
    "clusters.exact_up_to",
    "clusters.seeds",
    "umap.n_neighbors",
    "metrics.mixing_neighbors",
    "metrics.lisi_perplexity",
)


@stage(
    group="integrate",
    inputs=("gene_space", "counts"),
    settings=("liger",),
    kinds=("parquet",),
    columns=(
        ("gene", "string", "name of the gene; every dataset has it"),
        (
            "excess_variance",
            "float",
            "log10 of variance over Poisson expectation, the largest of the datasets",
        ),
        ("selected", "bool", "whether LIGER uses the gene"),
    ),
)
def shared_genes(step: Step) -> Product:
    """The genes that LIGER uses: those that vary more than counting noise explains, in any dataset.

    Only genes that every dataset has. By default 2,000 of them, as many as the integrative NeuMF uses;
    `liger.n_genes: null` takes all above a threshold instead.
    """
    import numpy as np
    import pandas as pd

    from neumf_assets.core.counts.stack import shared_genes as common
    from neumf_assets.core.counts.stored import StackedCounts
    from neumf_assets.core.liger.preprocess import excess_variance, gene_statistics, select_genes

    with stored_counts(step) as counts:
        genes = common(counts)
        statistics = [gene_statistics(StackedCounts.of({n: data}, genes)) for n, data in counts.items()]
    chosen = select_genes(statistics, step.study.liger)
    ratios = [excess_variance(one, step.study.liger.gene_confidence)[0] for one in statistics]
    table = pd.DataFrame({"gene": genes, "excess_variance": np.max(ratios, axis=0), "selected": False})
    table.loc[chosen, "selected"] = True
    return Product(
        lambda folder: table.to_parquet(folder / "genes.parquet", index=False),
        {"shared": len(genes), "selected": len(chosen), "rows": len(genes)},
    )


@stage(
    name=("liger", "factors"),
    group="integrate",
    inputs=("gene_space", "counts", "shared_genes"),
    settings=("liger",),
    version="2",
    kinds=("pytorch", "numpy"),
    uses_device=True,
)
def liger_factors(step: Step) -> Product:
    """LIGER's integrative non-negative matrix factorization of the counts.

    Every dataset's matrix is written as H (W + V): W is shared by all datasets, V belongs to one, H says how
    much of each factor is in each cell. Counts are divided by the cell's total and scaled by gene.
    """
    from neumf_assets.core.liger.inmf.who_factorises import inmf_launch
    from neumf_assets.core.liger.stored import factorise_stored
    from neumf_assets.core.ray_workers import machines_of

    with stored_counts(step) as counts:
        scaled = scaled_counts(step, counts)
        settings = _fitting(step, min(data.shape[0] for data in counts.values()))
        result = factorise_stored(
            list(scaled.values()),
            settings,
            device=step.device,
            progress=step.progress,
            launch=inmf_launch(step.study.liger) if step.device == "cpu" else None,
            machines=machines_of(step.study.liger),
            folder=step.scratch,
        )
    return _factors_product(step, result, list(scaled), selected_genes(step))


@stage(
    name=("neumf_liger", "factors"),
    group="integrate",
    inputs=("gene_space", "dense_counts", "shared_genes"),
    settings=("liger",),
    version="2",
    kinds=("pytorch", "numpy"),
    uses_device=True,
)
def neumf_liger_factors(step: Step) -> Product:
    """LIGER on the dense matrices that each dataset's own NeuMF predicts, as the original notebook plans it.

    The same factorization as for the `liger` arm, on its genes as far as the models saw them. Built to be
    measured: models that were trained apart may smooth away what datasets have in common.
    """
    import numpy as np

    from neumf_assets.core.errors import NeumfError
    from neumf_assets.core.liger.chain import factorise
    from neumf_assets.core.liger.preprocess import gene_statistics, scale_dense
    from neumf_assets.core.neumf.dense import open_dense

    opened = {n: open_dense(a.path / "dense.zarr") for n, a in step.all("dense_counts").items()}
    renamed = renamed_genes(step)
    named = {n: [renamed.get(n, {}).get(gene, gene) for gene in genes] for n, (_, _, genes) in opened.items()}
    known = set.intersection(*map(set, named.values()))
    genes = [gene for gene in selected_genes(step) if gene in known]
    if len(genes) < step.study.liger.k:
        raise NeumfError(
            f"The datasets' models share {len(genes)} of LIGER's genes, fewer than k = {step.study.liger.k}. "
            "Raise model.n_genes, or leave the arm neumf_liger out."
        )
    parts = []
    for name, (matrix, _, _) in opened.items():
        position = {gene: column for column, gene in enumerate(named[name])}
        columns = np.array([position[gene] for gene in genes], dtype=np.intp)
        parts.append(scale_dense(matrix, gene_statistics(matrix), columns, device=step.device))
    reading = "they are read from disk in every iteration"
    if not memory.exceeds(
        sum(part.bytes for part in parts), "The predicted matrices of all datasets", reading
    ):
        for part in parts:
            part.keep()
    settings = _fitting(step, min(matrix.shape[0] for matrix, _, _ in opened.values()))
    result = factorise(parts, settings, device=step.device, progress=step.progress)
    return _factors_product(step, result, list(opened), genes)


def _fitting(step: Step, smallest: int) -> LigerSettings:
    """LIGER's settings, with no more factors than half of the smallest dataset's cells: more would be its cells."""
    settings = step.study.liger
    most = max(2, smallest // 2)
    if settings.k <= most:
        return settings
    _logger.warning(
        f"The smallest dataset has {smallest} cells: LIGER takes {most} factors and not {settings.k}, since more than "
        "half as many as cells would describe single cells."
    )
    return settings.model_copy(update={"k": most})


@stage(
    name=("liger", "sweep"),
    group="integrate",
    inputs=("gene_space", "counts", "shared_genes"),
    settings=("liger", "sweep"),
    kinds=("parquet", "pytorch"),
    columns=(
        ("varied", "string", "k or lambda"),
        ("k", "int", "number of factors"),
        ("lam", "float", "lambda"),
        ("objective", "float", "at the end"),
        (
            "divergence",
            "float",
            "bits, median over cells: how far loadings are from equal shares of all factors",
        ),
        ("kkt", "float", "relative violation of the optimality conditions"),
        ("seconds", "float", "of this factorisation, given the one before"),
    ),
    uses_device=True,
)
def liger_sweep(step: Step) -> Product:
    """LIGER's factorization with other numbers of factors and other lambdas, to choose them by.

    Each starts from the one before. More factors always lower the objective; rliger's rule takes the number where
    the divergence of the loadings stops to rise. A larger lambda raises the objective, as it leaves less to the
    datasets' own factors.
    """
    import pandas as pd

    from neumf_assets.core.liger.inmf.sweep import sweep_k, sweep_lambda
    from neumf_assets.core.liger.stored import readable

    study = step.study
    with stored_counts(step) as counts:
        datasets = readable(list(scaled_counts(step, counts).values()), study.liger, device=step.device)
        how: dict[str, Any] = {"device": step.device, "progress": step.progress}
        points = [("k", point) for point in sweep_k(datasets, study.sweep.k, study.liger, **how)]
        points += [("lambda", point) for point in sweep_lambda(datasets, study.sweep.lam, study.liger, **how)]
    rows = [
        {
            "varied": varied,
            "k": point.k,
            "lam": point.lam,
            "objective": point.objective,
            "divergence": point.divergence,
            "kkt": point.result.kkt,
            "seconds": point.seconds,
        }
        for varied, point in points
    ]
    table = pd.DataFrame(rows)
    return Product(
        lambda folder: table.to_parquet(folder / "sweep.parquet", index=False),
        {"rows": len(rows)},
        tables={"factorisations": rows},
    )


def _factors_product(step: Step, result: INMFResult, datasets: list[str], genes: list[str]) -> Product:
    from neumf_assets.core.liger.factors import SHARED, top_genes
    from neumf_assets.core.liger.store import NamedFactors
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.training import loss_curve_svg, objective_curve

    named = NamedFactors(result, tuple(datasets), tuple(genes))
    curve = {"objective": result.objective}
    top = top_genes(result.W, result.V, genes, datasets, step.study.liger.top_genes)
    shown = top[(top["kind"] == SHARED) & (top["rank"] <= _GENES_SHOWN)]
    listed = shown.groupby("factor")["gene"].agg(", ".join)
    rows = [
        {"factor": number + 1, "shared by all datasets": genes_of}
        for number, genes_of in zip(listed.index.tolist(), listed, strict=True)
    ]

    def save(folder: Path) -> None:
        named.save(folder)
        top.to_parquet(folder / "top_genes.parquet", index=False)

    return Product(
        save,
        {
            "objective": float(result.objective[-1]),
            "iterations": result.n_iterations,
            "kkt_residual": result.kkt,
            "converged": result.converged,
            "learnt_online": result.online,
            "genes": len(genes),
            "factors": result.k,
        },
        pictures={
            "objective curve": loss_curve_svg(curve),
            "objective by iteration": markdown_image(objective_curve(curve), "objective by iteration"),
        },
        tables={"top genes": rows},
    )


def _aligned(arm: Arm) -> Stage:
    @stage(
        name=(arm, "cell_embedding"),
        group="integrate",
        inputs=("gene_space", f"{arm}/factors", "counts"),
        settings=("liger", *EMBEDDING_SETTINGS),
        kinds=("numpy", "parquet"),
        columns=CELL_COLUMNS,
    )
    def cell_embedding(step: Step) -> Product:
        """Every cell's factor loadings, datasets aligned by quantile normalisation.

        Within each group of matching cells, the loadings of every dataset are given the distribution of the
        largest dataset. With each cell's nearest neighbours in this space.
        """
        return embedding_product(step, _aligned_loadings(step, arm))

    return cell_embedding


def _aligned_loadings(step: Step, arm: Arm) -> np.ndarray:
    import numpy as np

    from neumf_assets.core.liger.align import align
    from neumf_assets.core.liger.store import NamedFactors

    factors = NamedFactors.load(step.one(f"{arm}/factors").path)
    return np.vstack(align(factors.result.H, step.study.liger, factors.datasets))


@stage(
    name=("ineumf", "model"),
    group="integrate",
    inputs=("gene_space", "counts"),
    settings=("ineumf",),
    kinds=("pytorch", "safetensors"),
    uses_device=True,
)
def ineumf_model(step: Step) -> Product:
    """One NeuMF over all datasets: the integrative model.

    A gene has a part that all datasets share and a part of its own in each dataset, kept small by a penalty.
    What differs between datasets goes there, so that the cells of all of them lie in one common space. Where
    the study's `update` allows it, datasets that arrive later are mapped onto the model as it is.
    """
    cells = {name: artifact.manifest.figures["cells"] for name, artifact in step.all("counts").items()}
    plan = mapping_plan(ineumf_model, step, cells)
    model = _train_ineumf(step) if plan is None else _mapped_ineumf(step, plan)
    say_if_diverged(model, "The integrative model")
    return Product(
        model.save,
        {**model_figures(model), **update_figures(plan, cells)},
        pictures=loss_pictures(model),
        sources={} if plan is None else {"mapped_onto": plan.onto.fingerprint},
    )


def _mapped_ineumf(step: Step, plan: MappingPlan) -> NeuMFModel:
    with stored_counts(step) as counts:
        return mapped_model(plan, step, counts)


def _train_ineumf(step: Step) -> NeuMFModel:
    import numpy as np

    from neumf_assets.core.counts.stored import StackedCounts
    from neumf_assets.core.neumf.large.streamed import fit_stored
    from neumf_assets.core.neumf.large.who_trains import training_of
    from neumf_assets.core.ray_workers import machines_of

    with stored_counts(step) as counts:
        stacked = StackedCounts.of(counts)
        sizes = [part.shape[0] for part in counts.values()]
        return fit_stored(
            stacked,
            step.study.ineumf,
            gene_names=np.asarray(stacked.genes, dtype=np.str_),
            cell_names=np.concatenate([part.obs.index.to_numpy(str) for part in counts.values()]),
            dataset=np.repeat(np.arange(len(counts)), sizes),
            dataset_names=list(counts),
            device=step.device,
            progress=step.progress,
            folder=step.scratch,
            training=training_of(step.study.ineumf, step.device),
            machines=machines_of(step.study.ineumf),
        )


@stage(
    name=("ineumf", "cell_embedding"),
    group="integrate",
    inputs=("gene_space", "ineumf/model", "counts"),
    settings=("align", *EMBEDDING_SETTINGS),
    version="2",
    kinds=("numpy", "parquet"),
    columns=CELL_COLUMNS,
)
def ineumf_cell_embedding(step: Step) -> Product:
    """Every cell in the integrative model's common space, datasets aligned.

    The model's cell embeddings, in the metric of the genes, with what the datasets' gene biases took of them; Harmony
    moves each dataset's cells so that cells of one kind come to lie together, as long as cells keep their neighbours.
    With each cell's nearest neighbours.
    """
    from neumf_assets.core.neumf.common_space import common_space
    from neumf_assets.core.neumf.model import NeuMFModel

    points = common_space(NeuMFModel.load(step.one("ineumf/model").path))
    return harmonised(step, points, step.study.align)


def harmonised(step: Step, points: np.ndarray, settings: AlignSettings) -> Product:
    """The cells of an arm after Harmony, and what it did."""
    from neumf_assets.core.cells.align import harmony_align
    from neumf_assets.core.cells.files.store import batches

    with stored_counts(step) as counts:
        batch = batches(counts, step.study.batch_column)
    found = harmony_align(points, batch, settings)
    product = embedding_product(step, found.embedding)
    if not found.same_dataset:
        return product
    if not found.passes:
        step.log.warning(
            "The datasets are not aligned: Harmony would push cells of different kinds together. The datasets have no "
            "effect of their own to be taken out, or no cells of one kind. align.guarded: false aligns them anyway."
        )
    figures = {
        "alignment_passes": found.passes,
        "same_dataset_before": found.same_dataset[0],
        "same_dataset_after": found.same_dataset[found.passes],
        "own_neighbours_kept": found.own_kept[found.passes],
    }
    return replace(product, figures={**product.figures, **figures})


def embedding_product(step: Step, embedding: np.ndarray) -> Product:
    """The cells of an arm with their nearest neighbours: what every ``cell_embedding`` is."""
    from neumf_assets.core.cells.files.store import CellEmbedding, cell_table
    from neumf_assets.core.cells.neighbours import find_neighbours, neighbour_bytes, neighbours_needed

    study, n_cells = step.study, len(embedding)
    needed = neighbours_needed(study.clusters, study.umap, study.metrics, n_cells)
    memory.warn_if_exceeds(
        neighbour_bytes(n_cells, embedding.shape[1], needed),
        f"The neighbours of {n_cells} cells",
        "What is left of every cell is in memory in this and all later stages: give them a larger machine.",
    )
    neighbours = find_neighbours(
        embedding,
        needed,
        metric=study.clusters.metric,
        exact_up_to=study.clusters.exact_up_to,
        seed=study.clusters.seeds[0],
    )
    with stored_counts(step) as counts:
        found = CellEmbedding(cell_table(counts), embedding, neighbours)
    return Product(found.save, {"cells": n_cells, "dimensions": int(embedding.shape[1])})


def curve_of(step: Step, arm: str) -> Curves | None:
    """How an arm's first stage came to its result: loss by epoch, or objective by iteration; None where at once."""
    from neumf_assets.core.liger.store import NamedFactors
    from neumf_assets.core.report.content import Curves
    from neumf_assets.core.report.wording import arm_title

    if arm in ("pca", "harmony"):
        return None
    if arm == "ineumf":
        history = json.loads((step.one("ineumf/model").path / "model.json").read_text())["history"]
        return Curves(arm_title(arm), loss_history_of(history))
    factors = NamedFactors.load(step.one(f"{arm}/factors").path)
    return Curves(arm_title(arm), {"objective": factors.result.objective}, kind="objective")


def factor_genes(step: Step, arm: str) -> list[FactorGenes]:
    """The top genes of each factor of an arm; none for those whose axes have no sign."""
    from neumf_assets.core.liger.factors import SHARED
    from neumf_assets.core.liger.store import NamedFactors
    from neumf_assets.core.report.content import FactorGenes

    if arm not in ("liger", "neumf_liger"):
        return []
    factors = NamedFactors.load(step.one(f"{arm}/factors").path)
    table = read_table(step.one(f"{arm}/factors"), "top_genes")
    listed = table[table["rank"] <= _GENES_SHOWN].groupby(["factor", "kind"])["gene"].agg(list)
    return [
        FactorGenes(
            f"factor {number + 1}",
            listed.get((number, SHARED), []),
            {name: listed.get((number, name), []) for name in factors.datasets},
        )
        for number in range(factors.result.k)
    ]


def loadings(step: Step, arm: str) -> dict[str, pd.DataFrame]:
    """Gene loadings of an arm by name, genes × factors."""
    import pandas as pd

    from neumf_assets.core.cells.components import Components
    from neumf_assets.core.liger.store import NamedFactors

    if arm in ("pca", "harmony"):
        found = Components.load(step.one("principal_components").path)
        return {"PC": pd.DataFrame(found.loadings, index=list(found.genes))}
    if arm == "ineumf":
        return {}
    factors = NamedFactors.load(step.one(f"{arm}/factors").path)
    parts = {"W": factors.result.W}
    parts |= {f"V_{name}": v for name, v in zip(factors.datasets, factors.result.V, strict=True)}
    return {name: pd.DataFrame(part.T, index=list(factors.genes)) for name, part in parts.items()}


STAGES: dict[Arm, tuple[Stage, ...]] = {
    "liger": (liger_factors, _aligned("liger")),
    "neumf_liger": (neumf_liger_factors, _aligned("neumf_liger")),
    "ineumf": (ineumf_model, ineumf_cell_embedding),
}
