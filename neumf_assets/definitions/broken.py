"""A study that cannot be loaded: shown with what is wrong, instead of taking all others out of the interface."""

import logging
import re
from pathlib import Path

import dagster as dg

from neumf_assets.core.errors import NeumfError

SETTINGS_ERROR = "settings_error"

_log = logging.getLogger(__name__)


def broken_study(name: str, path: Path, error: Exception) -> dg.Definitions:
    """What is shown of a study that cannot be loaded: one asset, which nothing makes, that tells the error.

    Parameters
    ----------
    name
        What its file, or its folder, is called.
    path
        The file.
    error
        What is wrong.
    """
    message = _said(error)
    _log.error("Study %s is left out; the others are loaded. %s", name, message)
    group = re.sub(r"\W", "_", name, flags=re.ASCII) or "study"
    shown = message.replace("`", "'")  # it may quote a file, which must not end the block
    told = (
        f"This study could not be loaded. Correct {path}, then reload the definitions.\n\n```\n{shown}\n```"
    )
    asset = dg.AssetSpec(
        [group, SETTINGS_ERROR],
        group_name=group,
        description=told,
        kinds={"yaml"},
        metadata={"file": dg.MetadataValue.path(str(path)), "error": dg.MetadataValue.text(message)},
    )
    return dg.Definitions(assets=[asset])


def _said(error: BaseException) -> str:
    """An error in words: ours as it is, another with its kind; the cause where Dagster has wrapped it."""
    while not isinstance(error, NeumfError) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, NeumfError) else f"{type(error).__name__}: {error}"
