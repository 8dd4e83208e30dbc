"""Judges a NeuMF on counts it has not seen, beside the baselines it has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from neumf_assets.core import memory
from neumf_assets.core.counts.stored import StackedCounts
from neumf_assets.core.neumf.evaluation import baselines
from neumf_assets.core.neumf.evaluation.baselines import Block, FitPredict
from neumf_assets.core.neumf.evaluation.ranking import (
    Ranker,
    RankingScores,
    RankingTask,
    popularity,
    rank,
    ranking_task,
)
from neumf_assets.core.neumf.evaluation.results import Evaluation, MethodScore
from neumf_assets.core.neumf.evaluation.scorers import Calibration, HeldOutDeviance, Scorer, score_blocks
from neumf_assets.core.neumf.evaluation.settings import EvaluationSettings
from neumf_assets.core.neumf.evaluation.thinning import LeftOut, Thinned, leave_one_out, thin, unseen_in_train
from neumf_assets.core.neumf.genes import select_genes, size_factors
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.progress import Progress, silent

LOWEST_LINEAR_MEAN = 1e-3

WITHOUT_MEANS = ("bce", "bpr")

ENGINE_KINDS = ("gmf", "mlp", "neumf")

BYTES_PER_ENTRY = 90
"""Peak memory for each non-zero of the judged cells: as read, as thinned, and as the methods take the chosen genes'."""


def evaluate_neumf(
    counts: csr_matrix | StackedCounts,
    settings: NeuMFSettings,
    evaluation: EvaluationSettings | None = None,
    *,
    gene_names: NDArray[np.str_] | list[str] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    checkpoint_dir: Path | None = None,
) -> Evaluation:
    """Thin the counts, train the model and every baseline on one part, and judge them on the other.

    Parameters
    ----------
    counts
        Raw counts of one dataset, cells x genes; of counts on disk only the cells that are judged are read.
    settings
        The model, as the pipeline trains it; only the number of genes (and epochs) follow ``evaluation``.
    evaluation
        What is judged and how; the defaults of :class:`EvaluationSettings` where absent.
    gene_names
        Names of the columns; positions where absent.
    device
        Where the model is trained.
    progress
        Told of every epoch of the model and of every finished method.
    checkpoint_dir
        Where checkpoints of the trainings are kept.

    Returns
    -------
    Scores of the model (named by its kind), the baselines, and popularity.

    Raises
    ------
    BadSettings
        Where the counts are not whole numbers.
    """
    wanted = evaluation or EvaluationSettings()
    drawn, genes = _judged_part(counts, settings, wanted)
    names = np.asarray(gene_names if gene_names is not None else np.arange(counts.shape[1]), np.str_)[genes]
    whole = thin(drawn, wanted.train_share, wanted.seed)
    judged = _Judged(
        counts=drawn[:, genes],
        split=Thinned(whole.train[:, genes], whole.test[:, genes], wanted.train_share),
        train_factors=size_factors(whole.train).astype(np.float64),
        factors=size_factors(drawn).astype(np.float64),
    )
    left = _left_out(judged, wanted)
    task = (
        ranking_task(judged.counts, left.cells, left.genes, wanted.n_negatives, wanted.seed) if left else None
    )
    fits = _fits(_adapted(settings, wanted), wanted, names, device, progress, checkpoint_dir)
    methods: dict[str, MethodScore] = {}
    for done, (name, fit_predict) in enumerate(fits.items(), start=1):
        predicts_means = settings.objective not in WITHOUT_MEANS or name not in ENGINE_KINDS
        methods[name] = _score(fit_predict, judged, left, task, wanted, predicts_means)
        value = methods[name].heldout_deviance
        figures = {} if value is None else {"heldout_deviance": value}
        progress(f"evaluation: {name}", done, len(fits), **figures)
    popular = _ranking(rank(task, popularity(left.train)), wanted) if left and task else {}
    cells, genes_judged = judged.counts.shape
    return Evaluation(settings.kind, methods, popular, cells, genes_judged, wanted.model_dump(mode="json"))


@dataclass(frozen=True)
class _Judged:
    """The cells and genes that are judged; factors are of all genes, with and without the test part."""

    counts: csr_matrix
    split: Thinned
    train_factors: NDArray[np.float64]
    factors: NDArray[np.float64]


def _judged_part(
    counts: csr_matrix | StackedCounts, settings: NeuMFSettings, wanted: EvaluationSettings
) -> tuple[csr_matrix, NDArray[np.intp]]:
    """Return the counts of the cells that are judged, and the positions of the genes."""
    n_cells = counts.shape[0]
    cells = np.arange(n_cells)
    if wanted.max_cells is not None and wanted.max_cells < n_cells:
        chosen = np.random.default_rng([wanted.seed, n_cells]).permutation(n_cells)[: wanted.max_cells]
        cells = np.sort(chosen)
    if isinstance(counts, StackedCounts):
        needed = round(BYTES_PER_ENTRY * counts.nnz * cells.size / max(1, n_cells))
        memory.warn_if_exceeds(needed, f"Evaluation on {cells.size} cells", "Set evaluation.max_cells lower.")
        drawn = counts.take(cells)
    else:
        drawn = counts.tocsr() if cells.size == n_cells else counts.tocsr()[cells]
    n_genes = settings.n_genes if wanted.n_genes is None else wanted.n_genes
    return drawn, select_genes(drawn, np.zeros(cells.size, np.intp), n_genes)


