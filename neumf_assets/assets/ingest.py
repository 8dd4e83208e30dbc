"""Ingest: from a count file to filtered counts and the long table, for each dataset."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.stage import Product, Step, stage
from neumf_assets.core.counts.discover import DatasetFile, is_url
from neumf_assets.core.errors import BadInput
from neumf_assets.study.sources import blaming, dataset_digest, find_sources, inbox_of

if TYPE_CHECKING:
    import numpy as np

    from neumf_assets.core.cells.quality import Examined
    from neumf_assets.core.counts.qc import QCReport
    from neumf_assets.core.counts.settings import QCSettings, ReadSettings

AMBIENT = "ambient.npy"
LIMITS = "limits_of_the_sample_sheet"


@stage(
    group="ingest",
    settings=("read", "qc.call_lower"),
    version="3",
    kinds=("anndata", "h5ad"),
    per_dataset=True,
)
def raw_counts(step: Step) -> Product:
    """Counts as they came: one dataset's file, read, checked and stored unchanged.

    Whatever the source's format and orientation, this is a sparse matrix of cells × genes with unique names,
    the labels that came with it, and the file's SHA-256. A file that cannot be used is refused with the
    place and the mend, and nothing is written.
    """
    import numpy as np

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
            source.path,
            step.scratch,
            _read_settings(step, source),
            name=source.name,
            labels=source.labels,
            described=None if source.sample is None else source.sample.columns,
        )
    ambient = _ambient(step, source.path)
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
    if source.sample is not None and source.sample.limits:
        figures[LIMITS] = dict(source.sample.limits)

    def save(folder: Path) -> None:
        shutil.move(step.scratch / FILE, folder / FILE)
        if ambient is not None:
            np.save(folder / AMBIENT, ambient)

    return Product(save, figures, sources={"source": digest})


def _read_settings(step: Step, source: DatasetFile) -> "ReadSettings":
    """How to read a dataset: as the study says, with the digest that the sample sheet expects."""
    read = step.study.read
    if source.sample is None or not source.sample.sha256:
        return read
    return read.model_copy(update={"sha256": {**read.sha256, source.name: source.sample.sha256}})


def _limits(step: Step) -> "QCSettings":
    """The study's limits of quality control, with those that the sample sheet gives for this dataset."""
    own = step.one("raw_counts").manifest.figures.get(LIMITS, {})
    return step.study.qc.model_copy(update=own)


