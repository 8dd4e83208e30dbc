"""The cells of several datasets in one space, with what their datasets' gene biases took of them given back.

A dataset's gene biases are free: they take up what all of its cells have in common, be it how they were measured or
that they are all of one kind. A dataset of B cells alone has a B cell's profile in its biases, and its cells lie where
the average cell of another dataset does. What of the biases lies in the span of the genes' embeddings is a place in
the common space, so it is added to the dataset's cells. They lie then where a model without such biases would put
them, with what the measurement did to them, too; that is left to the alignment, which looks at one group of cells
after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from neumf_assets.core.neumf.model import NeuMFModel

RIDGE = 1e-3
"""Of the least squares, relative to the mean square of an embedding's entries: for embeddings that do not differ."""
OWN_VARIANCE = 0.1
"""What a gene's bias varies by between datasets for reasons of its own. Chosen on simulated studies, where few counts a
gene make the difference; on Kang et al.'s cells any value does."""


def common_space(model: NeuMFModel) -> NDArray[np.float32]:
    """Return every cell's place in the space that all datasets share.

    Parameters
    ----------
    model
        Of one or several datasets.

    Returns
    -------
    Cells x size, float32, around the mean of all cells: cosines between cells mean little around another point.
    Euclidean distance is the distance of the cells' scores over all genes, root mean square, with what all genes of a
    cell have in common; without that part, which centring the genes' embeddings takes out, clusters are worse (mean ARI
    0.73 instead of 0.78 on Kang et al.'s cells). Of a model without a GMF part, the first layer's.
    """
    if not model.layout.gmf:
        return _centred(torch.from_numpy(model.cell_embedding("mlp", metric="gene")).double())
    cells = model.tables["cells"][:, : model.layout.gmf].double().cpu()
    if len(model.dataset_names) > 1:
        cells = cells + taken_by_biases(model)[torch.as_tensor(np.asarray(model.dataset, dtype=np.int64))]
    _, singular, axes = torch.linalg.svd(_genes(model), full_matrices=False)
    return _centred(cells @ (axes.T * singular / np.sqrt(len(model.gene_names))))


def taken_by_biases(model: NeuMFModel) -> Tensor:
    """Return the places in the common space that the datasets' gene biases stand for, ``[datasets, gmf]`` float64.

    By weighted least squares: ``bias[d, g] - mean bias[g] = a[d] . w[g] + constant[d]`` with ``w`` the genes'
    embeddings. A gene weighs one over its bias's variance: that of the counts it was learnt from, and ``OWN_VARIANCE``.
    """
    genes, size = _genes(model), model.layout.gmf
    biases = model.tables["shifts"][..., -1].double().cpu()
    weight = 1 / (_variance_of_counts(model, biases) + OWN_VARIANCE)
    weight = (weight / weight.mean())[:, None]
    known = torch.cat([genes, torch.ones(len(genes), 1, dtype=torch.float64)], 1)
    gram = known.T @ (known * weight)
    gram[range(size), range(size)] += (
        RIDGE * len(genes) * genes.square().mean() + torch.finfo(torch.float64).tiny
    )
    return torch.linalg.solve(gram, known.T @ (weight * (biases - biases.mean(0)).T))[:size].T


def _variance_of_counts(model: NeuMFModel, biases: Tensor) -> Tensor:
    """One over the counts that a gene has in a dataset as its bias has them, mean of the datasets, ``[genes]``.

    Nothing where a bias is no logarithm.
    """
    if model.settings.link != "exp":
        return torch.zeros(biases.shape[1], dtype=torch.float64)
    dataset = torch.as_tensor(np.asarray(model.dataset, dtype=np.int64))
    sizes = torch.zeros(len(biases), dtype=torch.float64)
    sizes.index_add_(0, dataset, torch.as_tensor(model.log_size).double().cpu().exp())
    return (1 / (biases.exp() * sizes[:, None]).clamp_min(1e-3)).mean(0)


def _genes(model: NeuMFModel) -> Tensor:
    """The genes' shared embeddings with the output's weights, ``[genes, gmf]`` float64."""
    out = model.layout.split_tower(model.tables["tower"])["out_gmf"].double().cpu()
    return model.tables["genes"][:, : model.layout.gmf].double().cpu() * out


def _centred(points: Tensor) -> NDArray[np.float32]:
    return (points - points.mean(0)).float().numpy()
