"""What the Dagster UI shows of an asset: pictures first, then tables and figures, technical facts last."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from neumf_assets.assets.stage import Product, Stage, Step
from neumf_assets.core.errors import printable
from neumf_assets.core.report.wording import ARMS, METRICS, arm_title, method_title

Rows = Sequence[Mapping[str, Any]]

NAMES: dict[str, str] = {
    **{key: metric.title for key, metric in METRICS.items() if key != "seconds"},
    "ari_mean_sd": "ARI, spread over seeds",
    "ami_mean_sd": "AMI, spread over seeds",
    "expected_same_batch": "Same-dataset neighbours if mixed",
    "expected_same_batch_within_label": "Same-dataset neighbours if mixed in each type",
    "n_cells": "cells",
    "n_labelled": "cells with a label",
    "n_clusters": "clusters",
    "nonzero": "non-zero counts",
    "zero_fraction": "zeros (share)",
    "total_counts": "sum of counts",
    "cells_before": "cells read",
    "genes_before": "genes read",
    "mito_genes": "mitochondrial genes",
    "gene_names_made_unique": "gene names made unique",
    "sha256": "SHA-256 of the source",
    "train_loss": "training loss",
    "validation_loss": "validation loss",
    "pairs_per_second": "cell-gene pairs per second",
    "kkt_residual": "KKT residual",
    "read_seconds": "reading (s)",
    "bytes": "size of the source (bytes)",
    "shared": "genes in every dataset",
    "selected": "genes that LIGER uses",
    "best_arm": "best arm",
    "values": "values in the matrix",
    "tower_gain": "what the hidden layers gain on held-out entries (share)",
    "tower_seconds": "training of the hidden layers (s)",
    "variance_explained": "variance explained (share)",
    "alignment_passes": "passes of Harmony that are kept",
    "same_dataset_before": "neighbours in the own dataset before alignment (share)",
    "same_dataset_after": "neighbours in the own dataset after alignment (share)",
    "own_neighbours_kept": "nearest neighbours in the own dataset that stay (share)",
}
"""Names of figures in the UI, with units; others are shown with blanks for underscores."""

_TECHNICAL = frozenset({"identity", "seed", "device", "data_sha256"})
"""Figures that are kept together in one entry at the end."""

_SHOWN_OTHERWISE = frozenset({"name", "heldout_deviance", "cells_dropped", "genes_dropped"})
"""Figures that say again what the partition's name or a table says."""

_DIGITS = 6
_TABLE_DIGITS = 4  # so that tables fit
_ROWS = "rows"
_ROW_COUNT = "dagster/row_count"  # a name that Dagster knows, for tables without partitions
_DEVIANCE = "deviance_"


def description_of(declared: Stage) -> str:
    """The stage's description; that of an arm's stage begins with the arm's name."""
    arm = arm_of(declared)
    return f"{arm_title(arm)} · {declared.description}" if arm else declared.description


def kinds_of(declared: Stage) -> set[str]:
    """The stage's kinds, and its arm: a node in the graph shows these but not the first part of its key."""
    arm = arm_of(declared)
    return {*declared.kinds, arm} if arm else set(declared.kinds)


def tags_of(declared: Stage) -> dict[str, str]:
    """What to filter assets by."""
    arm = arm_of(declared)
    return {"stage": declared.group, **({"arm": arm} if arm else {})}


def arm_of(declared: Stage) -> str | None:
    """The arm that a stage belongs to."""
    return declared.name[0] if declared.name[0] in ARMS else None


def definition_metadata(declared: Stage) -> dict[str, Any]:
    """What is known of an asset before it is made: the columns of a table."""
    if not declared.columns:
        return {}
    columns = [dg.TableColumn(name, kind, description=text) for name, kind, text in declared.columns]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def materialisation_metadata(declared: Stage, product: Product, step: Step) -> dict[str, Any]:
    """What is shown of a materialisation, in the order in which it is shown."""
    figures = {key: value for key, value in product.figures.items() if key not in _SHOWN_OTHERWISE}
    technical = {key: value for key, value in figures.items() if is_technical(key, value)}
    shown: dict[str, Any] = {title: dg.MetadataValue.md(text) for title, text in product.pictures.items()}
    shown.update({title: _table(rows) for title, rows in product.tables.items() if rows})
    for key, value in figures.items():
        if key not in technical and value is not None:
            name = _ROW_COUNT if key == _ROWS and not declared.per_dataset else figure_name(key)
            shown[name] = shown_value(value)
    if declared.uses_device:
        shown["device"] = step.device
    if technical:
        shown["technical facts"] = dg.MetadataValue.json(technical)
    return shown


def notes_metadata(said: Sequence[str]) -> dict[str, Any]:
    """What a stage said while it worked, as that it went another way for want of memory."""
    return {"notes": dg.MetadataValue.md("\n".join(f"- {as_text(text)}" for text in said))} if said else {}


def as_text(text: str) -> str:
    """Return a text, in which names from files may stand, as Markdown shows it: no link, picture or HTML of theirs."""
    return re.sub(r"([\\`\[\]<>&|])", r"\\\1", " ".join(printable(text).split()))


def cost_metadata(figures: Mapping[str, Any], size_bytes: int, location: str) -> dict[str, Any]:
    """What a materialisation cost, and where its files are."""
    return {
        "seconds": figures["seconds"],
        "peak memory (MiB)": figures["peak_memory_mib"],
        "size (MiB)": shown_value(size_bytes / 2**20),
        "files": dg.MetadataValue.path(location),
    }


def path_metadata(files: Iterable[Path]) -> dict[str, Any]:
    """Where the files are that a person opens, each under its name."""
    return {file.name: dg.MetadataValue.path(file) for file in files}


def figure_name(key: str) -> str:
    """A figure's name for people, with its unit."""
    if key.startswith(_DEVIANCE):
        return f"held-out deviance, {method_title(key.removeprefix(_DEVIANCE))}"
    return NAMES.get(key, key.replace("_", " "))


def is_technical(key: str, value: Any) -> bool:
    """Whether a figure belongs to the technical facts: versions, digests and what has parts of its own."""
    return key in _TECHNICAL or key.endswith("_version") or isinstance(value, Mapping)


def shown_value(value: Any) -> Any:
    """A value as the UI shows it: floats to six digits, whole ones as whole numbers."""
    if isinstance(value, float):
        return _short(value)
    if isinstance(value, (bool, int, str)):
        return value
    return dg.MetadataValue.json(value)


def _short(value: float, digits: int = _DIGITS) -> float | int:
    if not math.isfinite(value):
        return value
    return int(value) if value.is_integer() and abs(value) >= 1 else float(f"{value:.{digits}g}")


def _table(rows: Rows) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(records=[dg.TableRecord(dict(_cells(row))) for row in rows])


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        plain = value if isinstance(value, (int, float, str, bool)) else "" if value is None else str(value)
        yield figure_name(key), _short(plain, _TABLE_DIGITS) if isinstance(plain, float) else plain
