"""One door to all formats: `read_counts`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import polars as pl

from neumf_assets.core.counts.readers.anndata_files import MAIN, matrices, opened_zarr, read_anndata
from neumf_assets.core.counts.readers.contents.droplets import UNFILTERED, Droplets
from neumf_assets.core.counts.readers.contents.genes import settle_genes, take_genes
from neumf_assets.core.counts.readers.contents.labels import CELL, cell_labels, read_labels, with_sample
from neumf_assets.core.counts.readers.contents.layers import layer_of_counts, say_layer
from neumf_assets.core.counts.readers.contents.validate import HINT, validated
from neumf_assets.core.counts.readers.delimited import read_delimited
from neumf_assets.core.counts.readers.hdf5 import (
    LOOM_MAIN,
    kind_of,
    loom_matrices,
    opened,
    read_loom,
    read_tenx_v2,
    read_tenx_v3,
)
from neumf_assets.core.counts.readers.long_table import long_columns, read_long_table
from neumf_assets.core.counts.readers.market import read_market
from neumf_assets.core.counts.readers.matrix import Names, RawMatrix
from neumf_assets.core.counts.readers.parts import (
    SORTED,
    Parted,
    Stored,
    anndata_parted,
    loom_parted,
    market_too_large,
    store_in_parts,
    store_market_in_parts,
    store_text_in_parts,
    tenx_parted,
    text_too_large,
    too_large,
)
from neumf_assets.core.counts.readers.source import FETCHED, Source, fetched
from neumf_assets.core.counts.samples import Value
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import save_counts
from neumf_assets.core.errors import BadInput
from neumf_assets.core.store import remove_left

_HDF5 = (".h5", ".hdf5", ".h5ad", ".loom")
_HDF5_MAGIC = b"\x89HDF"


def read_counts(
    source: str | Path,
    settings: ReadSettings | None = None,
    *,
    name: str | None = None,
    labels: str | Path | None = None,
    described: Mapping[str, Value] | None = None,
) -> ad.AnnData:
    """Read the counts of one dataset.

    Parameters
    ----------
    source
        Path or URL of a CSV or TSV (plain or gzip), a Matrix Market folder or file of a prefixed triple, a
        10x HDF5, h5ad or loom file, or an AnnData-Zarr folder. The content decides what it is.
    settings
        Orientation, layer, label columns, expected digests, limits. Default: `ReadSettings()`.
    name
        Name of the dataset; default is the file's up to its first dot.
    labels
        Path or URL of a labels file; default is ``NAME.labels.csv`` beside a local ``source``, where there
        is one.

    Returns
    -------
    anndata.AnnData
        ``X``: CSR, cells × genes, int32 counts (float32 where ``allow_normalised`` let fractions in).
        ``obs``: label columns, categorical, NaN = unlabelled. ``var["original_name"]``: gene names as in the
        file; ``var_names``: the same made unique; ``var["gene_ids"]``: accessions, where the file has them.
        ``uns["provenance"]``: ``source``, ``name``, ``sha256``, ``bytes``, ``format``, ``orientation``,
        ``cells`` and ``genes`` of the whole file, ``gene_names_made_unique``, ``read_seconds`` and what
        else is known.

    Raises
    ------
    BadInput
        When the file cannot be used; nothing has been written then.
    """
    settings = settings or ReadSettings()
    begin = time.perf_counter()
    with fetched(source, name, labels, settings.sha256) as files:
        table = read_labels(files.labels, files.labels_given) if files.labels else None
        adata = _whole(files, settings, table, described)
    adata = _limited(adata, settings)
    adata.uns["provenance"]["read_seconds"] = time.perf_counter() - begin
    return adata


def store_counts(
    source: str | Path,
    folder: Path,
    settings: ReadSettings | None = None,
    *,
    name: str | None = None,
    labels: str | Path | None = None,
    described: Mapping[str, Value] | None = None,
) -> Stored:
    """Read the counts of one dataset and store them in a folder, in parts where they exceed the memory budget.

    Parameters
    ----------
    source, settings, name, labels, described
        As :func:`read_counts`.
    folder
        Where :func:`~neumf_assets.core.counts.store.load_counts` finds them. Meanwhile it takes what is fetched,
        and what is sorted into parts; what a killed process left of these is removed.

    Raises
    ------
    BadInput
        When the file cannot be used; nothing has been written then.
    """
    settings = settings or ReadSettings()
    begin = time.perf_counter()
    remove_left(folder, FETCHED, SORTED)
    with fetched(source, name, labels, settings.sha256, folder) as files:
        table = read_labels(files.labels, files.labels_given) if files.labels else None

        def finish(raw: RawMatrix) -> tuple[pd.DataFrame, dict[str, Any]]:
            provenance = _provenance(files, raw, settings)
            provenance["read_seconds"] = time.perf_counter() - begin
            return _labels_of(files, settings, raw, table, described), provenance

        if files.triple and market_too_large(files.path, files.triple, files.given, settings):
            return store_market_in_parts(files.path, files.triple, files.given, settings, folder, finish)
        wide = _is_text(files) and long_columns(files.path, files.given) is None
        if wide and text_too_large(files.path, files.given, settings):
            labelled = _labelled(table)
            return store_text_in_parts(files.path, files.given, settings, labelled, folder, finish)
        with _parted(files, settings) as parted:
            if parted is not None:
                return store_in_parts(parted, files.given, settings, folder, finish)
        adata = _limited(_whole(files, settings, table, described), settings)
    adata.uns["provenance"]["read_seconds"] = time.perf_counter() - begin
    save_counts(adata, folder)
    return Stored(adata.shape, adata.X.nnz, float(adata.X.sum()), dict(adata.uns["provenance"]))


@contextmanager
def _parted(files: Source, settings: ReadSettings) -> Iterator[Parted | None]:
    """Open a file that has to be read in parts; None for everything else."""
    found: Parted | None = None
    with ExitStack() as stack:
        if files.triple is None and files.path.is_dir():
            store = stack.enter_context(opened_zarr(files.path, files.given))
            layer = _layer_of_anndata(store, files.given, settings)
            found = anndata_parted(store, files.given, layer, "AnnData-Zarr")
        elif files.triple is None and _is_hdf5(files.path):
            found = _parted_hdf5(stack.enter_context(opened(files.path, files.given)), files, settings)
        yield found if found is not None and too_large(found, files.given, settings) else None


def _layer_of_anndata(store: Any, given: str, settings: ReadSettings) -> str | None:
    return layer_of_counts(MAIN, matrices(store), given, settings)


def _layer_of_loom(file: h5py.File, given: str, settings: ReadSettings) -> str | None:
    return layer_of_counts(LOOM_MAIN, loom_matrices(file), given, settings)


def _parted_hdf5(file: h5py.File, files: Source, settings: ReadSettings) -> Parted | None:
    kind = kind_of(file)
    if kind == "h5ad":
        return anndata_parted(file, files.given, _layer_of_anndata(file, files.given, settings), kind)
    if kind == "loom":
        return loom_parted(file, files.given, _layer_of_loom(file, files.given, settings))
    return tenx_parted(file, files.given) if kind else None


def _whole(
    files: Source, settings: ReadSettings, table: pl.DataFrame | None, described: Mapping[str, Value] | None
) -> ad.AnnData:
    raw = _read(files, settings, table)
    raw.X = take_genes(raw.X, settle_genes(raw, files.given))
    adata = validated(raw, files.given, settings)
    droplets = Droplets()
    droplets.add(adata.X)
    droplets.say(files.given)
    if droplets.background:
        raw.notes[UNFILTERED] = droplets.background
    adata.obs = _labels_of(files, settings, raw, table, described)
    adata.uns["provenance"] = _provenance(files, raw, settings)
    return adata


def _labels_of(
    files: Source,
    settings: ReadSettings,
    raw: RawMatrix,
    table: pl.DataFrame | None,
    described: Mapping[str, Value] | None,
) -> pd.DataFrame:
    labels = cell_labels(
        raw.cells,
        raw.obs,
        table,
        settings.label_columns,
        settings.unlabelled,
        files.given,
        files.labels_given,
    )
    return with_sample(labels, described or {}, files.given)


def _provenance(files: Source, raw: RawMatrix, settings: ReadSettings) -> dict[str, Any]:
    layer = str(raw.notes.get("layer", MAIN))
    if settings.layer is None and layer not in (MAIN, LOOM_MAIN):
        say_layer(files.given, layer)
    return {
        "source": files.given,
        "name": files.name,
        "sha256": files.sha256,
        "bytes": files.bytes,
        "format": raw.format,
        "cells": len(raw.cells),
        "genes": len(raw.genes),
        "gene_names_made_unique": int(pd.Index(raw.genes).duplicated().sum()),
        "labels": files.labels_given,
        **{key: note for key, note in raw.notes.items() if key != HINT},
    }


def _read(files: Source, settings: ReadSettings, labels: pl.DataFrame | None) -> RawMatrix:
    if files.triple:
        return read_market(files.path, files.triple, files.given, settings.orientation)
    if files.path.is_dir():
        with opened_zarr(files.path, files.given) as store:
            layer = _layer_of_anndata(store, files.given, settings)
            return read_anndata(store, files.given, layer, "AnnData-Zarr")
    if _is_hdf5(files.path):
        return _read_hdf5(files, settings)
    if long := long_columns(files.path, files.given):
        return read_long_table(files.path, files.given, *long)
    return read_delimited(files.path, files.given, settings.orientation, _labelled(labels))


def _labelled(labels: pl.DataFrame | None) -> Names | None:
    """The cells that a labels file names."""
    return None if labels is None else np.asarray(labels[CELL].to_list(), dtype=object)


def _is_text(files: Source) -> bool:
    return files.triple is None and not files.path.is_dir() and not _is_hdf5(files.path)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as head:
        return head.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC or path.name.lower().endswith(_HDF5)


def _read_hdf5(files: Source, settings: ReadSettings) -> RawMatrix:
    with opened(files.path, files.given) as file:
        kind = kind_of(file)
        if kind == "h5ad":
            layer = _layer_of_anndata(file, files.given, settings)
            return read_anndata(file, files.given, layer, "h5ad")
        if kind == "loom":
            return read_loom(file, files.given, _layer_of_loom(file, files.given, settings))
        if kind == "10x v3":
            return read_tenx_v3(file, files.given)
        if kind == "10x v2":
            return read_tenx_v2(file, files.given)
        inside = ", ".join(map(repr, list(file)[:5])) or "nothing"
        raise BadInput(
            files.given,
            "",
            f"is an HDF5 file of no known kind (it holds {inside})",
            "Known are AnnData, loom and 10x; convert it",
        )


def _limited(adata: ad.AnnData, settings: ReadSettings) -> ad.AnnData:
    """Draw at most ``max_cells`` cells and ``max_genes`` genes, in the order of the file."""
    rng = np.random.default_rng(settings.seed)
    for axis, limit in ((0, settings.max_cells), (1, settings.max_genes)):
        if limit is not None and limit < adata.shape[axis]:
            drawn = np.sort(rng.choice(adata.shape[axis], limit, replace=False))
            adata = adata[drawn].copy() if axis == 0 else adata[:, drawn].copy()
    return adata
