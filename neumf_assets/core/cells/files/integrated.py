"""The integrated result as one AnnData, and its exports."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neumf_assets.core.cells.clustering import leiden_run
from neumf_assets.core.cells.settings import IntegratedSettings
from neumf_assets.core.counts.store import SparseWriter, text_that_all_read
from neumf_assets.core.counts.stored import BLOCK_CELLS, SomeCells
from neumf_assets.core.errors import NeumfError

COMPRESSION = "gzip"


@dataclass(frozen=True)
class ArmResult:
    """What one arm contributes; its rows are the cells of all datasets, dataset after dataset.

    Parameters
    ----------
    embedding
        Cells × dimensions, aligned.
    clusters
        Columns of ``cluster_cells``.
    umap, tsne
        Cells × 2.
    loadings
        By name (``W``, ``V_ctrl``, …), genes × factors, indexed by gene.
    """

    embedding: np.ndarray
    clusters: pd.DataFrame
    umap: np.ndarray | None = None
    tsne: np.ndarray | None = None
    loadings: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def describe_integrated(
    counts: Mapping[str, ad.AnnData] | Mapping[str, SomeCells],
    arms: Mapping[str, ArmResult],
    *,
    best_arm: str | None = None,
    measured: Mapping[str, Collection[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    cells: pd.DataFrame | None = None,
    settings: IntegratedSettings | None = None,
) -> ad.AnnData:
    """Put what is known of all datasets' cells and genes, and the results of all arms, into one AnnData.

    It has all but the matrices, which :func:`build_integrated` and :func:`write_integrated` add.

    **Genes.** A gene that a dataset did not measure has no count there, and a zero would claim one. By
    default only genes that every dataset measured are kept. With ``genes="union"`` all are kept, unmeasured
    ones hold zeros, and ``var["measured_in_NAME"]`` marks them. Genes that quality control dropped from one
    dataset, because no cell showed them, were measured: pass ``measured`` so that they stay.

    **Layout.** ``X`` is log(1 + counts per ``target_sum``), ``layers["counts"]`` the raw counts;
    ``obs["dataset"]``, ``obs["cell"]`` (the name in its dataset) and the labels; ``obsm["X_<arm>"]``,
    ``obsm["X_umap_<arm>"]``, and ``obsm["X_umap"]`` of the best arm; ``obs["<arm>_leiden"]`` and so on, and
    ``obs["leiden"]`` of the best arm; ``varm["<arm>_<loading>"]``, NaN for genes the arm did not use;
    ``uns["neumf"]`` provenance. Cell names that occur in several datasets end in ``_NAME``.

    Parameters
    ----------
    counts
        By dataset: cells × genes counts after quality control, in the order of the arms' rows.
    best_arm
        Whose UMAP and clusters are the main ones; the first arm by default.
    measured
        By dataset: names of all genes it measured; by default those of its counts.
    cells
        More columns for ``obs``, in the order of the cells.

    Raises
    ------
    NeumfError
        An arm's rows do not fit the cells, or no gene was measured in every dataset.
    """
    settings = settings or IntegratedSettings()
    given = measured or {}
    known = {name: set(given.get(name, ())) | set(data.var_names) for name, data in counts.items()}
    genes = _genes(counts, known, settings)
    result = ad.AnnData(obs=_obs(counts), var=_var(counts, known, genes, settings))
    # scanpy looks here to learn that X is logarithmic
    result.uns["log1p"] = {}
    result.uns["neumf"] = storable({**(provenance or {}), "arms": list(arms), "genes": settings.genes})
    for column, values in ({} if cells is None else cells).items():
        result.obs[_free(result, str(column))] = _for_obs(values)
    for name, arm in arms.items():
        _add_arm(result, name, arm)
    if arms:
        _add_main(result, best_arm or next(iter(arms)), arms)
    return result


def build_integrated(
    counts: Mapping[str, ad.AnnData],
    arms: Mapping[str, ArmResult],
    *,
    settings: IntegratedSettings | None = None,
    **described: Any,
) -> ad.AnnData:
    """Put the counts of all datasets and the results of all arms into one AnnData in memory.

    Parameters
    ----------
    counts, arms, settings, described
        As :func:`describe_integrated`.
    """
    settings = settings or IntegratedSettings()
    result = describe_integrated(counts, arms, settings=settings, **described)
    moved = [_to_genes(sp.csr_matrix(data.X), data.var_names, result.var_names) for data in counts.values()]
    stacked = sp.vstack(moved, format="csr")
    result.X, result.layers["counts"] = _log_normalised(stacked, settings.target_sum), stacked
    return result


def write_integrated(
    described: ad.AnnData,
    counts: Mapping[str, SomeCells],
    path: Path,
    settings: IntegratedSettings | None = None,
) -> None:
    """Write what :func:`describe_integrated` gives, with the matrices, which are read and written in parts.

    The file holds what that of :func:`build_integrated` holds.

    Parameters
    ----------
    counts
        Those that were described.
    path
        The h5ad file.
    """
    target_sum = (settings or IntegratedSettings()).target_sum
    described.strings_to_categoricals()
    kind = np.result_type(*(data.dtype for data in counts.values()))
    with h5py.File(path, "w") as file:
        with text_that_all_read():
            _write_described(described, file)
        file.pop("raw", None)  # an AnnData without one is written with an empty one
        X = SparseWriter(file.create_group("X"), np.dtype(np.float32), COMPRESSION)
        layer = SparseWriter(file.create_group("layers/counts"), kind, COMPRESSION)
        for data, start, stop in _parts(counts):
            rows = _to_genes(data.rows(start, stop), data.var_names, described.var_names)
            layer.add(rows)
            X.add(_log_normalised(rows, target_sum))
        for matrix in (X, layer):
            matrix.finish(described.n_vars)


def _write_described(described: ad.AnnData, file: h5py.File) -> None:
    """Write all but the matrices, with the embeddings one after the other: each may be a file that is mapped."""
    others = {"obs": described.obs, "var": described.var, "uns": described.uns, "varm": described.varm}
    options = {"compression": COMPRESSION}
    ad.io.write_elem(file, "/", ad.AnnData(**others), dataset_kwargs=options)
    for key, array in described.obsm.items():
        ad.io.write_elem(file["obsm"], key, array, dataset_kwargs=options)
        _let_go(array)


def _let_go(array: Any) -> None:
    """Give back the memory of a mapped file's pages; they would be read anew where they are needed again."""
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def _parts(counts: Mapping[str, SomeCells]) -> Iterator[tuple[SomeCells, int, int]]:
    for data in counts.values():
        for start in range(0, data.shape[0], BLOCK_CELLS):
            yield data, start, min(start + BLOCK_CELLS, data.shape[0])


