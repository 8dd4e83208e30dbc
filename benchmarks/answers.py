"""Answers: are labels carried over right, are unknown types told, does a comparison of nothing find nothing?

**Labels.** Every arm is computed by the study's own stages. The labels of the last dataset are hidden: how many of its
cells get theirs back, by a vote of the 15 nearest labelled cells, and by what the study does? Then each type's cells
are taken out of the reference, a type at a time: how well does the support tell cells of it from the others (area under
the curve), how many of them are called unknown, and how many of the others? The arm was trained with these cells; only
the reference lacks them.

**Conditions.** On Kang et al. 2018: known interferon genes among the first of every type, and, as a comparison of
nothing, the donors of the control cells split by chance.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from benchmarks import harness
from benchmarks.integration import LABELS, PREPARE, staged_study
from benchmarks.stages import compute_measured, fresh_process
from neumf_assets.assets.arms import FIRST
from neumf_assets.core.annotation.transfer import UNKNOWN, transfer_labels
from neumf_assets.core.cells.files.store import CellEmbedding
from neumf_assets.core.cells.neighbours import find_cross_neighbours
from neumf_assets.core.conditions.composition import compare_composition
from neumf_assets.core.conditions.differential import find_differences
from neumf_assets.core.conditions.pseudobulk import pseudobulk
from neumf_assets.core.conditions.samples import CellGroups, design_of
from neumf_assets.core.conditions.settings import ConditionSettings
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.stack import shared_genes
from neumf_assets.core.counts.stored import CountsInMemory

ARMS = ("pca", "harmony", "ineumf")
VOTERS, FEWEST = 15, 20
REAL = harness.REAL_DATA / "kang_ifnb"
INTERFERON = ("ISG15", "ISG20", "IFI6", "IFIT1", "IFIT3", "MX1", "LY6E")
FIRST_GENES = 25
SPLITS = 5
SPLIT_TYPES = ("B", "CD14 Mono", "CD4 Naive T", "NK")


def inboxes(folder: Path, quick: bool) -> Iterator[tuple[str, Path]]:
    """Yield studies: simulated cells, and real ones where they are at hand."""
    size = 400 if quick else 2000
    simulated = {"datasets": [["ctrl", size, "control"], ["stim", size, "stimulated"]]}
    write_inbox(SimulatorSettings.model_validate(simulated), folder / "simulated")
    yield "simulated", folder / "simulated"
    if REAL.is_dir() and not quick:
        yield REAL.name, REAL


def embeddings(inbox: Path, root: Path, quick: bool) -> Iterator[tuple[str, CellEmbedding]]:
    """Yield every arm's cells."""
    staged = staged_study(inbox, root, 0, quick)
    with fresh_process() as call:
        call(compute_measured, staged, PREPARE)
    for arm in ARMS:
        with fresh_process() as call:
            call(compute_measured, staged, (FIRST[arm], f"{arm}/cell_embedding"))
        yield arm, CellEmbedding.load(staged.artifact(f"{arm}/cell_embedding").path)


def label_row(cells: CellEmbedding) -> dict[str, Any]:
    """What becomes of hidden labels, and of types that are labelled nowhere."""
    points, dataset = np.array(cells.embedding), cells.cells["dataset"].to_numpy(str)
    truth = cells.cells[LABELS].astype(object).to_numpy(str)
    asked = dataset == np.unique(dataset)[-1]
    near = find_cross_neighbours(points[asked], points[~asked], VOTERS)
    votes = pd.DataFrame(truth[~asked][near])
    plain = votes.mode(axis=1)[0].to_numpy(str)
    begun = time.perf_counter()
    found = transfer_labels(points, pd.Series(truth).where(~asked), dataset).cells[asked]
    seconds = time.perf_counter() - begun
    named = (found["predicted"] != UNKNOWN).to_numpy()
    right = found["best_guess"].to_numpy(str) == truth[asked]
    areas, flagged = zip(
        *(_without(points, truth, dataset, asked, kind) for kind in _types(truth[asked])), strict=True
    )
    return {
        "vote_right": float((plain == truth[asked]).mean()),
        "right": float(right.mean()),
        "right_of_named": float(right[named].mean()),
        "unknown": float(1 - named.mean()),
        "auroc_of_new_types": float(np.mean(areas)),
        "lowest_auroc": float(np.min(areas)),
        "new_types_called_unknown": float(np.mean(flagged)),
        "seconds": seconds,
    }


def _types(truth: np.ndarray) -> list[str]:
    names, sizes = np.unique(truth, return_counts=True)
    return [str(name) for name, size in zip(names, sizes, strict=True) if size >= FEWEST]


