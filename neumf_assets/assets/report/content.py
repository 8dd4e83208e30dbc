"""Gathers what a study's report shows from the artifacts of its stages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from neumf_assets.assets.answers.conditions import COMPARED, GROUPS, NO, REFERENCE, top_genes
from neumf_assets.assets.answers.labels import COLUMN, HELD_OUT, RIGHT, UNKNOWN
from neumf_assets.assets.answers.rows import rows_of
from neumf_assets.assets.arms import delivered_clusters, map_of
from neumf_assets.assets.gene_space import left_out
from neumf_assets.assets.inputs import read_cell_columns, read_table
from neumf_assets.assets.integrate import curve_of, factor_genes
from neumf_assets.assets.model import loss_history_of
from neumf_assets.assets.report.scores import known_scores, run_scores
from neumf_assets.assets.stage import Step
from neumf_assets.core.versions import versions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from neumf_assets.core.cells.scoring.scores import ArmScores
    from neumf_assets.core.report.content import (
        ArmResult,
        Comparison,
        ConditionResults,
        Curves,
        DatasetEvaluation,
        DatasetSummary,
        Droplets,
        LabelResults,
        MarkerGene,
        Provenance,
        ReportContent,
        SweepRow,
    )
    from neumf_assets.core.store import Artifact

_MARKERS_SHOWN = 8


def report_content(step: Step, scores: Mapping[str, ArmScores]) -> ReportContent:
    """All that the report of a study says."""
    from neumf_assets.core.report.content import ReportContent

    comparison = _comparison(step, scores)
    return ReportContent(
        study=step.study.name,
        title=step.study.title or step.study.name,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        datasets=[_dataset(step, name) for name in step.all("counts")],
        qc_thresholds={
            "genes_per_cell": step.study.qc.min_genes,
            "mito_share": step.study.qc.max_mito,
        },
        arms=[_arm(step, arm) for arm in scores],
        comparison=comparison,
        curves=[*_model_curves(step), *filter(None, (curve_of(step, arm) for arm in scores))],
        evaluations=[_evaluation(step, name) for name in step.all("neumf_evaluation")],
        sweep=_sweep(step),
        markers=_markers(step, "markers"),
        marker_dots=read_table(step.one("markers"), "dots"),
        suggested=_suggested(step),
        label_markers=_markers(step, "label_markers"),
        label_dots=_label_dots(step),
        markers_arm=step.one("markers").manifest.figures["arm"],
        labels=_label_results(step),
        conditions=_condition_results(step),
        warnings=_warnings(step),
        provenance=_provenance(step),
    )


def _dataset(step: Step, name: str) -> DatasetSummary:
    import numpy as np

    from neumf_assets.core.report.content import DatasetSummary

    artifact = step.all("counts")[name]
    figures, raw = artifact.manifest.figures, step.all("raw_counts")[name].manifest.figures
    removed = {f"cells, {reason}": n for reason, n in figures["cells_dropped"].items() if n}
    removed |= {f"genes, {reason}": n for reason, n in figures["genes_dropped"].items() if n}
    cells = np.load(artifact.path / "qc.npz", allow_pickle=False)
    return DatasetSummary(
        name=name,
        cells=figures["cells"],
        genes=figures["genes"],
        zero_fraction=figures["zero_fraction"],
        cells_read=figures["cells_before"],
        genes_read=figures["genes_before"],
        removed={reason.replace("_", " "): n for reason, n in removed.items()},
        source=str(raw["source"]).rsplit("/", 1)[-1],
        sha256=raw["sha256"],
        total_counts=cells["totals"][cells["kept"]],
        genes_per_cell=cells["genes_seen"][cells["kept"]],
        mito_share=cells["mito_share"][cells["kept"]] if figures["mito_genes"] else None,
        outlier=cells["outlier"][cells["kept"]] if "outlier" in cells else None,
        doublet=cells["doublet"][cells["kept"]] if "doublet" in cells else None,
        ambient_share=figures.get("ambient_share"),
        species=str(raw.get("species", "")),
        droplets=_droplets(artifact, cells["totals"]),
    )


def _droplets(artifact: Artifact, totals: np.ndarray) -> Droplets | None:
    import numpy as np

    from neumf_assets.core.report.content import Droplets

    path = artifact.path / "called.npz"
    if not path.exists():
        return None
    called = np.load(path, allow_pickle=False)
    return Droplets(totals, called["cells"], float(called["knee"]), float(called["lower"]))


def _arm(step: Step, arm: str) -> ArmResult:
    from neumf_assets.core.cells.files.store import CellEmbedding
    from neumf_assets.core.report.content import ArmResult

    cells = CellEmbedding.load(step.one(f"{arm}/cell_embedding").path)
    clusters = read_cell_columns(step.one(f"{arm}/clusters"), "clusters")
    shown = map_of(step, cells, read_cell_columns(step.one(f"{arm}/umap"), "umap"), clusters)
    label = next((name for name in shown.colourings if name not in ("dataset", "cluster")), None)
    return ArmResult(
        name=arm,
        coordinates=shown.coordinates,
        dataset=shown.colourings["dataset"],
        label=shown.colourings[label] if label else None,
        cluster=clusters[delivered_clusters(clusters)].to_numpy(object),
        factors=factor_genes(step, arm),
    )


def _comparison(step: Step, scores: Mapping[str, ArmScores]) -> Comparison:
    from neumf_assets.core.report.content import Comparison

    found = json.loads((step.one("comparison").path / "comparison.json").read_text())
    return Comparison(
        scores={arm: _figures(values, known_scores(values)) for arm, values in scores.items()},
        runs=run_scores(scores),
        chance=found["chance"],
        best_arm=found["best_arm"],
        rule=f"{found['rule']} {_named(found['reason'], scores)}.",
    )


def _named(text: str, arms: Iterable[str]) -> str:
    """The text with the arms' codes replaced by their names, longest code first (one ends in another)."""
    from neumf_assets.core.report.wording import arm_title

    codes = sorted(arms, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, codes)), lambda found: arm_title(found[0]), text)


