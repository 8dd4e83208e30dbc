"""Trains scVI on thinned counts; run by ``heldout`` in a Python that has scvi-tools.

Reads ``train.npz`` from a folder, writes the means ``means.npy`` there and prints one JSON document.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
import warnings
from pathlib import Path


def main() -> None:
    """Train, predict at each cell's library size, and print seconds and version."""
    wanted = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    import anndata
    import numpy as np
    import scvi
    import torch
    from scipy.sparse import load_npz

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    scvi.settings.seed = wanted["seed"]
    scvi.settings.progress_bar_style = "tqdm"
    folder = Path(wanted["folder"])
    counts = load_npz(folder / "train.npz").astype("float32").tocsr()
    counts = anndata.AnnData(counts)
    scvi.model.SCVI.setup_anndata(counts)
    begin = time.perf_counter()
    model = scvi.model.SCVI(counts, n_latent=wanted["size"], gene_likelihood=wanted["likelihood"])
    model.train(max_epochs=wanted["epochs"], accelerator="cpu", enable_progress_bar=False, logger=False)
    means = model.get_normalized_expression(library_size="latent", return_numpy=True)
    seconds = time.perf_counter() - begin
    np.save(folder / "means.npy", means)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
    print(json.dumps({"seconds": seconds, "version": scvi.__version__, "peak_rss_mib": peak}))


if __name__ == "__main__":
    main()
