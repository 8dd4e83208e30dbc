"""Genes that differ between conditions, in each cell type, tested over samples by DESeq2's model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neumf_assets.core.cgroup import usable_cpus
from neumf_assets.core.conditions.samples import Design, Pairing, pairing
from neumf_assets.core.conditions.settings import ConditionSettings
from neumf_assets.core.progress import Progress, silent

COLUMNS = (
    "cell_type",
    "condition",
    "reference",
    "gene",
    "base_mean",
    "log2_fold_change",
    "standard_error",
    "statistic",
    "p_value",
    "p_adjusted",
)
COMPARED = ("cell_type", "condition", "reference", "samples", "model", "genes", "found", "refused")


@dataclass(frozen=True)
class Differences:
    """The genes of all comparisons, and what was compared.

    Parameters
    ----------
    genes
        A row for every tested gene: ``cell_type``, ``condition``, ``reference``, ``gene``, ``base_mean`` (of
        normalised counts), ``log2_fold_change`` (condition over reference), ``standard_error``, ``statistic`` (Wald),
        ``p_value``, ``p_adjusted`` (Benjamini-Hochberg within the comparison, after independent filtering; missing
        where a gene was filtered or an outlier).
    compared
        A row for every comparison: ``samples`` (of the reference and of the condition, as ``8 + 8``), ``model``,
        ``genes`` (tested), ``found``, or why it was ``refused``.
    """

    genes: pd.DataFrame
    compared: pd.DataFrame


def find_differences(
    counts: np.ndarray,
    cells: np.ndarray,
    genes: pd.Index,
    cell_types: list[str],
    design: Design,
    settings: ConditionSettings | None = None,
    *,
    progress: Progress = silent,
) -> Differences:
    """Test every gene in every cell type, each condition against the reference.

    A negative binomial model of the samples' added-up counts with DESeq2's dispersions (Love et al. 2014), by
    pydeseq2. Comparisons without replicates are refused, never made up for by cells.

    Parameters
    ----------
    counts
        Added-up counts: (cell types × samples) × genes, the samples of the first type first.
    cells
        Cell types × samples: from how many cells.
    """
    settings = settings or ConditionSettings()
    tables, compared = [], []
    n_samples, pairs = (
        len(design.samples),
        [(k, other) for k in range(len(cell_types)) for other in design.others],
    )
    for number, (k, other) in enumerate(pairs):
        found = pairing(design, other, cells[k] >= settings.min_cells, settings.min_replicates)
        row: dict[str, str | int] = {
            "cell_type": cell_types[k],
            "condition": other,
            "reference": design.reference,
        }
        if isinstance(found, str):
            compared.append(row | {"refused": found})
            continue
        table = _tested(counts[k * n_samples + found.rows], genes, found, design.reference, settings)
        row |= {"samples": _numbers(found, design.reference), "model": found.formula}
        if table is None:
            compared.append(row | {"refused": "no gene has counts enough"})
            continue
        tables.append(table.assign(**{key: row[key] for key in ("cell_type", "condition", "reference")}))
        significant = table["p_adjusted"] <= settings.max_adjusted_p
        compared.append(row | {"genes": len(table), "found": int(significant.sum())})
        progress("conditions", number + 1, len(pairs), found=float(significant.sum()))
    empty = pd.DataFrame(
        {name: pd.Series(dtype=object if name in COLUMNS[:4] else float) for name in COLUMNS}
    )
    everything = pd.concat(tables, ignore_index=True)[list(COLUMNS)] if tables else empty
    kinds = {"samples": "string", "model": "string", "refused": "string", "genes": "Int64", "found": "Int64"}
    return Differences(everything, pd.DataFrame(compared, columns=list(COMPARED)).astype(kinds))


def _numbers(found: Pairing, reference: str) -> str:
    own = int((found.samples["condition"] == reference).sum())
    return f"{own} + {len(found.samples) - own}"


def _tested(
    counts: np.ndarray, genes: pd.Index, found: Pairing, reference: str, settings: ConditionSettings
) -> pd.DataFrame | None:
    """The genes of one comparison, the surest first; None where none has counts enough."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    # levels under names of ours: text from files would be read as a formula's
    is_other = (found.samples["condition"] != reference).to_numpy()
    smaller = min(is_other.sum(), (~is_other).sum())
    tested = (counts >= settings.min_count).sum(axis=0) >= smaller
    if not tested.any():
        return None
    rows = [f"s{number}" for number in range(len(counts))]
    described = pd.DataFrame({"condition": np.where(is_other, "other", "baseline")}, index=rows)
    for number, term in enumerate(found.terms):
        described[f"term{number}"] = [f"l{code}" for code in pd.factorize(found.samples[term])[0]]
    terms = [*(f"term{number}" for number in range(len(found.terms))), "condition"]
    inference = DefaultInference(n_cpus=usable_cpus())  # genes, each by itself: the same with any number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dispersions that follow no trend, and of its own dependencies
        data = DeseqDataSet(
            counts=pd.DataFrame(counts[:, tested], index=rows, columns=genes[tested]),
            metadata=described,
            design="~" + " + ".join(terms),
            inference=inference,
            quiet=True,
        )
        data.deseq2()
        statistics = DeseqStats(
            data,
            contrast=["condition", "other", "baseline"],
            inference=inference,
            quiet=True,
            alpha=settings.max_adjusted_p,
        )
        statistics.run_wald_test()
        statistics.summary()
    table = statistics.results_df.rename(
        columns={
            "baseMean": "base_mean",
            "log2FoldChange": "log2_fold_change",
            "lfcSE": "standard_error",
            "stat": "statistic",
            "pvalue": "p_value",
            "padj": "p_adjusted",
        }
    )
    table = table.rename_axis("gene").reset_index()
    # by the statistic: p-values of the surest underflow to 0 and would tie
    order = table["statistic"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