def _figures(scores: ArmScores, single: Mapping[str, float]) -> dict[str, list[float | None]]:
    """Scores by name; the ARI and AMI means once for each seed, so that the report shows their spread."""
    values: dict[str, list[float | None]] = {key: [value] for key, value in single.items()}
    for key in ("ari", "ami"):
        by_seed: dict[int, list[float]] = {}
        for run in scores.runs:
            value = getattr(run, key)
            if value is not None:
                by_seed.setdefault(run.seed, []).append(value)
        if by_seed:
            values[f"{key}_mean"] = [sum(v) / len(v) for v in by_seed.values()]
            values[f"{key}_best"] = [max(v) for v in by_seed.values()]
    return values


def _model_curves(step: Step) -> list[Curves]:
    from neumf_assets.core.report.content import Curves

    return [
        Curves(name, loss_history_of(json.loads((artifact.path / "model.json").read_text())["history"]))
        for name, artifact in step.all("neumf_model").items()
    ]


def _evaluation(step: Step, name: str) -> DatasetEvaluation:
    from neumf_assets.core.neumf.evaluation.results import PART_OF
    from neumf_assets.core.report.content import DatasetEvaluation
    from neumf_assets.core.report.wording import ranking_by_method

    found = json.loads((step.all("neumf_evaluation")[name].path / "evaluation.json").read_text())
    bins = found["methods"][found["model"]]["calibration"]
    return DatasetEvaluation(
        dataset=name,
        deviance={key: value for key, value in found["heldout_deviance"].items() if value is not None},
        model=found["model"],
        part=PART_OF.get(found["model"]),
        ranking=ranking_by_method(found),
        predicted=[item["predicted"] for item in bins] or None,
        observed=[item["observed"] for item in bins] or None,
    )


def _suggested(step: Step) -> dict[str, str]:
    artifact = step.one("markers")
    if not (artifact.path / "suggested.parquet").exists():
        return {}
    table = read_table(artifact, "suggested")
    return dict(zip(table["cluster"], table["suggested"], strict=True))


def _label_dots(step: Step) -> pd.DataFrame | None:
    artifact = step.one("markers")
    return read_table(artifact, "label_dots") if (artifact.path / "label_dots.parquet").exists() else None


