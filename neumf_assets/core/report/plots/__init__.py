"""Pictures for the report and for asset metadata, as bytes: a function for each picture, a module for each family.

Figures are built without pyplot, so nothing global is changed and drawing is safe in threads. The same input
gives the same bytes. Imports numpy, matplotlib (when it draws) and the report's ``image`` and ``palette``.
"""

from neumf_assets.core.report.plots.cells import EmbeddedCells, umap_grid, umap_panel, umap_panels
from neumf_assets.core.report.plots.quality import CellQC, calibration, qc_histograms
from neumf_assets.core.report.plots.quality_control import knee_plot, quality_scatter, quality_violins
from neumf_assets.core.report.plots.scores import (
    RunScore,
    cluster_label_heatmap,
    comparison,
    cross_table,
    dot_plot,
    top_genes_markdown,
)
from neumf_assets.core.report.plots.training import loss_curve_svg, loss_curves, objective_curve

__all__ = [
    "CellQC",
    "EmbeddedCells",
    "RunScore",
    "calibration",
    "cluster_label_heatmap",
    "comparison",
    "cross_table",
    "dot_plot",
    "knee_plot",
    "loss_curve_svg",
    "loss_curves",
    "objective_curve",
    "qc_histograms",
    "quality_scatter",
    "quality_violins",
    "top_genes_markdown",
    "umap_grid",
    "umap_panel",
    "umap_panels",
]
