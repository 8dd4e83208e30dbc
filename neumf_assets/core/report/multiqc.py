"""The study's figures as MultiQC reads them: files whose name ends in `_mqc.json` (its "custom content")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumf_assets.core.report.wording import METRICS, arm_title

_DATASET_COLUMNS = {
    "cells": ("Cells", "Cells that passed quality control", "{:,.0f}"),
    "genes": ("Genes", "Genes that passed quality control", "{:,.0f}"),
    "zeros": ("Zeros", "Per cent of zeros among the counts", "{:,.1f}"),
    "heldout_deviance": (
        "Held-out deviance",
        "Mean Poisson deviance of hidden counts; lower is better",
        "{:,.4f}",
    ),
}
_ARM_SCORES = ("ari_mean", "ari_best", "ami_best", "same_batch_neighbours", "cross_batch_label_accuracy")


def multiqc_files(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables of datasets and of arms, by the name of the file to write them to.

    Parameters
    ----------
    summary
        As in ``summary.json``.
    """
    study = str(summary["study"])
    datasets = {name: _dataset(found) for name, found in summary["datasets"].items()}
    arms = {
        arm_title(arm): {key: scores[key] for key in _ARM_SCORES if scores.get(key) is not None}
        for arm, scores in summary["arms"].items()
    }
    titles = {key: (METRICS[key].title, METRICS[key].meaning, "{:,.3f}") for key in _ARM_SCORES}
    return {
        "neumf_datasets_mqc.json": _table(study, "datasets", "Datasets", datasets, _DATASET_COLUMNS),
        "neumf_arms_mqc.json": _table(study, "arms", "Integration", arms, titles),
    }


def _dataset(found: Mapping[str, Any]) -> dict[str, float]:
    row = {"cells": found["cells"], "genes": found["genes"], "zeros": 100 * found["zero_fraction"]}
    deviance = next(iter(found["heldout_deviance"].values()), None)
    return row if deviance is None else row | {"heldout_deviance": deviance}


def _table(
    study: str,
    name: str,
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, tuple[str, str, str]],
) -> dict[str, Any]:
    seen = {key for row in rows.values() for key in row}
    return {
        "id": f"neumf_{name}_{study}",
        "section_name": f"{title} of {study}",
        "description": "Made by neumf-assets; see the study's report.html.",
        "plot_type": "table",
        "pconfig": {
            "id": f"neumf_{name}_table_{study}",
            "title": f"{title} of {study}",
            "namespace": "neumf-assets",
        },
        "headers": {
            key: {"title": text, "description": meaning, "format": form}
            for key, (text, meaning, form) in columns.items()
            if key in seen
        },
        "data": {str(row): dict(values) for row, values in rows.items()},
    }
