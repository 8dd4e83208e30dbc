"""Ingest: from a count file to filtered counts and the long table, for each dataset."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.stage import Product, Step, stage
from neumf_assets.core.counts.discover import is_url
from neumf_assets.core.errors import BadInput
from neumf_assets.study.sources import blaming, dataset_digest, find_sources, inbox_of

if TYPE_CHECKING:
    from neumf_assets.core.counts.qc import QCReport, Verdict


@stage(group="ingest", settings=("read",), version="2", kinds=("anndata", "h5ad"), per_dataset=True)
def raw_counts(step: Step) -> Product:
    """Counts as they came: one dataset's file, read, checked and stored unchanged.

    Whatever the source's format and orientation, this is a sparse matrix of cells × genes with unique names,
    the labels that came with it, and the file's SHA-256. A file that cannot be used is refused with the
    place and the mend, and nothing is written.
    """
    from neumf_assets.core.counts.readers.read import store_counts
    from neumf_assets.core.counts.store import FILE

    sources = {item.name: item for item in find_sources(step.study).datasets}
    source = sources.get(step.dataset or "")
    if source is None:
        with blaming(""):
            raise BadInput(
                inbox_of(step.study),
                "",
                f"no dataset {step.dataset!r} is there",
                "Put its file into the inbox",
            )
    # A URL that cannot be reached is no fault of the file, so only what is read from here on is blamed on it.
    digest = dataset_digest(source) if is_url(source.path) else None
    with blaming(source.identity):
        digest = digest or dataset_digest(source)
        stored = store_counts(
            source.path, step.scratch, step.study.read, name=source.name, labels=source.labels
        )
    cells, genes = stored.shape
    figures = {
        "cells": cells,
        "genes": genes,
        "nonzero": stored.nonzero,
        "zero_fraction": 1.0 - stored.nonzero / (cells * genes),
        "total_counts": stored.total_counts,
        **stored.provenance,
        "identity": source.identity,
    }
    return Product(
        lambda folder: shutil.move(step.scratch / FILE, folder / FILE), figures, sources={"source": digest}
    )


@stage(group="ingest", inputs=("raw_counts",), settings=("qc",), kinds=("anndata", "h5ad"), per_dataset=True)
def counts(step: Step) -> Product:
    """Counts fit for modelling: empty and poor cells and genes removed.

    The limits are the study's `qc` settings. The figures tell how much was dropped and why; the picture shows
    total counts, detected genes and mitochondrial share of the cells, before and after.
    """
    from neumf_assets.core.counts.qc import check_size, judge
    from neumf_assets.core.counts.stored import StoredCounts
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.quality import CellQC, qc_histograms

    raw = step.one("raw_counts")
    with StoredCounts(raw.path) as unfiltered:
        verdict = judge(unfiltered, step.study.qc)
        check_size(unfiltered, verdict.report.cells_after, step.study.qc)
    report = verdict.report
    cells = {
        "all cells": CellQC(report.totals, report.genes_seen, report.mito_share),
        "kept": CellQC(
            report.totals[report.kept], report.genes_seen[report.kept], report.mito_share[report.kept]
        ),
    }
    figures = {
        "cells": report.cells_after,
        "genes": report.genes_after,
        "nonzero": verdict.nonzero,
        "zero_fraction": report.zero_share_after,
        "total_counts": verdict.total_counts,
        "cells_before": report.cells_before,
        "genes_before": report.genes_before,
        "cells_dropped": report.cells_dropped,
        "genes_dropped": report.genes_dropped,
        "mito_genes": report.mito_genes,
        "sha256": raw.manifest.figures["sha256"],
    }
    return Product(
        lambda folder: _save_filtered(folder, raw.path, verdict),
        figures,
        pictures={"quality control": markdown_image(qc_histograms(cells), "quality control")},
        tables={"dropped": _dropped(report)},
    )


@stage(
    group="ingest",
    inputs=("counts",),
    kinds=("parquet", "polars"),
    per_dataset=True,
    columns=(
        ("cell", "dictionary<string>", "name of the cell"),
        ("gene", "dictionary<string>", "unique name of the gene"),
        ("cell_id", "uint32", "row of the cell in cells.parquet"),
        ("gene_id", "uint32", "row of the gene in genes.parquet"),
        ("expression", "int32", "count; only non-zero ones are listed"),
    ),
)
def long_counts(step: Step) -> Product:
    """The counts as a long table: one row for every non-zero count, sorted by cell.

    `long.parquet` with its lookup tables `cells.parquet` and `genes.parquet`, to be scanned with polars,
    DuckDB, Arrow or Spark. What is not listed is zero.
    """
    from neumf_assets.core.counts.long_format import write_long
    from neumf_assets.core.counts.stored import StoredCounts

    source = step.one("counts")

    def save(folder: Path) -> None:
        with StoredCounts(source.path) as counts:
            write_long(counts, folder)

    counted = source.manifest.figures
    figures = {name: counted[name] for name in ("cells", "genes", "zero_fraction")}
    return Product(save, {"rows": counted["nonzero"], **figures})


def _dropped(report: "QCReport") -> list[dict[str, Any]]:
    reasons = {"cells": report.cells_dropped, "genes": report.genes_dropped}
    return [
        {"what": what, "reason": reason.replace("_", " "), "number": number}
        for what, numbers in reasons.items()
        for reason, number in numbers.items()
    ]


def _save_filtered(folder: Path, raw: Path, verdict: "Verdict") -> None:
    import numpy as np

    from neumf_assets.core.counts.stored import StoredCounts

    report = verdict.report
    with StoredCounts(raw) as unfiltered:
        verdict.write(unfiltered, folder)
    np.savez(
        folder / "qc.npz",
        totals=report.totals,
        genes_seen=report.genes_seen,
        mito_share=report.mito_share,
        kept=report.kept,
    )


STAGES = (raw_counts, counts, long_counts)
