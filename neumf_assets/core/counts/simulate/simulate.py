"""Droplet count data with known truth: means, factors and labels.

The mean count of gene g in cell c is the exponential of a product of factors, ``mu_cg = exp(u_c . v_g)``,
and the count is negative binomial with ``var = mu + mu^2 / theta_g``. The columns of ``u`` and ``v`` have
names: the cell's library size, the genes' abundance, marker programs (shared by related types, or of one
type), the response to stimulation (common, and specific to types), the dataset's batch effect, programs of
gradually varying activity, and the mitochondrial share. Log means being of low rank, the truth is what a
factorisation of counts should find.

Cells are drawn in blocks with seeds of their own, so a study can be streamed in chunks of any size and gives
the same cells as when it is drawn whole.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import brentq

from neumf_assets.core import memory
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.symbols import (
    INTERFERON,
    MARKERS,
    MITOCHONDRIAL,
    RIBOSOMAL,
    family_symbols,
)
from neumf_assets.core.errors import BadInput, BadSettings

if TYPE_CHECKING:
    from anndata import AnnData

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 512  # cells per seed; changing it changes the data that a seed stands for
_PILOT_CELLS = 320  # cells on which the zero share is tuned
_LN2 = float(np.log(2.0))
_GENES, _PILOT, _DATASET, _CELLS = range(4)  # what a stream of random numbers is for
_TEXT_BYTES = 16  # for each count, zeros too: dense, as a table, as text, and compressed
MANIFEST = ".simulated.json"


@dataclass(frozen=True)
class GeneTruth:
    """What is true of the genes of a simulated study.

    Attributes
    ----------
    symbols
        Gene symbols, genes; one occurs twice.
    factors
        Natural-log effects ``v``, genes × factors, float64.
    factor_names
        Names of the factors: ``library``, ``abundance``, ``program: NAME``, ``response``,
        ``response in TYPE``, ``batch DATASET``, ``variable N``, ``mitochondrial``.
    markers
        Program or type -> positions of its marker genes.
    response_genes
        Positions of the genes that every stimulated cell raises.
    specific_response_genes
        Type -> positions of the genes that stimulated cells of this type, and not all types, raise.
    response_scale
        Type -> how strongly it answers (1: as set).
    theta
        Negative-binomial size per gene: ``var = mu + mu^2 / theta``.
    """

    symbols: tuple[str, ...]
    factors: Floats
    factor_names: tuple[str, ...]
    markers: dict[str, Ints]
    response_genes: Ints
    specific_response_genes: dict[str, Ints]
    response_scale: dict[str, float]
    theta: Floats

    def effect(self, name: str) -> Floats:
        """Natural-log effect of the factor ``name`` on each gene."""
        return self.factors[:, self.factor_names.index(name)]


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


def negative_binomial(rng: np.random.Generator, mean: Floats, theta: Floats) -> sparse.csr_matrix:
    """Draw sparse negative-binomial counts.

    Most entries are zero, which one uniform number decides; the others are found by inverting the
    distribution function step by step, and where the mean is large by a gamma-Poisson mixture. This is exact.

    Parameters
    ----------
    rng
        Source of random numbers.
    mean
        Cells × genes, positive.
    theta
        Size per gene, ``var = mean + mean^2 / theta``.

    Returns
    -------
    Cells × genes, CSR int32, sorted indices.
    """
    uniform = rng.random(mean.shape)
    zero = np.exp(-theta * np.log1p(mean / theta))
    large = mean > 20.0
    cells, genes = np.nonzero((uniform > zero) | large)
    mu, size, is_large = mean[cells, genes], theta[genes], large[cells, genes]
    counts = np.zeros(len(cells), dtype=np.int32)
    counts[is_large] = rng.poisson(rng.gamma(size[is_large], mu[is_large] / size[is_large]))
    small = ~is_large
    counts[small] = _invert(uniform[cells, genes][small], mu[small], size[small])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=mean.shape[0]))])
    drawn = sparse.csr_matrix((counts, genes.astype(np.int32), indptr), shape=mean.shape)
    drawn.eliminate_zeros()  # a large mean can give a zero as well
    return drawn


def _invert(uniform: Floats, mean: Floats, theta: Floats) -> npt.NDArray[np.int32]:
    """Smallest k whose distribution function is at least ``uniform``, given that it isn't 0."""
    counts = np.zeros(len(uniform), dtype=np.int32)
    odds = mean / (mean + theta)
    probability = np.exp(-theta * np.log1p(mean / theta))
    cumulative = probability.copy()
    open_ = np.arange(len(uniform))
    k = 0
    while len(open_):
        k += 1
        probability *= (k - 1 + theta) / k * odds
        cumulative += probability
        counts[open_] = k
        # the second condition ends the search where rounding keeps the sum below 1
        on = (uniform > cumulative) & (probability > 1e-17)
        open_, uniform, theta, odds = open_[on], uniform[on], theta[on], odds[on]
        probability, cumulative = probability[on], cumulative[on]
    return counts


