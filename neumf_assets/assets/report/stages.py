"""Report: which arm is best, the marker genes of its clusters, one h5ad file, and a page to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.assets.answers.conditions import (
    CHANGED,
    COMPARED,
    FOUND,
    GROUPS,
    REFERENCE,
    condition_stages,
)
from neumf_assets.assets.answers.labels import COLUMN, HELD_OUT, RIGHT, UNKNOWN, labels_stage
from neumf_assets.assets.answers.markers import markers_stage
from neumf_assets.assets.arms import FIRST
from neumf_assets.assets.gene_space import left_out
from neumf_assets.assets.inputs import (
    all_genes_of_kept_cells,
    best_arm,
    read_cell_columns,
    read_table,
)
from neumf_assets.assets.null_scores import chance_check, chance_scores
from neumf_assets.assets.report.scores import known_scores, run_scores
from neumf_assets.assets.stage import CheckOutcome, Product, Stage, Step, stage
from neumf_assets.core.versions import versions
from neumf_assets.study.settings import ARMS, Arm

if TYPE_CHECKING:
    import pandas as pd

    from neumf_assets.core.cells.scoring.scores import ArmScores

SHUFFLED = "shuffled data"


def report_stages(arms: tuple[Arm, ...], sweep: bool = False) -> list[Stage]:
    """The stages that look at all arms of a study, and the report at LIGER's ``sweep`` where there is one."""
    ordered = [arm for arm in ARMS if arm in arms]
    return [
        _comparison(ordered),
        labels_stage(ordered),
        markers_stage(ordered),
        *condition_stages(ordered),
        _integrated(ordered),
        _report(ordered, sweep),
    ]


def _of_arms(arms: Sequence[str], *names: str) -> list[str]:
    """The paths of stages of arms, what two arms share once."""
    paths = [FIRST[arm] if name == "first" else f"{arm}/{name}" for arm in arms for name in names]
    return list(dict.fromkeys(paths))


def _comparison(arms: list[Arm]) -> Stage:
    @stage(
        group="report",
        inputs=(
            "gene_space",
            "counts",
            "shared_genes",
            *_of_arms(arms, "first", "cell_embedding", "clusters", "umap", "metrics"),
        ),
        settings=("arms", "metrics.null_cells"),
        version="2",
        kinds=("json",),
        checks=(
            (
                "denoising_helps",
                "LIGER on the counts that NeuMF predicts is no worse than LIGER on the counts themselves.",
            ),
            (
                "shuffled_scores_at_chance",
                "ARI and AMI are about 0 where the genes are shuffled over the cells: the scores see no structure "
                "where there is none.",
            ),
        ),
    )
    def comparison(step: Step) -> Product:
        """Which way of integrating the datasets serves this study best, and by how much.

        All arms are scored on the same cells, with the same graph, resolutions and seeds. The rule that names
        the best arm is written beside the result. The picture shows each score by resolution, with the
        spread over the seeds. Beside the arms stands a null run: what the scores are by chance, on counts whose
        genes were shuffled over the cells.
        """
        from neumf_assets.core.cells.scoring.comparison import compare_arms

        scores: dict[str, ArmScores] = {arm: arm_scores(step, arm) for arm in arms}
        null = chance_scores(step)
        chance = {} if null is None else known_scores(null)
        found = compare_arms(scores, evidence=_evidence(step, arms)).model_copy(update={"chance": chance})
        content = found.model_dump_json(indent=1)
        return Product(
            lambda folder: (folder / "comparison.json").write_text(content),
            {"best_arm": found.best_arm, "rule": found.rule, "reason": found.reason},
            pictures=_comparison_picture(scores),
            tables={"scores of the arms": arms_table(found.arms | ({SHUFFLED: chance} if chance else {}))},
            checks=[_denoising(found.denoising_hurts, found.denoising_change), chance_check(null)],
        )

    return comparison


def _evidence(step: Step, arms: Sequence[Arm]) -> bool:
    """Whether the guarded alignment found something to align the datasets by; True where nothing was guarded."""
    if "ineumf" not in arms:
        return True
    return step.one("ineumf/cell_embedding").manifest.figures.get("alignment_passes", 1) > 0


