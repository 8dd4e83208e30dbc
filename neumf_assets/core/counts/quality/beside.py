"""The raw matrix that lies beside a filtered one, and the ambient RNA that it tells."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neumf_assets.core.counts.discover import is_url, matrix_folder
from neumf_assets.core.counts.qc import blocks_of
from neumf_assets.core.counts.quality.cell_calling import ambient_profile
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.stored import StoredCounts
from neumf_assets.core.errors import NeumfError

_logger = logging.getLogger(__name__)
_FILTERED, _RAW = "filtered", "raw"


def raw_beside(source: str | Path) -> Path | None:
    """Find the raw matrix of all droplets from which programmes made a filtered one, where it lies beside it.

    Of Cell Ranger (folders and HDF5) and STARsolo; only on the local disk.
    """
    if is_url(source):
        return None
    place = Path(source)
    if place.is_dir():
        try:
            below, _ = matrix_folder(place, lambda path: _names(place / path))
        except NeumfError:
            return None
        place = place / below
    for part in (place, place.parent):  # Cell Ranger 2 has a folder for each genome below
        if part.name.startswith((_FILTERED, f"sample_{_FILTERED}")):
            raw = part.with_name(part.name.replace(_FILTERED, _RAW))
            tried = (raw / place.relative_to(part), raw, raw.with_name(f"{raw.name}.h5"))
            return next((found for found in tried if found.exists()), None)
    return None


def ambient_beside(
    source: str | Path, genes: pd.Index, settings: ReadSettings, lower: int, scratch: Path
) -> NDArray[np.float64] | None:
    """Give the share of each gene in the ambient RNA, as the raw matrix beside a filtered one tells it.

    Parameters
    ----------
    source
        The filtered matrix.
    genes
        Its genes.
    settings
        As it was read.
    lower
        Counts up to which a droplet is surely empty.
    scratch
        Folder for the counts of all droplets meanwhile.

    Returns
    -------
    None where there is no raw matrix, or none that can be used; the log says why.
    """
    raw = raw_beside(source)
    if raw is None:
        return None
    plain = settings.model_copy(
        update={"sha256": {}, "label_columns": None, "max_cells": None, "max_genes": None}
    )
    try:
        store_counts(raw, scratch, plain, name="raw")
        with StoredCounts(scratch) as droplets:
            counts = np.zeros(droplets.shape[1])
            for _, X in blocks_of(droplets):
                empty = np.asarray(X.sum(axis=1)).ravel() <= lower
                counts += np.asarray(X[empty].sum(axis=0, dtype=np.float64)).ravel()
            place = droplets.var_names.get_indexer(genes)
        profile = ambient_profile(np.where(place >= 0, counts[place], 0.0))
    except NeumfError as error:
        _logger.warning("The raw matrix %s tells nothing of the ambient RNA: %s", raw.name, error)
        return None
    _logger.info("The filtered matrix is used; %s beside it tells the ambient RNA", raw.name)
    return profile


def _names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
