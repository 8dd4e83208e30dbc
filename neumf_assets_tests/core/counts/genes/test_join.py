"""Genes of several datasets get one name each, and datasets that do not fit are left out with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neumf_assets.core.counts.genes.accessions import UNKNOWN, Species
from neumf_assets.core.counts.genes.join import DatasetGenes, join_datasets, kind_of_names

HUMAN, MOUSE, PIG = Species("human", True), Species("mouse", True), Species("pig", True)
HUMAN_BY_SYMBOLS, MOUSE_BY_SYMBOLS = Species("human"), Species("mouse")


def texts(values: Sequence[str]) -> np.ndarray:
    return np.asarray(list(values), dtype=object)


def genes(
    names: Sequence[str],
    ids: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
    species: Species = UNKNOWN,
    cells: int = 100,
) -> DatasetGenes:
    blank = [""] * len(names)
    known = names if symbols is None else symbols
    return DatasetGenes(texts(names), texts(known), texts(ids or blank), species, cells)


def accession(number: int) -> str:
    return f"ENSG{number:011d}"


IDS = [accession(number) for number in range(4)]


def test_the_same_accession_is_the_same_gene_whatever_its_symbol() -> None:
    joined = join_datasets(
        {
            "new": genes(["MARCHF1", "SEPTIN2", "TP53", "ACTB"], IDS),
            "newer": genes(["MARCHF1", "SEPTIN2", "TP53", "ACTB"], IDS),
            "old": genes(["ACTB", "MARCH1", "SEPT2", "TP53"], [IDS[3], *IDS[:3]]),
        },
        fewest=4,
    )
    assert joined.left_out == {}
    assert joined.names["old"].tolist() == ["ACTB", "MARCHF1", "SEPTIN2", "TP53"]
    assert joined.names["new"].tolist() == ["MARCHF1", "SEPTIN2", "TP53", "ACTB"]


def test_genes_of_one_symbol_are_told_apart_by_their_accessions() -> None:
    """Numbered by their order in each file, TBCE-1 of one would be TBCE of the other."""
    joined = join_datasets(
        {
            "a": genes(["TBCE", "TBCE-1"], IDS[:2], ["TBCE", "TBCE"]),
            "b": genes(["TBCE", "TBCE-1"], [IDS[1], IDS[0]], ["TBCE", "TBCE"]),
        },
        fewest=2,
    )
    assert joined.names["a"].tolist() == ["TBCE", "TBCE-1"]
    assert joined.names["b"].tolist() == ["TBCE-1", "TBCE"]


def test_accessions_alone_meet_symbols_alone_through_a_dataset_that_has_both() -> None:
    joined = join_datasets(
        {
            "both": genes(["TP53", "ACTB"], IDS[:2]),
            "ids": genes(IDS[:2], IDS[:2], ["", ""]),
            "symbols": genes(["ACTB", "TP53"]),
        },
        fewest=2,
    )
    assert joined.names["ids"].tolist() == ["TP53", "ACTB"]
    assert joined.left_out == {}


def test_an_outdated_symbol_without_accession_finds_its_gene() -> None:
    joined = join_datasets(
        {
            "a": genes(["MARCHF1", "ACTB"], IDS[:2]),
            "b": genes(["MARCHF1", "ACTB"], IDS[:2]),
            "c": genes(["MARCH1", "ACTB"], IDS[:2]),
            "symbols": genes(["MARCH1", "ACTB"]),
        },
        fewest=2,
    )
    assert joined.names["symbols"].tolist() == ["MARCHF1", "ACTB"]


def test_names_that_r_mangled_meet_the_genes_they_were_made_of() -> None:
    joined = join_datasets(
        {
            "plain": genes(["HLA-A", "MT-CO1", "7SK", "ACTB"]),
            "mangled": genes(["HLA.A", "MT.CO1", "X7SK", "ACTB"]),
        },
        fewest=4,
    )
    assert joined.names["mangled"].tolist() == ["HLA-A", "MT-CO1", "7SK", "ACTB"]
    assert "3 gene names that R has changed" in joined.said[0]


def test_a_mangled_name_of_two_genes_stays_as_it_is() -> None:
    joined = join_datasets(
        {"plain": genes(["A-B", "A/B", "C"]), "mangled": genes(["A.B", "C", "D"])}, fewest=1
    )
    assert joined.names["mangled"].tolist() == ["A.B", "C", "D"]


MANY = [f"G{number}" for number in range(30)]


@pytest.mark.parametrize(
    ("species", "left_out"),
    [
        ([HUMAN, HUMAN, MOUSE], ["c"]),
        ([MOUSE, HUMAN, MOUSE], ["b"]),
        ([HUMAN_BY_SYMBOLS, HUMAN, MOUSE_BY_SYMBOLS], ["c"]),
        ([HUMAN_BY_SYMBOLS, PIG, PIG], []),
        ([HUMAN, PIG, HUMAN], ["b"]),
        ([UNKNOWN, UNKNOWN, MOUSE], []),
    ],
)
def test_another_species_than_most_is_left_out_by_name(species: list[Species], left_out: list[str]) -> None:
    datasets = {name: genes(MANY, species=one) for name, one in zip("abc", species, strict=True)}
    joined = join_datasets(datasets)
    assert sorted(joined.left_out) == left_out
    for name in left_out:
        assert datasets[name].species.name in joined.left_out[name]
        assert "species" in joined.left_out[name]


def test_of_two_species_the_one_of_more_cells_stays() -> None:
    joined = join_datasets(
        {"a": genes(MANY, species=HUMAN, cells=10), "b": genes(MANY, species=MOUSE, cells=20)}
    )
    assert joined.members == ["b"]


def test_a_dataset_without_shared_genes_is_left_out_with_the_kinds_of_names() -> None:
    joined = join_datasets(
        {
            "a": genes([f"SYM{n}" for n in range(40)]),
            "b": genes([f"SYM{n}" for n in range(5, 45)]),
            "ids": genes([accession(n) for n in range(40)], [accession(n) for n in range(40)], [""] * 40),
        }
    )
    assert joined.members == ["a", "b"]
    reason = joined.left_out["ids"]
    assert "no genes" in reason and "accessions (ENSG…)" in reason and "symbols in capitals" in reason


def test_a_dataset_that_narrows_the_shared_genes_is_said() -> None:
    wide = [f"SYM{n}" for n in range(100)]
    joined = join_datasets({"a": genes(wide), "b": genes(wide), "panel": genes([*wide[:30], *MANY])})
    assert joined.left_out == {}
    assert any(text.startswith("panel shares only 30 genes") for text in joined.said)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=8),
        min_size=1,
        max_size=4,
    )
)
def test_no_two_genes_of_a_dataset_get_one_name(tables: list[list[tuple[int, int]]]) -> None:
    datasets = {}
    for at, table in enumerate(tables):
        symbols = [f"S{symbol}" for _, symbol in table]
        names, seen = [], dict.fromkeys(symbols, 0)
        for symbol in symbols:
            names.append(symbol if not seen[symbol] else f"{symbol}-{seen[symbol]}")
            seen[symbol] += 1
        ids = [accession(number) if number else "" for number, _ in table]
        datasets[f"d{at}"] = genes(names, ids, symbols)
    joined = join_datasets(datasets, fewest=1)
    for own in joined.names.values():
        assert len(set(own)) == len(own)
    for name in joined.members:  # within members one accession has one name
        assert len(joined.names[name]) == len(datasets[name].names)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["ENSMUSG00000000001"], "accessions (ENSMUSG…)"),
        (["FBgn0000001"], "accessions (FBgn…)"),
        (["x_1", "y_2"], "other names"),
        ([], "other names, none"),
    ],
)
def test_kinds_of_names(names: list[str], kind: str) -> None:
    assert kind_of_names(names).startswith(kind)