def _markers(step: Step, name: str) -> dict[str, list[MarkerGene]]:
    from neumf_assets.core.report.content import MarkerGene

    artifact = step.one("markers")
    if not (artifact.path / f"{name}.parquet").exists():
        return {}
    table = read_table(artifact, name)
    found: dict[str, list[MarkerGene]] = {}
    for row in table[table["rank"] <= _MARKERS_SHOWN].to_dict("records"):
        found.setdefault(str(row["cluster"]), []).append(
            MarkerGene(
                row["gene"], row["log2_fold_change"], row["p_adjusted"], row["share_in"], row["share_out"]
            )
        )
    return found


def _label_results(step: Step) -> LabelResults | None:
    from neumf_assets.core.report.content import LabelResults

    artifact = step.one("cell_labels")
    figures, cells = artifact.manifest.figures, read_table(artifact, "cell_labels")
    if cells["predicted"].isna().all():
        return None
    without = cells[cells["label"].isna()]
    given = without.value_counts(["dataset", "predicted"]).reset_index(name="cells")
    return LabelResults(
        column=figures[COLUMN],
        arm=figures["arm"],
        right=figures.get(RIGHT),
        held_out=figures[HELD_OUT],
        accuracy=rows_of(read_table(artifact, "accuracy")),
        given=rows_of(given),
        unlabelled=len(without),
        unknown=figures[UNKNOWN],
    )


def _condition_results(step: Step) -> ConditionResults | None:
    from neumf_assets.core.report.content import ConditionResults

    shares, differences = step.one("composition"), step.one("differential_expression")
    figures, bound = shares.manifest.figures, step.study.conditions.max_adjusted_p
    if figures[COMPARED].startswith(NO):
        return None
    genes = read_table(differences, "differential_expression")
    no_counts = differences.manifest.figures[COMPARED].startswith(NO)
    return ConditionResults(
        reference=figures[REFERENCE],
        groups=figures[GROUPS],
        assumed=figures["assumed"],
        max_adjusted_p=bound,
        shares=read_table(shares, "composition"),
        tests=read_table(shares, "composition_tests"),
        genes=genes,
        compared=genes if no_counts else read_table(differences, "compared"),
        top=top_genes(genes, bound),
    )


def _sweep(step: Step) -> list[SweepRow]:
    from neumf_assets.core.report.content import SweepRow

    if "liger/sweep" not in step.inputs:
        return []
    columns = ["varied", "k", "lam", "objective", "divergence", "seconds"]
    table = read_table(step.one("liger/sweep"), "sweep")[columns]
    return [SweepRow(*row) for row in table.itertuples(index=False)]


def _warnings(step: Step) -> list[str]:
    found = [
        f"{name} is left out of this study: {reason.rstrip('.')}." for name, reason in left_out(step).items()
    ]
    for name, artifact in step.all("neumf_evaluation").items():
        figures = artifact.manifest.figures["heldout_deviance"]
        evaluation = json.loads((artifact.path / "evaluation.json").read_text())
        if evaluation["beats_best_baseline"] is False:
            best = evaluation["best_baseline"]
            found.append(
                f"{name}: the model ({figures[evaluation['model']]:.4f}) does not predict held-out counts "
                f"better than the best baseline ({best}, {figures[best]:.4f})."
            )
    comparison = json.loads((step.one("comparison").path / "comparison.json").read_text())
    if comparison["denoising_hurts"]:
        found.append(
            f"Denoising before LIGER makes it worse: mean ARI {comparison['denoising_change']:+.3f}."
        )
    return found


def _provenance(step: Step) -> Provenance:
    from neumf_assets.core.report.content import Provenance

    study = step.study
    return Provenance(
        versions=versions(),
        seeds={
            "NeuMF": study.model.seed,
            "integrative NeuMF": study.ineumf.seed,
            "LIGER": study.liger.seed,
            "UMAP": study.umap.seed,
        },
        settings=study.model_dump(mode="json", exclude={"simulate", "owners"}),
        facts={
            f"sha256 of {name}": artifact.manifest.figures["sha256"]
            for name, artifact in step.all("raw_counts").items()
        },
    )
