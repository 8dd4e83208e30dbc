"""Which matrix of a file that has several holds the counts: found by whole numbers where the main one has none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neumf_assets.core.counts.readers.contents.validate import NOISE
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.errors import BadInput

COUNTS = ("counts", "raw_counts", "raw_count", "count", "umi_counts", "umi", "umis", "rawcounts")
"""Names of layers that hold counts, best first; case does not matter."""
RAW = "raw"
_SAMPLE = 100_000
_PLACES = 3
_ROWS = 100
_logger = logging.getLogger(__name__)


def layer_of_counts(main: str, matrices: Mapping[str, Any], given: str, settings: ReadSettings) -> str | None:
    """Tell which matrix of a file is to be read.

    Parameters
    ----------
    main
        Name of the main matrix, which is read where nothing speaks against it.
    matrices
        Elements of the file by name: arrays, or groups of ``data``, ``indices`` and ``indptr``.
    given
        Path or URL for messages.
    settings
        ``layer`` decides where it is set (the name of the main matrix means that one); ``allow_normalised`` and
        ``round_values`` say that the main matrix is meant whatever it holds.

    Returns
    -------
    str or None
        Name of the matrix, or None for the main one. Where the main one is missing or holds values that are no whole
        numbers, it is another one that does: ``raw``, which has all genes, before a layer called like counts, before
        the only one there is.

    Raises
    ------
    BadInput
        Several others hold whole numbers, and their names do not tell which are the counts.
    """
    if settings.layer is not None:
        return None if settings.layer == main else settings.layer
    first = matrices.get(main)
    if settings.allow_normalised or settings.round_values or (first is not None and not _is_no_count(first)):
        return None
    whole = [name for name, element in matrices.items() if name != main and looks_counted(element)]
    found = _best(whole)
    if found is None and whole:
        raise BadInput(
            given,
            main,
            "is missing" if first is None else "holds values that are no counts",
            f"Several others hold whole numbers: set layer in the settings to one of {', '.join(whole)}",
        )
    return found


def say_layer(given: str, layer: str) -> None:
    """Tell that the counts come from another matrix than the main one, as :func:`layer_of_counts` found."""
    place = "raw.X" if layer == RAW else f"layers/{layer}"
    _logger.warning(
        "%s: the main matrix is missing or holds values that are no counts; the counts are taken from %s, which holds "
        "whole numbers (read.layer decides otherwise)",
        *(given, place),
    )


def _best(whole: list[str]) -> str | None:
    ranks = {name: COUNTS.index(name.lower()) for name in whole if name.lower() in COUNTS}
    if RAW in whole:
        return RAW
    if ranks:
        return min(ranks, key=ranks.__getitem__)
    return whole[0] if len(whole) == 1 else None


def _is_no_count(element: Any) -> bool:
    """Whether some values of a sample are negative or no whole numbers; damage is left for the reader to tell."""
    values = _sample(element)
    return bool(values.size) and not _are_whole(values)


def looks_counted(element: Any) -> bool:
    """Whether a sample holds whole numbers only, and not just zeros and ones, as what tells pairs apart does."""
    values = _sample(element)
    return bool(values.size) and _are_whole(values) and bool((values > 1).any())


def _are_whole(values: NDArray[Any]) -> bool:
    if values.dtype.kind in "ub":
        return True
    if not np.isfinite(values).all():
        return False
    rounded = np.rint(values)
    near = np.abs(values - rounded) <= NOISE * np.maximum(np.abs(rounded), 1)
    return bool((near & (values >= 0)).all())


def _sample(element: Any) -> NDArray[Any]:
    """Entries from the beginning, the middle and the end; none of what is no matrix."""
    dense = getattr(element, "ndim", 0) == 2
    try:
        data = element if dense else element["data"]
        if (data.ndim != 1 and not dense) or data.dtype.kind not in "iufb" or not all(data.shape):
            return np.zeros(0)
        length = data.shape[0]
        size = max(1, min(_ROWS, _SAMPLE // data.shape[1])) if dense else _SAMPLE
        starts = {max(0, (length - size) * part // (_PLACES - 1)) for part in range(_PLACES)}
        return np.concatenate([np.asarray(data[start : start + size]).ravel() for start in sorted(starts)])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return np.zeros(0)
