"""`neumf_assets.tl`: models, embeddings, labels and comparisons of the cells of an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.progress import Progress, silent
from neumf_assets.scverse.counts import codes_of, column_of, counts_of

if TYPE_CHECKING:
    import anndata as ad

    from neumf_assets.core.annotation.transfer import LabelTransfer
    from neumf_assets.core.conditions.differential import Differences
    from neumf_assets.core.conditions.samples import CellGroups
    from neumf_assets.core.conditions.settings import ConditionSettings
    from neumf_assets.core.liger.chain import LigerResult
    from neumf_assets.core.neumf.model import NeuMFModel

Method = Literal["neumf", "liger", "harmony", "pca"]
_GENES = 2000


def integrate(
    data: ad.AnnData,
    batch_key: str,
    *,
    method: Method = "neumf",
    key_added: str | None = None,
    **options: Any,
) -> None:
    """Put the cells of all batches into one space, ``obsm["X_<method>"]``.

    Parameters
    ----------
    data
        Cells × genes with raw counts, in ``layers["counts"]`` or ``X``.
    batch_key
        Column of ``obs`` with each cell's batch.
    method
        ``neumf`` (the integrative NeuMF), ``liger``, ``harmony`` (on principal components) or ``pca``, which aligns
        nothing: what integration has to beat.
    key_added
        Name in ``obsm``.
    options
        As the function of that method takes them (:func:`neumf`, :func:`liger`, :func:`components`).
    """
    key = key_added or f"X_{method}"
    if method == "neumf":
        neumf(data, batch_key=batch_key, key_added=key, **options)
    elif method == "liger":
        liger(data, batch_key, key_added=key, **options)
    elif method in ("harmony", "pca"):
        components(data, batch_key=batch_key if method == "harmony" else None, key_added=key, **options)
    else:
        raise NeumfError(f"There is no method {method!r}: neumf, liger, harmony or pca.")


def neumf(
    data: ad.AnnData,
    *,
    batch_key: str | None = None,
    layer: str | None = None,
    key_added: str = "X_neumf",
    align: bool = True,
    device: str = "cpu",
    progress: Progress = silent,
    **settings: Any,
) -> NeuMFModel:
    """Train a NeuMF on all cells, and put each cell's place in its space into ``obsm[key_added]``.

    With a batch key the model is integrative: gene biases belong to the batch, and cells of one kind are brought
    together as far as they keep their neighbours.

    Parameters
    ----------
    settings
        As a study's section ``ineumf`` (``epochs``, ``n_genes``, ``gmf_size``, ``seed``, …).

    Returns
    -------
    NeuMFModel
        To predict, to map other cells onto, to save. ``uns["neumf"]`` keeps its settings.
    """
    from neumf_assets.core.cells.align import harmony_align
    from neumf_assets.core.neumf.common_space import common_space
    from neumf_assets.core.neumf.settings import NeuMFSettings, ineumf_defaults
    from neumf_assets.core.neumf.training.fit import fit

    counts, (codes, names) = counts_of(data, layer), codes_of(data, batch_key)
    chosen = NeuMFSettings.model_validate(ineumf_defaults().model_dump(exclude_unset=True) | settings)
    model = fit(
        counts.astype(np.float32),
        chosen,
        gene_names=data.var_names.to_numpy(str),
        cell_names=data.obs_names.to_numpy(str),
        dataset=codes,
        dataset_names=names,
        device=device,
        progress=progress,
    )
    points, passes = common_space(model), 0
    if align and len(names) > 1:
        found = harmony_align(points, codes)
        points, passes = found.embedding, found.passes
    data.obsm[key_added] = points
    data.uns["neumf"] = {
        "settings": chosen.model_dump_json(),
        "batch_key": batch_key or "",
        "alignment_passes": passes,
    }
    return model


def liger(
    data: ad.AnnData,
    batch_key: str,
    *,
    layer: str | None = None,
    key_added: str = "X_liger",
    device: str = "cpu",
    progress: Progress = silent,
    **settings: Any,
) -> LigerResult:
    """Integrate batches by LIGER; aligned loadings go to ``obsm[key_added]``, shared genes to ``varm["liger_W"]``.

    Parameters
    ----------
    settings
        As a study's section ``liger`` (``k``, ``lam``, ``n_genes``, ``seed``, …).

    Returns
    -------
    LigerResult
        The factors of each batch.
    """
    import anndata as ad

    from neumf_assets.core.liger.chain import run_liger
    from neumf_assets.core.liger.settings import LigerSettings

    counts, (codes, names) = counts_of(data, layer), codes_of(data, batch_key)
    parts = {
        name: ad.AnnData(counts[codes == code], obs=data.obs[[]][codes == code], var=data.var[[]])
        for code, name in enumerate(names)
    }
    chosen = LigerSettings.model_validate({"n_genes": _GENES} | settings)
    result = run_liger(parts, chosen, device=device, progress=progress)
    embedding = np.empty((data.n_obs, result.embedding.shape[1]), dtype=np.float32)
    embedding[np.argsort(codes, kind="stable")] = result.embedding
    data.obsm[key_added] = embedding
    shared = pd.DataFrame(result.factors.result.W.T, index=list(result.factors.genes))
    data.varm["liger_W"] = shared.reindex(data.var_names).to_numpy(np.float32)
    return result


def components(
    data: ad.AnnData,
    *,
    batch_key: str | None = None,
    layer: str | None = None,
    key_added: str = "X_pca",
    n_components: int = 30,
    n_genes: int = _GENES,
) -> None:
    """Principal components of log-normalised counts in ``obsm[key_added]``; with a batch key Harmony on them."""
    from neumf_assets.core.cells.align import harmony_align
    from neumf_assets.core.cells.components import principal_components
    from neumf_assets.core.cells.settings import harmony_defaults
    from neumf_assets.core.counts.stored import CountsInMemory
    from neumf_assets.core.neumf.genes import select_genes

    counts, (codes, names) = counts_of(data, layer), codes_of(data, batch_key)
    genes = select_genes(counts, codes, n_genes)
    points = principal_components(
        CountsInMemory(counts, data.var_names), [str(name) for name in data.var_names], genes, n_components
    ).embedding
    if len(names) > 1:
        points = harmony_align(points, codes, harmony_defaults()).embedding
    data.obsm[key_added] = points


def transfer(
    data: ad.AnnData,
    labels: str,
    *,
    batch_key: str | None = None,
    use_rep: str = "X_neumf",
    key_added: str | None = None,
    **settings: Any,
) -> LabelTransfer:
    """Carry labels over to the cells that have none, in an embedding of all cells.

    Writes ``obs["predicted_<labels>"]``, where ``unknown`` stands for cells without a counterpart,
    ``…_probability`` and ``…_support``.

    Parameters
    ----------
    labels
        Column of ``obs``, missing for the cells to be named.
    batch_key
        Column with the batch: accuracy is measured by hiding one batch's labels at a time.
    use_rep
        The embedding's name in ``obsm``.
    settings
        As a study's section ``labels``.

    Returns
    -------
    LabelTransfer
        With the accuracy by label.
    """
    from neumf_assets.core.annotation.settings import LabelSettings
    from neumf_assets.core.annotation.transfer import transfer_labels

    given = column_of(data, labels)
    if use_rep not in data.obsm:
        known = ", ".join(map(str, data.obsm)) or "none"
        raise NeumfError(f"obsm has no {use_rep!r}; integrate the cells first. Embeddings: {known}.")
    codes, names = codes_of(data, batch_key)
    found = transfer_labels(
        np.asarray(data.obsm[use_rep]),
        given.astype(object).where(given.notna(), None).reset_index(drop=True),
        np.asarray(names)[codes],
        LabelSettings.model_validate(settings),
    )
    key = key_added or f"predicted_{labels}"
    data.obs[key] = pd.Categorical(found.cells["predicted"])
    data.obs[f"{key}_probability"] = found.cells["probability"].to_numpy()
    data.obs[f"{key}_support"] = found.cells["support"].to_numpy()
    return found


def composition(
    data: ad.AnnData, groupby: str, *, condition: str, replicate: str, **settings: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares of every group of cells in every sample, and tests of whether conditions differ in them.

    Parameters
    ----------
    groupby
        Column with the cell types.
    condition, replicate
        Columns with each cell's condition and biological replicate.
    settings
        As a study's section ``conditions`` (``reference``, ``covariates``, ``min_replicates``, …).
    """
    from neumf_assets.core.conditions.composition import compare_composition, shares

    chosen = _condition_settings(condition, replicate, settings)
    found = _groups(data, groupby, chosen)
    return (
        shares(found.cells, found.names, found.design),
        compare_composition(found.cells, found.names, found.design, chosen),
    )


