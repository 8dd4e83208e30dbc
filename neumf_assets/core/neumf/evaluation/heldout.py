"""Judges a NeuMF on counts it has not seen, beside the baselines it has to beat."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import xlogy

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
from neumf_assets.core.neumf.evaluation.settings import EvaluationSettings
from neumf_assets.core.neumf.evaluation.thinning import LeftOut, Thinned, leave_one_out, thin, unseen_in_train
from neumf_assets.core.neumf.genes import select_genes, size_factors
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.core.progress import Progress, silent

LOWEST_LINEAR_MEAN = 1e-3
WITHOUT_MEANS = ("bce", "bpr")
ENGINE_KINDS = ("gmf", "mlp", "neumf")
CALIBRATION_EDGES = np.logspace(-5, 4, 37)
NOTEBOOK_CELLS, NOTEBOOK_GENES = 1000, 300
BYTES_PER_ENTRY = 90
"""Peak memory for each non-zero of the judged cells: as read, as thinned, and as the methods take the chosen genes'."""


class Scorer(Protocol):
    """Takes predictions block by block."""

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predictions of the cells ``rows``."""


class HeldOutDeviance:
    """Mean Poisson deviance of the entries of a sparse count matrix under predicted means.

    ``2 (y log(y / mu) - y + mu)`` over all entries, zeros included: from the non-zeros and the sum of means.

    Parameters
    ----------
    test
        Cells x genes.
    ratio
        What the predicted means are multiplied by to be means of ``test``.
    """

    def __init__(self, test: csr_matrix, ratio: float = 1.0) -> None:
        self.test, self.ratio = test.tocsr(), ratio
        self._sum, self._entries = 0.0, 0

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        part = self.test[rows]
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        y = part.data.astype(np.float64)
        mu = block[row, part.indices].astype(np.float64) * self.ratio
        self._sum += 2 * float((xlogy(y, y / mu) - y).sum() + self.ratio * block.sum(dtype=np.float64))
        self._entries += block.size

    @property
    def value(self) -> float:
        """Deviance of an entry, averaged over all entries."""
        return self._sum / max(self._entries, 1)


class SquaredError:
    """Mean squared error over all entries of a sparse count matrix under predicted means.

    Parameters
    ----------
    test
        Cells x genes.
    ratio
        What the predicted means are multiplied by to be means of ``test``.
    """

    def __init__(self, test: csr_matrix, ratio: float = 1.0) -> None:
        self.test, self.ratio = test.tocsr(), ratio
        self._sum, self._entries = 0.0, 0

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        difference = self.test[rows].toarray() - self.ratio * block.astype(np.float64)
        self._sum += float((difference**2).sum())
        self._entries += block.size

    @property
    def value(self) -> float:
        """Squared error of an entry, averaged over all entries."""
        return self._sum / max(self._entries, 1)


@dataclass(frozen=True)
class CalibrationBin:
    """Entries whose predicted means lie close together.

    Parameters
    ----------
    entries
        Their number.
    predicted, observed
        Mean prediction and mean count.
    standard_error
        Of ``observed``, for Poisson counts.
    """

    entries: int
    predicted: float
    observed: float
    standard_error: float


class Calibration:
    """Observed against predicted mean, in bins of the predicted mean (four for each power of ten)."""

    def __init__(self, test: csr_matrix, ratio: float = 1.0) -> None:
        self.test, self.ratio = test.tocsr(), ratio
        self._entries, self._predicted, self._observed = np.zeros((3, CALIBRATION_EDGES.size + 1))

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        part = self.test[rows]
        mu = block * np.float32(self.ratio)
        bins = np.searchsorted(CALIBRATION_EDGES.astype(np.float32), mu.ravel())
        n = CALIBRATION_EDGES.size + 1
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        self._entries += np.bincount(bins, minlength=n)
        self._predicted += np.bincount(bins, mu.ravel(), minlength=n)
        self._observed += np.bincount(bins[row * block.shape[1] + part.indices], part.data, minlength=n)

    @property
    def bins(self) -> list[CalibrationBin]:
        """The bins that hold entries, lowest prediction first."""
        return [
            CalibrationBin(int(n), float(predicted / n), float(observed / n), float(np.sqrt(observed) / n))
            for n, predicted, observed in zip(self._entries, self._predicted, self._observed, strict=True)
            if n
        ]


class TruthError:
    """How far predicted means are from known true ones (simulated counts).

    Parameters
    ----------
    means
        True means, cells x genes.
    """

    def __init__(self, means: NDArray[np.floating]) -> None:
        self.means = means
        self._moments = np.zeros(5)
        self._divergence, self._entries = 0.0, 0

    def add(self, rows: slice, block: NDArray[np.floating]) -> None:
        """Take the predicted means of the cells ``rows``."""
        truth, mu = self.means[rows].astype(np.float64), block.astype(np.float64)
        x, y = np.log(truth), np.log(mu)
        self._moments += [x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        self._divergence += 2 * float((truth * (x - y) - truth + mu).sum())
        self._entries += block.size

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and true log means over all entries."""
        x, y, xx, yy, xy = self._moments / self._entries
        return float((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)))

    @property
    def deviance(self) -> float:
        """Mean Poisson deviance of the predicted from the true means; 0 for the truth."""
        return self._divergence / self._entries


