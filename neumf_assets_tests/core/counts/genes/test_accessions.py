"""Accessions lose their versions, species are told, families of genes are known by symbol and by accession."""

from __future__ import annotations

import numpy as np
import pytest

from neumf_assets.core.counts.genes.accessions import Species, species_of, stable_ids
from neumf_assets.core.counts.genes.families import families


def texts(*values: str) -> np.ndarray:
    return np.asarray(values, dtype=object)


def test_versions_go_and_what_is_no_accession_is_empty() -> None:
    given = texts("ENSG00000141510.18", "ENSG00000182378.15_PAR_Y", "FBgn0000001", "TP53", "7157", "ENSG1")
    wanted = ["ENSG00000141510", "ENSG00000182378_PAR_Y", "FBgn0000001", "", "", ""]
    assert stable_ids(given).tolist() == wanted


@pytest.mark.parametrize(
    ("symbols", "ids", "genomes", "species"),
    [
        (("A",), ("ENSG00000141510",), "", Species("human", True)),
        (("A",), ("ENSMUSG00000064351",), "", Species("mouse", True)),
        (("A",), ("FBgn0000001",), "", Species("fruit fly", True)),
        (("A",), ("AT1G01010",), "", Species("thale cress", True)),
        (("ACTB", "B2M", "CD3D", "VIM"), ("", "", "", ""), "", Species("human")),
        (("Actb", "B2m", "Cd3d", "Vim"), ("", "", "", ""), "", Species("mouse")),
        (("Actb", "B2m", "Cd3d", "Vim"), ("", "", "", ""), "GRCh38, mm10", Species("human and mouse", True)),
        (("g1", "g2"), ("", ""), "", Species()),
        (("ACTB", "Actb", "X"), ("", "", ""), "", Species()),
    ],
)
def test_species(symbols: tuple[str, ...], ids: tuple[str, ...], genomes: str, species: Species) -> None:
    assert species_of(texts(*symbols), texts(*ids), genomes) == species


def test_families_are_known_by_symbol_and_by_accession() -> None:
    names = texts(
        "MT-CO1",
        "mt-Nd1",
        "MT1X",
        "RPL3",
        "Rps27a",
        "RPS6KA1",
        "MRPL3",
        "HBB",
        "Hba-a1",
        "HBEGF",
        "RPL36AL",
        "RPS4Y1",
    )
    ids = texts("", "", "", "", "", "", "", "", "", "", "", "")
    found = families([names], ids, ("MT-", "mt-"))
    assert names[found["mito"]].tolist() == ["MT-CO1", "mt-Nd1"]
    assert names[found["ribo"]].tolist() == ["RPL3", "Rps27a", "RPL36AL", "RPS4Y1"]
    assert names[found["hb"]].tolist() == ["HBB", "Hba-a1"]
    numbers = texts(
        "ENSG00000198804",
        "ENSMUSG00000064351",
        "ENSG00000100316",
        "ENSG00000244734",
        "ENSMUSG00000069919",
        "ENSG00000141510",
    )  # MT-CO1, mt-Co1, RPL3, HBB, Hba-a1, TP53
    found = families([numbers], numbers, ("MT-", "mt-"))
    assert found["mito"].tolist() == [True, True, False, False, False, False]
    assert found["ribo"].tolist() == [False, False, True, False, False, False]
    assert found["hb"].tolist() == [False, False, False, True, True, False]
