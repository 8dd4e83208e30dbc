"""Runs nmf-torch or pyliger on scaled matrices; run by ``inmf`` in a Python that has them.

Reads ``0.npz``, ``1.npz``, … (cells × genes) from a folder; prints one JSON document with seconds, the
objective computed from the factors in float64, peak memory and version.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace


def main() -> None:
    """Factorise with the wanted peer."""
    wanted = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    import numpy as np
    from scipy.sparse import load_npz

    paths = sorted(Path(wanted["folder"]).glob("*.npz"))
    X = [load_npz(path).toarray().astype("float32") for path in paths]
    run = {"nmf-torch": nmf_torch, "pyliger": pyliger}[wanted["peer"]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, begin_cpu = time.perf_counter(), time.process_time()
    W, V, H = run(X, wanted)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    objective = 0.0
    for x, v, h in zip(X, V, H, strict=True):
        for start in range(0, len(x), 1000):
            part = h[start : start + 1000].astype("float64")
            objective += np.sum((x[start : start + 1000] - part @ (W + v)) ** 2)
            objective += wanted["lam"] * np.sum((part @ v) ** 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "objective": float(objective),
        "peak_mib": (peak - before) / 1024,
        "version": importlib.metadata.version(wanted["peer"]),
    }
    print("\n" + json.dumps(found))


def nmf_torch(X: list, wanted: dict) -> tuple:
    """Batch HALS to its own convergence (tolerance 1e-4)."""
    from nmf import integrative_nmf

    H, W, V, _ = integrative_nmf(
        list(X),
        n_components=wanted["k"],
        lam=wanted["lam"],
        algo="halsvar",
        mode="batch",
        n_jobs=len(os.sched_getaffinity(0)),
        random_state=wanted["seed"],
    )
    return W, V, H


def pyliger(X: list, wanted: dict) -> tuple:
    """Alternating least squares by block pivoting, 30 iterations as in its documentation."""
    import anndata
    from pyliger.factorization._iNMF_ANLS import optimize_ALS
    from scipy.sparse import csr_matrix

    data = [anndata.AnnData(csr_matrix(x), layers={"scale_data": csr_matrix(x)}) for x in X]
    study = SimpleNamespace(num_samples=len(X), adata_list=data, var_genes=data[0].var_names)
    optimize_ALS(study, k=wanted["k"], value_lambda=wanted["lam"], max_iters=30, rand_seed=wanted["seed"] + 1)
    return data[0].varm["W"].T, [a.varm["V"].T for a in data], [a.obsm["H"] for a in data]


if __name__ == "__main__":
    main()
