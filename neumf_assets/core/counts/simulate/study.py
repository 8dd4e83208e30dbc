"""Simulated studies: datasets of labelled cells with known means, at once or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from neumf_assets.core.counts.simulate.cells import BLOCK, draw_block
from neumf_assets.core.counts.simulate.genes import GeneTruth
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.streams import Floats, Ints, settings_hash
from neumf_assets.core.counts.simulate.truth import gene_truth
from neumf_assets.core.errors import BadSettings

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class SimulatedDataset:
    """One simulated dataset, or a chunk of one.

    Attributes
    ----------
    name
        Name of the dataset.
    counts
        Cells × genes, CSR int32; ``obs`` has ``cell_type`` and ``condition``, ``var`` has ``original_name``.
    cell_factors
        ``u``, cells × factors, float64; column order as in ``truth.factor_names``.
    library_size
        Expected total count of each cell.
    truth
        What is true of the genes, shared by all datasets of the study.
    """

    name: str
    counts: AnnData
    cell_factors: Floats
    library_size: Floats
    truth: GeneTruth

    @cached_property
    def means(self) -> npt.NDArray[np.float32]:
        """True mean counts, cells × genes, float32 (computed on first use: this is a dense matrix)."""
        return np.exp(self.cell_factors @ self.truth.factors.T).astype(np.float32)


def simulate_study(settings: SimulatorSettings) -> dict[str, SimulatedDataset]:
    """Simulate all datasets of a study.

    Parameters
    ----------
    settings
        What to simulate.

    Returns
    -------
    Dataset name -> dataset, in the order of the settings.

    Raises
    ------
    BadSettings
        The zero share cannot be reached with the library sizes and number of genes.
    """
    truth = gene_truth(settings)
    return {
        dataset.name: _join_blocks(settings, dataset, truth, 0, dataset.cells)
        for dataset in settings.datasets
    }


def simulate_chunks(settings: SimulatorSettings, chunk_cells: int) -> Iterator[SimulatedDataset]:
    """Simulate a study chunk by chunk, with memory bounded by the chunk.

    The chunks of a dataset joined are the dataset that :func:`simulate_study` gives, whatever the chunk size.

    Parameters
    ----------
    settings
        What to simulate.
    chunk_cells
        Cells per chunk; multiples of 512 draw no cell twice.

    Yields
    ------
    Chunks, dataset after dataset; ``name`` says of which dataset.
    """
    if chunk_cells < 1:
        raise BadSettings(f"chunk_cells must be at least 1, got {chunk_cells}")
    truth = gene_truth(settings)
    for dataset in settings.datasets:
        for start in range(0, dataset.cells, chunk_cells):
            yield _join_blocks(settings, dataset, truth, start, min(start + chunk_cells, dataset.cells))


def _join_blocks(
    settings: SimulatorSettings, dataset: SimulatedDatasetSettings, truth: GeneTruth, start: int, stop: int
) -> SimulatedDataset:
    """Cells ``start`` to ``stop`` of a dataset, cut from the blocks that hold them."""
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    index = settings.datasets.index(dataset)
    types, factors, library, counts = zip(
        *(draw_block(settings, dataset, truth, index, block) for block in blocks), strict=True
    )
    cut = slice(start - blocks.start * BLOCK, stop - blocks.start * BLOCK)
    stacked = sparse.vstack(counts, format="csr")[cut]
    return SimulatedDataset(
        name=dataset.name,
        counts=_as_anndata(settings, dataset, truth, index, start, np.concatenate(types)[cut], stacked),
        cell_factors=np.concatenate(factors)[cut],
        library_size=np.concatenate(library)[cut],
        truth=truth,
    )


def _as_anndata(
    settings: SimulatorSettings,
    dataset: SimulatedDatasetSettings,
    truth: GeneTruth,
    index: int,
    start: int,
    types: Ints,
    counts: sparse.csr_matrix,
) -> AnnData:
    import pandas as pd
    from anndata import AnnData
    from anndata.utils import make_index_unique

    barcodes = _barcodes(settings.seed, index, start, len(types))
    names = list(settings.cell_types)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(names)[types], categories=names),
            "condition": pd.Categorical([dataset.condition] * len(types)),
        },
        index=[f"{barcode}-1_{dataset.name}" for barcode in barcodes],
    )
    var = pd.DataFrame(
        {"original_name": list(truth.symbols)}, index=make_index_unique(pd.Index(truth.symbols))
    )
    adata = AnnData(counts, obs=obs, var=var)
    adata.uns["provenance"] = {
        "source": "simulated",
        "dataset": dataset.name,
        "seed": settings.seed,
        "settings_sha256": settings_hash(settings),
    }
    return adata


def _barcodes(seed: int, dataset: int, start: int, count: int) -> list[str]:
    """Distinct 16-mers: a bijection of the 32-bit integers, so none can repeat within a dataset."""
    mask = np.uint64(0xFFFFFFFF)
    code = np.arange(start, start + count, dtype=np.uint64)
    code = (code + np.uint64((0x2545F491 + seed * 40503 + dataset * 0x9E3779B1) & 0xFFFFFFFF)) & mask
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # the multipliers of MurmurHash3's finaliser
        code ^= code >> np.uint64(16)
        code = (code * np.uint64(factor)) & mask
    code ^= code >> np.uint64(15)
    shifts = np.arange(0, 32, 2, dtype=np.uint64)
    letters = np.frombuffer(b"ACGT", dtype="S1")[(code[:, None] >> shifts & np.uint64(3)).astype(np.int64)]
    return [row.tobytes().decode() for row in letters]
