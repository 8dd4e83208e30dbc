"""Held-out deviance of one integrative model of a study's datasets beside models of each dataset alone.

On the 2,000 genes that vary most within the datasets, thinned 80/20; the integrative model has the settings that
a study clusters with, and those of the models of single datasets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks import harness
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.simulate.study import simulate_study
from neumf_assets.core.counts.stack import stack_shared
from neumf_assets.core.neumf.evaluation.together import evaluate_together
from neumf_assets.core.neumf.genes import select_genes
from neumf_assets.core.neumf.settings import NeuMFSettings, ineumf_defaults

GENES = 2000
SHORT = {"epochs": 2, "pretrain_epochs": 2, "fusion_epochs": 1}


def studies(quick: bool) -> dict[str, dict[str, Any]]:
    """Return the datasets of each study: of the real ones that are there, and simulated."""
    simulated = simulate_study(SimulatorSettings())
    found = {"simulated": {name: known.counts for name, known in simulated.items()}}
    return found if quick else found | dict(harness.real_studies())


def rows_of(study: str, datasets: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Return a row for each kind of model."""
    stacked, names = stack_shared(datasets)
    dataset = np.repeat(np.arange(len(datasets)), [data.n_obs for data in datasets.values()])
    chosen = select_genes(stacked, dataset, GENES)
    counts, genes = csr_matrix(stacked[:, chosen]), [names[i] for i in chosen]
    short = SHORT | {"n_genes": None} if quick else {"n_genes": None}
    default = NeuMFSettings(**short)
    gmf = default.model_copy(update={"kind": "gmf"})
    together = {
        "one model, as a study clusters with": ineumf_defaults().model_copy(update=short),
        "one model, GMF": gmf,
        "one model, NeuMF": default,
    }
    rows = []
    for name, settings in together.items():
        found = evaluate_together(counts, dataset, settings, gene_names=genes, dataset_names=list(datasets))
        rows.append({"study": study, "model": name, **_rounded(found)})
    for name, settings in {"a model for each, GMF": gmf, "a model for each, NeuMF": default}.items():
        rows.append(
            {
                "study": study,
                "model": name,
                **_rounded(_alone(counts, dataset, genes, list(datasets), settings)),
            }
        )
    for row in rows:
        harness.say(row)
    return rows


def _alone(
    counts: csr_matrix, dataset: np.ndarray, genes: list[str], names: list[str], settings: NeuMFSettings
) -> dict[str, float]:
    """Return the deviance of each dataset under a model of its own."""
    found: dict[str, float] = {}
    for number, name in enumerate(names):
        own = counts[dataset == number]
        zeros = np.zeros(own.shape[0], np.intp)
        found |= evaluate_together(own, zeros, settings, gene_names=genes, dataset_names=[name])
    return found


def _rounded(deviance: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in deviance.items()}


def main(quick: bool = False) -> dict[str, Any]:
    rows = [row for study, datasets in studies(quick).items() for row in rows_of(study, datasets, quick)]
    skipped = {} if quick else harness.absent_studies()
    return {
        "title": "held-out deviance of integrative models (lower is better)",
        "rows": rows,
        "skipped": skipped,
    }


if __name__ == "__main__":
    harness.script(main)
