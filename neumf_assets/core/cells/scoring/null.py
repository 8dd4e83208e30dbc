"""A null study: counts without any structure between genes, on which every score must fall to chance."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def permute_genes(counts: sp.spmatrix, seed: int = 0) -> sp.csr_matrix:
    """Shuffle each gene's counts over the cells, independently of the other genes.

    Every gene keeps its counts and so its mean and dispersion; cell types and library sizes are lost. Permute
    each dataset on its own to keep the differences between datasets.

    Parameters
    ----------
    counts
        Cells × genes.

    Returns
    -------
    scipy.sparse.csr_matrix
        Cells × genes with the same values in every column.
    """
    by_gene = sp.csc_matrix(counts, copy=True)
    rng = np.random.default_rng(seed)
    n_cells = by_gene.shape[0]
    for start, end in zip(by_gene.indptr[:-1], by_gene.indptr[1:], strict=True):
        by_gene.indices[start:end] = rng.choice(n_cells, end - start, replace=False)
    by_gene.has_sorted_indices = False
    return by_gene.tocsr()
