"""Integration: what each arm scores and costs, over model seeds, on every study; and mapping of new cells.

Every arm goes through the study's own stages at its default settings, in a process of its own: alignment,
graph, clusters and UMAP are in its seconds, libraries' loading too. Then a part of one dataset's cells is left
out of training and mapped onto the model: are they labelled as well as in joint training, and at which cost?

``NEUMF_INTEGRATION_DATA`` (as ``simulated,kang_seed,kang_ifnb``) chooses studies. What is measured is
written to ``results/integration-<study>.jsonl`` row by row; rows of studies that are not chosen are taken from
there.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from benchmarks import harness
from benchmarks.stages import StagedStudy, compute_measured, fresh_process
from neumf_assets.assets.arms import FIRST
from neumf_assets.core.cells.align import harmony_align
from neumf_assets.core.cells.files.store import CellEmbedding
from neumf_assets.core.cells.neighbours import find_cross_neighbours
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings, uneven_study
from neumf_assets.core.counts.stack import stack_shared
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.neumf.mapping.map_cells import map_dataset
from neumf_assets.core.neumf.training.fit import fit
from neumf_assets.study.settings import ARMS, StudySettings
from neumf_assets.study.sources import find_sources

Row = dict[str, Any]
RESULTS = Path(__file__).resolve().parent / "results"
REAL = ("kang_seed", "kang_ifnb")
CHOICES = ("simulated", *REAL)
SIMULATED: tuple[Literal[2, 3, 6], ...] = (2, 3, 6)
LABELS = "cell_type"
PREPARE = ("raw_counts", "counts", "gene_space", "shared_genes")
MODELS = ("neumf_model", "dense_counts")
OF_ARM = ("cell_embedding", "clusters", "umap")
WITH_MLP = {"ineumf, with MLP": {"kind": "neumf", "pretrain_epochs": StudySettings(name="x").ineumf.epochs}}
SEEDS = (0, 1, 2)
LEFT_OUT = (0.05, 0.1, 0.2)
VOTERS = 15
ARRIVED = "arrived"
JOINTLY = "ineumf, jointly"
ROUGH = ("seconds", "first_seconds", "models_seconds", "peak_mib")
QUICK: dict[str, Any] = {
    "model": {"epochs": 4, "pretrain_epochs": 4, "fusion_epochs": 2},
    "ineumf": {"epochs": 15, "pretrain_epochs": 15, "fusion_epochs": 2},
    "liger": {"iterations": 15},
    "umap": {"n_epochs": 50},
}
SCORES = {
    "ari_mean": "ari_mean",
    "ari_best": "ari_best",
    "ami_best": "ami_best",
    "cross_batch_label_accuracy": "label_accuracy",
    "same_batch_neighbours": "same_batch",
    "expected_same_batch": "expected",
    "expected_same_batch_within_label": "expected_within_type",
    "ilisi": "ilisi",
    "n_clusters": "clusters",
}


@contextlib.contextmanager
def inboxes(quick: bool) -> Iterator[dict[str, dict[str, Path]]]:
    """Give, by choice and by name, the inboxes of the studies that can be had here."""
    with tempfile.TemporaryDirectory(prefix="neumf-inbox-") as folder:
        simulated = {}
        for number in SIMULATED[1:2] if quick else SIMULATED:
            name = f"simulated, {number} datasets"
            simulated[name] = Path(folder) / str(number)
            write_inbox(_smaller(uneven_study(number)) if quick else uneven_study(number), simulated[name])
        folders = {name: harness.REAL_DATA / name for name in REAL}
        real = {name: {name: path} for name, path in folders.items() if path.is_dir() and not quick}
        yield {"simulated": simulated, **real}


def _smaller(settings: SimulatorSettings) -> SimulatorSettings:
    few = [one.model_copy(update={"cells": max(60, one.cells // 4)}) for one in settings.datasets]
    return settings.model_copy(update={"datasets": tuple(few), "genes": 800})


def staged_study(inbox: Path, root: Path, seed: int, quick: bool, ineumf: Row | None = None) -> StagedStudy:
    """Return the default study of an inbox; ``seed`` is that of all that is trained, few epochs if ``quick``."""
    changes: dict[str, Row] = {part: {"seed": seed} for part in ("model", "liger", "ineumf", "align")}
    for part, values in [*(QUICK.items() if quick else ()), ("ineumf", ineumf or {})]:
        changes[part] = changes.get(part, {}) | values
    default = StudySettings(name="study", inbox=str(inbox), label_column=LABELS)
    parts = {part: getattr(default, part).model_copy(update=values) for part, values in changes.items()}
    study = default.model_copy(update=parts)
    return StagedStudy(study, tuple(sorted(one.name for one in find_sources(study).datasets)), root)


def measure(data: str, inbox: Path, seed: int, quick: bool, variants: dict[str, Row]) -> Iterator[Row]:
    """Yield the rows of one study and one seed: the arms, mapping, and variants of ``ineumf``."""
    with tempfile.TemporaryDirectory(prefix="neumf-integration-") as name:
        staged = staged_study(inbox, Path(name), seed, quick)
        about = {"data": data, "seed": seed}
        with fresh_process() as call:
            call(compute_measured, staged, PREPARE)
        for arm in ARMS:
            yield about | {"arm": arm} | _or_failed(partial(scored, staged, arm))
        with fresh_process() as call:
            yield from (about | row for row in call(mapped, staged))
        for variant, changes in variants.items():
            changed = staged_study(inbox, Path(name), seed, quick, changes)
            yield about | {"arm": variant} | _or_failed(partial(scored, changed, "ineumf"))


def _or_failed(work: Callable[[], Row]) -> Row:
    try:
        return work()
    except Exception as error:  # an arm that fails is a row of the result
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def scored(staged: StagedStudy, arm: str) -> Row:
    """Compute an arm in a fresh process; return its scores and its costs."""
    found: Row = {}
    if arm == "neumf_liger":
        with fresh_process() as call:
            found["models_seconds"] = sum(call(compute_measured, staged, MODELS)["seconds"].values())
    first = FIRST[arm]
    with fresh_process() as call:
        spent = call(compute_measured, staged, (first, *(f"{arm}/{name}" for name in OF_ARM)))
    with fresh_process() as call:
        call(staged.compute, f"{arm}/metrics")
    scores = json.loads((staged.artifact(f"{arm}/metrics").path / "metrics.json").read_text())
    embedding = CellEmbedding.load(staged.artifact(f"{arm}/cell_embedding").path).embedding
    return {title: scores[name] for name, title in SCORES.items()} | {
        "dimensions": embedding.shape[1],
        "seconds": sum(spent["seconds"].values()),
        "first_seconds": spent["seconds"][first],
        **found,
        "peak_mib": spent["peak_mib"],
    }


def mapped(staged: StagedStudy) -> list[Row]:
    """Leave cells of the last dataset out of training, map them, and compare with joint training.

    Joint training is the arm ``ineumf`` as it was computed. In both the left-out cells are labelled by the vote
    of the nearest labelled ones of all other cells, in the aligned space. They are mapped as a dataset of their
    own, as data that arrive are, and as cells of the dataset that they are from.
    """
    counts = {name: load_counts(staged.artifact("counts", name).path) for name in staged.datasets}
    matrix, genes = stack_shared(counts)
    gene_names, names = (
        np.array(genes),
        np.concatenate([one.obs_names.to_numpy(str) for one in counts.values()]),
    )
    dataset = np.repeat(np.arange(len(counts)), [one.n_obs for one in counts.values()])
    settings, last = staged.study.ineumf, staged.datasets[-1]
    shuffled = np.random.default_rng(settings.seed).permutation(np.flatnonzero(dataset == len(counts) - 1))
    out = {share: np.sort(shuffled[: round(share * shuffled.size)]) for share in LEFT_OUT}
    left = out[LEFT_OUT[-1]]
    rest = np.setdiff1d(np.arange(dataset.size), left)
    joint = CellEmbedding.load(staged.artifact("ineumf/cell_embedding").path)
    labels = joint.cells[LABELS].to_numpy(object)
    base = fit(
        csr_matrix(matrix[rest]),
        settings,
        gene_names=gene_names,
        cell_names=names[rest],
        dataset=dataset[rest],
        dataset_names=list(counts),
    )
    found = vote_accuracy(joint.embedding, labels, left, rest)
    rows: list[Row] = [{"arm": JOINTLY, "mapped_cells": left.size, "accuracy_of_mapped": found}]
    for title, like, shares in (
        ("as a new dataset", None, LEFT_OUT),
        ("into its dataset", last, LEFT_OUT[-1:]),
    ):
        row: Row = {"arm": f"ineumf, mapped {title}", "mapped_cells": left.size}
        for share in shares:
            begin = time.perf_counter()
            model = map_dataset(
                base,
                csr_matrix(matrix[out[share]]),
                gene_names=gene_names,
                cell_names=names[out[share]],
                name=like or ARRIVED,
                like=like,
            )
            row[f"ms_per_cell_{share:.0%}"] = 1000 * (time.perf_counter() - begin) / out[share].size
        # without a gene missing, the mapped cells' metric is that of the model
        cells = np.vstack([one.cell_embedding("gmf", metric="gene") for one in (base, model)])
        batch = np.concatenate([np.array(list(counts))[dataset[rest]], np.full(left.size, like or ARRIVED)])
        aligned = np.empty_like(cells)
        aligned[np.concatenate([rest, left])] = harmony_align(cells, batch, staged.study.align).embedding
        rows.append(row | {"accuracy_of_mapped": vote_accuracy(aligned, labels, left, rest)})
    return rows


def vote_accuracy(embedding: np.ndarray, labels: np.ndarray, asked: np.ndarray, voters: np.ndarray) -> float:
    """Return the share of labelled cells whose label wins the vote of the nearest labelled voters."""
    asked, voters = (cells[pd.notna(labels[cells])] for cells in (asked, voters))
    near = find_cross_neighbours(embedding[asked], embedding[voters], VOTERS)
    codes, _ = pd.factorize(labels)
    votes = codes[voters][near]
    winners = np.array([np.bincount(row).argmax() for row in votes])
    return float((winners == codes[asked]).mean())


def aggregated(rows: list[Row]) -> list[Row]:
    """Return the mean over the seeds of every study and arm, and the spread of the mean ARI."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["arm"]), []).append(row)
    found = []
    for (data, arm), own in groups.items():
        whole = [row for row in own if "failed" not in row]
        mean: Row = {"data": data, "arm": arm, "seeds": len(whole)}
        if len(whole) < len(own):
            mean["failed"] = next(row["failed"] for row in own if "failed" in row)
        for key in dict.fromkeys(key for row in whole for key in row if key not in ("data", "arm", "seed")):
            values = [row[key] for row in whole if row.get(key) is not None]
            if values:
                mean[key] = harness.significant(statistics.fmean(values), 3 if key in ROUGH else 4)
            if key == "ari_mean" and len(values) > 1:
                mean["ari_mean_sd"] = harness.significant(statistics.stdev(values), 2)
        found.append(mean)
    return found


