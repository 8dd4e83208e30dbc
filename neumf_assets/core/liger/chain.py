"""The whole of LIGER in one call: normalise, select genes, scale, factorise, align."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.liger.align import align
from neumf_assets.core.liger.inmf.matrices import ScaledMatrix, as_scaled
from neumf_assets.core.liger.inmf.online import batch_order, in_batches, online_inmf
from neumf_assets.core.liger.inmf.solver import INMFResult, inmf
from neumf_assets.core.liger.preprocess import (
    GeneStatistics,
    gene_statistics,
    scale,
    scale_dense,
    select_genes,
)
from neumf_assets.core.liger.reconstruct import reconstruct
from neumf_assets.core.liger.settings import LigerSettings
from neumf_assets.core.liger.store import NamedFactors
from neumf_assets.core.progress import Progress, silent

if TYPE_CHECKING:
    import anndata as ad

_ARRAYS, _DESCRIPTION = "liger.npz", "liger.json"


@dataclass(frozen=True)
class DenseDataset:
    """A dense matrix with its names; what :func:`run_liger` takes beside AnnData.

    Parameters
    ----------
    X
        Cells × genes: an array, a memory map or a Zarr array; read in blocks of rows, never copied whole.
    obs_names, var_names
        Names of cells and genes.
    """

    X: Any
    obs_names: Sequence[str] | NDArray[np.str_]
    var_names: Sequence[str] | NDArray[np.str_]


@dataclass(frozen=True)
class LigerResult:
    """Factors, aligned cells and what is needed to go back to expression.

    Parameters
    ----------
    factors
        Factors with the names of datasets and genes.
    cells
        Names of the cells of each dataset.
    aligned
        Aligned loadings of each dataset, cells × k.
    totals
        Sum of each cell, per dataset.
    rms
        Datasets × genes: what the normalised expression was divided by.
    settings, provenance
        How it was made: versions, device, hash of the data, seconds of each step.
    """

    factors: NamedFactors
    cells: list[NDArray[np.str_]]
    aligned: list[NDArray[np.float32]]
    totals: list[NDArray[np.float64]]
    rms: NDArray[np.float64]
    settings: LigerSettings
    provenance: dict[str, str | int | float]

    @property
    def embedding(self) -> NDArray[np.float32]:
        """Aligned loadings of all cells, datasets one after the other: cells × k."""
        return np.vstack(self.aligned)

    @property
    def cell_names(self) -> NDArray[np.str_]:
        """Names of all cells, in the order of :attr:`embedding`."""
        return np.concatenate(self.cells)

    @property
    def dataset(self) -> NDArray[np.intp]:
        """Position of each cell's dataset in ``factors.datasets``."""
        return np.repeat(np.arange(len(self.cells)), [len(names) for names in self.cells])

    def reconstruct(
        self, dataset: str, *, shared: bool = False, scaled: bool = False, block_cells: int = 5000
    ) -> Any:
        """Yield (rows, expression) of one dataset: ``H (W + V)``, or ``H W`` with ``shared``.

        Expression is in counts of the cell's own depth; with ``scaled`` as factorised (normalised, divided by
        the gene's root mean square).
        """
        if dataset not in self.factors.datasets:
            raise NeumfError(f"{dataset!r} is not one of the datasets: {', '.join(self.factors.datasets)}.")
        number, result = self.factors.datasets.index(dataset), self.factors.result
        return reconstruct(
            result.H[number],
            result.W if shared else result.W + result.V[number],
            row_factor=None if scaled else self.totals[number],
            column_factor=None if scaled else self.rms[number],
            block_cells=block_cells,
        )

    def save(self, folder: Path) -> None:
        """Write the factors, ``liger.npz`` and ``liger.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.factors.save(folder)
        arrays: dict[str, Any] = {"rms": self.rms}
        for number, (cells, aligned, totals) in enumerate(
            zip(self.cells, self.aligned, self.totals, strict=True)
        ):
            arrays[f"cells:{number}"], arrays[f"aligned:{number}"] = cells, aligned
            arrays[f"totals:{number}"] = totals
        np.savez(folder / _ARRAYS, **arrays)
        described = {"settings": self.settings.model_dump(mode="json"), "provenance": self.provenance}
        (folder / _DESCRIPTION).write_text(json.dumps(described))

    @classmethod
    def load(cls, folder: Path) -> LigerResult:
        """Read what :meth:`save` wrote."""
        described = json.loads((folder / _DESCRIPTION).read_text())
        factors = NamedFactors.load(folder)
        numbers = range(len(factors.datasets))
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            return cls(
                factors=factors,
                cells=[arrays[f"cells:{number}"] for number in numbers],
                aligned=[arrays[f"aligned:{number}"] for number in numbers],
                totals=[arrays[f"totals:{number}"] for number in numbers],
                rms=arrays["rms"],
                settings=LigerSettings(**described["settings"]),
                provenance=described["provenance"],
            )


def run_liger(
    datasets: Mapping[str, ad.AnnData | DenseDataset],
    settings: LigerSettings | None = None,
    *,
    genes: Sequence[str] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> LigerResult:
    """Integrate datasets by LIGER.

    Parameters
    ----------
    datasets
        Counts by dataset name; only genes that all of them have are used.
    settings
        All of them are used.
    genes
        Take these genes, as far as all datasets have them, instead of selecting variable ones. Predicted
        means vary less than counts, so genes should be selected from counts and given here.
    device
        Where iNMF is computed.

    Raises
    ------
    NeumfError
        No dataset, no common genes, values that are negative or not finite, ``k`` too large for the data.
    """
    settings = settings or LigerSettings()
    columns, common = _common_genes(datasets, genes)
    begun = time.perf_counter()
    statistics = [gene_statistics(_matrix(data)) for data in datasets.values()]
    if genes is None:
        of_common = [_restricted(one, own) for one, own in zip(statistics, columns, strict=True)]
        chosen = select_genes(of_common, settings)
    else:
        chosen = np.arange(common.size)
    columns = [own[chosen] for own in columns]
    scaled = [
        _scaled(_matrix(data), one, own, settings, device)
        for data, one, own in zip(datasets.values(), statistics, columns, strict=True)
    ]
    prepared = time.perf_counter()
    result = factorise(scaled, settings, device=device, progress=progress)
    factorised = time.perf_counter()
    aligned = align(result.H, settings, list(datasets))
    seconds = {
        "preprocess_seconds": prepared - begun,
        "factorise_seconds": factorised - prepared,
        "align_seconds": time.perf_counter() - factorised,
    }
    return LigerResult(
        factors=NamedFactors(result, tuple(datasets), tuple(map(str, common[chosen]))),
        cells=[np.asarray(data.obs_names, dtype=np.str_) for data in datasets.values()],
        aligned=aligned,
        totals=[one.totals for one in statistics],
        rms=np.array([one.rms[own] for one, own in zip(statistics, columns, strict=True)]),
        settings=settings,
        provenance={**_provenance(statistics, settings, device), **seconds},
    )


def factorise(
    datasets: Sequence[sp.csr_matrix | ScaledMatrix],
    settings: LigerSettings,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> INMFResult:
    """Factorise scaled datasets at once, or in mini-batches where ``settings.online`` says so."""
    if not settings.online:
        return inmf(datasets, settings, device=device, progress=progress)
    batched = [
        in_batches(one, settings.batch_cells, device) if sp.issparse(one) else as_scaled(one, device)
        for one in datasets
    ]
    result = online_inmf(batched, settings, device=device, progress=progress)
    H = [
        _in_order(h, settings.batch_cells) if sp.issparse(one) else h
        for h, one in zip(result.H, datasets, strict=True)
    ]
    return replace(result, H=H)


def _in_order(H: NDArray[np.float32], batch_cells: int) -> NDArray[np.float32]:
    """Put the cells of mini-batches back in the order of the dataset."""
    cells = np.arange(len(H))
    order = np.concatenate([cells[part] for part in batch_order(len(H), batch_cells)])
    restored = np.empty_like(H)
    restored[order] = H
    return restored


def _common_genes(
    datasets: Mapping[str, ad.AnnData | DenseDataset], genes: Sequence[str] | None
) -> tuple[list[NDArray[np.intp]], NDArray[np.str_]]:
    """Return each dataset's columns of the common genes, in the order of the first, and their names."""
    if not datasets:
        raise NeumfError("LIGER needs at least one dataset.")
    names = [np.asarray(data.var_names, dtype=np.str_) for data in datasets.values()]
    positions = [{str(gene): column for column, gene in enumerate(own)} for own in names]
    wanted = names[0] if genes is None else np.asarray(genes, dtype=np.str_)
    common = [str(gene) for gene in wanted if all(str(gene) in own for own in positions)]
    if not common:
        raise NeumfError("The datasets have no gene in common; check that they name genes in the same way.")
    columns = [np.array([own[gene] for gene in common], dtype=np.intp) for own in positions]
    return columns, np.array(common)