@dataclass(frozen=True)
class MethodScore:
    """What one method reached.

    Parameters
    ----------
    heldout_deviance
        Mean Poisson deviance of the test part; ``None`` where the method predicts no means.
    seconds
        Wall time of training on the train part and prediction.
    calibration
        Predicted against observed mean, in bins; empty where the method predicts no means.
    ranking
        ``sampled`` and ``full`` ranking scores; empty without ranking.
    """

    heldout_deviance: float | None
    seconds: float
    calibration: list[CalibrationBin] = field(default_factory=list)
    ranking: dict[str, RankingScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A model's scores beside those of the baselines.

    Parameters
    ----------
    model
        Name of the model among ``methods``.
    methods
        Scores by method.
    popularity
        Ranking scores of the genes' popularity; empty without ranking.
    cells, genes
        How many were judged.
    settings
        The settings of the evaluation.
    """

    model: str
    methods: dict[str, MethodScore]
    popularity: dict[str, RankingScores]
    cells: int
    genes: int
    settings: dict[str, Any]

    @property
    def heldout_deviance(self) -> dict[str, float | None]:
        """Held-out deviance of the model and every baseline."""
        return {name: score.heldout_deviance for name, score in self.methods.items()}

    @property
    def best_baseline(self) -> str | None:
        """The baseline with the lowest held-out deviance."""
        known = {
            name: value
            for name, value in self.heldout_deviance.items()
            if name != self.model and value is not None
        }
        return min(known, key=known.__getitem__) if known else None

    @property
    def beats_best_baseline(self) -> bool | None:
        """Whether the model's held-out deviance is below the best baseline's.

        A model that predicts no means (``bce``, ``bpr``) is judged by its full ranking instead (NDCG at the
        largest K, beside popularity and the baselines). ``None`` where there is nothing to compare.
        """
        own = self.methods[self.model]
        if own.heldout_deviance is not None:
            if self.best_baseline is None:
                return None
            best = self.methods[self.best_baseline].heldout_deviance
            return best is not None and own.heldout_deviance < best
        if not own.ranking:
            return None
        others = [score.ranking for name, score in self.methods.items() if name != self.model]
        rivals = [_last_ndcg(scores) for scores in (*others, self.popularity)]
        return _last_ndcg(own.ranking) > max(rivals)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        summary = {
            "heldout_deviance": self.heldout_deviance,
            "best_baseline": self.best_baseline,
            "beats_best_baseline": self.beats_best_baseline,
        }
        return asdict(self) | summary


def not_judged(settings: NeuMFSettings, evaluation: EvaluationSettings) -> Evaluation:
    """Evaluation of a model of values that are no counts: only molecules can be split into two parts."""
    unknown: dict[str, MethodScore] = {settings.kind: MethodScore(heldout_deviance=None, seconds=0.0)}
    return Evaluation(settings.kind, unknown, {}, 0, 0, evaluation.model_dump(mode="json"))


def _last_ndcg(scores: dict[str, RankingScores]) -> float:
    ndcg = scores["full"].ndcg
    return ndcg[max(ndcg)]


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


def score_blocks(blocks: Iterable[Block], scorers: list[Scorer]) -> float:
    """Hand every block to every scorer; return the seconds that training and prediction took."""
    seconds, begin = 0.0, time.perf_counter()
    for rows, block in blocks:
        seconds += time.perf_counter() - begin
        for scorer in scorers:
            scorer.add(rows, block)
        begin = time.perf_counter()
    return seconds + time.perf_counter() - begin


def compare_notebook(
    counts: csr_matrix,
    default: NeuMFSettings | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Train the original notebook's configuration on its slice, beside our default and constant predictors.

    The slice is the first 1,000 cells x 300 genes. The notebook calls the squared loss of its last 20 entries
    "the loss"; here it is the mean over all entries, and so a constant predictor has one too.

    Parameters
    ----------
    counts
        Cells x genes, in the order of the file.
    default
        The settings to put beside the notebook's; the package's defaults where absent.
    seed
        Seed of the split and of both trainings.
    device
        Where the models are trained.
    progress
        Told of every epoch.

    Returns
    -------
    For ``constant`` (mean of all entries), ``gene_mean``, ``notebook`` and ``default``: ``mse`` and
    ``deviance`` (mean over all entries, trained on all of them), ``heldout_mse`` and ``heldout_deviance``
    (trained on the train part of thinned counts, judged on the other), ``seconds``.
    """
    part = counts.tocsr()[:NOTEBOOK_CELLS, :NOTEBOOK_GENES]
    names = np.arange(part.shape[1]).astype(np.str_)
    engine = partial(neumf_means, gene_names=names, device=device, progress=progress)
    ours = (default or NeuMFSettings()).model_copy(update={"n_genes": None, "seed": seed})
    fits: dict[str, FitPredict] = {
        "constant": baselines.constant,
        "gene_mean": baselines.gene_mean,
        "notebook": partial(engine, settings=NeuMFSettings(preset="notebook", seed=seed)),
        "default": partial(engine, settings=ours),
    }
    return {name: _fit_and_hold_out(fit_predict, part, seed) for name, fit_predict in fits.items()}


def _fit_and_hold_out(fit_predict: FitPredict, counts: csr_matrix, seed: int) -> dict[str, float]:
    """Return a method's errors on the entries it was trained on, and on thinned counts."""
    split = thin(counts, seed=seed)
    found: dict[str, float] = {}
    for prefix, train, test, ratio in (
        ("", counts, counts, 1.0),
        ("heldout_", split.train, split.test, split.ratio),
    ):
        deviance, squared = HeldOutDeviance(test, ratio), SquaredError(test, ratio)
        seconds = score_blocks(
            fit_predict(train, size_factors(train).astype(np.float64)), [deviance, squared]
        )
        found |= {f"{prefix}mse": squared.value, f"{prefix}deviance": deviance.value}
        found.setdefault("seconds", seconds)
    return found