def _without(
    points: np.ndarray, truth: np.ndarray, dataset: np.ndarray, asked: np.ndarray, kind: str
) -> tuple[float, float]:
    """Area under the curve, and share called unknown, of a type that is taken out of the reference."""
    kept = asked | (truth != kind)
    labels = pd.Series(truth).where(~asked)[kept].reset_index(drop=True)
    found = transfer_labels(points[kept], labels, dataset[kept]).cells[asked[kept]]
    new = truth[asked] == kind
    area = roc_auc_score(new, -found["support"])
    return float(area), float((found["predicted"] == UNKNOWN).to_numpy()[new].mean())


class _Kang:
    """The real study's counts added up by type and sample."""

    def __init__(self) -> None:
        import anndata as ad

        read = {name: ad.read_h5ad(REAL / f"{name}.h5ad") for name in ("ctrl", "stim")}
        self.parts = {
            name: CountsInMemory(sp.csr_matrix(data.X), data.var_names) for name, data in read.items()
        }
        self.genes = pd.Index(shared_genes(self.parts))
        self.cells = pd.concat(
            [data.obs.assign(dataset=name) for name, data in read.items()], ignore_index=True
        )
        self.types = sorted(self.cells[LABELS].astype(str).unique())

    def compared(self, condition: np.ndarray, types: list[str]) -> tuple[Any, pd.DataFrame]:
        """Differences of some types, and the tests of composition."""
        settings = ConditionSettings(replicate="donor")
        design = design_of(self.cells.assign(condition=condition), settings)
        groups, n = CellGroups.of(self.cells[LABELS].astype(str), design), len(design.samples)
        counts = pseudobulk(self.parts, groups.position, groups.cells.size, self.genes)
        rows = [groups.names.index(name) for name in types]
        chosen = np.concatenate([counts[row * n : (row + 1) * n] for row in rows])
        found = find_differences(chosen, groups.cells[rows], self.genes, types, design, settings)
        return found, compare_composition(groups.cells, groups.names, design, settings)


def condition_rows() -> Iterator[dict[str, Any]]:
    """The response to interferon, and comparisons of nothing."""
    kang = _Kang()
    begun = time.perf_counter()
    found, tests = kang.compared(kang.cells["dataset"].to_numpy(object), kang.types)
    raised = found.genes[found.genes["log2_fold_change"] > 0].groupby("cell_type")["gene"]
    known = raised.apply(lambda genes: len(set(genes.head(FIRST_GENES)) & set(INTERFERON)))
    yield {
        "compared": "stimulated with control, eight donors in pairs",
        "types": int(found.compared["found"].notna().sum()),
        "tests": len(found.genes),
        "found": int((found.genes["p_adjusted"] <= 0.05).sum()),
        f"interferon_genes_of_{len(INTERFERON)}_among_first_{FIRST_GENES}": f"{known.min()} to {known.max()}",
        "types_whose_share_changes": int((tests["p_adjusted"] <= 0.05).sum()),
        "seconds": time.perf_counter() - begun,
    }
    rng, control = np.random.default_rng(0), (kang.cells["dataset"] == "ctrl").to_numpy()
    donors = sorted(kang.cells["donor"].unique())
    tested = wrong = shares = wrong_shares = 0
    for _ in range(SPLITS):
        half = kang.cells["donor"].isin(rng.permutation(donors)[: len(donors) // 2])
        condition = np.where(control, np.where(half, "one half", "other half"), None)
        found, tests = kang.compared(condition, list(SPLIT_TYPES))
        tested += len(found.genes)
        wrong += int((found.genes["p_adjusted"] <= 0.05).sum())
        shares += int(tests["p_value"].notna().sum())
        wrong_shares += int((tests["p_value"] <= 0.05).sum())
    yield {
        "compared": f"control donors split by chance, {SPLITS} times, {', '.join(SPLIT_TYPES)}",
        "tests": tested,
        "found": wrong,
        "share_found": wrong / tested,
        "shares_with_p_of_0.05": wrong_shares / shares,
    }


def main(quick: bool = False) -> dict[str, Any]:
    """Return the rows of labels and of conditions."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="neumf-answers-") as name:
        for data, inbox in inboxes(Path(name), quick):
            for arm, cells in embeddings(inbox, Path(name) / "home" / data, quick):
                harness.say(data, arm)
                rows.append({"data": data, "arm": arm} | label_row(cells))
    real = REAL.is_dir() and not quick
    conditions = list(condition_rows()) if real else []
    return {
        "title": "labels of the last dataset hidden, types taken out of the reference; conditions compared",
        "rows": rows,
        "conditions": conditions,
        "notes": [f"{row.pop('compared')}: {row}" for row in map(dict, conditions)],
        "skipped": {} if real else {REAL.name: "not with --quick, or no data beside the checkout"},
    }


if __name__ == "__main__":
    harness.script(main)
