"""``neumf-assets export``: a study's matrices in the forms that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.store import Artifact, Store
from neumf_assets.definitions.studies import all_studies
from neumf_assets.home import Home
from neumf_assets.study.settings import StudySettings

if TYPE_CHECKING:
    import numpy as np

MatrixName = Literal["model", "liger", "ineumf"]


class Named(NamedTuple):
    """A cells × genes matrix that can be sliced, with the names of its cells and genes."""

    matrix: Any
    cells: list[str]
    genes: list[str]


@dataclass(frozen=True)
class Computed:
    """A cells × genes matrix of which some genes at a time are computed when they are asked for."""

    shape: tuple[int, int]
    of_genes: Callable[[slice], np.ndarray]

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        """Compute the part."""
        cells, genes = key
        return self.of_genes(genes)[cells]


def export_study(
    study: str, target: str, form: str, datasets: list[str] | None = None, matrix: MatrixName = "model"
) -> list[Path]:
    """Write a study's matrices below the folder ``target``, one for each dataset; returns what was written.

    ``csv``: a dense matrix, gene × cell with names, as the original notebook writes it: what the dataset's own
    NeuMF predicts (``model``), what LIGER's factors stand for, H (W + V) in counts (``liger``), or what the
    integrative NeuMF predicts without the differences between datasets (``ineumf``).
    ``mtx``: the filtered counts as a 10x folder (Matrix Market).

    Raises
    ------
    BadSettings
        If the study or a dataset is unknown, or counts are asked for and a model's matrix.
    MissingArtifact
        If the matrix has not been materialised.
    """
    home = Home.from_environment()
    settings = all_studies(home).named(study)
    if form == "mtx" and matrix != "model":
        raise BadSettings(f"--format mtx writes the counts. For the matrix {matrix} use --format csv.")
    store = home.store()
    asset = "dense_counts" if form == "csv" and matrix == "model" else "counts"
    found = dict(_artifacts(store, settings, asset))
    unknown = sorted(set(datasets or []) - set(found))
    if unknown or not found:
        what = f"dataset {unknown[0]!r}" if unknown else "materialised dataset"
        raise BadSettings(f"Study {study!r} has no {what}. Known: {', '.join(found) or 'none'}.")
    if form == "mtx":
        return [_mtx(found[name], Path(target), name) for name in datasets or found]
    read = {"model": _predicted, "liger": _reconstructed, "ineumf": _corrected}[matrix]
    ending = "" if matrix == "model" else f".{matrix}"
    return [
        _csv(read(store, study, found[name], name), Path(target) / f"{name}{ending}.csv.gz")
        for name in datasets or found
    ]


def _artifacts(store: Store, study: StudySettings, asset: str) -> Iterator[tuple[str, Artifact]]:
    for name in store.names((study.name, asset)):
        artifact = store.find((study.name, asset, name))
        if artifact is not None:
            yield name, artifact


def _predicted(store: Store, study: str, artifact: Artifact, name: str) -> Named:
    from neumf_assets.core.neumf.dense import open_dense

    matrix, cells, genes = open_dense(artifact.path / "dense.zarr")
    return Named(matrix, cells.tolist(), genes.tolist())


def _reconstructed(store: Store, study: str, artifact: Artifact, name: str) -> Named:
    import numpy as np
    import pandas as pd

    from neumf_assets.core.counts.stored import StackedCounts, StoredCounts
    from neumf_assets.core.liger.preprocess import gene_statistics
    from neumf_assets.core.liger.reconstruct import reconstruct
    from neumf_assets.core.liger.store import NamedFactors

    factors = NamedFactors.load(store.get((study, "liger", "factors")).path)
    _known(name, factors.datasets, "LIGER's factors")
    number, genes = factors.datasets.index(name), list(factors.genes)
    with StoredCounts(artifact.path) as counts:
        statistics = gene_statistics(StackedCounts.of({name: counts}))
        cells, rms = counts.obs_names.tolist(), statistics.rms[counts.var_names.get_indexer(pd.Index(genes))]
    H, loadings = factors.result.H[number], factors.result.W + factors.result.V[number]

    def of_genes(part: slice) -> np.ndarray:
        blocks = reconstruct(H, loadings[:, part], row_factor=statistics.totals, column_factor=rms[part])
        return np.vstack([block for _, block in blocks])

    return Named(Computed((len(H), len(genes)), of_genes), cells, genes)


def _corrected(store: Store, study: str, artifact: Artifact, name: str) -> Named:
    import numpy as np

    from neumf_assets.core.neumf.model import NeuMFModel

    model = NeuMFModel.load(store.get((study, "ineumf", "model")).path)
    _known(name, model.dataset_names, "the integrative model")
    cells = np.flatnonzero(model.dataset == model.dataset_names.index(name))
    positions = np.arange(model.shape[1])

    def of_genes(part: slice) -> np.ndarray:
        return model.predict(cells, positions[part], corrected=True)

    matrix = Computed((cells.size, positions.size), of_genes)
    return Named(matrix, model.cell_names[cells].tolist(), model.gene_names.tolist())


def _known(name: str, datasets: tuple[str, ...] | list[str], where: str) -> None:
    if name not in datasets:
        raise BadSettings(f"Dataset {name!r} is not in {where} yet. Run the study first.")


def _csv(named: Named, path: Path) -> Path:
    from neumf_assets.core.cells.files.export import export_csv

    return export_csv(named.matrix, named.cells, named.genes, path)


def _mtx(artifact: Artifact, target: Path, name: str) -> Path:
    from neumf_assets.core.cells.files.export import export_mtx
    from neumf_assets.core.counts.stored import StoredCounts

    with StoredCounts(artifact.path) as counts:
        return export_mtx(counts, target / name)
