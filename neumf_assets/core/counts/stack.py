"""Several datasets as one matrix over the genes that all of them have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neumf_assets.core.counts.genes.join import kind_of_names
from neumf_assets.core.errors import NeumfError


class HasGenes(Protocol):
    """Counts in memory or on disk, of which the names of the genes are known."""

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes."""


def shared_genes(counts: Mapping[str, HasGenes]) -> list[str]:
    """Genes that every dataset has, in the order of the first.

    Raises
    ------
    NeumfError
        If there is none.
    """
    first, *others = counts.values()
    keep = np.ones(len(first.var_names), dtype=bool)
    for data in others:
        keep &= first.var_names.isin(data.var_names)
    if not keep.any():
        kinds = "; ".join(f"{name}: {kind_of_names(data.var_names)}" for name, data in counts.items())
        raise NeumfError(
            f"The datasets have no gene in common. Their names are of these kinds: {kinds}. Give all of them the "
            "same kind of names (where a file holds both, symbols are taken), and datasets of one species."
        )
    return [str(name) for name in first.var_names[keep]]


def stack_shared(
    counts: Mapping[str, ad.AnnData], genes: list[str] | None = None
) -> tuple[sp.csr_matrix, list[str]]:
    """Stack the cells of all datasets over their shared genes, or over ``genes``.

    Returns
    -------
    Cells × genes CSR, datasets in the given order; the names of the genes.
    """
    genes = shared_genes(counts) if genes is None else genes
    parts = [sp.csr_matrix(data.X)[:, data.var_names.get_indexer(genes)] for data in counts.values()]
    return sp.vstack(parts, format="csr"), genes
