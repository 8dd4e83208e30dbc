"""Families of genes that quality control looks at: mitochondrial, ribosomal, haemoglobin; by symbol and accession."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from neumf_assets.core.counts.genes.accessions import Names

MITOCHONDRIAL, RIBOSOMAL, HAEMOGLOBIN = "mito", "ribo", "hb"
_SYMBOLS = {
    RIBOSOMAL: r"^(?:RP[LS]\d+[AXYL]{0,2}\d?|RPLP[012]|RPSA|Rp[ls]\d+[axyl]{0,2}\d?|Rplp[012]|Rpsa)(?:[-.]\d+)?$",
    HAEMOGLOBIN: r"^(?:HB[ABDEGMQZ][12]?|Hb[abq][-.]?\w{0,4}\d?[abst]?)$",
}
_NUMBERS: dict[str, dict[str, str]] = {
    MITOCHONDRIAL: {
        "ENSG": """
            198695 198712 198727 198763 198786 198804 198840 198886 198888 198899 198938 212907 228253
            209082 210049 210077 210082 210100 210107 210112 210117 210127 210135 210140 210144 210151 210154
            210156 210164 210174 210176 210184 210191 210194 210195 210196 211459
        """,
        "ENSMUSG": "65947 " + " ".join(str(number) for number in range(64336, 64373)),
    },
    RIBOSOMAL: {
        "ENSG": """
            8988 37241 63177 71082 83845 89009 89157 100316 105193 105372 105640 108107 108298 109475 110700
            112306 114391 115268 116251 118181 122026 122406 124614 125691 129824 130255 131469 133112 134419
            136942 137154 137818 138326 140986 140988 142534 142541 142676 142937 143947 144713 145425 145592
            147403 147604 148303 149273 149806 156482 161016 161970 162244 163682 164587 165502 166441 167526
            168028 170889 171858 171863 172809 174444 174748 177600 177954 182774 182899 185088 186468 188846
            197728 197756 197958 198034 198242 198755 198918 213741 229117 231500 233927 241343 265681
        """,
    },
    HAEMOGLOBIN: {
        "ENSG": "86506 130656 188536 196565 206172 206177 213931 213934 223609 244734",
        "ENSMUSG": "52187 52217 52305 55609 69917 69919 73940",
    },
}
"""Numbers of the accessions after their prefix: human's and mouse's mitochondria whole, human ribosomal proteins of
both subunits, haemoglobin chains. Ribosomal proteins of other species are known by their symbols only."""


def _accessions(family: str) -> list[str]:
    return [
        f"{prefix}{int(number):011d}"
        for prefix, numbers in _NUMBERS.get(family, {}).items()
        for number in numbers.split()
    ]


def families(
    names: Sequence[Names], ids: Names, mito_prefixes: Sequence[str]
) -> Mapping[str, NDArray[np.bool_]]:
    """Tell which genes belong to each family.

    Parameters
    ----------
    names
        Names of the genes, one or several for each (as in the file, symbol); one that fits is enough.
    ids
        Their stable accessions, empty text where there is none.
    mito_prefixes
        How names of mitochondrial genes begin.
    """
    accessions = pl.Series(ids, dtype=pl.String)
    texts = [pl.Series(own, dtype=pl.String) for own in names]
    found = {}
    for family in (MITOCHONDRIAL, RIBOSOMAL, HAEMOGLOBIN):
        inside = accessions.is_in(_accessions(family))
        for own in texts:
            if family == MITOCHONDRIAL:
                for prefix in mito_prefixes:
                    inside |= own.str.starts_with(prefix)
            else:
                inside |= own.str.contains(_SYMBOLS[family])
        found[family] = np.asarray(inside.fill_null(False).to_numpy(), dtype=bool)
    return found
