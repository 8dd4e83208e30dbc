"""`neumf_assets.pl`: pictures as matplotlib figures, which a notebook shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neumf_assets.core.report.plots.conditions import composition_figure, volcano_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from neumf_assets.core.conditions.differential import Differences


def composition(shares: pd.DataFrame) -> Figure:
    """A stacked bar of cell types for every sample; ``shares`` as ``tl.composition`` returns them."""
    return composition_figure(shares)


def volcano(differences: Differences, max_adjusted_p: float = 0.05) -> Figure:
    """Fold change against certainty, a panel for each comparison; as ``tl.differential_expression`` returns them."""
    return volcano_figure(differences.genes, max_adjusted_p)
