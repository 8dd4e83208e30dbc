"""The report's sections on labels and conditions: what they say, and that names from files are text."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from neumf_assets.core.report.content import ConditionResults, LabelResults, MarkerGene, ReportContent
from neumf_assets.core.report.html.page import report_html

EVIL = "<b>T</b> cell & co"

LABELS = LabelResults(
    column="cell_type",
    arm="harmony",
    right=0.915,
    held_out="datasets",
    accuracy=[{"label": EVIL, "cells": 120, "right": 0.9, "unknown": 0.02, "mostly_taken_for": "NK"}],
    given=[{"dataset": "new", "predicted": "unknown", "cells": 7}],
    unlabelled=50,
    unknown=7,
)
SHARES = pd.DataFrame(
    {
        "sample": ["a ctrl", "a ctrl", "b stim", "b stim"],
        "condition": ["ctrl", "ctrl", "stim", "stim"],
        "replicate": ["a", "a", "b", "b"],
        "cell_type": [EVIL, "NK", EVIL, "NK"],
        "cells": [10, 30, 20, 20],
        "share": [0.25, 0.75, 0.5, 0.5],
    }
)
TESTS = pd.DataFrame(
    {
        "cell_type": [EVIL, "NK"],
        "condition": "stim",
        "share_reference": [0.25, 0.75],
        "share_condition": 0.5,
        "odds_ratio": [3.0, 0.33],
        "low": [1.2, 0.1],
        "high": [7.0, 0.9],
        "p_value": [0.001, 0.2],
        "p_adjusted": [0.002, 0.2],
        "refused": None,
    }
)
GENES = pd.DataFrame(
    {
        "cell_type": EVIL,
        "condition": "stim",
        "gene": ["ISG15", "ACTB"],
        "log2_fold_change": [5.0, -0.1],
        "p_value": [1e-30, 0.7],
        "p_adjusted": [1e-28, 0.8],
    }
)
COMPARED = pd.DataFrame(
    {"cell_type": [EVIL, "NK"], "condition": "stim", "refused": [None, "too few replicates: 1 under ctrl"]}
)
CONDITIONS = ConditionResults(
    reference="ctrl",
    groups="labels",
    assumed="replicates are the values of column 'donor'",
    max_adjusted_p=0.05,
    shares=SHARES,
    tests=TESTS,
    genes=GENES,
    compared=COMPARED,
    top=[{"cell type": EVIL, "condition": "stim", "found": 1, "higher": "ISG15", "lower": ""}],
)
CONTENT = ReportContent(study="s", labels=LABELS, conditions=CONDITIONS)


def test_labels_say_how_often_they_are_right_and_what_stays_unknown() -> None:
    page = report_html(CONTENT)
    assert '<section id="labels">' in page
    assert "With the labels of one dataset at a time hidden, 91.5" in page
    assert "50 cells came without a label; 7 of them stay" in page
    milder = report_html(replace(CONTENT, labels=replace(LABELS, held_out="cells")))
    assert "a mild test" in milder


def test_conditions_are_compared_and_refusals_told() -> None:
    page = report_html(CONTENT)
    assert '<section id="composition">' in page and '<section id="differences">' in page
    assert "replicates are the values of column" in page
    assert "Higher under stim" in page and "Share, stim" in page
    assert "NK, stim: too few replicates: 1 under ctrl" in page
    assert page.count("data:image/png") == 2


def test_names_from_files_are_text() -> None:
    page = report_html(CONTENT)
    assert EVIL not in page
    assert "&lt;b&gt;T&lt;/b&gt; cell &amp; co" in page


def test_without_answers_there_are_no_sections() -> None:
    page = report_html(ReportContent(study="s"))
    assert not any(f'id="{name}"' in page for name in ("labels", "composition", "differences"))


def test_label_markers_stand_beside_those_of_clusters() -> None:
    markers = {"0": [MarkerGene("CD74", 3.0)]}
    alone = report_html(ReportContent(study="s", markers=markers))
    both = report_html(
        ReportContent(study="s", markers=markers, label_markers={EVIL: [MarkerGene("GNLY", 4.0)]})
    )
    assert "By cluster" not in alone
    assert "By cluster" in both and "By label" in both and EVIL not in both
