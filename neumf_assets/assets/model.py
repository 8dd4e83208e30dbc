"""Model: each dataset's NeuMF, how good it is on counts it has not seen, and the matrix it predicts."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.stage import CheckOutcome, Product, Step, stage
from neumf_assets.core.errors import BadSettings

if TYPE_CHECKING:
    from neumf_assets.core.neumf.evaluation.results import Evaluation
    from neumf_assets.core.neumf.model import NeuMFModel

_logger = logging.getLogger(__name__)


@stage(
    group="model",
    inputs=("counts",),
    settings=("model",),
    kinds=("pytorch", "safetensors"),
    per_dataset=True,
    uses_device=True,
)
def neumf_model(step: Step) -> Product:
    """A neural matrix factorization (NeuMF) trained on this dataset's counts.

    Each cell and each gene gets an embedding; a product of the two (GMF) and a small neural network over
    both (MLP) together predict the expected count. Stored as safetensors weights and JSON; the curve shows
    the loss on training and on held-out entries for each epoch.
    """
    from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
    from neumf_assets.core.neumf.large.streamed import fit_stored
    from neumf_assets.core.neumf.large.who_trains import training_of
    from neumf_assets.core.ray_workers import machines_of

    name = step.dataset or ""
    with StoredCounts(step.one("counts").path) as counts:
        model = fit_stored(
            StackedCounts.of({name: counts}),
            step.study.model,
            gene_names=counts.var.index.to_numpy(str),
            cell_names=counts.obs.index.to_numpy(str),
            dataset_names=[name],
            device=step.device,
            progress=step.progress,
            folder=step.scratch,
            training=training_of(step.study.model, step.device),
            machines=machines_of(step.study.model),
        )
    say_if_diverged(model, f"The model of {name}")
    return Product(model.save, model_figures(model), pictures=loss_pictures(model))


@stage(
    group="model",
    inputs=("counts",),
    settings=("model", "evaluation"),
    kinds=("pytorch", "scikitlearn"),
    per_dataset=True,
    uses_device=True,
    checks=(("beats_baselines", "The model predicts held-out counts better than every simple baseline."),),
)
def neumf_evaluation(step: Step) -> Product:
    """How well the model predicts counts that it has not seen, beside simple baselines.

    The counts are thinned into a training and a test part; models are trained on the one and scored by the
    Poisson deviance of the other (lower is better). Also: is the predicted mean right (calibration), and is
    an observed gene that was left out ranked above unobserved ones (HR@K, NDCG@K)? Values that are no counts
    (`read.allow_normalised`) cannot be thinned: nothing is judged then.
    """
    result = _evaluated(step)
    content = json.dumps(result.to_json(), indent=1)
    figures = {f"deviance_{name}": value for name, value in result.heldout_deviance.items()}
    return Product(
        lambda folder: (folder / "evaluation.json").write_text(content),
        {**figures, "heldout_deviance": result.heldout_deviance, "best_baseline": result.best_baseline},
        pictures=_calibration_picture(result),
        tables={"scores on held-out counts": _score_rows(result)},
        checks=[_beats_baselines(result)],
    )


def _evaluated(step: Step) -> "Evaluation":
    from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
    from neumf_assets.core.neumf.evaluation.heldout import evaluate_neumf
    from neumf_assets.core.neumf.evaluation.results import not_judged

    with StoredCounts(step.one("counts").path) as counts:
        if not counts.whole:
            step.log.warning("These values are no counts and cannot be thinned: the model is not judged.")
            return not_judged(step.study.model, step.study.evaluation)
        return evaluate_neumf(
            StackedCounts.of({step.dataset or "": counts}),
            step.study.model,
            step.study.evaluation,
            gene_names=counts.var_names.to_numpy(str),
            device=step.device,
            progress=step.progress,
            checkpoint_dir=step.scratch,
        )


def _beats_baselines(result: "Evaluation") -> CheckOutcome:
    if not result.cells:
        return CheckOutcome("beats_baselines", True, "Not judged: the values are no counts.")
    best = result.best_baseline
    known = {name: value for name, value in result.heldout_deviance.items() if value is not None}
    listed = ", ".join(f"{name} {value:.4f}" for name, value in sorted(known.items(), key=lambda kv: kv[1]))
    return CheckOutcome(
        "beats_baselines",
        result.beats_best_baseline is not False,
        f"Held-out deviance (lower is better): {listed}. Best baseline: {best or 'none'}.",
        known,
    )


def _score_rows(result: "Evaluation") -> list[dict[str, Any]]:
    from neumf_assets.core.report.wording import method_title, ranking_by_method

    rankings = ranking_by_method(result.to_json())
    rows: list[dict[str, Any]] = [
        {
            "method": method_title(name),
            "held-out deviance": score.heldout_deviance if score.heldout_deviance is not None else "",
            "seconds": round(score.seconds, 2),
            **rankings.get(name, {}),
        }
        for name, score in result.methods.items()
    ]
    if "popularity" in rankings:
        alone = {"method": method_title("popularity"), "held-out deviance": "", "seconds": ""}
        rows.append(alone | rankings["popularity"])
    return rows


def _calibration_picture(result: "Evaluation") -> dict[str, str]:
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.quality import calibration

    bins = result.methods[result.model].calibration
    if not bins:
        return {}
    picture = calibration([b.predicted for b in bins], [b.observed for b in bins], result.model)
    return {"calibration": markdown_image(picture, "predicted against observed mean")}


@stage(
    group="model",
    inputs=("counts", "neumf_model"),
    settings=("dense",),
    version="2",
    kinds=("zarr",),
    per_dataset=True,
    uses_device=True,
)
def dense_counts(step: Step) -> Product:
    """The dense matrix that the model predicts: the expected count of every gene in every cell.

    Cells × genes, float32, Zarr, written block by block; the names are stored with it, the genes' original
    ones too. It holds the genes that the model saw. On request (`dense`): float16, and only the genes that
    are named.
    """
    import numpy as np

    from neumf_assets.core.counts.stored import StoredCounts
    from neumf_assets.core.neumf.model import NeuMFModel

    model = NeuMFModel.load(step.one("neumf_model").path, device=step.device)
    chosen = step.study.dense
    wanted = chosen.genes
    genes = None if wanted is None else np.flatnonzero(np.isin(model.gene_names, wanted))
    if genes is not None and not genes.size:
        raise BadSettings("dense.genes: the model knows none of them; it saw the most variable genes only")
    cells, width = model.shape[0], model.shape[1] if genes is None else genes.size
    with StoredCounts(step.one("counts").path) as counts:
        names = counts.var["original_name"]
    original = dict(zip(names.index.astype(str), names.astype(str), strict=True))
    return Product(
        lambda folder: model.write_dense(
            folder / "dense.zarr",
            chosen.dtype,
            genes=genes,
            precision=chosen.precision,
            original_names=original,
        ),
        {"cells": cells, "genes": width, "values": cells * width},
    )


def say_if_diverged(model: "NeuMFModel", name: str) -> None:
    """Warn of a training that ended worse than it began: its predictions mean nothing."""
    first, last = model.history[0]["train_loss"], model.history[-1]["train_loss"]
    if not float(last) <= float(first):  # also where it is no number
        _logger.warning(
            "%s: the training diverged (its loss went from %.4g to %.4g). Lower its learning_rate, or look for cells "
            "or genes with extreme counts",
            name,
            first,
            last,
        )


def model_figures(model: "NeuMFModel") -> dict[str, Any]:
    """What a person wants to know of a trained model."""
    last = model.history[-1]
    pairs = [float(row["pairs_per_second"]) for row in model.history]
    return {
        "cells": model.shape[0],
        "genes": model.shape[1],
        "epochs": len(model.history),
        "train_loss": last["train_loss"],
        "validation_loss": last.get("validation_loss"),
        "pairs_per_second": sum(pairs) / len(pairs),
        **tower_figures(model.history),
        **model.provenance,
    }


def tower_figures(history: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
    """What the tower gained on held-out entries over the pretrained branches, relative to their loss, and its seconds.

    Nothing of a model that was trained at once. A gain of 0: the tower was tried and left out.
    """
    fused = [row for row in history if row["stage"] == "neumf"]
    before = [row for row in history if row["stage"] != "neumf"]
    if not fused or not before or "validation_loss" not in fused[-1]:
        return {}
    start = float(before[-1]["validation_loss"])
    best = min(float(row["validation_loss"]) for row in fused)
    seconds = sum(float(row["seconds"]) for row in fused)
    return {"tower_gain": max(0.0, (start - best) / abs(start)), "tower_seconds": seconds}


def loss_history(model: "NeuMFModel") -> dict[str, list[float]]:
    """The loss curves of a model: series by name."""
    series = {"train": "train_loss", "validation": "validation_loss"}
    return {name: [float(row.get(key, "nan")) for row in model.history] for name, key in series.items()}


def loss_pictures(model: "NeuMFModel") -> dict[str, str]:
    """A small curve that Dagster renders in place, and one to read."""
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.training import loss_curve_svg, loss_curves

    history = loss_history(model)
    legend = "\n\nblue: training, orange: validation"
    small = loss_curve_svg(history, limit=1000 - len(legend)) + legend
    large = markdown_image(loss_curves({"loss": history}), "loss by epoch")
    return {"loss curve": small, "loss by epoch": large}


STAGES = (neumf_model, neumf_evaluation, dense_counts)


def loss_history_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Loss curves from the rows of a model's history."""
    return {
        name: [float(row.get(key, "nan")) for row in rows]
        for name, key in (("train", "train_loss"), ("validation", "validation_loss"))
    }
