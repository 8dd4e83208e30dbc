"""Datasets are joined over the genes that all of them have, and the kinds of names are told where none is shared."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.counts.stack import shared_genes
from neumf_assets.core.errors import NeumfError


def of_genes(*names: str) -> ad.AnnData:
    return ad.AnnData(np.zeros((2, len(names))), var=pd.DataFrame(index=list(names)))


def test_shared_genes_are_in_the_order_of_the_first() -> None:
    assert shared_genes({"a": of_genes("C", "A", "B"), "b": of_genes("B", "X", "C")}) == ["C", "B"]


def test_without_a_shared_gene_each_datasets_kind_of_names_is_told() -> None:
    counts = {
        "ids": of_genes("ENSG00000000001", "ENSG00000000002"),
        "human": of_genes("ACTB", "MT-CO1", "C1orf112"),
        "mouse": of_genes("Actb", "mt-Co1", "Cd3d"),
    }
    with pytest.raises(NeumfError) as caught:
        shared_genes(counts)
    for words in (
        "ids: accessions (ENSG…), as 'ENSG00000000001'",
        "human: symbols in capitals, as of human genes, as 'ACTB'",
        "mouse: capitalised symbols, as of mouse genes, as 'Actb'",
    ):
        assert words in str(caught.value)
