"""All that is true of a study's genes, with the abundances that give the share of zeros asked for."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from neumf_assets.core.counts.simulate.cells import draw_cells, with_library
from neumf_assets.core.counts.simulate.genes import GeneTruth, assign_roles, draw_effects, name_genes
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.simulate.streams import GENES, PILOT, stream
from neumf_assets.core.errors import BadSettings

_PILOT_CELLS = 320  # cells on which the zero share is tuned


def gene_truth(settings: SimulatorSettings) -> GeneTruth:
    """Draw everything about the genes of a study: symbols, effects, dispersion.

    Raises
    ------
    BadSettings
        The zero share cannot be reached with the library sizes and number of genes.
    """
    rng = stream(settings, GENES)
    n, roles = settings.genes, assign_roles(rng, settings)
    symbols = name_genes(rng, n, roles)
    effects = draw_effects(rng, settings, roles)
    order = rng.permutation(n)  # so that the first genes are like any others
    position = np.argsort(order)
    scales = rng.uniform(0.7, 1.3, len(settings.cell_types))
    truth = GeneTruth(
        symbols=tuple(symbols[i] for i in order),
        factors=np.stack(list(effects.values()), axis=1)[order],
        factor_names=tuple(effects),
        markers={name: np.sort(position[chosen]) for name, chosen in roles.markers.items()},
        response_genes=np.sort(position[roles.response]),
        specific_response_genes={t: np.sort(position[own]) for t, own in roles.specific_response.items()},
        response_scale=dict(zip(settings.cell_types, scales.tolist(), strict=True)),
        theta=np.exp(rng.normal(-np.log(settings.dispersion), settings.dispersion_log_sd, n)),
    )
    _tune_abundance(settings, truth)
    return truth


def _tune_abundance(settings: SimulatorSettings, truth: GeneTruth) -> None:
    """Scale the spread of the abundances, in place, until the expected share of zeros is the target.

    The more a few genes take of the library, the more zeros. All datasets count, weighted by their cells.
    """
    cells_of = np.array([d.cells for d in settings.datasets], dtype=np.float64)
    pilots = []
    for index, dataset in enumerate(settings.datasets):
        rng = stream(settings, PILOT, index)
        few = max(40, _PILOT_CELLS // len(settings.datasets))
        pilots.append(draw_cells(rng, settings, dataset, truth, few)[1:])
    column = truth.factor_names.index("abundance")
    standard = truth.factors[:, column].copy()

    def zero_share(spread: float) -> float:
        truth.factors[:, column] = spread * standard
        shares = []
        for factors, library in pilots:
            mean = np.exp(with_library(factors, library, truth) @ truth.factors.T)
            shares.append(np.exp(-truth.theta * np.log1p(mean / truth.theta)).mean())
        return float(np.average(shares, weights=cells_of))

    least, most = zero_share(0.0), zero_share(6.0)
    if not least <= settings.target_zero_share <= most:
        raise BadSettings(
            f"target_zero_share = {settings.target_zero_share} cannot be reached with {settings.genes} "
            f"genes and these library sizes: between {least:.3f} and {most:.3f} can; change library_mean "
            "or genes"
        )
    zero_share(brentq(lambda spread: zero_share(spread) - settings.target_zero_share, 0.0, 6.0, xtol=1e-4))