def differential_expression(
    data: ad.AnnData,
    groupby: str,
    *,
    condition: str,
    replicate: str,
    layer: str | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Differences:
    """Genes that conditions change in each group of cells, tested over samples, never over cells.

    Parameters
    ----------
    groupby, condition, replicate, settings
        As :func:`composition`.
    """
    from neumf_assets.core.conditions.differential import find_differences
    from neumf_assets.core.conditions.pseudobulk import pseudobulk
    from neumf_assets.core.counts.stored import CountsInMemory

    chosen = _condition_settings(condition, replicate, settings)
    found = _groups(data, groupby, chosen)
    parts = {"data": CountsInMemory(counts_of(data, layer), data.var_names)}
    return find_differences(
        pseudobulk(parts, found.position, found.cells.size, data.var_names),
        found.cells,
        data.var_names,
        found.names,
        found.design,
        chosen,
        progress=progress,
    )


def _condition_settings(condition: str, replicate: str, settings: dict[str, Any]) -> ConditionSettings:
    from neumf_assets.core.conditions.settings import ConditionSettings

    return ConditionSettings.model_validate({"column": condition, "replicate": replicate, **settings})


def _groups(data: ad.AnnData, groupby: str, settings: ConditionSettings) -> CellGroups:
    from neumf_assets.core.conditions.samples import CellGroups, design_of

    types = column_of(data, groupby)
    return CellGroups.of(types, design_of(data.obs.reset_index(drop=True), settings))
