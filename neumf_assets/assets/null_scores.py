"""Chance: what an arm scores on a study's own counts once there is nothing in them to be found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neumf_assets.assets.inputs import selected_genes, stored_counts
from neumf_assets.assets.stage import CheckOutcome, Step

if TYPE_CHECKING:
    import anndata as ad
    import numpy as np
    import pandas as pd

    from neumf_assets.core.cells.scoring.scores import ArmScores

AT_CHANCE = 0.1
"""ARI and AMI are corrected for chance; without structure their mean over resolutions is nearer to 0 than this."""


def chance_scores(step: Step) -> ArmScores | None:
    """The scores of LIGER on counts whose genes were shuffled over the cells, in each dataset by itself.

    On a sample of the cells, with the arms' genes, graph, resolutions, seeds and labels. None where the study asks
    for no null run, or a dataset has too few cells or genes for LIGER.
    """
    from neumf_assets.core.liger.chain import run_liger

    study = step.study
    if not study.metrics.null_cells:
        return None
    genes = selected_genes(step)
    cells, shuffled = _shuffled_sample(step, genes)
    if min(len(genes), *(data.n_obs for data in shuffled.values())) < study.liger.k:
        return None
    settings = study.liger.model_copy(update={"reference": None})
    found = run_liger(shuffled, settings, genes=genes)
    return _scores(step, cells, found.embedding)


def _shuffled_sample(step: Step, genes: list[str]) -> tuple[pd.DataFrame, dict[str, ad.AnnData]]:
    """Cells drawn from every dataset by its share, at least twice as many as LIGER has factors, shuffled."""
    import anndata as ad
    import numpy as np
    import pandas as pd

    from neumf_assets.core.cells.files.store import cell_table
    from neumf_assets.core.cells.scoring.null import permute_genes
    from neumf_assets.core.counts.stored import StackedCounts

    wanted, seed = step.study.metrics.null_cells, step.study.metrics.seed
    tables, found = [], {}
    with stored_counts(step) as counts:
        total = sum(data.shape[0] for data in counts.values())
        for name, data in counts.items():
            number = min(data.shape[0], max(round(wanted * data.shape[0] / total), 2 * step.study.liger.k))
            rows = np.sort(np.random.default_rng(seed).permutation(data.shape[0])[:number])
            taken = StackedCounts.of({name: data}, genes).take(rows)
            found[name] = ad.AnnData(
                permute_genes(taken, seed), obs=data.obs.iloc[rows], var=pd.DataFrame(index=genes)
            )
            tables.append(cell_table({name: data}).iloc[rows])
    return pd.concat(tables, ignore_index=True), found


def _scores(step: Step, cells: pd.DataFrame, embedding: np.ndarray) -> ArmScores:
    from neumf_assets.core.cells.clustering import cluster_cells
    from neumf_assets.core.cells.files.store import DATASET, label_column, labels_of
    from neumf_assets.core.cells.neighbours import cell_graph, find_neighbours, neighbours_needed
    from neumf_assets.core.cells.scoring.metrics import score_embedding

    study = step.study
    needed = neighbours_needed(study.clusters, study.umap, study.metrics, len(cells))
    neighbours = find_neighbours(embedding, needed, metric=study.clusters.metric)
    chosen = study.clusters.model_copy(update={"methods": ("leiden",)})
    clusters = cluster_cells(embedding, cell_graph(neighbours, chosen), chosen)
    column = label_column(cells, study.label_column)
    return score_embedding(
        embedding,
        clusters,
        labels_of(cells, column) if column else None,
        labels_of(cells, study.batch_column or DATASET),
        neighbours,
        study.metrics,
    )


def chance_check(found: ArmScores | None) -> CheckOutcome:
    """Whether the scores that are corrected for chance are about 0 on shuffled counts."""
    name, figures = "shuffled_scores_at_chance", {}
    if found is not None and found.ari_mean is not None and found.ami_mean is not None:
        figures = {"ari_mean": found.ari_mean, "ami_mean": found.ami_mean}
    if not figures:
        return CheckOutcome(name, True, "Not judged: it takes labels, and cells enough for a null run.")
    listed = ", ".join(f"{key} {value:+.3f}" for key, value in figures.items())
    text = f"LIGER on counts whose genes were shuffled over the cells: {listed}; both should be about 0."
    return CheckOutcome(name, all(abs(value) < AT_CHANCE for value in figures.values()), text, figures)
