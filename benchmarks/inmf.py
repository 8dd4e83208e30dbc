"""Integrative NMF: objective, seconds and memory of ours beside nmf-torch and pyliger, on the same matrices.

kang_ifnb (Kang et al. 2018) where it lies beside the checkout, else simulated data: 2,000 genes by variance
over Poisson expectation, divided by cell totals, scaled by root mean square; k 20, lambda 5. Peers run where
they are installed, in this environment or in the one whose Python the environment variable
``NEUMF_INMF_PYTHON`` names.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, save_npz

from benchmarks import harness
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.liger.chain import factorise
from neumf_assets.core.liger.inmf.solver import inmf
from neumf_assets.core.liger.preprocess import gene_statistics, scale, select_genes
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.measure import measured

GENES = 2000
BASE = LigerSettings(n_genes=GENES)
OURS: dict[str, dict[str, Any]] = {
    "ours, default (4 starts)": {},
    "ours, one start": {"restarts": 1},
    "ours, one start, two threads": {"restarts": 1, "threads": 2},
    "ours, plain HALS, 30 iterations": {"restarts": 1, "extrapolate": False, "iterations": 30, "tol": 0.0},
    "ours, plain HALS, 60 iterations": {"restarts": 1, "extrapolate": False, "iterations": 60, "tol": 0.0},
    "ours, 16 starts": {"restarts": 16},
    "ours, online, mini-batches of 1,000, 5 passes": {"online": True, "batch_cells": 1000},
}
PEERS = {"nmf-torch": "nmf", "pyliger": "pyliger"}


def matrices(quick: bool) -> tuple[list[csr_matrix], str]:
    """Return the scaled matrices and what they are."""
    folder = harness.REAL_DATA / "kang_ifnb"
    if folder.is_dir():
        counts = [csr_matrix(read_counts(str(folder / f"{name}.h5ad")).X) for name in ("ctrl", "stim")]
        text = "Kang et al. 2018"
    else:
        counts = [harness.simulated_counts(3000, 3000, seed) for seed in (0, 1)]
        text = "simulated"
    if quick:
        counts = [matrix[::4] for matrix in counts]
    statistics = [gene_statistics(matrix) for matrix in counts]
    genes = select_genes(statistics, BASE)
    scaled = [scale(matrix, one, genes) for matrix, one in zip(counts, statistics, strict=True)]
    cells = " + ".join(f"{matrix.shape[0]:,}" for matrix in scaled)
    full = sum(matrix.nnz for matrix in scaled) / sum(np.prod(matrix.shape) for matrix in scaled)
    return scaled, f"{text}, {cells} cells x {genes.size:,} genes, {100 * full:.1f} % non-zero"


def main(quick: bool = False) -> dict[str, Any]:
    """Measure every method on the same matrices, each seed by itself."""
    scaled, text = matrices(quick)
    seeds = range(1 if quick else 3)
    inmf([matrix[:200] for matrix in scaled], BASE.model_copy(update={"iterations": 2}))  # loads what is lazy
    dense = sum(np.prod(matrix.shape) for matrix in scaled) * 4 / 2**20
    peak = _peak_mib(scaled)
    rows = [_ours(name, changes, scaled, seeds) for name, changes in OURS.items()]
    peers, skipped = _peers(scaled, range(1) if quick else seeds)
    rows += peers
    default = rows[0]
    default["peak_mib"] = round(peak, 1)
    ratios = {f"{row['method']} / ours, seconds": row["seconds"] / default["seconds"] for row in peers}
    ratios["peak memory / one dense copy"] = peak / dense
    return {
        "title": f"Integrative NMF, k 20, lambda 5: {text}",
        "rows": rows,
        "ratios": {name: harness.significant(value, 3) for name, value in ratios.items()},
        "skipped": skipped,
        "notes": [
            f"One dense float32 copy of the data takes {dense:.1f} MiB; peak_mib is the rise of the resident "
            "memory while factorising, sparse input not counted (peers: above their dense input).",
            "cpu_seconds do not depend on what else the machine is doing; seconds do.",
            "kkt: relative violation of the optimality conditions.",
        ],
    }


def _peak_mib(scaled: list[csr_matrix]) -> float:
    """Return the rise of resident memory in a run, freed memory given back to the system before it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # the allocator of glibc alone can do that
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with measured() as idle:
        pass
    with measured() as cost:
        factorise(scaled, BASE)
    return cost.peak_mib - idle.peak_mib


def _ours(name: str, changes: dict[str, Any], scaled: list[csr_matrix], seeds: range) -> dict[str, Any]:
    rows = []
    for seed in seeds:
        settings = BASE.model_copy(update={"seed": seed, **changes})
        begin = time.process_time()
        result = factorise(scaled, settings)
        rows.append(
            {
                "objective": float(result.objective[-1]),
                "seconds": result.seconds,
                "cpu_seconds": time.process_time() - begin,
                "iterations": result.n_iterations,
                "kkt": result.kkt,
            }
        )
    return _over_seeds(name, rows)


def _over_seeds(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the seeds; of the objective give the worst too."""
    row: dict[str, Any] = {
        "method": name,
        "objective_millions": round(float(np.mean([run["objective"] for run in runs])) / 1e6, 4),
        "worst_of_seeds": round(max(run["objective"] for run in runs) / 1e6, 4),
    }
    if "peak_mib" in runs[0]:
        row["peak_mib"] = round(max(run["peak_mib"] for run in runs), 1)
    for key in ("seconds", "cpu_seconds", "iterations", "kkt"):
        if key in runs[0]:
            row[key] = harness.significant(float(np.mean([run[key] for run in runs])), 3)
    return row


def _peers(scaled: list[csr_matrix], seeds: range) -> tuple[list[dict[str, Any]], dict[str, str]]:
    rows, skipped = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number, matrix in enumerate(scaled):
            save_npz(Path(folder) / f"{number}.npz", matrix)
        for peer, module in PEERS.items():
            python = harness.interpreter_with(module, "NEUMF_INMF_PYTHON")
            if python is None:
                skipped[peer] = f"{peer} is not installed (NEUMF_INMF_PYTHON can name a Python with it)"
                continue
            chosen = seeds if peer == "nmf-torch" else range(1)  # pyliger takes about a minute
            options = {"peer": peer, "folder": folder, "k": BASE.k, "lam": BASE.lam}
            runs = [harness.run_peer(python, "_inmf_peers.py", options | {"seed": s}) for s in chosen]
            rows.append(_over_seeds(f"{peer} {runs[0]['version']}", runs))
    return rows, skipped


if __name__ == "__main__":
    harness.script(main)
