"""What MultiQC finds of a study."""

from __future__ import annotations

import json

from neumf_assets.core.report.multiqc import multiqc_files

SUMMARY = {
    "study": "pbmc",
    "datasets": {
        "a": {"cells": 10, "genes": 20, "zero_fraction": 0.9, "heldout_deviance": {"neumf": 0.2, "svd": 0.3}},
        "b": {"cells": 11, "genes": 21, "zero_fraction": 0.8, "heldout_deviance": {}},
    },
    "arms": {"pca": {"ari_mean": 0.5, "ari_best": None, "seconds": 3.0}, "ineumf": {"ari_mean": 0.7}},
}


def test_tables_of_datasets_and_arms_under_names_that_it_looks_for() -> None:
    found = multiqc_files(SUMMARY)
    assert all(name.endswith("_mqc.json") for name in found)
    datasets, arms = found.values()
    assert datasets["plot_type"] == arms["plot_type"] == "table"
    assert datasets["data"]["a"] == {"cells": 10, "genes": 20, "zeros": 90.0, "heldout_deviance": 0.2}
    assert "heldout_deviance" not in datasets["data"]["b"]
    assert arms["data"]["Integrative NeuMF"] == {"ari_mean": 0.7}
    assert list(arms["headers"]) == ["ari_mean"], "a score that no arm has is no column"
    assert set(datasets["headers"]) == {"cells", "genes", "zeros", "heldout_deviance"}
    assert datasets["id"] != arms["id"]
    json.dumps(found)