def differences(means: list[Row]) -> dict[str, float]:
    """Return by how much ``ineumf`` is above the other arms, and mapped cells above joint training."""
    by = {(row["data"], row["arm"]): row for row in means}
    found = {}
    for data in dict.fromkeys(row["data"] for row in means):
        pairs = [("ineumf", other, "ari_mean") for other in ("liger", "neumf_liger", *WITH_MLP)]
        pairs += [(arm, JOINTLY, "accuracy_of_mapped") for _, arm in by if arm.startswith("ineumf, mapped")]
        for one, other, score in pairs:
            first, second = (by.get((data, arm), {}).get(score) for arm in (one, other))
            if first is not None and second is not None:
                found[f"{data}: {score}, {one} minus {other}"] = round(first - second, 4)
    return found


def rows_file(choice: str, quick: bool) -> Path:
    """Return where the rows of a choice of studies are kept."""
    return RESULTS / f"integration-{choice}{'.quick' if quick else ''}.jsonl"


def measured_rows(choice: str, studies: dict[str, Path], quick: bool) -> list[Row]:
    """Measure a choice of studies, seed by seed; every row is written when it is there."""
    path, rows = rows_file(choice, quick), []
    path.parent.mkdir(exist_ok=True)
    variants = WITH_MLP if choice == "simulated" else {}
    with path.open("w") as file:
        for seed in SEEDS[:1] if quick else SEEDS:
            for data, inbox in studies.items():
                for row in measure(data, inbox, seed, quick, variants):
                    rows.append(row)
                    harness.say(row)
                    file.write(json.dumps(row, default=float) + "\n")
                    file.flush()
    return rows