def storable(value: Any) -> Any:
    """Turn nested provenance into what HDF5 can hold: None is left out, other unknown things become text."""
    if isinstance(value, Mapping):
        return {str(k).replace("/", "|"): storable(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple, set)):
        items = [storable(item) for item in value if item is not None]
        if all(isinstance(item, (bool, int, float)) for item in items):
            return np.asarray(items)
        return np.asarray([str(item) for item in items], dtype=object)
    if isinstance(value, (bool, int, float, str, np.ndarray, np.generic)):
        return value
    return str(value)


def _genes(
    counts: Mapping[str, ad.AnnData] | Mapping[str, SomeCells],
    measured: Mapping[str, set[str]],
    settings: IntegratedSettings,
) -> pd.Index:
    """List the genes to keep, in the order in which the datasets name them."""
    seen = dict.fromkeys(gene for data in counts.values() for gene in data.var_names)
    if settings.genes == "shared":
        seen = {gene: None for gene in seen if all(gene in genes for genes in measured.values())}
    if not seen:
        raise NeumfError(
            f"No gene was measured in all of {', '.join(counts)}: check that they use the same gene names."
        )
    return pd.Index(list(seen), name="gene")


def _to_genes(matrix: sp.csr_matrix, names: pd.Index, genes: pd.Index) -> sp.csr_matrix:
    target = genes.get_indexer(names)
    source = np.flatnonzero(target >= 0)
    ones = np.ones(len(source), dtype=matrix.dtype)
    select = sp.csr_matrix((ones, (source, target[source])), shape=(len(names), len(genes)))
    moved = (matrix @ select).tocsr()
    moved.sort_indices()
    return moved


def _log_normalised(counts: sp.csr_matrix, target_sum: float) -> sp.csr_matrix:
    totals = np.asarray(counts.sum(axis=1)).ravel()
    factors = target_sum / np.where(totals > 0, totals, 1)
    values = counts.astype(np.float32)
    values.data = np.log1p(values.data * np.repeat(factors, np.diff(counts.indptr))).astype(np.float32)
    return values


