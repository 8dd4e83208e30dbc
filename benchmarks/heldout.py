"""Held-out deviance against time: our NeuMF and GMF beside KL-NMF and, where installed, scVI.

Each method is trained with growing budgets, since its schedule depends on the budget; seconds are training
and prediction together. Ours are the mean of three seeds, of the split and of the model; the others are from the
first of these splits. scVI runs where scvi-tools is installed, in this environment or in the one whose
Python the environment variable ``NEUMF_SCVI_PYTHON`` names.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import save_npz

from benchmarks import harness
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.study import SimulatedDataset, simulate_study
from neumf_assets.core.neumf.evaluation import baselines
from neumf_assets.core.neumf.evaluation.baselines import FitPredict
from neumf_assets.core.neumf.evaluation.heldout import neumf_means
from neumf_assets.core.neumf.evaluation.notebook import compare_notebook
from neumf_assets.core.neumf.evaluation.scorers import HeldOutDeviance, Scorer, TruthError, score_blocks
from neumf_assets.core.neumf.evaluation.thinning import Thinned, thin
from neumf_assets.core.neumf.genes import select_genes, size_factors
from neumf_assets.core.neumf.settings import NeuMFSettings

GENES = 2000
TARGETS = (0.1834, 0.1800, 0.1787, 0.1780)
SEEDS = (0, 1, 2)
OURS = ("GMF", "NeuMF")


def fits(quick: bool, seed: int = 0) -> dict[str, list[tuple[int | None, FitPredict]]]:
    """Return each method with its budgets: updates of the NMF, epochs of ours."""
    default = NeuMFSettings(seed=seed)
    epochs = (2, 5) if quick else tuple(sorted({2, 5, 10, 20, default.epochs}))
    updates = (25,) if quick else (25, 50, 100, 200)

    def ours(kind: str, n: int) -> FitPredict:
        fused = min(n, default.fusion_epochs)
        changes = {"kind": kind, "epochs": n, "pretrain_epochs": n, "fusion_epochs": fused}
        names = np.arange(GENES).astype(np.str_)
        return partial(_neumf, settings=default.model_copy(update=changes | {"n_genes": None}), names=names)

    return {
        "gene mean x size factor": [(None, baselines.gene_mean)],
        "SVD of log1p, 20": [(None, baselines.svd_log1p)],
        "KL-NMF of normalised counts, 20": [
            (n, partial(baselines.kl_nmf, max_iterations=n, on="normalised")) for n in updates
        ],
        "KL-NMF of counts, 20": [(n, partial(baselines.kl_nmf, max_iterations=n)) for n in updates],
        "GMF": [(n, ours("gmf", n)) for n in epochs],
        "NeuMF": [(n, ours("neumf", n)) for n in epochs],
    }


def _neumf(train: Any, factors: Any, *, settings: NeuMFSettings, names: np.ndarray) -> Any:
    return neumf_means(train, factors, settings=settings, gene_names=names[: train.shape[1]])


def split_of(counts: Any, seed: int) -> tuple[Thinned, np.ndarray]:
    """Return thinned counts of the most overdispersed genes, and the cells' size factors."""
    genes = select_genes(counts, np.zeros(counts.shape[0], np.intp), GENES)
    whole = thin(counts, seed=seed)
    return Thinned(whole.train[:, genes], whole.test[:, genes], whole.train_share), size_factors(
        whole.train
    ).astype(np.float64)


def score(
    split: Thinned, factors: np.ndarray, fit_predict: FitPredict, extra: list[Scorer]
) -> tuple[float, float, float]:
    """Return the held-out deviance, the seconds and the peak memory of one training."""
    deviance, peaks = HeldOutDeviance(split.test, split.ratio), dict[str, float]()
    with harness.peak_noted(peaks, "training"):
        seconds = score_blocks(fit_predict(split.train, factors), [deviance, *extra])
    return deviance.value, seconds, peaks["training"]