def _matrix(data: ad.AnnData | DenseDataset) -> Any:
    return sp.csr_matrix(data.X) if sp.issparse(data.X) else data.X


def _scaled(
    matrix: Any, statistics: GeneStatistics, columns: NDArray[np.intp], settings: LigerSettings, device: str
) -> sp.csr_matrix | ScaledMatrix:
    if sp.issparse(matrix):
        return scale(matrix, statistics, columns)
    return scale_dense(matrix, statistics, columns, block_cells=settings.batch_cells, device=device)


def _restricted(statistics: GeneStatistics, columns: NDArray[np.intp]) -> GeneStatistics:
    return GeneStatistics(
        statistics.totals, statistics.mean[columns], statistics.square[columns], statistics.seen[columns]
    )


def _provenance(
    statistics: Sequence[GeneStatistics], settings: LigerSettings, device: str
) -> dict[str, str | int | float]:
    """Return versions, seed, device, and a hash of the cells' totals and the genes' moments."""
    digest = hashlib.sha256()
    for one in statistics:
        for values in (one.totals, one.mean, one.square):
            digest.update(np.ascontiguousarray(values).tobytes())
    versions = {f"{name}_version": version(name) for name in ("torch", "numpy", "scipy", "neumf-assets")}
    return {**versions, "seed": settings.seed, "device": device, "data_sha256": digest.hexdigest()}
