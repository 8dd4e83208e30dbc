"""``neumf-assets export``: a study's matrices in the forms that other tools read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.store import Artifact, Store
from neumf_assets.home import Home
from neumf_assets.settings import StudySettings
from neumf_assets.studies import all_studies


def export_study(study: str, target: str, form: str, datasets: list[str] | None = None) -> list[Path]:
    """Write a study's matrices below the folder ``target``, one for each dataset; returns what was written.

    ``csv``: the dense matrix that NeuMF predicts, gene × cell with names, as the original notebook writes it.
    ``mtx``: the filtered counts as a 10x folder (Matrix Market).

    Raises
    ------
    BadSettings
        If the study or a dataset is unknown.
    MissingArtifact
        If the matrix has not been materialised.
    """
    home = Home.from_environment()
    studies = all_studies(home)
    if study not in studies:
        raise BadSettings(f"There is no study {study!r}. Known: {', '.join(sorted(studies))}.")
    asset = "dense_counts" if form == "csv" else "counts"
    found = dict(_artifacts(home.store(), studies[study], asset))
    unknown = sorted(set(datasets or []) - set(found))
    if unknown or not found:
        what = f"dataset {unknown[0]!r}" if unknown else "materialised dataset"
        raise BadSettings(f"Study {study!r} has no {what}. Known: {', '.join(found) or 'none'}.")
    write = _csv if form == "csv" else _mtx
    return [write(found[name], Path(target), name) for name in datasets or found]


def _artifacts(store: Store, study: StudySettings, asset: str) -> Iterator[tuple[str, Artifact]]:
    for name in store.names((study.name, asset)):
        artifact = store.find((study.name, asset, name))
        if artifact is not None:
            yield name, artifact


def _csv(artifact: Artifact, target: Path, name: str) -> Path:
    from neumf_assets.core.cells.export import export_csv
    from neumf_assets.core.neumf.dense import open_dense

    matrix, cells, genes = open_dense(artifact.path / "dense.zarr")
    return export_csv(matrix, cells.tolist(), genes.tolist(), target / f"{name}.csv.gz")


def _mtx(artifact: Artifact, target: Path, name: str) -> Path:
    from neumf_assets.core.cells.export import export_mtx
    from neumf_assets.core.counts.store import load_counts

    counts = load_counts(artifact.path)
    return export_mtx(counts.X, list(counts.obs_names), list(counts.var_names), target / name)