def _obs(counts: Mapping[str, ad.AnnData] | Mapping[str, SomeCells]) -> pd.DataFrame:
    reserved = {"dataset", "cell"}
    parts = [
        data.obs.rename(columns={c: f"{c}_original" for c in data.obs.columns if c in reserved}).assign(
            dataset=name, cell=data.obs_names.to_numpy()
        )
        for name, data in counts.items()
    ]
    # through object columns: categories differ between datasets, and a column may be missing from some
    table = pd.concat([part.astype(_plain(part)) for part in parts], ignore_index=True)
    for column in table.columns.drop("cell"):
        if table[column].dtype == object or isinstance(table[column].dtype, pd.StringDtype):
            table[column] = (
                table[column].where(table[column].isna(), table[column].astype(str)).astype("category")
            )
    table["dataset"] = pd.Categorical(table["dataset"], categories=list(counts))
    table.index = pd.Index(_unique_names(table))
    return table


def _plain(table: pd.DataFrame) -> dict[str, str]:
    return {str(c): "object" for c in table.columns if isinstance(table[c].dtype, pd.CategoricalDtype)}


def _unique_names(table: pd.DataFrame) -> list[str]:
    cells = table["cell"].astype(str)
    collides = cells.duplicated(keep=False)
    names = cells.to_numpy(object, copy=True)
    names[collides] = cells[collides] + "_" + table.loc[collides, "dataset"].astype(str)
    return list(ad.utils.make_index_unique(pd.Index(names)))


def _var(
    counts: Mapping[str, ad.AnnData] | Mapping[str, SomeCells],
    measured: Mapping[str, set[str]],
    genes: pd.Index,
    settings: IntegratedSettings,
) -> pd.DataFrame:
    original: dict[str, str] = {}
    for data in counts.values():
        names = data.var.get("original_name", pd.Series(data.var_names, index=data.var_names))
        original = {**dict(zip(data.var_names, names.astype(str), strict=True)), **original}
    table = pd.DataFrame({"original_name": [original[gene] for gene in genes]}, index=genes)
    for column in ("gene_id", "gene_symbol"):
        identity: dict[str, str] = {}
        for data in counts.values():
            if column in data.var:
                told = zip(data.var_names, data.var[column].astype(str), strict=True)
                identity = {**{gene: text for gene, text in told if text}, **identity}
        if identity:
            table[column] = [identity.get(str(gene), "") for gene in genes]
    if settings.genes == "union":
        for name, known in measured.items():
            table[f"measured_in_{name}"] = [gene in known for gene in genes]
    return table


def _for_obs(values: pd.Series) -> Any:
    """The values of a column of ours: numbers as they are, text as categories."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(np.float32)
    return pd.Categorical(values.astype(object))


def _add_arm(result: ad.AnnData, name: str, arm: ArmResult) -> None:
    arrays = {f"X_{name}": arm.embedding, f"X_umap_{name}": arm.umap, f"X_tsne_{name}": arm.tsne}
    for key, array in arrays.items():
        if array is not None:
            result.obsm[key] = _rows(result, name, np.asarray(array, dtype=np.float32))
    for column in arm.clusters:
        if leiden_run(str(column)) is None:
            codes = _rows(result, name, np.asarray(arm.clusters[column], dtype=object))
            result.obs[_free(result, f"{name}_{column}")] = pd.Categorical(codes)
    for key, loadings in arm.loadings.items():
        result.varm[f"{name}_{key}"] = loadings.reindex(result.var_names).to_numpy(dtype=np.float32)


def _add_main(result: ad.AnnData, best: str, arms: Mapping[str, ArmResult]) -> None:
    if best not in arms:
        raise NeumfError(f"The best arm {best!r} is not among the arms {', '.join(arms)}.")
    result.uns["neumf"]["main_arm"] = best
    if arms[best].umap is not None:
        result.obsm["X_umap"] = result.obsm[f"X_umap_{best}"].copy()
    if "leiden" in arms[best].clusters:
        codes = np.asarray(arms[best].clusters["leiden"], dtype=object)
        result.obs[_free(result, "leiden")] = pd.Categorical(codes)


def _free(result: ad.AnnData, name: str) -> str:
    """A name for a column of ours: with a prefix where the user has one of that name."""
    while name in result.obs:
        name = f"neumf_{name}"
    return name


def _rows(result: ad.AnnData, arm: str, array: np.ndarray) -> np.ndarray:
    if len(array) != result.n_obs:
        raise NeumfError(f"Arm {arm} has {len(array)} cells, the datasets have {result.n_obs}.")
    return array
