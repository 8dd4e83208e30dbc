"""The arms: one way each of putting all datasets of a study into one space, then clusters, map and scores.

An arm brings its own stages up to ``cell_embedding``; what follows is the same for all and made here, so that
arms differ in nothing but the embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.inputs import read_cell_columns, scaled_counts, stored_counts
from neumf_assets.assets.stage import Product, Stage, Step, stage
from neumf_assets.study.settings import Arm

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from neumf_assets.core.cells.files.store import CellEmbedding
    from neumf_assets.core.report.plots.cells import EmbeddedCells


FIRST: dict[str, str] = {
    "pca": "principal_components",
    "harmony": "principal_components",
    "liger": "liger/factors",
    "neumf_liger": "neumf_liger/factors",
    "ineumf": "ineumf/model",
}
"""What each arm computes first, or shares with another."""


def common_stages(arm: Arm) -> list[Stage]:
    """Clusters, map and scores of an arm."""
    return [_clusters(arm), _umap(arm), _metrics(arm)]


def _clusters(arm: Arm) -> Stage:
    @stage(
        name=(arm, "clusters"),
        group="integrate",
        inputs=(f"{arm}/cell_embedding", FIRST[arm]),
        settings=("clusters",),
        kinds=("parquet", "scikitlearn"),
        columns=(
            ("cell", "string", "name of the cell"),
            ("dataset", "string", "its dataset"),
            ("leiden", "string", "Leiden cluster at the default resolution"),
            ("leiden_r*_s*", "string", "Leiden cluster; one column for each resolution (r) and seed (s)"),
            ("kmeans", "string", "k-means cluster"),
            ("hdbscan", "string", "HDBSCAN cluster; 'noise' where there is none"),
        ),
    )
    def clusters(step: Step) -> Product:
        """Groups of similar cells in this arm's embedding.

        Leiden on the graph of shared neighbours, at several resolutions and seeds; k-means and HDBSCAN on the
        embedding itself. Clusters are numbered from the largest. On request, k-means modules of genes too.
        """
        from neumf_assets.core.cells.clustering import cluster_cells
        from neumf_assets.core.cells.files.store import CellEmbedding
        from neumf_assets.core.cells.neighbours import cell_graph, graph_nodes, merged_cells

        cells = CellEmbedding.load(step.one(f"{arm}/cell_embedding").path)
        settings, nodes = step.study.clusters, None
        names, embedding = cells.names, cells.embedding
        most = graph_nodes(len(names), settings)
        if len(names) > most:
            nodes = merged_cells(cells.neighbours, most)
        graph = cell_graph(cells.neighbours, settings, nodes)
        del cells  # the neighbours are as large as their graph
        found = cluster_cells(embedding, graph, settings, nodes=nodes, progress=step.progress)
        methods = [str(name) for name in found if not str(name).startswith("leiden_r")]
        figures = {f"{name}_clusters": int(found[name].nunique()) for name in methods} | {"rows": len(found)}
        figures["graph_nodes"] = graph.shape[0]
        modules = _gene_modules(step, arm)

        def save(folder: Path) -> None:
            _save_table(folder, "clusters", names, found)
            if modules is not None:
                modules.to_parquet(folder / "gene_modules.parquet")

        return Product(save, figures)

    return clusters


def _umap(arm: Arm) -> Stage:
    @stage(
        name=(arm, "umap"),
        group="integrate",
        inputs=(f"{arm}/cell_embedding", f"{arm}/clusters"),
        settings=("umap", "label_column"),
        version="4",
        kinds=("parquet",),
        columns=(
            ("cell", "string", "name of the cell"),
            ("dataset", "string", "its dataset"),
            ("umap_1", "float", "first coordinate"),
            ("umap_2", "float", "second coordinate"),
            ("tsne_1", "float", "first coordinate of t-SNE, where the study asks for it (umap.tsne)"),
            ("tsne_2", "float", "second coordinate of t-SNE"),
        ),
    )
    def umap(step: Step) -> Product:
        """The cells as a map: similar cells lie close together.

        UMAP of this arm's embedding (t-SNE besides, on request). The picture colours the cells by dataset,
        label and cluster. Distances between far groups mean little.
        """
        from neumf_assets.core.cells.files.store import CellEmbedding
        from neumf_assets.core.report.image import markdown_image
        from neumf_assets.core.report.plots.cells import umap_panels
        from neumf_assets.core.report.wording import arm_title

        cells = CellEmbedding.load(step.one(f"{arm}/cell_embedding").path)
        coordinates = _coordinates(step, cells)
        clusters = read_cell_columns(step.one(f"{arm}/clusters"), "clusters")
        picture = umap_panels(map_of(step, cells, coordinates, clusters), title=arm_title(arm))
        return Product(
            lambda folder: _save_map(folder, cells, coordinates, picture),
            {"rows": len(coordinates)},
            pictures={"map of the cells": markdown_image(picture, "UMAP")},
            publish={f"umap_{arm}.png": "umap.png"},
        )

    return umap


def _metrics(arm: Arm) -> Stage:
    @stage(
        name=(arm, "metrics"),
        group="integrate",
        inputs=("gene_space", f"{arm}/cell_embedding", f"{arm}/clusters", "counts", "shared_genes"),
        settings=("metrics", "label_column", "batch_column"),
        version="3",
        kinds=("json",),
    )
    def metrics(step: Step) -> Product:
        """How good this arm is: do clusters match known cell types, and do the datasets mix?

        ARI, AMI and NMI compare the clusters with the labels (1: the same, 0: chance). The share of
        neighbours from the cell's own dataset is shown beside the share expected if the datasets were mixed.
        Scores that need labels are left out where there are none.
        """
        from neumf_assets.core.cells.files.store import CellEmbedding, label_column, labels_of
        from neumf_assets.core.cells.scoring.metrics import score_embedding

        cells = CellEmbedding.load(step.one(f"{arm}/cell_embedding").path)
        column = label_column(cells.cells, step.study.label_column)
        scores = score_embedding(
            cells.embedding,
            read_cell_columns(step.one(f"{arm}/clusters"), "clusters"),
            labels_of(cells.cells, column) if column else None,
            labels_of(cells.cells, step.study.batch_column or "dataset"),
            cells.neighbours,
            step.study.metrics,
        ).model_copy(update=_liger_scores(step, cells))
        return Product(
            lambda folder: (folder / "metrics.json").write_text(scores.model_dump_json(indent=1)),
            scores.summary(),
            pictures=_heatmap(step, arm, cells, column),
            tables={
                "scores explained": _explained(scores.summary()),
                "scores by resolution and seed": [run.model_dump(mode="json") for run in scores.runs],
            },
        )

    return metrics


def _explained(scores: Mapping[str, float | int | None]) -> list[dict[str, Any]]:
    from neumf_assets.core.report.wording import METRICS

    return [
        {"score": metric.title, "value": scores[key], "better": metric.better, "meaning": metric.meaning}
        for key, metric in METRICS.items()
        if scores.get(key) is not None
    ]


def _gene_modules(step: Step, arm: Arm) -> "pd.DataFrame | None":
    from neumf_assets.core.cells.clustering import cluster_genes

    number = step.study.clusters.gene_modules
    if number is None:
        return None
    genes, embedding = gene_embedding(step, arm)
    return cluster_genes(embedding, genes, number, metric=step.study.clusters.metric).to_frame("module")


def gene_embedding(step: Step, arm: str) -> "tuple[list[str], np.ndarray]":
    """Names of the genes that an arm uses, and their shared embedding: genes × dimensions."""
    from neumf_assets.core.cells.components import Components
    from neumf_assets.core.liger.store import NamedFactors
    from neumf_assets.core.neumf.model import NeuMFModel

    folder = step.one(FIRST[arm]).path
    if arm in ("pca", "harmony"):
        found = Components.load(folder)
        return list(found.genes), found.loadings
    if arm == "ineumf":
        model = NeuMFModel.load(folder)
        return [str(name) for name in model.gene_names], model.tables["genes"].cpu().numpy()
    factors = NamedFactors.load(folder)
    return list(factors.genes), factors.result.W.T


def _liger_scores(step: Step, cells: "CellEmbedding") -> dict[str, float | None]:
    """LIGER's own two scores, for every arm against the same data: the scaled counts of LIGER's genes."""
    from neumf_assets.core.liger.metrics import agreement, alignment

    dataset = cells.cells["dataset"].to_numpy(str)
    with stored_counts(step) as counts:
        scaled = scaled_counts(step, counts)
        aligned = [cells.embedding[dataset == name] for name in scaled]
        return {
            "alignment": alignment(cells.embedding, dataset),
            "agreement": agreement(list(scaled.values()), aligned),
        }


def map_of(
    step: Step, cells: "CellEmbedding", coordinates: "pd.DataFrame", clusters: "pd.DataFrame"
) -> "EmbeddedCells":
    """The map of an arm's cells with what to colour it by: dataset, label where there is one, cluster."""
    from neumf_assets.core.cells.files.store import label_column, labels_of
    from neumf_assets.core.report.plots.cells import EmbeddedCells

    colourings = {"dataset": cells.cells["dataset"].to_numpy(object)}
    column = label_column(cells.cells, step.study.label_column)
    if column:
        labels = labels_of(cells.cells, column)
        colourings[column] = labels.astype(object).where(labels.notna(), None).to_numpy()
    colourings["cluster"] = clusters[delivered_clusters(clusters)].to_numpy(object)
    return EmbeddedCells(coordinates[["umap_1", "umap_2"]].to_numpy(), colourings)


