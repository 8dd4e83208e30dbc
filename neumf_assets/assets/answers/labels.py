"""Labels for the cells that came without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.answers.rows import rows_of
from neumf_assets.assets.inputs import best_arm, read_table
from neumf_assets.assets.stage import Product, Stage, Step, stage

if TYPE_CHECKING:
    import pandas as pd

    from neumf_assets.core.annotation.transfer import LabelTransfer

COLUMN, RIGHT, HELD_OUT, UNKNOWN = "label column", "right", "held out", "unknown"


def labels_stage(arms: Sequence[str]) -> Stage:
    """The labels of all cells in the best arm's space."""

    @stage(
        group="report",
        inputs=("gene_space", "comparison", *(f"{arm}/cell_embedding" for arm in arms)),
        settings=("labels", "label_column", "arms"),
        kinds=("parquet", "scikitlearn"),
        columns=(
            ("cell", "string", "name of the cell"),
            ("dataset", "string", "its dataset"),
            ("label", "string", "the label that came with it; missing where there was none"),
            (
                "predicted",
                "string",
                "the label that other cells give it; 'unknown' where too little speaks for any",
            ),
            ("best_guess", "string", "the same without 'unknown'"),
            ("probability", "float", "of the best guess, calibrated on held-out cells"),
            ("support", "float", "share of the cell's nearest labelled cells that point back to it"),
        ),
    )
    def cell_labels(step: Step) -> Product:
        """Which cells these are: labels that some cells have, carried over to those that have none.

        In the space of the best arm, from the nearest labelled cells and a regression on it. A cell is 'unknown' where
        no label is probable, or the labelled cells that it points to do not point back: its type may be one that no
        labelled dataset has. How often labels are right is measured by hiding those of one dataset at a time.
        """
        from neumf_assets.core.annotation.transfer import transfer_labels
        from neumf_assets.core.cells.files.store import CellEmbedding, label_column, labels_of

        arm = best_arm(step, arms)
        cells = CellEmbedding.load(step.one(f"{arm}/cell_embedding").path)
        column = label_column(cells.cells, step.study.label_column)
        names = cells.names.astype({"dataset": object})
        labels = labels_of(cells.cells, column).astype(object) if column else None
        if labels is None or labels.nunique() < 2:
            return _without_labels(names, arm)
        found = transfer_labels(cells.embedding, labels, names["dataset"].to_numpy(str), step.study.labels)
        figures = _figures(found, arm, str(column))
        return Product(
            lambda folder: _save(folder, names, found),
            figures,
            tables={
                "labels, held out": rows_of(found.accuracy),
                "cells without a label": _counted(names, found),
            },
            publish={"cell_labels.parquet": "cell_labels.parquet"},
        )

    return cell_labels


def named_cells(step: Step) -> pd.Series | None:
    """Every cell's label, given or carried over, missing for the unknown; None where the study has no labels."""
    from neumf_assets.core.annotation.transfer import UNKNOWN as NOT_KNOWN

    labels = read_table(step.one("cell_labels"), "cell_labels")
    if labels["predicted"].isna().all():
        return None
    named = labels["label"].astype(object).where(labels["label"].notna(), labels["predicted"])
    return named.where(named != NOT_KNOWN, None)


def _figures(found: LabelTransfer, arm: str, column: str) -> dict[str, Any]:
    without = found.cells["label"].isna()
    return {
        "arm": arm,
        COLUMN: column,
        "cells without a label": int(without.sum()),
        UNKNOWN: int((found.cells.loc[without, "predicted"] == "unknown").sum()),
        **({} if found.right is None else {RIGHT: found.right}),
        "bound on the support": found.bound,
        HELD_OUT: found.held_out,
        "rows": len(found.cells),
    }


def _counted(names: Any, found: LabelTransfer) -> list[dict[str, Any]]:
    """How many cells without a label got each, by dataset."""
    without = found.cells["label"].isna().to_numpy()
    table = found.cells.loc[without, ["predicted"]].assign(dataset=names["dataset"])
    counts = table.value_counts(["dataset", "predicted"]).reset_index(name="cells")
    return rows_of(counts)


def _save(folder: Path, names: Any, found: LabelTransfer) -> None:
    import pandas as pd

    table = pd.concat([names, found.cells], axis=1)
    table.to_parquet(folder / "cell_labels.parquet", index=False)
    found.accuracy.to_parquet(folder / "accuracy.parquet", index=False)


def _without_labels(names: Any, arm: str) -> Product:
    """The table of a study in which no cell has a label."""
    table = names.assign(
        label=None, predicted=None, best_guess=None, probability=float("nan"), support=float("nan")
    ).astype(dict.fromkeys(("label", "predicted", "best_guess"), "string"))
    return Product(
        lambda folder: table.to_parquet(folder / "cell_labels.parquet", index=False),
        {"arm": arm, COLUMN: "none: no cell has a label", "rows": len(table)},
        publish={"cell_labels.parquet": "cell_labels.parquet"},
    )