def _ambient(step: Step, path: str) -> "np.ndarray | None":
    """The ambient RNA, where a raw matrix beside the filtered one tells it."""
    from neumf_assets.core.counts.quality.beside import ambient_beside
    from neumf_assets.core.counts.stored import StoredCounts

    with StoredCounts(step.scratch) as counts:
        genes = counts.var_names
    beside = step.scratch / "raw"
    try:
        return ambient_beside(path, genes, step.study.read, step.study.qc.call_lower, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@stage(
    group="ingest",
    inputs=("raw_counts",),
    settings=("qc",),
    version="3",
    kinds=("anndata", "h5ad"),
    per_dataset=True,
)
def counts(step: Step) -> Product:
    """Counts fit for modelling: empty and poor cells and genes removed, outliers and doublets marked.

    The limits are the study's `qc` settings; in a raw matrix of all droplets, cells are called first. The figures
    tell how much was dropped and why; the pictures show total counts, detected genes and mitochondrial share of
    the cells, and what is an outlier or a doublet. `obs` has the figures of each cell (`qc_…`).
    """
    import numpy as np

    from neumf_assets.core.cells.quality import examine
    from neumf_assets.core.counts.qc import check_size
    from neumf_assets.core.counts.readers.contents.droplets import UNFILTERED
    from neumf_assets.core.counts.stored import StoredCounts

    raw = step.one("raw_counts")
    known = raw.path / AMBIENT
    with StoredCounts(raw.path) as unfiltered:
        found = examine(
            unfiltered,
            _limits(step),
            unfiltered=UNFILTERED in raw.manifest.figures,
            ambient=np.load(known, allow_pickle=False) if known.exists() else None,
            progress=step.progress,
        )
        check_size(unfiltered, found.verdict.report.cells_after, step.study.qc)
    return Product(
        lambda folder: _save_filtered(folder, raw.path, found),
        {**_quality_figures(found), "sha256": raw.manifest.figures["sha256"]},
        pictures=_quality_pictures(found),
        tables={"dropped": _dropped(found.verdict.report), "marked": _marked(found)},
    )


def _quality_figures(found: "Examined") -> dict[str, Any]:
    report = found.verdict.report
    figures = {
        "cells": report.cells_after,
        "genes": report.genes_after,
        "nonzero": found.verdict.nonzero,
        "zero_fraction": report.zero_share_after,
        "total_counts": found.verdict.total_counts,
        "cells_before": report.cells_before,
        "genes_before": report.genes_before,
        "cells_dropped": report.cells_dropped,
        "genes_dropped": report.genes_dropped,
        "mito_genes": report.mito_genes,
    }
    if found.outliers is not None:
        figures["outliers"] = int(found.outliers.any.sum())
    if found.doublets is not None:
        figures["doublets"] = int(found.doublets.called.sum())
    if found.ambient is not None:
        figures["ambient_share"] = found.ambient
    if found.called is not None:
        figures["cells_called"] = int(found.called.cells.sum())
        figures["knee"] = found.called.knee
    return figures


def _quality_pictures(found: "Examined") -> dict[str, str]:
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.quality import CellQC, qc_histograms
    from neumf_assets.core.report.plots.quality_control import knee_plot, quality_scatter

    report, figures = found.verdict.report, found.figures
    cells = {
        "all cells": CellQC(report.totals, report.genes_seen, report.mito_share),
        "kept": CellQC(
            report.totals[report.kept], report.genes_seen[report.kept], report.mito_share[report.kept]
        ),
    }
    pictures = {"quality control": markdown_image(qc_histograms(cells), "quality control")}
    outlier = None if found.outliers is None else found.outliers.any[report.kept]
    doublet = None if found.doublets is None else found.doublets.called[report.kept]
    scatter = quality_scatter(
        figures.totals[report.kept],
        figures.genes_seen[report.kept],
        figures.mito_share[report.kept] if report.mito_genes else None,
        outlier,
        doublet,
    )
    pictures["outliers and doublets"] = markdown_image(scatter, "counts against genes of each cell")
    if found.called is not None:
        knee = knee_plot(figures.totals, found.called.cells, found.called.knee, found.called.lower)
        pictures["knee"] = markdown_image(knee, "counts of barcodes by rank")
    return pictures


def _marked(found: "Examined") -> list[dict[str, Any]]:
    """What is marked and stays, unless the settings remove it."""
    rows = []
    if found.outliers is not None:
        for reason, cells in found.outliers.reasons.items():
            name = reason.split()[0]
            low, high = found.outliers.bounds[name]
            bound = low if reason.endswith("low") else high
            rows.append(
                {"what": f"outlier, {reason}", "bound": float(f"{bound:.4g}"), "cells": int(cells.sum())}
            )
    if found.doublets is not None:
        bound = float(f"{found.doublets.threshold:.4g}")
        rows.append({"what": "doublet", "bound": bound, "cells": int(found.doublets.called.sum())})
    return rows


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


def _save_filtered(folder: Path, raw: Path, found: "Examined") -> None:
    import numpy as np

    from neumf_assets.core.counts.stored import StoredCounts

    report, called = found.verdict.report, found.called
    with StoredCounts(raw) as unfiltered:
        found.verdict.write(unfiltered, folder, found.columns())
    if called is not None:
        np.savez(folder / "called.npz", cells=called.cells, knee=called.knee, lower=called.lower)
    values: dict[str, Any] = {
        "totals": report.totals,
        "genes_seen": report.genes_seen,
        "mito_share": report.mito_share,
        "kept": report.kept,
    }
    if found.outliers is not None:
        values["outlier"] = found.outliers.any
    if found.doublets is not None:
        values["doublet"] = found.doublets.called
    np.savez(folder / "qc.npz", **values)


STAGES = (raw_counts, counts, long_counts)
