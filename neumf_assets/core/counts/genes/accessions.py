"""Stable identifiers of genes, and the species that they and symbols tell."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Names = NDArray[np.object_]

BODY = r"ENS[A-Z]{0,6}G\d{11}|FBgn\d{7}|WBGene\d{8}|AT[1-5MC]G\d{5}"
ACCESSION = rf"^({BODY})(?:\.\d+)?(_PAR_Y)?$"
"""A stable identifier of Ensembl, FlyBase, WormBase or TAIR, with or without its version."""
_PREFIX = re.compile(r"ENS[A-Z]{0,6}G|FBgn|WBGene|AT[1-5MC]G")
_SPECIES_OF_PREFIX = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "rhesus macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSPTRG": "chimpanzee",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSCAFG": "dog",
    "ENSOCUG": "rabbit",
    "ENSGALG": "chicken",
    "ENSXETG": "clawed frog",
    "FBgn": "fruit fly",
    "WBGene": "roundworm",
    "AT": "thale cress",
}
_SPECIES_OF_GENOME = (
    (r"GRCh\d+|hg\d+", "human"),
    (r"GRCm\d+|mm\d+", "mouse"),
    (r"Rnor_\S+|mRatBN\S+|rn\d+", "rat"),
    (r"GRCz\d+|danRer\d+", "zebrafish"),
    (r"BDGP\d+|dm\d+", "fruit fly"),
)
_TELLING_SYMBOLS = """
    ACTB B2M CD3D CD3E CD4 CD14 CD19 CD68 CD74 CD79A CST3 EEF1A1 EEF2 FTH1 GAPDH GNAI2 HPRT1 HSPA8 IL7R LYZ MALAT1
    MKI67 MS4A1 NKG7 PECAM1 PPIA PTPRC RPL3 RPL5 RPS6 RPS8 S100A8 S100A9 TMSB4X TPT1 TUBB UBB UBC VIM XIST
"""
"""Genes of nearly every dataset, whose writing tells human symbols (ACTB) from those of mouse and rat (Actb)."""
_FEWEST_TELLING = 3
_LOWER_AFTER_FIRST = ("mouse", "rat")
_MOST = 0.5


@dataclass(frozen=True)
class Species:
    """What species a dataset's genes are of.

    Attributes
    ----------
    name
        ``human``, ``mouse``, …; of a genome mixture ``human and mouse``; empty where nothing tells.
    sure
        Whether accessions or genomes say so; symbols only hint.
    """

    name: str = ""
    sure: bool = False

    def contradicts(self, other: Species) -> bool:
        """Whether two datasets cannot be of one species.

        Symbols in capitals are those of human, but of many other species too, so that they only contradict
        species whose symbols are written otherwise.
        """
        if not self.name or not other.name or self.name == other.name:
            return False
        if self.sure and other.sure:
            return True
        return (self.name in _LOWER_AFTER_FIRST) != (other.name in _LOWER_AFTER_FIRST)


UNKNOWN = Species()


def stable_ids(names: Names) -> Names:
    """Accessions without their version; empty text for what is none.

    The copies of genes on the Y chromosome's pseudoautosomal regions (``…_PAR_Y``) stay apart.
    """
    texts = pl.Series(names, dtype=pl.String)
    found = texts.str.extract(ACCESSION, 1) + texts.str.extract(ACCESSION, 2).fill_null("")
    return np.asarray(found.fill_null("").to_list(), dtype=object)


def are_accessions(names: Any) -> bool:
    """Whether most names are accessions."""
    texts = pl.Series(names, dtype=pl.String)
    return bool(len(texts)) and int(texts.str.contains(ACCESSION).sum() or 0) > _MOST * len(texts)


def prefix_of(names: Names) -> str:
    """The prefix of most accessions (``ENSG``), empty where most names are none."""
    found = Counter(match[0] for name in names if (match := _PREFIX.match(str(name)))).most_common(1)
    return found[0][0] if found and found[0][1] > _MOST * len(names) else ""


def species_of(symbols: Names, ids: Names, genomes: str = "") -> Species:
    """Find the species of a dataset: by its accessions, by the genomes that prefixes of its names told, by symbols.

    Parameters
    ----------
    symbols, ids
        Symbols and stable accessions of its genes; either may be empty text.
    genomes
        Names of genomes, separated by commas.
    """
    known = ids[ids != ""]
    if len(known):
        prefix = prefix_of(known)
        kind = "AT" if re.fullmatch(r"AT[1-5MC]G", prefix) else prefix
        if kind in _SPECIES_OF_PREFIX:
            return Species(_SPECIES_OF_PREFIX[kind], True)
        if kind:
            return Species(f"the species of {kind}…", True)
    by_genome = sorted(
        {
            species
            for genome in filter(None, genomes.split(", "))
            for pattern, species in _SPECIES_OF_GENOME
            if re.fullmatch(pattern, genome)
        }
    )
    if by_genome:
        return Species(" and ".join(by_genome), True)
    present, telling = set(symbols.tolist()), _TELLING_SYMBOLS.split()
    capitals = sum(name in present for name in telling)
    capitalised = sum(name.capitalize() in present for name in telling)
    if max(capitals, capitalised) < _FEWEST_TELLING or capitals == capitalised:
        return Species()
    return Species("human" if capitals > capitalised else "mouse")
