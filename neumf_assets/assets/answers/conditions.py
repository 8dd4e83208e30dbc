"""What differs between the conditions of a study: shares of cell types, expression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.answers.labels import named_cells
from neumf_assets.assets.answers.rows import rows_of
from neumf_assets.assets.arms import delivered_clusters
from neumf_assets.assets.inputs import all_genes_of_kept_cells, best_arm, read_cell_columns
from neumf_assets.assets.stage import Product, Stage, Step, stage

if TYPE_CHECKING:
    import pandas as pd

    from neumf_assets.core.conditions.samples import CellGroups

COMPARED, GROUPS, REFERENCE = "compared", "groups", "reference"
CHANGED, FOUND = "types that change", "genes found"
NO = "no: "
"""What a study without conditions says, before the reason."""
_TOP = 8


def condition_stages(arms: Sequence[str]) -> list[Stage]:
    """Composition and differential expression."""
    return [_composition(arms), _differential_expression(arms)]


def _upstream(arms: Sequence[str]) -> tuple[str, ...]:
    own = (f"{arm}/{name}" for arm in arms for name in ("cell_embedding", "clusters"))
    return ("gene_space", "comparison", "cell_labels", *own)


def _groups(step: Step, arms: Sequence[str]) -> tuple[CellGroups, dict[str, Any]]:
    """The cells by type and sample, and what was compared, for the metadata.

    Types are labels, given or carried over, where there are labels; else the best arm's clusters.
    """
    from neumf_assets.core.cells.files.store import CellEmbedding
    from neumf_assets.core.conditions.samples import CellGroups, design_of

    arm = best_arm(step, arms)
    design = design_of(
        CellEmbedding.load(step.one(f"{arm}/cell_embedding").path).cells, step.study.conditions
    )
    kind, types = "labels", named_cells(step)
    if types is None:
        clusters = read_cell_columns(step.one(f"{arm}/clusters"), "clusters")
        kind, types = f"clusters of {arm}", "cluster " + clusters[delivered_clusters(clusters)].astype(str)
    return CellGroups.of(types, design), {
        COMPARED: "yes",
        GROUPS: kind,
        REFERENCE: design.reference,
        "samples": len(design.samples),
        "assumed": "; ".join(design.assumed),
    }


def _composition(arms: Sequence[str]) -> Stage:
    @stage(
        group="report",
        inputs=_upstream(arms),
        settings=("conditions", "arms"),
        kinds=("parquet",),
        columns=(
            ("sample", "string", "replicate and condition"),
            ("condition", "string", "its condition"),
            ("replicate", "string", "its replicate"),
            ("cell_type", "string", "label, given or carried over; without labels a cluster of the best arm"),
            ("cells", "int", "cells of the type in the sample"),
            ("share", "float", "of the sample's cells that have a type"),
            ("low", "float", "lower end of Wilson's interval (95 %)"),
            ("high", "float", "upper end"),
        ),
    )
    def composition(step: Step) -> Product:
        """How large a share of each sample's cells a type has, and whether conditions differ in that.

        Samples are tested, not cells (propeller: moderated t on logits of the shares), in pairs where replicates were
        measured under both conditions. Shares sum to one: where one type grows the others shrink.
        """
        from neumf_assets.core.conditions.composition import compare_composition, shares
        from neumf_assets.core.conditions.samples import NothingToCompare
        from neumf_assets.core.report.image import markdown_image
        from neumf_assets.core.report.plots.conditions import composition_bars

        try:
            groups, told = _groups(step, arms)
        except NothingToCompare as reason:
            return _nothing(composition, str(reason))
        table = shares(groups.cells, groups.names, groups.design)
        tested = compare_composition(groups.cells, groups.names, groups.design, step.study.conditions)
        changed = tested[tested["p_adjusted"] <= step.study.conditions.max_adjusted_p]
        return Product(
            lambda folder: _save(folder, {"composition": table, "composition_tests": tested}),
            {**told, CHANGED: len(changed), "rows": len(table)},
            pictures={
                "composition": markdown_image(composition_bars(table), "share of cell types in every sample")
            },
            tables={"tests of composition": rows_of(tested)},
            publish={name: name for name in ("composition.csv", "composition_tests.csv")},
        )

    return composition


def _differential_expression(arms: Sequence[str]) -> Stage:
    @stage(
        group="report",
        inputs=("raw_counts", "counts", *_upstream(arms)),
        settings=("conditions", "arms"),
        kinds=("parquet",),
        columns=(
            ("cell_type", "string", "label, given or carried over; without labels a cluster of the best arm"),
            ("condition", "string", "the condition compared"),
            ("reference", "string", "the condition that it is compared with"),
            ("gene", "string", "name of the gene"),
            ("base_mean", "float", "mean of its normalised counts over the samples"),
            ("log2_fold_change", "float", "condition over reference"),
            ("standard_error", "float", "of the fold change"),
            ("statistic", "float", "Wald statistic"),
            ("p_value", "float", "of the test; missing where a sample is an outlier"),
            (
                "p_adjusted",
                "float",
                "after Benjamini and Hochberg; missing where counts are too few to find anything",
            ),
        ),
    )
    def differential_expression(step: Step) -> Product:
        """Genes that a condition changes, in each cell type.

        Raw counts of a type's cells are added up by sample, and samples are compared (DESeq2's model, by pydeseq2), in
        pairs where replicates were measured under both conditions. Types without replicates are refused, with the
        reason: cells of one sample are no replicates.
        """
        import pandas as pd

        from neumf_assets.core.conditions.differential import find_differences
        from neumf_assets.core.conditions.pseudobulk import pseudobulk
        from neumf_assets.core.conditions.samples import NothingToCompare
        from neumf_assets.core.counts.stack import shared_genes
        from neumf_assets.core.report.image import markdown_image
        from neumf_assets.core.report.plots.conditions import volcanoes

        try:
            groups, told = _groups(step, arms)
        except NothingToCompare as reason:
            return _nothing(differential_expression, str(reason))
        with all_genes_of_kept_cells(step) as parts:
            if not all(part.counts.whole for part in parts.values()):
                return _nothing(differential_expression, "the values are no counts")
            genes = pd.Index(shared_genes(parts))
            counts = pseudobulk(parts, groups.position, groups.cells.size, genes)
        found = find_differences(
            counts,
            groups.cells,
            genes,
            groups.names,
            groups.design,
            step.study.conditions,
            progress=step.progress,
        )
        tested, bound = found.genes, step.study.conditions.max_adjusted_p
        pictures = {}
        if len(tested):
            pictures["differences"] = markdown_image(
                volcanoes(tested, bound), "fold change against certainty"
            )
        number = int((tested["p_adjusted"] <= bound).sum())
        return Product(
            lambda folder: _save(folder, {"differential_expression": tested, "compared": found.compared}),
            {**told, FOUND: number, "rows": len(tested)},
            pictures=pictures,
            tables={
                "comparisons": rows_of(found.compared),
                "genes that change most": top_genes(tested, bound),
            },
            publish={"differential_expression.csv": "differential_expression.csv"},
        )

    return differential_expression


def top_genes(tested: pd.DataFrame, bound: float, most: int = _TOP) -> list[dict[str, Any]]:
    """The surest genes of every comparison: higher and lower under the condition."""
    rows = []
    sure = tested[tested["p_adjusted"] <= bound]
    for (cell_type, condition), own in sure.groupby(["cell_type", "condition"]):
        up, down = own[own["log2_fold_change"] > 0], own[own["log2_fold_change"] < 0]
        rows.append(
            {
                "cell type": str(cell_type),
                "condition": str(condition),
                "higher": ", ".join(up["gene"].head(most)),
                "lower": ", ".join(down["gene"].head(most)),
                "found": len(own),
            }
        )
    return rows


def _nothing(declared: Stage, reason: str) -> Product:
    """The table of a study that has nothing to compare."""
    import pandas as pd

    kinds = {"string": "string", "int": "Int64", "float": "float64"}
    table = pd.DataFrame({name: pd.Series(dtype=kinds[kind]) for name, kind, _ in declared.columns})
    return Product(
        lambda folder: table.to_parquet(folder / f"{declared.name[-1]}.parquet", index=False),
        {COMPARED: NO + reason, "rows": 0},
    )


def _save(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    from neumf_assets.core.cells.files.export import save_csv

    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        save_csv(table, folder / f"{name}.csv")
