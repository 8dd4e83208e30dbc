"""Simulated files in an inbox, written once for the same settings."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

from neumf_assets.core import memory
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.simulate.streams import settings_hash
from neumf_assets.core.counts.simulate.study import SimulatedDataset, simulate_study
from neumf_assets.core.errors import BadInput, BadSettings

_TEXT_BYTES = 16  # for each count, zeros too: dense, as a table, as text, and compressed

MANIFEST = ".simulated.json"


def write_inbox(settings: SimulatorSettings, folder: str | Path) -> list[Path]:
    """Write a simulated study as files such as a laboratory would drop.

    ``NAME.csv.gz`` holds gene × cell counts with an unnamed corner, ``NAME.labels.csv`` the true types. A
    hidden manifest remembers settings and hashes: with the same settings and intact files nothing is written.

    Parameters
    ----------
    settings
        What to simulate.
    folder
        Where to write; made if absent.

    Returns
    -------
    The count files, in the order of the settings.

    Raises
    ------
    BadInput
        A file of that name is there and was not written by the simulator.
    BadSettings
        A study too large for files of text, which are made in memory; :func:`simulate_chunks` makes any size.
    """
    needed = _TEXT_BYTES * settings.genes * sum(dataset.cells for dataset in settings.datasets)
    if needed > memory.budget():
        raise BadSettings(
            f"simulate: files of text with so many cells and genes take about {memory.readable(needed)} of memory to "
            f"make, more than the {memory.readable(memory.budget())} allowed ({memory.VARIABLE}). Ask for fewer, or "
            "write h5ad files to the inbox with simulate_chunks and CountsWriter, a chunk of cells at a time."
        )
    folder = Path(folder)
    written = _read_manifest(folder)
    targets = {d.name: folder / f"{d.name}.csv.gz" for d in settings.datasets}
    paths = [path for name in targets for path in (targets[name], folder / f"{name}.labels.csv")]
    if written.get("settings_sha256") == settings_hash(settings) and all(
        path.is_file() and written["files"].get(path.name) == _file_hash(path) for path in paths
    ):
        return list(targets.values())
    for path in paths:
        if path.exists() and path.name not in written.get("files", {}):
            raise BadInput(path, "", "is in the way of simulated data", "Simulate into another folder")
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, bytes] = {}
    for name, dataset in simulate_study(settings).items():
        contents[f"{name}.csv.gz"] = _counts_csv(dataset)
        contents[f"{name}.labels.csv"] = _labels_csv(dataset)
    manifest = {
        "settings_sha256": settings_hash(settings),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    # First of all, so that files of an interrupted run are known to be ours
    _write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    for name in sorted(contents, key=lambda n: not n.endswith(".labels.csv")):  # labels before their counts
        _write_atomically(folder / name, contents[name])
    return list(targets.values())


def _read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def _counts_csv(dataset: SimulatedDataset) -> bytes:
    import polars as pl

    adata = dataset.counts
    genes = pl.Series("", adata.var["original_name"].to_numpy(dtype=str))
    table = pl.from_numpy(adata.X.toarray().T, schema=list(adata.obs_names), orient="row")
    text = table.insert_column(0, genes).write_csv(include_header=False).encode()
    header = ("," + ",".join(adata.obs_names) + "\n").encode()  # polars would quote the empty corner
    return gzip.compress(header + text, compresslevel=4, mtime=0)


def _labels_csv(dataset: SimulatedDataset) -> bytes:
    import polars as pl

    obs = dataset.counts.obs
    table = pl.DataFrame({"cell": list(obs.index), "cell_type": list(obs["cell_type"].astype(str))})
    return table.write_csv().encode()


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