# --- genes ------------------------------------------------------------------------------------------


def gene_truth(settings: SimulatorSettings) -> GeneTruth:
    """Draw everything about the genes of a study: symbols, effects, dispersion.

    Raises
    ------
    BadSettings
        The zero share cannot be reached with the library sizes and number of genes.
    """
    rng = _stream(settings, _GENES)
    n, roles = settings.genes, _assign_roles(rng, settings)
    symbols = _name_genes(rng, n, roles)
    effects = _effects(rng, settings, roles)
    order = rng.permutation(n)  # so that the first genes are like any others
    position = np.argsort(order)
    scales = rng.uniform(0.7, 1.3, len(settings.cell_types))
    truth = GeneTruth(
        symbols=tuple(symbols[i] for i in order),
        factors=np.stack(list(effects.values()), axis=1)[order],
        factor_names=tuple(effects),
        markers={name: np.sort(position[chosen]) for name, chosen in roles.markers.items()},
        response_genes=np.sort(position[roles.response]),
        specific_response_genes={t: np.sort(position[own]) for t, own in roles.specific_response.items()},
        response_scale=dict(zip(settings.cell_types, scales.tolist(), strict=True)),
        theta=np.exp(rng.normal(-np.log(settings.dispersion), settings.dispersion_log_sd, n)),
    )
    _tune_abundance(settings, truth)
    return truth


@dataclass(frozen=True)
class _Roles:
    """Which genes do what, before they are shuffled."""

    mito: Ints
    ribo: Ints
    markers: dict[str, Ints]
    response: Ints
    specific_response: dict[str, Ints]

    @property
    def specific(self) -> Ints:
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self.specific_response.values()]))


