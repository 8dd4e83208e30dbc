"""Reading the factors: top genes, shared and dataset-specific, and how specific a factor is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neumf_assets.core.errors import NeumfError

SHARED = "shared"


def top_genes(
    W: NDArray[np.float32],
    V: Sequence[NDArray[np.float32]],
    genes: Sequence[str] | NDArray[np.str_],
    names: Sequence[str],
    number: int = 30,
) -> pd.DataFrame:
    """List the genes with the largest loadings of each factor.

    Parameters
    ----------
    W, V
        Shared and dataset-specific loadings, k × genes.
    genes, names
        Names of genes and datasets.
    number
        Genes per factor and kind, at most; genes with loading 0 are left out.

    Returns
    -------
    pandas.DataFrame
        ``factor`` (from 0), ``kind`` ("shared" or the dataset), ``rank`` (from 1), ``gene``,
        ``loading``, ``share`` (what part of ``W + V``, the gene's loading in that dataset, the kind makes up;
        for shared, with the mean V).
    """
    genes = np.asarray(genes)
    if genes.size != W.shape[1] or len(names) != len(V):
        raise NeumfError(f"{genes.size} gene and {len(names)} dataset names do not fit the factors.")
    mean = np.mean(V, axis=0)
    kinds = [(SHARED, W, W + mean), *((name, v, W + v) for name, v in zip(names, V, strict=True))]
    tables = [
        _top(factor, kind, loadings[factor], whole[factor], genes, number)
        for factor in range(W.shape[0])
        for kind, loadings, whole in kinds
    ]
    return pd.concat(tables, ignore_index=True)


def specificity(
    W: NDArray[np.float32], V: Sequence[NDArray[np.float32]], names: Sequence[str]
) -> pd.DataFrame:
    """Tell how dataset-specific each factor is: ``||V_i|| / (||W|| + ||V_i||)`` per factor and dataset.

    Returns
    -------
    pandas.DataFrame
        Factors × datasets; 0 = wholly shared, 1 = wholly specific.
    """
    shared = np.linalg.norm(W, axis=1)
    own = np.array([np.linalg.norm(v, axis=1) for v in V])
    both = shared + own
    share = np.divide(own, both, out=np.zeros_like(both), where=both > 0)
    return pd.DataFrame(share.T, columns=list(names), index=pd.RangeIndex(len(W), name="factor"))


def _top(
    factor: int,
    kind: str,
    loadings: NDArray[np.float32],
    whole: NDArray[np.float32],
    genes: NDArray[np.str_],
    number: int,
) -> pd.DataFrame:
    order = np.argsort(-loadings, kind="stable")[:number]
    order = order[loadings[order] > 0]
    return pd.DataFrame(
        {
            "factor": factor,
            "kind": kind,
            "rank": np.arange(1, order.size + 1),
            "gene": genes[order],
            "loading": loadings[order],
            "share": loadings[order] / whole[order],
        }
    )