def delivered_clusters(clusters: "pd.DataFrame") -> str:
    """The clustering that is shown: Leiden where it was asked for, else the first there is."""
    return "leiden" if "leiden" in clusters else str(clusters.columns[0])


def _coordinates(step: Step, cells: "CellEmbedding") -> "pd.DataFrame":
    import pandas as pd

    from neumf_assets.core.cells.embedding import tsne_embed, umap_embed

    points = umap_embed(cells.embedding, cells.neighbours, step.study.umap)
    columns = {"umap_1": points[:, 0], "umap_2": points[:, 1]}
    if step.study.umap.tsne:
        other = tsne_embed(cells.embedding, step.study.umap, cells.neighbours.metric)
        columns |= {"tsne_1": other[:, 0], "tsne_2": other[:, 1]}
    return pd.DataFrame(columns)


def _save_map(folder: Path, cells: "CellEmbedding", coordinates: "pd.DataFrame", picture: bytes) -> None:
    _save_table(folder, "umap", cells.names, coordinates)
    (folder / "umap.png").write_bytes(picture)


def _save_table(folder: Path, name: str, names: "pd.DataFrame", columns: "pd.DataFrame") -> None:
    import pandas as pd

    table = pd.concat([names, columns.reset_index(drop=True)], axis=1)
    table.to_parquet(folder / f"{name}.parquet", index=False)


def _heatmap(step: Step, arm: Arm, cells: "CellEmbedding", column: str | None) -> dict[str, str]:
    from neumf_assets.core.cells.files.store import labels_of
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.scores import cluster_label_heatmap

    if column is None:
        return {}
    labels = labels_of(cells.cells, column)
    clusters = read_cell_columns(step.one(f"{arm}/clusters"), "clusters")
    labelled = labels.notna().to_numpy()
    picture = cluster_label_heatmap(
        clusters[delivered_clusters(clusters)].to_numpy(object)[labelled],
        labels.to_numpy(object)[labelled],
    )
    return {"clusters by label": markdown_image(picture, "clusters by label")}