def _assign_roles(rng: np.random.Generator, settings: SimulatorSettings) -> _Roles:
    genes, n = np.arange(settings.genes), settings.genes
    mito, ribo = genes[: min(len(MITOCHONDRIAL), n // 50)], genes[-min(len(RIBOSOMAL), n // 50) :]
    middle = iter(rng.permutation(genes[len(mito) : n - len(ribo)]))
    markers = {p: _take(middle, settings.markers_per_program) for p in settings.programs}
    specific = round(settings.response_genes * settings.response_specific_share)
    response = _take(middle, settings.response_genes - specific)
    return _Roles(
        mito, ribo, markers, response, _assign_specific_response(rng, settings, _take(middle, specific))
    )


def _effects(rng: np.random.Generator, settings: SimulatorSettings, roles: _Roles) -> dict[str, Floats]:
    """Natural-log effect of each factor on each gene."""
    n = settings.genes
    effects = {"library": np.ones(n), "abundance": _abundance_ranks(rng, n, roles)}
    for program, chosen in roles.markers.items():
        effects[f"program: {program}"] = _fold_changes(rng, n, chosen, settings.marker_strength)
    effects["response"] = _fold_changes(rng, n, roles.response, settings.response_strength)
    for cell_type, chosen in roles.specific_response.items():
        effects[f"response in {cell_type}"] = _fold_changes(rng, n, chosen, settings.response_strength)
    for dataset in settings.datasets:
        effects[f"batch {dataset.name}"] = rng.normal(0.0, settings.batch_strength * _LN2, n)
    for number in range(settings.variable_programs):
        touched = rng.random(n) < 0.1
        effects[f"variable {number + 1}"] = touched * rng.normal(0.0, settings.variable_strength * _LN2, n)
    effects["mitochondrial"] = np.isin(np.arange(n), roles.mito).astype(np.float64)
    return effects


def _take(genes: Iterator[np.int64], count: int) -> Ints:
    return np.array([next(genes) for _ in range(count)], dtype=np.int64)


def _assign_specific_response(
    rng: np.random.Generator, settings: SimulatorSettings, chosen: Ints
) -> dict[str, Ints]:
    """Each gene responds in up to a third of the types, so that neighbours differ in their answer."""
    types = list(settings.cell_types)
    most = max(1, len(types) // 3)
    member = np.zeros((len(chosen), len(types)), dtype=bool)
    for row in member:
        row[rng.choice(len(types), size=rng.integers(1, most + 1), replace=False)] = True
    return {cell_type: chosen[member[:, t]] for t, cell_type in enumerate(types)}


def _name_genes(rng: np.random.Generator, n: int, roles: _Roles) -> list[str]:
    """Symbols by role; the two last unnamed genes share one symbol, as MATR3 does in 10x references."""
    named: dict[int, str] = {}
    known = [(roles.mito, MITOCHONDRIAL), (roles.ribo, RIBOSOMAL)]
    known += [(chosen, MARKERS.get(program, ())) for program, chosen in roles.markers.items()]
    known.append((np.concatenate([roles.response, roles.specific]), INTERFERON))
    for chosen, symbols in known:
        named.update(zip(chosen.tolist(), symbols, strict=False))
    rest = [gene for gene in range(n) if gene not in named]
    named.update(zip(rest, family_symbols(rng, len(rest), set(named.values())), strict=True))
    named[rest[-2]] = named[rest[-1]] = "MATR3"
    return [named[gene] for gene in range(n)]


def _abundance_ranks(rng: np.random.Generator, n: int, roles: _Roles) -> Floats:
    """Standardised log abundance: a bell of all genes, in which roles have their place.

    Ribosomal and mitochondrial genes are abundant; markers and response genes are common enough to be seen
    once they are raised.
    """
    # no gene may take most of the library, none be never seen
    abundance = np.clip(rng.normal(size=n), -1.0, 2.6)
    abundance[roles.ribo] = rng.normal(1.4, 0.3, len(roles.ribo))
    abundance[roles.mito] = rng.normal(1.4, 0.3, len(roles.mito))
    raised = np.unique(np.concatenate([*roles.markers.values(), roles.response, roles.specific]))
    abundance[raised] = rng.normal(0.7, 0.5, len(raised))
    return abundance


def _fold_changes(rng: np.random.Generator, n: int, chosen: Ints, mean_log2: float) -> Floats:
    """Natural-log effects: ``chosen`` genes around ``mean_log2``, never negative, their mean exactly that."""
    effect = np.zeros(n)
    if len(chosen):
        drawn = np.clip(rng.normal(1.0, 0.25, len(chosen)), 0.2, None)
        effect[chosen] = drawn / drawn.mean() * mean_log2 * _LN2
    return effect


def _tune_abundance(settings: SimulatorSettings, truth: GeneTruth) -> None:
    """Scale the spread of the abundances, in place, until the expected share of zeros is the target.

    The more a few genes take of the library, the more zeros. All datasets count, weighted by their cells.
    """
    cells_of = np.array([d.cells for d in settings.datasets], dtype=np.float64)
    pilots = []
    for index, dataset in enumerate(settings.datasets):
        rng = _stream(settings, _PILOT, index)
        few = max(40, _PILOT_CELLS // len(settings.datasets))
        pilots.append(_draw_cells(rng, settings, dataset, truth, few)[1:])
    column = truth.factor_names.index("abundance")
    standard = truth.factors[:, column].copy()

    def zero_share(spread: float) -> float:
        truth.factors[:, column] = spread * standard
        shares = []
        for factors, library in pilots:
            mean = np.exp(_with_library(factors, library, truth) @ truth.factors.T)
            shares.append(np.exp(-truth.theta * np.log1p(mean / truth.theta)).mean())
        return float(np.average(shares, weights=cells_of))

    least, most = zero_share(0.0), zero_share(6.0)
    if not least <= settings.target_zero_share <= most:
        raise BadSettings(
            f"target_zero_share = {settings.target_zero_share} cannot be reached with {settings.genes} "
            f"genes and these library sizes: between {least:.3f} and {most:.3f} can; change library_mean "
            "or genes"
        )
    zero_share(brentq(lambda spread: zero_share(spread) - settings.target_zero_share, 0.0, 6.0, xtol=1e-4))


# --- cells ------------------------------------------------------------------------------------------


def _join_blocks(
    settings: SimulatorSettings, dataset: SimulatedDatasetSettings, truth: GeneTruth, start: int, stop: int
) -> SimulatedDataset:
    """Cells ``start`` to ``stop`` of a dataset, cut from the blocks that hold them."""
    blocks = range(start // _BLOCK, -(-stop // _BLOCK))
    index = settings.datasets.index(dataset)
    types, factors, library, counts = zip(
        *(_draw_block(settings, dataset, truth, index, block) for block in blocks), strict=True
    )
    cut = slice(start - blocks.start * _BLOCK, stop - blocks.start * _BLOCK)
    stacked = sparse.vstack(counts, format="csr")[cut]
    return SimulatedDataset(
        name=dataset.name,
        counts=_as_anndata(settings, dataset, truth, index, start, np.concatenate(types)[cut], stacked),
        cell_factors=np.concatenate(factors)[cut],
        library_size=np.concatenate(library)[cut],
        truth=truth,
    )


def _draw_block(
    settings: SimulatorSettings,
    dataset: SimulatedDatasetSettings,
    truth: GeneTruth,
    index: int,
    block: int,
) -> tuple[Ints, Floats, Floats, sparse.csr_matrix]:
    rng = _stream(settings, _CELLS, index, block)
    cells = min(_BLOCK, dataset.cells - block * _BLOCK)
    types, factors, library = _draw_cells(rng, settings, dataset, truth, cells)
    factors = _with_library(factors, library, truth)
    return types, factors, library, negative_binomial(rng, np.exp(factors @ truth.factors.T), truth.theta)


def _draw_cells(
    rng: np.random.Generator,
    settings: SimulatorSettings,
    dataset: SimulatedDatasetSettings,
    truth: GeneTruth,
    cells: int,
) -> tuple[Ints, Floats, Floats]:
    """Types, factors (without the library column) and library sizes of ``cells`` new cells."""
    names = list(settings.cell_types)
    types = rng.choice(len(names), size=cells, p=_composition(settings, dataset))
    factors = np.zeros((cells, len(truth.factor_names)))
    column = {name: i for i, name in enumerate(truth.factor_names)}
    factors[:, column["abundance"]] = 1.0
    factors[:, column[f"batch {dataset.name}"]] = 1.0
    factors[:, column["mitochondrial"]] = rng.normal(0.0, 0.4, cells)
    for number in range(settings.variable_programs):
        factors[:, column[f"variable {number + 1}"]] = rng.normal(size=cells)
    for code, name in enumerate(names):
        own = types == code
        for program in (name, *settings.cell_types[name]):
            factors[own, column[f"program: {program}"]] = 1.0
        if dataset.condition == "stimulated":
            factors[own, column["response"]] = truth.response_scale[name]
            factors[own, column[f"response in {name}"]] = 1.0
    sd = dataset.library_log_sd
    library = dataset.library_mean * np.exp(rng.normal(-0.5 * sd**2, sd, cells))
    return types, factors, library


def _with_library(factors: Floats, library: Floats, truth: GeneTruth) -> Floats:
    """Set the library column so that each cell's means sum to its library size."""
    column = truth.factor_names.index("library")
    filled = factors.copy()
    filled[:, column] = 0.0
    totals = np.exp(filled @ truth.factors.T).sum(axis=1)
    filled[:, column] = np.log(library / totals)
    return filled


def _composition(settings: SimulatorSettings, dataset: SimulatedDatasetSettings) -> Floats:
    """Shares of the cell types in a dataset: falling with the rank, a little different in each."""
    rng = _stream(settings, _DATASET, settings.datasets.index(dataset))
    expected = 1.0 / (2.0 + np.arange(len(settings.cell_types)))
    shares = rng.dirichlet(expected / expected.sum() * settings.composition_concentration)
    shares[[name in dataset.missing_types for name in settings.cell_types]] = 0.0
    return shares / shares.sum()


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
        "settings_sha256": _hash(settings),
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


def _stream(settings: SimulatorSettings, *purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=purpose))


# --- files ------------------------------------------------------------------------------------------


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
    if written.get("settings_sha256") == _hash(settings) and all(
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
        "settings_sha256": _hash(settings),
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
    table = pl.from_numpy(adata.X.toarray().T, schema=list(adata.obs_names))
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


def _hash(settings: SimulatorSettings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
