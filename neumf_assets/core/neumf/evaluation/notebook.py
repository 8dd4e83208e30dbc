"""The original notebook's own measure, beside a constant's and the default's."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.evaluation import baselines
from neumf_assets.core.neumf.evaluation.baselines import FitPredict
from neumf_assets.core.neumf.evaluation.heldout import neumf_means
from neumf_assets.core.neumf.evaluation.scorers import HeldOutDeviance, SquaredError, score_blocks
from neumf_assets.core.neumf.evaluation.thinning import thin
from neumf_assets.core.neumf.genes import size_factors
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.progress import Progress, silent

NOTEBOOK_CELLS, NOTEBOOK_GENES = 1000, 300


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
