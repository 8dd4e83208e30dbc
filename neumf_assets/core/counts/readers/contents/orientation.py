"""Which way round a matrix of text lies.

The rule, in this order; the first that decides wins, and the provenance says which one it was:

1. ``setting``: the study says so.
2. ``barcodes``: more than half of the names on one side, and of the other side less, look like cell
barcodes (ten
   or more letters of A, C, G, T, N in a row).
3. ``genes``: one side holds at least twice as many names that are surely genes (accessions of Ensembl,
FlyBase,
   WormBase or TAIR, mitochondrial and ribosomal symbols, genes that nearly every data set has) as the other.
4. ``labels``: more than half of the cells in the labels file are found on one side only.
5. ``shape``: the longer side holds the genes; a square matrix is taken as genes × cells.
"""

from __future__ import annotations

from typing import Literal

import polars as pl

from neumf_assets.core.counts.genes.accessions import BODY
from neumf_assets.core.counts.readers.matrix import Names
from neumf_assets.core.counts.settings import Orientation

_BARCODE = "[ACGTN]{10,}"
_GENE = (
    rf"^({BODY}|"
    r"(?i:MT[-.](ND|CO|ATP|CYB|RNR|T[A-Z]))|"
    r"(?i:RP[LS]P?\d+[AXYL]?$)|(?i:HLA[-.][A-Z])|RP\d{1,2}[-.]\d+[A-Z]\d+\.\d+|LINC\d{5}|A[CLP]\d{6}\.\d+)"
)
_KNOWN_GENES = """
    ACTB ACTG1 ALB APOE B2M CALM1 CD14 CD19 CD3D CD3E CD4 CD68 CD74 CD79A CD8A COL1A1 COL1A2 CST3
    EEF1A1 EEF2 EPCAM FABP4 FTH1 FTL GAPDH GFAP GNLY H3F3A HBA1 HBB HPRT1 HSP90AB1 HSPA8 IL7R KRT18
    KRT8 LYZ MALAT1 MKI67 MS4A1 MYL6 NEAT1 NKG7 NRGN PABPC1 PECAM1 PPIA PTPRC S100A8 S100A9 SNAP25
    TMSB10 TMSB4X TPT1 TUBA1B TUBB UBA52 UBB UBC VIM XIST YWHAZ
"""

Sides = Literal["genes_by_cells", "cells_by_genes"]


def decide(rows: Names, columns: Names, labelled: Names | None, setting: Orientation) -> tuple[Sides, str]:
    """Decide which side holds the genes.

    Parameters
    ----------
    rows, columns
        Names along both sides.
    labelled
        Names of the cells in the labels file, where there is one.
    setting
        What the study says.

    Returns
    -------
    tuple
        The orientation, and the rule that decided.
    """
    if setting != "auto":
        return setting, "setting"
    sides = pl.Series(rows, dtype=pl.String), pl.Series(columns, dtype=pl.String)
    for rule, verdict in (
        ("barcodes", _by_barcodes(*sides)),
        ("genes", _by_genes(*sides)),
        ("labels", _by_labels(*sides, labelled)),
    ):
        if verdict:
            return verdict, rule
    return ("genes_by_cells" if len(rows) >= len(columns) else "cells_by_genes"), "shape"


def _by_barcodes(rows: pl.Series, columns: pl.Series) -> Sides | None:
    in_rows, in_columns = _share(rows.str.contains(_BARCODE)), _share(columns.str.contains(_BARCODE))
    if max(in_rows, in_columns) <= 0.5 or in_rows == in_columns:
        return None
    return "cells_by_genes" if in_rows > in_columns else "genes_by_cells"


def _by_genes(rows: pl.Series, columns: pl.Series) -> Sides | None:
    known = pl.Series(_KNOWN_GENES.split())

    def hits(names: pl.Series) -> int:
        sure = names.str.contains(_GENE) | names.str.to_uppercase().is_in(known.implode())
        return int(sure.sum() or 0)

    in_rows, in_columns = hits(rows), hits(columns)
    if in_rows >= max(1, 2 * in_columns):
        return "genes_by_cells"
    if in_columns >= max(1, 2 * in_rows):
        return "cells_by_genes"
    return None


def _by_labels(rows: pl.Series, columns: pl.Series, labelled: Names | None) -> Sides | None:
    if labelled is None or not len(labelled):
        return None
    cells = pl.Series(labelled, dtype=pl.String)
    in_rows, in_columns = _share(cells.is_in(rows.implode())), _share(cells.is_in(columns.implode()))
    if in_rows > 0.5 >= in_columns:
        return "cells_by_genes"
    if in_columns > 0.5 >= in_rows:
        return "genes_by_cells"
    return None


def _share(mask: pl.Series) -> float:
    mean = mask.mean()
    return float(mean) if isinstance(mean, int | float) else 0.0
