"""Training rate of the default NeuMF: the notebook's loop, large pairwise batches, and our block trainer.

All in one process and in turns, so that the ratios are of rates measured side by side; beside them the
machine's own matrix rate and the share of it that the block trainer reaches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from benchmarks import harness, notebook_loop
from neumf_assets.core.neumf.genes import select_genes
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.train import fit

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


def block_rate(counts: csr_matrix, settings: NeuMFSettings, device: str = "cpu", epochs: int = 2) -> float:
    """Return the pairs per second of the fastest epoch of a short training."""
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
    model = fit(
        counts, short, gene_names=names[: counts.shape[1]], cell_names=names[: counts.shape[0]], device=device
    )
    return max(float(row["pairs_per_second"]) for row in model.history)


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


def measure(counts: csr_matrix, rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return the best rate of each method over some rounds, and the best matrix rates."""
    rates: dict[str, float] = {}
    matrix: dict[str, float] = {}

    def note(found: dict[str, float], name: str, value: float) -> None:
        found[name] = max(found.get(name, 0.0), value)

    cells, genes = counts.shape
    for _ in range(rounds):
        note(matrix, "bfloat16", harness.matrix_rate(torch.bfloat16))
        note(matrix, "float32", harness.matrix_rate(torch.float32))
        layer = harness.matrix_rate(torch.bfloat16, shapes=harness.LAYER)
        note(matrix, "bfloat16, a layer of 64 to 32", layer)
        note(rates, "notebook's loop, PyTorch", notebook_loop.best_rate(seconds, notebook_loop.BATCH))
        large = notebook_loop.best_rate(seconds, LARGE_BATCH, cells, genes, plain=True)
        note(rates, f"pairwise, batches of {LARGE_BATCH:,}", large)
        for name, settings in arms().items():
            note(rates, name, block_rate(counts, settings))
        if torch.cuda.is_available():
            note(matrix, "bfloat16, GPU", harness.matrix_rate(torch.bfloat16, "cuda"))
            note(rates, "block trainer, NeuMF, GPU", block_rate(counts, DEFAULT, "cuda", 10))
    return rates, matrix


def main(quick: bool = False) -> dict[str, Any]:
    counts, source = harness.control_counts()
    counts = trained_genes(counts[:800] if quick else counts)
    rates, matrix = measure(counts, rounds=1 if quick else 3, seconds=1.0 if quick else 4.0)
    tensorflow, told = notebook_loop.tensorflow_rate(1.0 if quick else 10.0)
    skipped = {"notebook's loop, TensorFlow": told} if tensorflow is None else {}
    if tensorflow is not None:
        rates = {"notebook's loop, TensorFlow": tensorflow, **rates}
    return {
        "title": f"training rate, {counts.shape[0]:,} cells x {counts.shape[1]:,} genes ({source})",
        "rows": [_row(name, rate, matrix) for name, rate in rates.items()]
        + [
            {"method": f"matrix product, {name}", "flops_per_second": harness.significant(rate)}
            for name, rate in matrix.items()
        ],
        "ratios": _ratios(rates, matrix),
        "skipped": skipped,
        "notes": [
            f"{flops_per_pair(DEFAULT):,} floating point operations for a pair of the default NeuMF, "
            "forward and backward; rates are the best of the rounds: whatever else runs only slows.",
        ],
    }


def _row(name: str, rate: float, matrix: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name, "pairs_per_second": harness.significant(rate)}
    settings = arms().get(name)
    if settings is not None:
        kind = "float32" if settings.precision == "float32" else "bfloat16"
        share = rate * flops_per_pair(settings) / matrix[kind]
        row |= {"share_of_matrix_rate": harness.significant(share, 3), "matrix_rate": kind}
    return row


def _ratios(rates: dict[str, float], matrix: dict[str, float]) -> dict[str, float]:
    ours = rates["block trainer, NeuMF"]
    over = {
        f"block trainer / {name}": harness.significant(ours / rate)
        for name, rate in rates.items()
        if not name.startswith("block trainer")
    }
    limit = max(matrix["bfloat16"], matrix["float32"]) / flops_per_pair(DEFAULT)
    return over | {
        "limit of the matrix rate, pairs per second": harness.significant(limit),
        "share of that limit reached": harness.significant(ours / limit, 3),
    }


if __name__ == "__main__":
    harness.script(main)
