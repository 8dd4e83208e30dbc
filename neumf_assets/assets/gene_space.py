"""Which datasets go together in a study, and what a gene is called in all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.stage import CheckOutcome, Product, Step, stage

if TYPE_CHECKING:
    import pandas as pd

    from neumf_assets.core.counts.genes.join import DatasetGenes, Joined
    from neumf_assets.core.counts.stored import StoredCounts

_logger = logging.getLogger(__name__)
LEFT_OUT = "left_out"
RENAMED = "renamed.json"
_FIT = "all_datasets_fit"


@stage(
    group="integrate",
    inputs=("raw_counts", "counts"),
    settings=("qc.fewest_shared_genes",),
    kinds=("parquet",),
    columns=(
        ("gene", "string", "name of the gene in the study"),
        ("gene_id", "string", "accession without its version, where a dataset has one"),
        ("gene_symbol", "string", "symbol, where a dataset has one"),
        ("datasets", "int", "how many datasets measured the gene"),
    ),
    checks=(
        (_FIT, "No dataset is left out for its species, for want of genes that others have, or as a copy."),
    ),
)
def gene_space(step: Step) -> Product:
    """The datasets that go together, and one name for a gene in all of them.

    Genes with the same accession are the same, whatever their symbols; where a dataset has no accessions, genes
    with the same symbol are. A dataset of another species, one that shares too few genes with the others, or one
    that holds the same counts as another is left out of everything that follows, with its reason; its own results
    stay.
    """
    from neumf_assets.core.counts.genes.join import join_datasets
    from neumf_assets.core.errors import NeumfError

    repeated = _repeated(step)
    datasets = _datasets(step, repeated)
    if not datasets:
        raise NeumfError(
            "No dataset of the study is complete, so there is nothing to integrate: see the runs of its datasets."
        )
    joined = join_datasets(datasets, step.study.qc.fewest_shared_genes)
    joined.left_out.update(repeated)
    for name, reason in joined.left_out.items():
        _logger.warning(f"{name} is left out of the study: {reason}.")
    for text in joined.said:
        _logger.warning(text)
    genes, renamed = _genes(datasets, joined), _renamed(datasets, joined)

    def save(folder: Path) -> None:
        genes.to_parquet(folder / "genes.parquet", index=False)
        (folder / RENAMED).write_text(json.dumps(renamed))

    rows: list[dict[str, Any]] = [
        {
            "dataset": name,
            "species": one.species.name or "not told by its genes",
            "cells": one.cells,
            "genes": len(one.names),
            "under another name": int((joined.names[name] != one.names).sum()),
            "part of the study": joined.left_out.get(name, "yes"),
        }
        for name, one in datasets.items()
    ]
    empty = dict.fromkeys(rows[0], "")
    rows += [{**empty, "dataset": name, "part of the study": reason} for name, reason in repeated.items()]
    return Product(
        save,
        {
            "rows": len(genes),
            "datasets": len(joined.members),
            "measured_in_all": int((genes["datasets"] == len(joined.members)).sum()),
            LEFT_OUT: joined.left_out,
        },
        tables={"datasets": rows},
        checks=[_fit(joined)],
        members=frozenset(joined.members),
    )


def _repeated(step: Step) -> dict[str, str]:
    """Datasets that hold the same counts of the same cells as one before them, in whatever format."""
    from neumf_assets.core.counts.stored import StoredCounts

    alike: dict[tuple[Any, ...], list[str]] = {}
    found = {}
    for name, raw in step.all("raw_counts").items():
        figures = raw.manifest.figures
        key = tuple(figures.get(each) for each in ("cells", "genes", "nonzero", "total_counts"))
        for other in alike.setdefault(key, []):
            with StoredCounts(raw.path) as own, StoredCounts(step.all("raw_counts")[other].path) as first:
                if _same(own, first):
                    found[name] = (
                        f"it holds the same counts of the same cells as {other}, which is used. Take one out"
                    )
                    break
        else:
            alike[key].append(name)
    return found


def _same(one: StoredCounts, other: StoredCounts) -> bool:
    """Whether cells, genes (by name or accession) and the number of entries of each cell are the same."""
    genes = one.var_names.equals(other.var_names)
    if "gene_id" in one.var and "gene_id" in other.var:
        genes = genes or one.var["gene_id"].tolist() == other.var["gene_id"].tolist()
    return genes and one.obs_names.equals(other.obs_names) and bool((one.lengths == other.lengths).all())


def _datasets(step: Step, repeated: Mapping[str, str]) -> dict[str, DatasetGenes]:
    from neumf_assets.core.counts.genes.accessions import Species
    from neumf_assets.core.counts.genes.join import DatasetGenes
    from neumf_assets.core.counts.stored import StoredCounts

    found = {}
    for name, kept in step.all("counts").items():
        if name in repeated:
            continue
        raw = step.all("raw_counts")[name]
        figures = raw.manifest.figures
        sure = figures.get("species_from", "symbols") != "symbols"
        with StoredCounts(raw.path) as counts:
            genes = counts.var
        species = Species(str(figures.get("species", "")), sure)
        found[name] = DatasetGenes.of(genes, species, int(kept.manifest.figures["cells"]))
    return found


def _genes(datasets: dict[str, DatasetGenes], joined: Joined) -> pd.DataFrame:
    """The genes of the study, in the order in which datasets name them."""
    import pandas as pd

    parts = [
        pd.DataFrame(
            {"gene": joined.names[name], "gene_id": datasets[name].ids, "gene_symbol": datasets[name].symbols}
        )
        for name in joined.members
    ]
    whole = pd.concat(parts, ignore_index=True).astype(str)
    counted = whole.groupby("gene", sort=False).size().rename("datasets")
    told = whole.replace("", None).groupby("gene", sort=False)[["gene_id", "gene_symbol"]].first()
    return told.fillna("").join(counted).reset_index()


def _renamed(datasets: dict[str, DatasetGenes], joined: Joined) -> dict[str, dict[str, str]]:
    """By dataset, the study's names of genes by their names in the dataset, where these differ."""
    return {
        name: {
            str(own): str(new) for own, new in zip(one.names, joined.names[name], strict=True) if own != new
        }
        for name, one in datasets.items()
    }


def renamed_genes(step: Step) -> dict[str, dict[str, str]]:
    """As ``gene_space`` found them."""
    found: dict[str, dict[str, str]] = json.loads((step.one("gene_space").path / RENAMED).read_text())
    return found


def _fit(joined: Joined) -> CheckOutcome:
    if not joined.left_out:
        return CheckOutcome(
            _FIT, True, "All datasets are of one species, share genes, and none is there twice."
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in joined.left_out.items())
    return CheckOutcome(_FIT, False, f"Left out: {reasons}.", {"left out": len(joined.left_out)})


def left_out(step: Step) -> dict[str, str]:
    """Why datasets have no part in the study: refused, not complete, or no fit to the others."""
    strangers = step.one("gene_space").manifest.figures.get(LEFT_OUT, {})
    return dict(sorted({**step.left_out, **strangers}.items()))
