"""Makes ``home_0_1.tar.xz``: a home that version 0.1 left behind, which later versions must open and go on with.

Run it with a checkout of that version, as its last commit stands, on PYTHONPATH::

    PYTHONPATH=CHECKOUT python neumf_assets_tests/former/make.py neumf_assets_tests/former/home_0_1.tar.xz

The home holds a finished study of two small simulated datasets (counts as h5ad, dense matrices as Zarr, models,
Dagster's databases) and the checkpoint of a training that was broken off. Paths in it begin with ``@ROOT@``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

STUDY = """
label_column: cell_type
model: {epochs: 3, pretrain_epochs: 2, tower: [8, 4], gmf_size: 4, mlp_size: 4, threads: 1}
ineumf: {kind: gmf, gmf_size: 4, epochs: 3, threads: 1}
evaluation: {baselines: [gene_mean]}
liger: {k: 4, iterations: 5, trial_iterations: 2}
clusters: {resolutions: [0.4], default_resolution: 0.4, seeds: [0]}
umap: {n_epochs: 20}
metrics: {null_cells: 0}
"""
CHECKPOINT = """
import sys
from pathlib import Path
import numpy as np
from scipy.sparse import csr_matrix
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.train import fit

counts = csr_matrix(np.random.default_rng(0).poisson(1.0, (40, 30)))

def stop(stage, done, total, **figures):
    if done == 3:
        raise KeyboardInterrupt

settings = NeuMFSettings(kind="gmf", gmf_size=4, epochs=6, patience=None, threads=1, checkpoint_seconds=0.0)
try:
    fit(counts, settings, gene_names=[f"g{i}" for i in range(30)], cell_names=[f"c{i}" for i in range(40)],
        checkpoint_dir=Path(sys.argv[1]), progress=stop)
except KeyboardInterrupt:
    pass
"""
INBOX = """
import sys
from pathlib import Path
from neumf_assets.core.counts.simulate import write_inbox
from neumf_assets.core.counts.simulate_settings import SimulatorSettings

datasets = [["ctrl", 60, "control"], ["stim", 50, "stimulated"]]
settings = {"datasets": datasets, "genes": 400, "seed": 3}
write_inbox(SimulatorSettings.model_validate(settings), Path(sys.argv[1]))
"""


def main(target: Path) -> None:
    """Make the home and pack it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        environment = {**os.environ, "NEUMF_HOME": str(root / "home"), "NEUMF_DEVICE": "cpu"}

        def run(*arguments: str) -> None:
            subprocess.run([sys.executable, *arguments], env=environment, check=True, cwd=root)

        run("-c", INBOX, str(root / "inbox"))
        (root / "home" / "studies").mkdir(parents=True)
        study = f"name: tiny\ninbox: {root / 'inbox'}\n{STUDY}"
        (root / "home" / "studies" / "tiny.yaml").write_text(study)
        run("-m", "neumf_assets.cli", "run", "--study", "tiny")
        run("-c", CHECKPOINT, str(root / "checkpoint"))
        path = root / "home" / "studies" / "tiny.yaml"
        path.write_text(study.replace(str(root), "@ROOT@"))
        with tarfile.open(target, "w:xz") as archive:
            for folder in ("home", "inbox", "checkpoint"):
                archive.add(root / folder, folder, filter=_wanted)


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is made anew when it is missing, and who owned the files."""
    if entry.name in ("home/cache", "home/dagster/storage", "home/locks"):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
