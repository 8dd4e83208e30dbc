"""How large a share of each sample's cells a type has, and whether that differs between conditions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from neumf_assets.core.conditions.samples import Design, model_matrix, pairing
from neumf_assets.core.conditions.settings import ConditionSettings

TESTED = (
    "cell_type",
    "condition",
    "reference",
    "share_reference",
    "share_condition",
    "odds_ratio",
    "low",
    "high",
    "statistic",
    "p_value",
    "p_adjusted",
    "samples",
    "refused",
)


def shares(cells: np.ndarray, cell_types: list[str], design: Design) -> pd.DataFrame:
    """Share of every cell type in every sample, with Wilson's interval (95 %) of the counting alone.

    Parameters
    ----------
    cells
        Cell types × samples.
    """
    totals = cells.sum(axis=0)
    rows = []
    for s, sample in enumerate(design.samples.itertuples(index=False)):
        for k, name in enumerate(cell_types):
            low, high = _wilson(int(cells[k, s]), int(totals[s]))
            rows.append(
                {
                    "sample": sample.sample,
                    "condition": sample.condition,
                    "replicate": sample.replicate,
                    "cell_type": name,
                    "cells": int(cells[k, s]),
                    "share": cells[k, s] / totals[s] if totals[s] else float("nan"),
                    "low": low,
                    "high": high,
                }
            )
    columns = ["sample", "condition", "replicate", "cell_type", "cells", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    if total == 0:
        return float("nan"), float("nan")
    share = count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def compare_composition(
    cells: np.ndarray, cell_types: list[str], design: Design, settings: ConditionSettings | None = None
) -> pd.DataFrame:
    """Test whether a type's share differs between each condition and the reference, over samples.

    As propeller does (Phipson et al. 2022): a linear model of the logit of the shares, whose variances lend each other
    strength (Smyth 2004), so that few samples do; paired or with covariates as the design says. Shares sum to one:
    where a large type grows, the others shrink, and all of that is found.

    Returns
    -------
    pandas.DataFrame
        A row for each type and condition: mean shares, ``odds_ratio`` with 95 % interval (``low``, ``high``),
        moderated t ``statistic``, ``p_value``, ``p_adjusted`` (Benjamini-Hochberg over the types), ``samples``, or why
        it was ``refused``.
    """
    from scipy import stats

    settings = settings or ConditionSettings()
    tables = []
    totals = cells.sum(axis=0)
    for other in design.others:
        base = {"condition": other, "reference": design.reference}
        found = pairing(design, other, totals >= settings.min_cells, settings.min_replicates)
        if isinstance(found, str):
            tables.append(
                pd.DataFrame([{**base, "cell_type": name, "refused": found} for name in cell_types])
            )
            continue
        own, of = cells[:, found.rows], totals[found.rows]
        share = (own + 0.5) / (of + 1)
        matrix = model_matrix(found.samples, found.terms, design.reference)
        effect, error, freedom = _moderated(np.log(share / (1 - share)), matrix)
        statistic = effect / error
        p = 2 * stats.t.sf(np.abs(statistic), freedom)
        half = stats.t.ppf(0.975, freedom) * error
        is_other = (found.samples["condition"] != design.reference).to_numpy()
        plain = own / of
        tables.append(
            pd.DataFrame(
                {
                    "cell_type": cell_types,
                    **base,
                    "share_reference": plain[:, ~is_other].mean(axis=1),
                    "share_condition": plain[:, is_other].mean(axis=1),
                    "odds_ratio": np.exp(effect),
                    "low": np.exp(effect - half),
                    "high": np.exp(effect + half),
                    "statistic": statistic,
                    "p_value": p,
                    "p_adjusted": stats.false_discovery_control(p),
                    "samples": f"{int((~is_other).sum())} + {int(is_other.sum())}",
                }
            )
        )
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return whole.reindex(columns=list(TESTED)).astype({"samples": "string", "refused": "string"})


def _moderated(values: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Effect of the last column on each row of values, its standard error, and degrees of freedom.

    Residual variances are drawn towards their common value by as much as they differ less than chance would have it.
    """
    coefficients, *_ = np.linalg.lstsq(matrix, values.T, rcond=None)
    residuals = values.T - matrix @ coefficients
    freedom = matrix.shape[0] - matrix.shape[1]
    variance = np.square(residuals).sum(axis=0) / freedom
    scale = np.linalg.inv(matrix.T @ matrix)[-1, -1]
    prior, prior_freedom = fitted_prior(variance, freedom)
    if np.isinf(prior_freedom):
        moderated = np.full_like(variance, prior)
    else:
        moderated = (prior_freedom * prior + freedom * variance) / (prior_freedom + freedom)
    # no more degrees of freedom than all rows have together
    total = float(min(prior_freedom + freedom, freedom * len(variance)))
    return coefficients[-1], np.sqrt(moderated * scale), total


def fitted_prior(variance: np.ndarray, freedom: int) -> tuple[float, float]:
    """The common variance, and the degrees of freedom with which it speaks: moments of log variances (Smyth 2004)."""
    from scipy.special import digamma, polygamma

    known = np.maximum(variance, 1e-12)
    if len(known) < 2:
        return float(known.mean()), 0.0
    logs = np.log(known) - digamma(freedom / 2) + np.log(freedom / 2)
    spread = logs.var(ddof=1) - polygamma(1, freedom / 2)
    if spread <= 0:
        return float(np.exp(logs.mean())), float("inf")
    half = _inverse_trigamma(float(spread))
    return float(np.exp(logs.mean() + digamma(half) - np.log(half))), 2 * half


def _inverse_trigamma(value: float) -> float:
    """The x whose trigamma is the value, by Newton's method on its reciprocal."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / polygamma(2, x)
        x += step
        if abs(step) < 1e-10 * x:
            break
    return float(x)
