"""Training rate of the default NeuMF: the notebook's loop, large pairwise batches, and our block trainer.

All in one process and in turns, so that the ratios are of rates measured side by side; beside them the
machine's own matrix rate and the share of it that the block trainer reaches, and the rate of prediction,
in memory and to the Zarr store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix

from benchmarks import harness, notebook_loop
from neumf_assets.core.neumf.genes import select_genes
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

DEFAULT = NeuMFSettings(gmf_size=50)
"""The default model at its largest: as many dimensions as the notebook's, whatever the counts support."""
GENES = 2000
LARGE_BATCH = 8192


def flops_per_pair(settings: NeuMFSettings) -> int:
    """Return the floating point operations of one pair, forward and backward (three times forward).

    The first layer's products are made once for a cell and once for a gene of a block, so they don't count.
    """
    tower = (*settings.tower, 1) if settings.kind != "gmf" else ()
    hidden = sum(2 * a * b for a, b in pairwise(tower))
    gmf = 2 * settings.gmf_size if settings.kind != "mlp" else 0
    return 3 * (hidden + gmf)


def trained_genes(counts: csr_matrix, n_genes: int = GENES) -> csr_matrix:
    """Return the most overdispersed genes of the counts."""
    return counts[:, select_genes(counts, np.zeros(counts.shape[0], np.intp), n_genes)]


def trained(counts: csr_matrix, settings: NeuMFSettings, device: str = "cpu", epochs: int = 2) -> NeuMFModel:
    """Return the model of a short training."""
    short = settings.model_copy(
        update={
            "n_genes": None,
            "epochs": epochs,
            "pretrain": "none",
            "patience": None,
            "schedule": "constant",
        }
    )
    names = np.arange(max(counts.shape)).astype(np.str_)
    return fit(
        counts, short, gene_names=names[: counts.shape[1]], cell_names=names[: counts.shape[0]], device=device
    )


def block_rate(counts: csr_matrix, settings: NeuMFSettings, device: str = "cpu", epochs: int = 2) -> float:
    """Return the pairs per second of the fastest epoch of a short training."""
    history = trained(counts, settings, device, epochs).history
    return max(float(row["pairs_per_second"]) for row in history)


def predictions(model: NeuMFModel, seconds: float) -> dict[str, Callable[[], float]]:
    """Return what measures the pairs per second of predicting the whole matrix, by way."""
    pairs = model.shape[0] * model.shape[1]

    def in_memory(precision: Literal["trained", "float32"]) -> float:
        def all_blocks() -> None:
            for _ in model.predict_blocks(precision=precision):
                pass

        return pairs / harness.seconds_per_call(all_blocks, seconds / 2)

    def stored() -> float:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "dense.zarr"
            return pairs / harness.seconds_per_call(lambda: model.write_dense(store), seconds / 2)

    return {
        "prediction, NeuMF": partial(in_memory, "trained"),
        "prediction, NeuMF, float32": partial(in_memory, "float32"),
        "prediction, NeuMF, to Zarr": stored,
    }


def arms() -> dict[str, NeuMFSettings]:
    """Return the settings of the block trainer that are measured."""
    changes: dict[str, dict[str, Any]] = {
        "NeuMF": {},
        "NeuMF, float32": {"precision": "float32"},
        "NeuMF, plain torch operations": {"fused": "off"},
        "NeuMF, plain torch operations, float32": {"fused": "off", "precision": "float32"},
        "MLP": {"kind": "mlp"},
        "GMF": {"kind": "gmf"},
    }
    return {f"block trainer, {name}": DEFAULT.model_copy(update=change) for name, change in changes.items()}


def methods(counts: csr_matrix, seconds: float) -> dict[str, Callable[[], float]]:
    """Return what measures the pairs per second of every method, by name."""
    large = partial(notebook_loop.best_rate, seconds, LARGE_BATCH, *counts.shape, plain=True)
    found: dict[str, Callable[[], float]] = {
        "notebook's loop, PyTorch": partial(notebook_loop.best_rate, seconds, notebook_loop.BATCH),
        f"pairwise, batches of {LARGE_BATCH:,}": large,
    }
    found |= {name: partial(block_rate, counts, settings) for name, settings in arms().items()}
    found |= predictions(trained(counts, DEFAULT), seconds)
    if torch.cuda.is_available():
        found["block trainer, NeuMF, GPU"] = partial(block_rate, counts, DEFAULT, "cuda", 10)
    return found


