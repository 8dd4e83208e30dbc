"""Reading upstream artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from neumf_assets.assets.gene_space import renamed_genes
from neumf_assets.assets.stage import Step
from neumf_assets.core.store import Artifact

if TYPE_CHECKING:
    import pandas as pd

    from neumf_assets.core.counts.stored import StoredCounts
    from neumf_assets.core.liger.stored import StoredScaled


@contextmanager
def stored_counts(step: Step) -> Iterator[dict[str, StoredCounts]]:
    """The filtered counts of every dataset, by name, opened but not read; genes under their names in the study."""
    from neumf_assets.core.counts.stored import StoredCounts

    renamed = renamed_genes(step)
    with ExitStack() as files:
        yield {
            name: files.enter_context(StoredCounts(artifact.path, renamed.get(name)))
            for name, artifact in step.all("counts").items()
        }


def selected_genes(step: Step) -> list[str]:
    """The genes that LIGER uses."""
    table = read_table(step.one("shared_genes"), "genes")
    return [str(gene) for gene in table.loc[table["selected"], "gene"]]


def scaled_counts(step: Step, counts: Mapping[str, StoredCounts]) -> dict[str, StoredScaled]:
    """The counts as LIGER factorises them: its genes, divided by the cell's total, scaled by gene."""
    from neumf_assets.core.counts.stored import StackedCounts
    from neumf_assets.core.liger.preprocess import gene_statistics
    from neumf_assets.core.liger.stored import StoredScaled

    genes, scaled = selected_genes(step), {}
    for name, data in counts.items():
        statistics = gene_statistics(StackedCounts.of({name: data}))
        used = StackedCounts.of({name: data}, genes)
        scaled[name] = StoredScaled(used, statistics, used.columns[0])
    return scaled


def read_table(artifact: Artifact, name: str) -> pd.DataFrame:
    """A Parquet table of an artifact."""
    import pandas as pd

    return pd.read_parquet(artifact.path / f"{name}.parquet")


def read_cell_columns(artifact: Artifact, name: str) -> pd.DataFrame:
    """What a Parquet table of an artifact says of every cell, without the columns that name the cells."""
    from neumf_assets.core.cells.files.store import read_cells

    return read_cells(artifact.path / f"{name}.parquet", named=False)
