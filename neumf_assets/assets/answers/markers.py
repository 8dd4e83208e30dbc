"""Marker genes of clusters and labels, and names suggested by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neumf_assets.assets.answers.labels import named_cells
from neumf_assets.assets.answers.rows import rows_of
from neumf_assets.assets.arms import delivered_clusters
from neumf_assets.assets.inputs import best_arm, read_cell_columns, stored_counts
from neumf_assets.assets.stage import Product, Stage, Step, stage

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

    from neumf_assets.core.counts.stored import StackedCounts

_DOTS = 3
"""Markers of each cluster in the dot plot."""


def markers_stage(arms: Sequence[str]) -> Stage:
    """The marker genes of the best arm's clusters, and of labels."""

    @stage(
        group="report",
        inputs=("gene_space", "counts", "comparison", "cell_labels", *(f"{arm}/clusters" for arm in arms)),
        settings=("markers",),
        version="2",
        kinds=("parquet",),
        columns=(
            ("cluster", "string", "cluster of the best arm; a label in label_markers.parquet"),
            ("rank", "int", "1 is the strongest marker"),
            ("gene", "string", "name of the gene"),
            ("score", "float", "z of the Wilcoxon rank sum test"),
            ("log2_fold_change", "float", "of normalised counts, inside against outside"),
            ("p_adjusted", "float", "of the test, adjusted after Benjamini and Hochberg"),
            ("share_in", "float", "share of the cluster's tested cells in which the gene was seen"),
            ("share_out", "float", "share of the other tested cells in which it was seen"),
        ),
    )
    def markers(step: Step) -> Product:
        """Genes that mark each cluster of the best arm, and each label, tested on raw counts.

        Wilcoxon rank sum test of each cluster against all other cells. Never on predicted values: smoothing
        makes differences look surer than they are; nor on values that are no counts
        (`read.allow_normalised`): none are listed then.
        """
        from neumf_assets.core.counts.stored import StackedCounts

        arm = best_arm(step, arms)
        clusters = read_cell_columns(step.one(f"{arm}/clusters"), "clusters")
        groups = {"": clusters[delivered_clusters(clusters)]} | _by_label(step)
        with stored_counts(step) as parts:
            counts = StackedCounts.of(parts)
            cells = _tested(counts, groups, step)
        tables = {name: _marked(cells.get(name), step) for name in groups}
        names = _suggested(cells[""], step) if cells else None
        tested = "yes" if cells else "no: the values are no counts"
        found, dots = tables[""]
        top = found[found["rank"] <= 3].groupby("cluster")["gene"].agg(", ".join)
        return Product(
            lambda folder: _save_markers(folder, tables, names),
            {"arm": arm, "clusters": int(found["cluster"].nunique()), "tested": tested, "rows": len(found)},
            pictures=_dot_picture(dots),
            tables={
                "top markers": [{"cluster": c, "genes": g} for c, g in top.items()],
                "suggested names": [] if names is None else rows_of(names),
            },
            publish={f"{name}markers.parquet": f"{name}markers.parquet" for name in tables},
        )

    return markers


def _by_label(step: Step) -> dict[str, pd.Series]:
    """The label of every cell, where there are labels; cells that stay unknown are no group."""
    from neumf_assets.core.cells.clustering import NOISE

    named = named_cells(step)
    return {} if named is None else {"label_": named.where(named.notna(), NOISE)}


def _tested(counts: StackedCounts, groups: Mapping[str, pd.Series], step: Step) -> dict[str, ad.AnnData]:
    """The cells of each grouping that are tested, read once; none where the values are no counts."""
    from neumf_assets.core.cells.markers import drawn_cells

    if not counts.whole:
        return {}
    return {
        name: drawn_cells(counts, counts.genes, group, step.study.markers) for name, group in groups.items()
    }


def _marked(cells: ad.AnnData | None, step: Step) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The markers of groups of cells, and how the first of each are expressed in all."""
    from neumf_assets.core.cells.markers import marker_dots, no_markers, rank_markers

    found = no_markers() if cells is None else rank_markers(cells, step.study.markers)
    first = list(dict.fromkeys(found.loc[found["rank"] <= _DOTS, "gene"]))
    return found, marker_dots(cells, first) if cells is not None and first else found[[]]


def _suggested(cells: ad.AnnData, step: Step) -> pd.DataFrame | None:
    """Names for the clusters by the lists of genes in the settings, where there are any."""
    from neumf_assets.core.annotation.marker_lists import listed_genes, suggest_names
    from neumf_assets.core.cells.markers import marker_dots

    lists = step.study.markers.lists
    chosen = listed_genes(lists, cells.var_names)
    if missing := sorted(set(listed_genes(lists)) - set(chosen)):
        step.log.warning(f"markers.lists names genes that not every dataset has: {', '.join(missing)}.")
    return suggest_names(marker_dots(cells, chosen), lists) if chosen and cells.n_obs else None


def _save_markers(
    folder: Path, tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], names: pd.DataFrame | None
) -> None:
    if names is not None:
        names.to_parquet(folder / "suggested.parquet", index=False)
    for name, (found, dots) in tables.items():
        found.to_parquet(folder / f"{name}markers.parquet", index=False)
        dots.to_parquet(folder / f"{name}dots.parquet", index=False)


def _dot_picture(dots: pd.DataFrame) -> dict[str, str]:
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.palette import ordered
    from neumf_assets.core.report.plots.scores import dot_plot

    if dots.empty:
        return {}
    picture = dot_plot(dots, ordered(dots["cluster"]))
    return {"markers in all clusters": markdown_image(picture, "dot plot of marker genes")}