def arm_scores(step: Step, arm: str) -> ArmScores:
    """An arm's scores, with the seconds of all its stages."""
    from neumf_assets.core.cells.scoring.scores import ArmScores

    scores = ArmScores.model_validate_json((step.one(f"{arm}/metrics").path / "metrics.json").read_text())
    names = _of_arms([arm], "first", "cell_embedding", "clusters", "umap")
    seconds = sum(step.one(name).manifest.figures["seconds"] for name in names)
    return scores.model_copy(update={"seconds": seconds})


def _denoising(hurts: bool | None, change: float | None) -> CheckOutcome:
    if hurts is None or change is None:
        text = "Not judged: it takes labels, and both the liger and the neumf_liger arm."
    else:
        text = f"Mean ARI over resolutions changes by {change:+.3f} when LIGER is given denoised counts."
    return CheckOutcome("denoising_helps", hurts is not True, text)


def arms_table(arms: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each score, one column for each arm, and what is better."""
    from neumf_assets.core.report.wording import METRICS, arm_title

    return [
        {"score": metric.title, **{arm_title(arm): values.get(key) for arm, values in arms.items()}}
        | {"better": metric.better}
        for key, metric in METRICS.items()
        if any(values.get(key) is not None for values in arms.values())
    ]


def _comparison_picture(scores: Mapping[str, ArmScores]) -> dict[str, str]:
    from neumf_assets.core.report.image import markdown_image
    from neumf_assets.core.report.plots.scores import comparison as draw

    runs = run_scores(scores)
    if not any(value is not None for run in runs for value in run.scores.values()):
        return {}
    return {"scores by resolution": markdown_image(draw(runs), "scores by resolution")}


def _integrated(arms: list[Arm]) -> Stage:
    @stage(
        group="report",
        inputs=(
            "gene_space",
            "raw_counts",
            "counts",
            "comparison",
            "cell_labels",
            *_of_arms(arms, "first", "cell_embedding", "clusters", "umap"),
        ),
        settings=("integrated", "arms"),
        version="2",
        kinds=("anndata", "h5ad"),
    )
    def integrated(step: Step) -> Product:
        """All datasets in one AnnData file: counts, every arm's embedding, map and clusters, and labels.

        Opens in scanpy, scvi-tools, scib-metrics and CELLxGENE without conversion. Raw counts are in
        `layers["counts"]`, the main map in `obsm["X_umap"]`, where all came from in `uns["neumf"]`.
        """
        from neumf_assets.core.cells.files.integrated import describe_integrated, write_integrated

        with all_genes_of_kept_cells(step) as cells:
            data = describe_integrated(
                cells,
                {arm: _arm_result(step, arm) for arm in arms},
                best_arm=best_arm(step, arms),
                cells=_predicted(step),
                provenance=provenance(step),
                settings=step.study.integrated,
            )

        def save(folder: Path) -> None:
            with all_genes_of_kept_cells(step) as cells:
                write_integrated(data, cells, folder / "integrated.h5ad", step.study.integrated)

        return Product(
            save,
            {"cells": data.n_obs, "genes": data.n_vars},
            publish={"integrated.h5ad": "integrated.h5ad"},
        )

    return integrated


def _predicted(step: Step) -> pd.DataFrame | None:
    """The labels carried over, under names that speak of the column whose labels they are."""
    artifact = step.one("cell_labels")
    column = artifact.manifest.figures[COLUMN]
    found = read_table(artifact, "cell_labels")
    if found["predicted"].isna().all():
        return None
    return found[["predicted", "probability", "support"]].set_axis(
        [f"predicted_{column}", f"predicted_{column}_probability", f"predicted_{column}_support"], axis=1
    )


def _arm_result(step: Step, arm: str) -> Any:
    from neumf_assets.assets.integrate import loadings
    from neumf_assets.core.cells.files.integrated import ArmResult
    from neumf_assets.core.cells.files.store import CellEmbedding

    umap = read_cell_columns(step.one(f"{arm}/umap"), "umap")
    return ArmResult(
        embedding=CellEmbedding.load(step.one(f"{arm}/cell_embedding").path).embedding,
        clusters=read_cell_columns(step.one(f"{arm}/clusters"), "clusters"),
        umap=umap[["umap_1", "umap_2"]].to_numpy(),
        tsne=umap[["tsne_1", "tsne_2"]].to_numpy() if "tsne_1" in umap else None,
        loadings=loadings(step, arm),
    )


def provenance(step: Step) -> dict[str, Any]:
    """Where a study's result came from: datasets with their digests, settings, inputs, library versions."""
    datasets = {
        name: {key: artifact.manifest.figures.get(key) for key in ("source", "sha256", "format", "cells")}
        for name, artifact in step.all("raw_counts").items()
    }
    return {
        "study": step.study.name,
        "datasets": datasets,
        "settings": step.study.model_dump(mode="json", exclude={"simulate"}),
        "versions": versions(),
    }


def _report(arms: list[Arm], sweep: bool) -> Stage:
    @stage(
        group="report",
        inputs=(
            "gene_space",
            "raw_counts",
            "counts",
            "neumf_model",
            "neumf_evaluation",
            *_of_arms(arms, "first", "cell_embedding", "clusters", "umap", "metrics"),
            "comparison",
            "markers",
            "cell_labels",
            "composition",
            "differential_expression",
            *(["liger/sweep"] if sweep else []),
        ),
        settings=("title", "label_column", "arms"),
        version="3",
        kinds=("html", "json"),
        names_left_out=True,
    )
    def report(step: Step) -> Product:
        """The study on one page, to read and to send: a self-contained HTML file, and `summary.json`.

        Quality control, training curves, maps of all arms, their comparison, held-out deviance beside the
        baselines, top genes and markers, labels, conditions, and what was run. `summary.json` holds the same
        figures for programs, `*_mqc.json` those of datasets and arms for MultiQC.
        """
        from neumf_assets.assets.report.content import report_content
        from neumf_assets.core.report.html.page import report_html
        from neumf_assets.core.report.multiqc import multiqc_files

        scores: dict[str, ArmScores] = {arm: arm_scores(step, arm) for arm in arms}
        summary = _summary(step, scores, best_arm(step, arms))
        html = report_html(report_content(step, scores))
        tables = multiqc_files(summary)

        def save(folder: Path) -> None:
            for name, table in tables.items():
                (folder / name).write_text(json.dumps(table, indent=1))
            (folder / "report.html").write_text(html, encoding="utf-8")
            (folder / "summary.json").write_text(json.dumps(summary, indent=1))

        return Product(
            save,
            {"best_arm": summary["best_arm"], "datasets": len(summary["datasets"])},
            tables={"scores of the arms": arms_table(summary["arms"])},
            publish={name: name for name in ("report.html", "summary.json", *tables)},
        )

    return report


def _labels(step: Step) -> dict[str, Any]:
    """What was said of the labels that were carried over."""
    figures = step.one("cell_labels").manifest.figures
    return {
        key: figures.get(key) for key in ("arm", COLUMN, "cells without a label", UNKNOWN, RIGHT, HELD_OUT)
    }


def _conditions(step: Step) -> dict[str, Any]:
    """What was compared, and how much was found."""
    shares, genes = (step.one(name).manifest.figures for name in ("composition", "differential_expression"))
    told = {key: shares.get(key) for key in (COMPARED, REFERENCE, GROUPS, "assumed", "samples", CHANGED)}
    return told | {FOUND: genes.get(FOUND)}


def _summary(step: Step, scores: Mapping[str, ArmScores], best: str) -> dict[str, Any]:
    raw, evaluations = step.all("raw_counts"), step.all("neumf_evaluation")
    datasets = {}
    for name, artifact in step.all("counts").items():
        figures = artifact.manifest.figures
        evaluated = evaluations[name].manifest.figures if name in evaluations else {}
        datasets[name] = {
            "cells": figures["cells"],
            "genes": figures["genes"],
            "zero_fraction": figures["zero_fraction"],
            "sha256": raw[name].manifest.figures["sha256"],
            "heldout_deviance": evaluated.get("heldout_deviance", {}),
        }
    return {
        "study": step.study.name,
        "datasets": datasets,
        "left_out": left_out(step),
        "arms": {arm: found.summary() for arm, found in scores.items()},
        "best_arm": best,
        "labels": _labels(step),
        "conditions": _conditions(step),
        "versions": versions(),
    }
