"""Several datasets as one matrix over the genes that all of them have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import anndata as ad
import numpy as np
import scipy.sparse as sp

from neumf_assets.core.counts.stored import StoredCounts
from neumf_assets.core.errors import NeumfError

_ACCESSION = re.compile(r"(ENS[A-Z]{0,6}G|FBgn|WBGene|AT[1-5MC]G)\d+")


def shared_genes(counts: Mapping[str, ad.AnnData] | Mapping[str, StoredCounts]) -> list[str]:
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


def kind_of_names(names: Iterable[object]) -> str:
    """Say what the names of genes look like: accessions, or symbols and of which species' kind."""
    texts = [str(name) for name in names]
    shown = f"as {texts[0]!r}" if texts else "none"
    prefix = Counter(found[1] for name in texts if (found := _ACCESSION.match(name))).most_common(1)
    if prefix and prefix[0][1] > len(texts) / 2:
        return f"accessions ({prefix[0][0]}…), {shown}"
    letters = [name for name in texts if any(sign.isalpha() for sign in name)]
    upper = sum(name == name.upper() for name in letters)
    capital = sum(name[:1].isupper() and name != name.upper() for name in letters)
    if 2 * upper > len(letters):
        return f"symbols in capitals, as of human genes, {shown}"
    if 2 * capital > len(letters):
        return f"capitalised symbols, as of mouse genes, {shown}"
    return f"other names, {shown}"


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
