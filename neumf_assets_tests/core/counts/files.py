"""Writers of every format that the readers know, independent of them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from scipy import io as scipy_io
from scipy import sparse

from neumf_assets.core.counts.settings import ReadSettings

CELLS = ["AAACATACCAGAAA-1", "AAACATACCTCGCT-1", "AAACCGTGGTACGT-1", "CCACTGTGGTACGT-1"]
GENES = ["ACTB", "RP11.206L10.2", "Y_RNA", "Y_RNA", "MT-CO1"]
COUNTS = np.array([[0, 3, 0, 1, 0], [12, 0, 0, 0, 2], [0, 0, 0, 0, 70000], [1, 1, 0, 2, 0]])


@dataclass(frozen=True)
class Case:
    """A small dataset in memory: counts (cells × genes) and names."""

    counts: NDArray[np.generic]
    cells: Sequence[str]
    genes: Sequence[str]


SMALL = Case(COUNTS, CELLS, GENES)
Writer = Callable[[Path, Case], Path]


def text_bytes(
    case: Case, genes_first: bool, delimiter: str = ",", corner: bool = True, **options: str
) -> bytes:
    rows, columns = (case.genes, case.cells) if genes_first else (case.cells, case.genes)
    values = case.counts.T if genes_first else case.counts
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, **{"lineterminator": "\n", **options})
    writer.writerow(["", *columns] if corner else columns)
    for name, row in zip(rows, values, strict=True):
        writer.writerow([name, *row.tolist()])
    return buffer.getvalue().encode()


def csv_genes_by_cells(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.csv"
    path.write_bytes(text_bytes(case, True))
    return path


def csv_cells_by_genes(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.csv"
    path.write_bytes(text_bytes(case, False))
    return path


def tsv_gz(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.tsv.gz"
    path.write_bytes(gzip.compress(text_bytes(case, True, "\t", lineterminator="\r\n"), mtime=0))
    return path


def csv_without_corner(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.txt"
    path.write_bytes(text_bytes(case, True, " ", corner=False, quoting=csv.QUOTE_NONNUMERIC))
    return path


def _market(
    folder: Path, case: Case, prefix: str, feature_file: str, ending: str, genes_first: bool = True
) -> Path:
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    matrix = sparse.coo_matrix(case.counts.T if genes_first else case.counts)
    scipy_io.mmwrite(buffer, matrix, field="integer", symmetry="general")
    columns = 2 if feature_file == "genes" else 3
    features = "".join(
        "\t".join([f"ENSG{i:011d}", gene, "Gene Expression"][:columns]) + "\n"
        for i, gene in enumerate(case.genes)
    )
    contents = {
        "matrix.mtx": buffer.getvalue(),
        f"{feature_file}.tsv": features.encode(),
        "barcodes.tsv": "".join(f"{cell}\n" for cell in case.cells).encode(),
    }
    for name, content in contents.items():
        zipped = gzip.compress(content, mtime=0) if ending else content
        (folder / f"{prefix}{name}{ending}").write_bytes(zipped)
    return folder


def tenx_v2_folder(folder: Path, case: Case) -> Path:
    return _market(folder / "ctrl", case, "", "genes", "")


def tenx_v3_folder(folder: Path, case: Case) -> Path:
    return _market(folder / "ctrl", case, "", "features", ".gz")


def starsolo_folder(folder: Path, case: Case) -> Path:
    return _market(folder / "ctrl", case, "", "features", "")


def geo_triple(folder: Path, case: Case) -> Path:
    _market(folder, case, "ctrl_", "features", ".gz")
    return folder / "ctrl_matrix.mtx.gz"


def market_cells_by_genes(folder: Path, case: Case) -> Path:
    return _market(folder / "ctrl", case, "", "features", "", genes_first=False)


def _tenx_group(group: h5py.Group, case: Case, genes_name: str) -> None:
    matrix = sparse.csr_matrix(case.counts)
    group["data"], group["indices"] = matrix.data.astype(np.int32), matrix.indices.astype(np.int64)
    group["indptr"], group["shape"] = (
        matrix.indptr.astype(np.int64),
        np.array(case.counts.shape[::-1], np.int32),
    )
    group["barcodes"] = np.array([cell.encode() for cell in case.cells])
    group.create_dataset(genes_name, data=[gene.encode() for gene in case.genes])


def tenx_h5_v2(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        _tenx_group(group, case, "gene_names")
        group["genes"] = [f"ENSG{i:011d}".encode() for i in range(len(case.genes))]
    return path


def tenx_h5_v3(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group.create_group("features")
        _tenx_group(group, case, "features/name")
        group["features/id"] = [f"ENSG{i:011d}".encode() for i in range(len(case.genes))]
        group["features/feature_type"] = [b"Gene Expression"] * len(case.genes)
    return path


def annotated(case: Case, kind: Callable[[NDArray[np.generic]], object] = sparse.csr_matrix) -> ad.AnnData:
    obs = pd.DataFrame(index=pd.Index(list(case.cells), dtype=object))
    var = pd.DataFrame(index=pd.Index(list(case.genes), dtype=object))
    adata = ad.AnnData(X=kind(case.counts), obs=obs)
    adata.var = var
    return adata


def h5ad_csr(folder: Path, case: Case) -> Path:
    annotated(case).write_h5ad(folder / "ctrl.h5ad", compression="gzip")
    return folder / "ctrl.h5ad"


def h5ad_csc(folder: Path, case: Case) -> Path:
    annotated(case, sparse.csc_matrix).write_h5ad(folder / "ctrl.h5ad")
    return folder / "ctrl.h5ad"


def h5ad_dense(folder: Path, case: Case) -> Path:
    annotated(case, lambda counts: counts.astype(np.float32)).write_h5ad(folder / "ctrl.h5ad")
    return folder / "ctrl.h5ad"


def h5ad_layer(folder: Path, case: Case) -> Path:
    adata = annotated(case)
    adata.layers["counts"] = adata.X
    adata.X = sparse.csr_matrix(np.log1p(case.counts) / 3)
    adata.write_h5ad(folder / "ctrl.h5ad")
    return folder / "ctrl.h5ad"


def h5ad_raw(folder: Path, case: Case) -> Path:
    adata = annotated(case)
    adata.raw = adata
    adata = adata[:, :2].copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()) / 3)
    adata.write_h5ad(folder / "ctrl.h5ad")
    return folder / "ctrl.h5ad"


def h5ad_masked_text(folder: Path, case: Case) -> Path:
    """Write names with a mask of those that are missing, as AnnData does by itself with pandas 3."""
    adata = annotated(case)
    for table in (adata.obs, adata.var):
        table.index = table.index.astype("string")
    with ad.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(folder / "ctrl.h5ad")
    return folder / "ctrl.h5ad"


def _zarr(folder: Path, case: Case, version: Literal[2, 3]) -> Path:
    group = zarr.open_group(folder / "ctrl.zarr", mode="w", zarr_format=version)
    ad.io.write_elem(group, "/", annotated(case))
    zarr.consolidate_metadata(group.store)
    return folder / "ctrl.zarr"


def zarr_v2(folder: Path, case: Case) -> Path:
    return _zarr(folder, case, 2)


def zarr_v3(folder: Path, case: Case) -> Path:
    return _zarr(folder, case, 3)


def loom(folder: Path, case: Case) -> Path:
    path = folder / "ctrl.loom"
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=case.counts.T.astype(np.float32), chunks=True, compression="gzip")
        file.create_dataset("col_attrs/CellID", data=list(case.cells), dtype=h5py.string_dtype())
        file.create_dataset("row_attrs/Gene", data=list(case.genes), dtype=h5py.string_dtype())
        file.create_group("layers")
    return path


BY_CELL, BY_GENE = (ReadSettings(orientation=side) for side in ("cells_by_genes", "genes_by_cells"))
AUTO = ReadSettings()
FORMATS: dict[str, tuple[Writer, ReadSettings]] = {
    "csv, genes by cells": (csv_genes_by_cells, BY_GENE),
    "csv, cells by genes": (csv_cells_by_genes, BY_CELL),
    "tsv.gz with Windows line ends": (tsv_gz, BY_GENE),
    "quoted text without a corner": (csv_without_corner, BY_GENE),
    "10x v2 folder": (tenx_v2_folder, AUTO),
    "10x v3 folder": (tenx_v3_folder, AUTO),
    "STARsolo folder": (starsolo_folder, AUTO),
    "GEO triple": (geo_triple, AUTO),
    "Matrix Market, cells by genes": (market_cells_by_genes, BY_CELL),
    "10x HDF5 v2": (tenx_h5_v2, AUTO),
    "10x HDF5 v3": (tenx_h5_v3, AUTO),
    "h5ad CSR": (h5ad_csr, AUTO),
    "h5ad CSC": (h5ad_csc, AUTO),
    "h5ad dense": (h5ad_dense, AUTO),
    "h5ad layer": (h5ad_layer, ReadSettings(layer="counts")),
    "h5ad with masked text": (h5ad_masked_text, AUTO),
    "h5ad raw": (h5ad_raw, ReadSettings(layer="raw")),
    "Zarr v2": (zarr_v2, AUTO),
    "Zarr v3": (zarr_v3, AUTO),
    "loom": (loom, AUTO),
}