def scvi_rows(split: Thinned, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return scVI's rows, and why it was skipped where it was."""
    python = harness.interpreter_with("scvi", "NEUMF_SCVI_PYTHON")
    if python is None:
        return [], {"scVI": "scvi-tools is not installed (NEUMF_SCVI_PYTHON can name a Python with it)"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_npz(Path(folder) / "train.npz", split.train)
        budgets = [("nb", 2)] if quick else [("nb", 100), ("poisson", 50), ("poisson", 200)]
        for likelihood, epochs in budgets:
            options = {"folder": folder, "likelihood": likelihood, "epochs": epochs, "size": 30, "seed": 0}
            found = harness.run_peer(python, "_scvi_arm.py", options)
            means = np.load(Path(folder) / "means.npy", mmap_mode="r")
            deviance = HeldOutDeviance(split.test, split.ratio)
            deviance.add(slice(0, means.shape[0]), np.maximum(means, baselines.LOWEST_MEAN))
            name = f"scVI {found['version']}, {likelihood}, 30"
            rows.append(_row(name, epochs, deviance.value, found["seconds"], found["peak_rss_mib"]))
    return rows, {}


def _row(
    name: str, budget: int | None, deviance: float, seconds: float, peak_rss_mib: float
) -> dict[str, Any]:
    return {
        "method": name,
        "budget": budget,
        "heldout_deviance": round(deviance, 4),
        "seconds": harness.significant(seconds, 3),
        "peak_rss_mib": peak_rss_mib,
    }


def time_to(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each method and target the least seconds with which a budget reached it."""
    found: dict[str, Any] = {}
    for target in TARGETS:
        for name in dict.fromkeys(row["method"] for row in rows):
            reached = [
                row["seconds"] for row in rows if row["method"] == name and row["heldout_deviance"] <= target
            ]
            if reached:
                found[f"seconds to {target:.4f}, {name}"] = min(reached)
    return found


def simulated_truth(quick: bool) -> list[dict[str, Any]]:
    """Return how well the true means of simulated counts are recovered from their thinned train part."""
    cells = 400 if quick else 1600
    dataset = SimulatedDatasetSettings(name="ctrl", cells=cells)
    known: SimulatedDataset
    (known,) = simulate_study(SimulatorSettings(datasets=(dataset,))).values()
    split = thin(known.counts.X)
    factors = size_factors(split.train).astype(np.float64)
    rows = []
    for name, budgets in fits(quick).items():
        budget, fit_predict = budgets[-1]
        truth = TruthError(known.means * split.train_share)
        row = _row(f"simulated: {name}", budget, *score(split, factors, fit_predict, [truth]))
        rows.append(
            row
            | {
                "log_mean_correlation": round(truth.correlation, 4),
                "deviance_from_truth": round(truth.deviance, 4),
            }
        )
    return rows


def method_rows(counts: Any, name: str, quick: bool) -> list[dict[str, Any]]:
    """Return a method's row for each budget; of ours the mean over seeds and the spread between them."""
    seeds = SEEDS if name in OURS and not quick else SEEDS[:1]
    splits = {seed: split_of(counts, seed) for seed in seeds}
    rows = []
    for number, (budget, _) in enumerate(fits(quick)[name]):
        found = np.array(
            [score(*splits[seed], fits(quick, seed)[name][number][1], extra=[]) for seed in seeds]
        )
        row = _row(name, budget, *found.mean(axis=0))
        if len(seeds) > 1:
            row |= {"spread_of_seeds": round(float(np.ptp(found[:, 0])), 4), "seeds": len(seeds)}
        rows.append(row)
        harness.say(row)
    return rows


def main(quick: bool = False) -> dict[str, Any]:
    counts, source = harness.control_counts()
    counts = counts[:800] if quick else counts
    split, _ = split_of(counts, seed=0)
    rows = [row for name in fits(quick) for row in method_rows(counts, name, quick)]
    peers, skipped = scvi_rows(split, quick)
    rows += peers
    short = NeuMFSettings(epochs=3, pretrain_epochs=3, fusion_epochs=3) if quick else None
    notebook = compare_notebook(counts, short)
    losses = [
        {"method": f"notebook's slice: {name}", "seconds": harness.significant(found["seconds"], 3)}
        | {key: round(value, 4) for key, value in found.items() if key != "seconds"}
        for name, found in notebook.items()
    ]
    return {
        "title": f"held-out deviance and time, {GENES:,} genes ({source})",
        "rows": rows + simulated_truth(quick) + losses,
        "ratios": time_to(rows),
        "skipped": skipped,
        "notes": [
            "Budget: updates of the NMF, epochs of GMF and scVI, and of NeuMF's pretraining (its last stage: at most "
            f"{NeuMFSettings().fusion_epochs} more). Thinned 80/20."
        ],
    }


if __name__ == "__main__":
    harness.script(main)
