"""Reading upstream artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neumf_assets.assets.stage import Step
from neumf_assets.core.store import Artifact

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd


def load_all_counts(step: Step) -> dict[str, ad.AnnData]:
    """The filtered counts of every dataset, by name."""
    from neumf_assets.core.counts.store import load_counts

    return {name: load_counts(artifact.path) for name, artifact in step.all("counts").items()}


def read_table(artifact: Artifact, name: str) -> pd.DataFrame:
    """A Parquet table of an artifact."""
    import pandas as pd

    return pd.read_parquet(artifact.path / f"{name}.parquet")
