"""What the functions take out of an AnnData: its counts, its batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from neumf_assets.core.errors import NeumfError

if TYPE_CHECKING:
    import anndata as ad

COUNTS = "counts"


def read(path: str | Path, **settings: Any) -> ad.AnnData:
    """Read a count matrix of any format that the pipeline reads; ``X`` holds cells × genes counts.

    Parameters
    ----------
    path
        File, folder or URL: a table, Matrix Market folder, 10x HDF5, h5ad, Zarr or loom.
    settings
        As a study's section ``read`` (``delimiter``, ``orientation``, …).

    Raises
    ------
    BadInput
        Naming the file, the place and the mend.
    """
    from neumf_assets.core.counts.readers import read_counts
    from neumf_assets.core.counts.settings import ReadSettings

    return read_counts(str(path), ReadSettings.model_validate(settings))


def counts_of(data: ad.AnnData, layer: str | None = None) -> sp.csr_matrix:
    """Raw counts, cells × genes: the layer named, else ``layers["counts"]`` where there is one, else ``X``.

    Raises
    ------
    NeumfError
        The layer is not there, or values are not whole numbers: they have been normalised.
    """
    if layer is not None and layer not in data.layers:
        known = ", ".join(map(str, data.layers)) or "none"
        raise NeumfError(f"There is no layer {layer!r}. Layers: {known}.")
    name = layer or (COUNTS if COUNTS in data.layers else None)
    found = sp.csr_matrix(data.X if name is None else data.layers[name])
    where = "X" if name is None else f"layers[{name!r}]"
    if (
        not np.isfinite(found.data).all()
        or (found.data < 0).any()
        or (found.data != np.round(found.data)).any()
    ):
        raise NeumfError(
            f"{where} does not hold raw counts (whole numbers from 0); name the layer that does."
        )
    return found


def codes_of(data: ad.AnnData, key: str | None) -> tuple[np.ndarray, list[str]]:
    """Each cell's batch as a number, and the names of the batches in order; one batch without a key.

    Raises
    ------
    NeumfError
        The column is not there, or has missing values.
    """
    if key is None:
        return np.zeros(data.n_obs, dtype=np.intp), ["cells"]
    values = column_of(data, key)
    if values.isna().any():
        raise NeumfError(
            f"obs[{key!r}] is missing for {int(values.isna().sum())} cells; name a batch for each."
        )
    names, codes = np.unique(values.astype(str).to_numpy(str), return_inverse=True)
    return codes.astype(np.intp), [str(name) for name in names]


def column_of(data: ad.AnnData, key: str) -> Any:
    """A column of the cells.

    Raises
    ------
    NeumfError
        Naming the columns that there are.
    """
    if key not in data.obs:
        known = ", ".join(map(str, data.obs.columns)) or "none"
        raise NeumfError(f"obs has no column {key!r}. Columns: {known}.")
    return data.obs[key]