def matrix_rates() -> dict[str, float]:
    """Return the rates of matrix products, by kind."""
    found = {
        "bfloat16": harness.matrix_rate(torch.bfloat16),
        "float32": harness.matrix_rate(torch.float32),
        "bfloat16, a layer of 64 to 32": harness.matrix_rate(torch.bfloat16, shapes=harness.LAYER),
    }
    if torch.cuda.is_available():
        found["bfloat16, GPU"] = harness.matrix_rate(torch.bfloat16, "cuda")
    return found


@dataclass
class Measured:
    """The best rate of each method and of matrix products over some rounds, and the methods' peak memory, MiB."""

    rates: dict[str, float] = field(default_factory=dict)
    matrix: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)


def measure(counts: csr_matrix, rounds: int, seconds: float) -> Measured:
    """Measure every method in every round, in turns."""
    found = Measured()
    ways = methods(counts, seconds)
    for _ in range(rounds):
        for name, rate in matrix_rates().items():
            found.matrix[name] = max(found.matrix.get(name, 0.0), rate)
        for name, rate_of in ways.items():
            with harness.peak_noted(found.peaks, name):
                rate = rate_of()
            found.rates[name] = max(found.rates.get(name, 0.0), rate)
    return found


def main(quick: bool = False) -> dict[str, Any]:
    counts, source = harness.control_counts()
    counts = trained_genes(counts[:800] if quick else counts)
    found = measure(counts, rounds=1 if quick else 3, seconds=1.0 if quick else 4.0)
    tensorflow, told = notebook_loop.tensorflow_rate(1.0 if quick else 10.0)
    skipped = {"notebook's loop, TensorFlow": told} if tensorflow is None else {}
    if tensorflow is not None:
        found.rates = {"notebook's loop, TensorFlow": tensorflow, **found.rates}
    return {
        "title": f"training rate, {counts.shape[0]:,} cells x {counts.shape[1]:,} genes ({source})",
        "rows": [_row(name, found) for name in found.rates]
        + [
            {"method": f"matrix product, {name}", "flops_per_second": harness.significant(rate)}
            for name, rate in found.matrix.items()
        ],
        "ratios": _ratios(found.rates, found.matrix),
        "skipped": skipped,
        "notes": [
            f"{flops_per_pair(DEFAULT):,} floating point operations for a pair of the default NeuMF, "
            "forward and backward; rates are the best of the rounds: whatever else runs only slows.",
            "Peak memory is the process's while a method ran; the interpreter, torch and the counts are in it.",
        ],
    }


def _row(name: str, found: Measured) -> dict[str, Any]:
    rate = found.rates[name]
    row: dict[str, Any] = {"method": name, "pairs_per_second": harness.significant(rate)}
    if name in found.peaks:
        row["peak_rss_mib"] = found.peaks[name]
    settings = arms().get(name)
    if settings is not None:
        kind = "float32" if settings.precision == "float32" else "bfloat16"
        share = rate * flops_per_pair(settings) / found.matrix[kind]
        row |= {"share_of_matrix_rate": harness.significant(share, 3), "matrix_rate": kind}
    return row


def _ratios(rates: dict[str, float], matrix: dict[str, float]) -> dict[str, float]:
    ours = rates["block trainer, NeuMF"]
    over = {
        f"block trainer / {name}": harness.significant(ours / rate)
        for name, rate in rates.items()
        if not name.startswith(("block trainer", "prediction"))
    }
    over |= {
        f"{name} / block trainer": harness.significant(rate / ours)
        for name, rate in rates.items()
        if name.startswith("prediction")
    }
    limit = max(matrix["bfloat16"], matrix["float32"]) / flops_per_pair(DEFAULT)
    return over | {
        "limit of the matrix rate, pairs per second": harness.significant(limit),
        "share of that limit reached": harness.significant(ours / limit, 3),
    }


if __name__ == "__main__":
    harness.script(main)
