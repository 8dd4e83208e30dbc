"""Reading upstream artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neumf_assets.assets.stage import Step
from neumf_assets.core.store import Artifact

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp


def load_all_counts(step: Step) -> dict[str, ad.AnnData]:
    """The filtered counts of every dataset, by name."""
    from neumf_assets.core.counts.store import load_counts

    return {name: load_counts(artifact.path) for name, artifact in step.all("counts").items()}


def selected_genes(step: Step) -> list[str]:
    """The genes that LIGER uses."""
    table = read_table(step.one("shared_genes"), "genes")
    return [str(gene) for gene in table.loc[table["selected"], "gene"]]


def scaled_counts(step: Step) -> dict[str, sp.csr_matrix]:
    """The counts as LIGER factorises them: its genes, divided by the cell's total, scaled by gene."""
    import scipy.sparse as sp

    from neumf_assets.core.liger.preprocess import gene_statistics, scale

    genes, scaled = selected_genes(step), {}
    for name, data in load_all_counts(step).items():
        everything = sp.csr_matrix(data.X)
        columns = data.var_names.get_indexer(genes)
        scaled[name] = scale(everything, gene_statistics(everything), columns)
    return scaled


def read_table(artifact: Artifact, name: str) -> pd.DataFrame:
    """A Parquet table of an artifact."""
    import pandas as pd

    return pd.read_parquet(artifact.path / f"{name}.parquet")