def _left_out(judged: _Judged, wanted: EvaluationSettings) -> LeftOut | None:
    if wanted.ranking == "off":
        return None
    if wanted.ranking == "thinned":
        return unseen_in_train(judged.split, wanted.seed)
    return leave_one_out(judged.counts, wanted.seed)


def _adapted(settings: NeuMFSettings, wanted: EvaluationSettings) -> NeuMFSettings:
    """Return the model's settings for genes that are chosen already, with the epochs capped."""
    changes: dict[str, int | None] = {"n_genes": None}
    if wanted.epochs is not None:
        for stage in ("epochs", "pretrain_epochs", "fusion_epochs"):
            changes[stage] = min(getattr(settings, stage), wanted.epochs)
    return settings.model_copy(update=changes)


def _fits(
    settings: NeuMFSettings,
    wanted: EvaluationSettings,
    names: NDArray[np.str_],
    device: str,
    progress: Progress,
    folder: Path | None,
) -> dict[str, FitPredict]:
    """Return the baselines that are wanted and the model, by name, cheapest first."""
    size, seed = wanted.n_components, wanted.seed
    nmf = partial(baselines.kl_nmf, n_components=size, max_iterations=wanted.nmf_iterations, seed=seed)
    engine = partial(neumf_means, gene_names=names, device=device, progress=progress, checkpoint_dir=folder)
    known: dict[str, FitPredict] = {
        "gene_mean": baselines.gene_mean,
        "svd": partial(baselines.svd_log1p, n_components=size, seed=seed),
        "nmf": nmf,
        "nmf_normalised": partial(nmf, on="normalised"),
        "gmf": partial(engine, settings=settings.model_copy(update={"kind": "gmf"})),
    }
    chosen = {name: fit for name, fit in known.items() if name in wanted.baselines and name != settings.kind}
    return chosen | {settings.kind: partial(engine, settings=settings)}


def lowest_mean(settings: NeuMFSettings) -> float:
    """Return what a model's predicted means are raised to where they are lower: a deviance needs positive ones."""
    return LOWEST_LINEAR_MEAN if settings.link == "identity" else baselines.LOWEST_MEAN


def neumf_means(
    train: csr_matrix,
    factors: NDArray[np.floating],
    *,
    settings: NeuMFSettings,
    gene_names: NDArray[np.str_],
    device: str = "cpu",
    progress: Progress = silent,
    checkpoint_dir: Path | None = None,
) -> Iterator[Block]:
    """Train a NeuMF and yield its predicted means (scores for ``bce`` and ``bpr``).

    Parameters
    ----------
    train
        Cells x genes.
    factors
        Not used: the model takes the size factors of ``train`` and learns a bias for every cell.
    settings
        The model.
    gene_names
        Names of the columns.
    device, progress, checkpoint_dir
        As for :func:`neumf_assets.core.neumf.training.fit.fit`.
    """
    del factors
    cells = np.arange(train.shape[0]).astype(np.str_)
    folder = checkpoint_dir / settings.kind if checkpoint_dir else None
    model = fit(
        train,
        settings,
        gene_names=gene_names,
        cell_names=cells,
        device=device,
        progress=progress,
        checkpoint_dir=folder,
    )
    lowest = lowest_mean(settings)
    for rows, block in model.predict_blocks():
        yield rows, block if settings.objective in WITHOUT_MEANS else np.maximum(block, lowest)


def _score(
    fit_predict: FitPredict,
    judged: _Judged,
    left: LeftOut | None,
    task: RankingTask | None,
    wanted: EvaluationSettings,
    predicts_means: bool,
) -> MethodScore:
    """Train and judge one method."""
    split = judged.split
    deviance, calibration = HeldOutDeviance(split.test, split.ratio), Calibration(split.test, split.ratio)
    ranker = Ranker(task) if task else None
    scorers: list[Scorer] = [deviance, calibration] if predicts_means else []
    if ranker and wanted.ranking == "thinned":
        scorers.append(ranker)
    seconds = score_blocks(fit_predict(split.train, judged.train_factors), scorers)
    if ranker and left and wanted.ranking == "leave_one_out":
        score_blocks(fit_predict(left.train, judged.factors), [ranker])
    return MethodScore(
        heldout_deviance=deviance.value if predicts_means else None,
        seconds=seconds,
        calibration=calibration.bins if predicts_means else [],
        ranking=_ranking(ranker, wanted) if ranker else {},
    )


def _ranking(ranker: Ranker, wanted: EvaluationSettings) -> dict[str, RankingScores]:
    return {"sampled": ranker.sampled(wanted.cut_offs), "full": ranker.full(wanted.cut_offs)}
