"""Sections on what a study answers: which cells these are, and what differs between conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumf_assets.core.report.content import ConditionResults, LabelResults, ReportContent
from neumf_assets.core.report.html.parts import Cell, Picture, Table
from neumf_assets.core.report.plots.conditions import composition_bars, volcanoes
from neumf_assets.core.report.wording import arm_title, number, percent

_TYPES_SHOWN = 40


def labels_section(content: ReportContent) -> dict[str, Any] | None:
    """Labels that were carried over, and how often they are right."""
    labels = content.labels
    if labels is None:
        return None
    rows = [
        (
            row["label"],
            [
                Cell(number(row["cells"])),
                Cell(percent(row["right"])),
                Cell(percent(row["unknown"])),
                Cell(row["mostly_taken_for"]),
            ],
        )
        for row in labels.accuracy[:_TYPES_SHOWN]
    ]
    return {
        "id": "labels",
        "title": "Cell labels",
        "kind": "labels",
        "labels": labels,
        "arm": arm_title(labels.arm),
        "said": _said(labels),
        "table": Table(["Cells", "Right", "Called unknown", "Mostly taken for"], rows, corner="Label")
        if rows
        else None,
        "given": Table(["Label", "Cells"], _given(labels), corner="Dataset") if labels.given else None,
    }


def _said(labels: LabelResults) -> str:
    if labels.right is None:
        return "No label could be checked, for no type is labelled in two datasets."
    hidden = (
        "With the labels of one dataset at a time hidden"
        if labels.held_out == "datasets"
        else "With a fifth of the only labelled dataset hidden at a time (a mild test: other datasets differ more)"
    )
    return f"{hidden}, {percent(labels.right)} of the cells get their own label back."


def _given(labels: LabelResults) -> list[tuple[str, list[Cell]]]:
    return [
        (row["dataset"], [Cell(row["predicted"]), Cell(number(row["cells"]))])
        for row in labels.given[:_TYPES_SHOWN]
    ]


def composition_section(content: ReportContent) -> dict[str, Any] | None:
    """Shares of cell types by sample, and whether conditions differ in them."""
    found = content.conditions
    if found is None or not len(found.shares):
        return None
    tests = found.tests.sort_values("p_value", kind="stable")
    several = len(found.others) > 1
    rows = [
        (_name(row["cell_type"], row["condition"], several), _tested(row, found.max_adjusted_p))
        for row in tests[tests["refused"].isna()].head(_TYPES_SHOWN).to_dict("records")
    ]
    refused = sorted(set(tests["refused"].dropna()))
    other = "condition" if several else found.others[0]
    columns = [f"Share, {found.reference}", f"Share, {other}", "Odds ratio", "Adjusted p"]
    return {
        "id": "composition",
        "title": "Composition",
        "kind": "composition",
        "found": found,
        "picture": Picture(
            composition_bars(found.shares),
            "Stacked bars of the share of every cell type in each sample",
            "A bar is a sample, its colours the shares of the cell types.",
        ),
        "table": Table(columns, rows, corner="Cell type") if rows else None,
        "refused": refused,
    }


def _name(cell_type: str, condition: str, several: bool) -> str:
    return f"{cell_type}, {condition}" if several else cell_type


def _tested(row: Mapping[Any, Any], bound: float) -> list[Cell]:
    return [
        Cell(percent(row["share_reference"])),
        Cell(percent(row["share_condition"])),
        Cell(number(row["odds_ratio"], 2), f"{number(row['low'], 2)} to {number(row['high'], 2)}"),
        Cell(_p(row["p_adjusted"]), best=row["p_adjusted"] <= bound),
    ]


def differences_section(content: ReportContent) -> dict[str, Any] | None:
    """Genes that a condition changes in each cell type."""
    found = content.conditions
    if found is None or not len(found.compared):
        return None
    several = len(found.others) > 1
    rows = [
        (
            _name(row["cell type"], row["condition"], several),
            [Cell(number(row["found"])), Cell(row["higher"]), Cell(row["lower"])],
        )
        for row in found.top
    ]
    refused = found.compared[found.compared["refused"].notna()]
    under = "the condition" if several else found.others[0]
    columns = ["Genes found", f"Higher under {under}", f"Lower under {under}"]
    return {
        "id": "differences",
        "title": "Differential expression",
        "kind": "differences",
        "found": found,
        "pictures": [_volcanoes(found)] if len(found.genes) else [],
        "table": Table(columns, rows, corner="Cell type", wordy=True) if rows else None,
        "refused": [
            f"{row['cell_type']}, {row['condition']}: {row['refused']}" for row in refused.to_dict("records")
        ],
    }


def _volcanoes(found: ConditionResults) -> Picture:
    return Picture(
        volcanoes(found.genes, found.max_adjusted_p),
        "Volcano plots: log2 fold change against the p-value, a panel for each cell type",
        "A point is a gene; orange: higher under the condition, blue: lower; grey: not found to differ.",
    )


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