def main(quick: bool = False) -> dict[str, Any]:
    chosen = os.environ.get("NEUMF_INTEGRATION_DATA", ",".join(CHOICES)).split(",")
    if unknown := sorted(set(chosen) - set(CHOICES)):
        raise SystemExit(f"NEUMF_INTEGRATION_DATA: {', '.join(unknown)} is none of {', '.join(CHOICES)}")
    rows, skipped, earlier = [], {}, []
    with inboxes(quick) as there:
        for choice in CHOICES:
            if choice in chosen and choice in there:
                rows += measured_rows(choice, there[choice], quick)
            elif choice not in chosen and rows_file(choice, quick).exists():
                rows += [json.loads(line) for line in rows_file(choice, quick).read_text().splitlines()]
                earlier.append(choice)
            else:
                skipped[choice] = _reason(choice, choice in chosen, quick)
    means = aggregated(rows)
    return {
        "title": "arms over model seeds, and mapping of cells that training has not seen",
        "rows": means,
        "ratios": differences(means),
        "skipped": skipped,
        "notes": [
            "Scores on labelled cells; ari_mean over the resolutions and the seeds of Leiden; ari_mean_sd over model "
            "seeds. same_batch is to be compared with expected, or with expected_within_type where the datasets "
            "differ in their composition.",
            "seconds: the whole arm up to UMAP in a fresh process, loading of libraries included; first_seconds: "
            "training or factorisation of it. models_seconds: the datasets' own models, which neumf_liger needs.",
            f"accuracy_of_mapped: {LEFT_OUT[-1]:.0%} of the last dataset's cells, vote of {VOTERS} others; "
            "ms_per_cell: mapping alone.",
            *([f"From an earlier run: {', '.join(earlier)}."] if earlier else []),
        ],
        "runs": rows,
    }


def _reason(choice: str, chosen: bool, quick: bool) -> str:
    if not chosen:
        return "not chosen (NEUMF_INTEGRATION_DATA)"
    return (
        "not with --quick" if quick else f"no data in {harness.REAL_DATA.name}/{choice} beside the checkout"
    )


if __name__ == "__main__":
    harness.script(main)
