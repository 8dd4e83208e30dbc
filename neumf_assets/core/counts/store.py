"""Counts on disk: ``counts.h5ad`` in a folder, written atomically."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad

FILE = "counts.h5ad"


def save_counts(adata: ad.AnnData, folder: str | Path) -> Path:
    """Write counts to ``folder/counts.h5ad``.

    The file appears under its name only when it is complete; one that was there before stays until then.

    Parameters
    ----------
    adata
        Counts as `read_counts` or `filter_counts` give them.
    folder
        Local folder; made if missing.

    Returns
    -------
    pathlib.Path
        The file.
    """
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        adata.write_h5ad(temporary, compression="lzf", convert_strings_to_categoricals=False)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def load_counts(folder: str | Path, backed: bool = False) -> ad.AnnData:
    """Load what `save_counts` wrote.

    Parameters
    ----------
    folder
        The folder it was written to.
    backed
        Leave ``X`` on disk and read parts of it as they are asked for.
    """
    return ad.read_h5ad(Path(folder) / FILE, backed="r" if backed else None)
