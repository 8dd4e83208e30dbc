"""Reading upstream artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from neumf_assets.assets.gene_space import renamed_genes
from neumf_assets.assets.stage import Step
from neumf_assets.core.store import Artifact

if TYPE_CHECKING:
    import pandas as pd

    from neumf_assets.core.counts.stored import SomeCells, StoredCounts
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


@contextmanager
def all_genes_of_kept_cells(step: Step) -> Iterator[dict[str, SomeCells]]:
    """The raw counts of the cells that passed quality control, opened but not read.

    Not the filtered genes: a gene that is too rare in one dataset was measured there all the same.
    """
    from neumf_assets.core.counts.stored import SomeCells, StoredCounts

    raw, renamed = step.all("raw_counts"), renamed_genes(step)
    with ExitStack() as files, stored_counts(step) as kept:
        opened = {name: files.enter_context(StoredCounts(raw[name].path, renamed.get(name))) for name in kept}
        yield {
            name: SomeCells(data, data.obs_names.get_indexer(kept[name].obs_names), kept[name].obs)
            for name, data in opened.items()
        }


def best_arm(step: Step, arms: Sequence[str]) -> str:
    """The arm that the comparison speaks for; the first where it speaks for none."""
    found = json.loads((step.one("comparison").path / "comparison.json").read_text())["best_arm"]
    return str(found or arms[0])


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
