"""Over-mixing: datasets cut from cells of known type, so that some share all types, some a few, some none.

Each study is two datasets or more of which it is known which types they share. Judged are the nearest 20 neighbours of
every cell: the share that is of its own dataset beside what it would be if each type were perfectly mixed over the
datasets that hold it (less: over-mixed), the share that is of its own type, and the types that the other datasets'
nearest 15 cells vote for. Methods: principal components, Harmony on them, and the integrative NeuMF's common space as
learnt, with what gene biases took given back, and aligned with and without the guard. On simulated cells, and on those
of Kang et al. 2018 where they are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.neighbors import NearestNeighbors

from benchmarks import harness
from neumf_assets.core.cells.align import harmony_align
from neumf_assets.core.cells.components import principal_components
from neumf_assets.core.cells.settings import AlignSettings, harmony_defaults
from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
from neumf_assets.core.counts.simulate.study import simulate_study
from neumf_assets.core.counts.stored import CountsInMemory
from neumf_assets.core.neumf.common_space import common_space
from neumf_assets.core.neumf.genes import select_genes
from neumf_assets.core.neumf.settings import ineumf_defaults
from neumf_assets.core.neumf.training.fit import fit

CELLS = 4000
NEIGHBOURS, VOTERS = 20, 15
LABELS, REAL = "cell_type", "kang_ifnb"
UNTOUCHED = harmony_defaults()

Study = tuple[csr_matrix, NDArray[np.intp], NDArray[np.str_]]


def studies(first: Any, second: Any, seed: int) -> Iterator[tuple[str, Study]]:
    """Yield studies by name, cut from two annotated datasets of the same types."""
    rng = np.random.default_rng(seed)
    kinds = [np.asarray(part.obs[LABELS].astype(str)) for part in (first, second)]
    known = sorted({kind for kind in kinds[0] if kind.lower() not in ("na", "nan")})
    half, common = set(known[: len(known) // 2]), max(known, key=lambda kind: (kinds[0] == kind).sum())
    rare = min(known, key=lambda kind: abs((kinds[1] == kind).sum() - 0.1 * len(kinds[1])))
    inside = [np.isin(kind, sorted(half)) for kind in kinds]
    everyone = [np.ones(len(kind), bool) for kind in kinds]
    split = rng.random(len(kinds[0])) < 0.5
    weights = dict(zip(known, np.tile((0.03, 0.3, 0.1), len(known)), strict=False))
    drawn = rng.random(len(kinds[1])) < [weights.get(kind, 0.1) for kind in kinds[1]]
    cuts = {
        "one dataset, split by chance": [(0, split), (0, ~split)],
        "no type in common, no effect": [(0, inside[0]), (0, ~inside[0])],
        "no type in common": [(0, inside[0]), (1, ~inside[1])],
        "each lacks a type": [(0, kinds[0] != rare), (1, kinds[1] != common)],
        "one type in the second": [(0, everyone[0]), (1, kinds[1] == rare)],
        "other proportions": [(0, everyone[0]), (1, drawn)],
        "all types in both": [(0, everyone[0]), (1, everyone[1])],
    }
    for name, parts in cuts.items():
        yield name, _cut((first, second), kinds, parts, rng)


def _cut(sources: tuple[Any, Any], kinds: list[NDArray[Any]], parts: list[Any], rng: Any) -> Study:
    counts, dataset, labels = [], [], []
    for number, (source, kept) in enumerate(parts):
        rows = np.flatnonzero(kept)
        rows = np.sort(rng.permutation(rows)[: CELLS // len(parts)])
        counts.append(csr_matrix(sources[source].X)[rows])
        dataset.append(np.full(rows.size, number))
        labels.append(kinds[source][rows])
    stacked = csr_matrix(vstack(counts))
    batch = np.concatenate(dataset)
    seen = [np.asarray(stacked[batch == code].sum(axis=0)).ravel() > 0 for code in np.unique(batch)]
    return stacked[:, np.flatnonzero(np.logical_and.reduce(seen))], batch, np.concatenate(labels)


def judge(points: NDArray[Any], dataset: NDArray[np.intp], labels: NDArray[np.str_]) -> dict[str, float]:
    """Return the scores of an embedding over its labelled cells."""
    known = np.array([label.lower() not in ("na", "nan") for label in labels])
    points, dataset, labels = points[known], dataset[known], labels[known]
    near = _near(points, points, NEIGHBOURS + 1)[:, 1:]
    same, pure = dataset[near] == dataset[:, None], (labels[near] == labels[:, None]).mean(axis=1)
    types, codes = np.unique(labels, return_inverse=True)
    table = np.zeros((len(types), dataset.max() + 1))
    np.add.at(table, (codes, dataset), 1)
    own, whole = table[codes, dataset], table.sum(axis=1)[codes]
    alone = own == whole
    votes = []
    for code in np.unique(dataset):
        here, shared = dataset == code, np.isin(labels, labels[dataset != code])
        asked = here & shared
        if asked.any():
            found = codes[~here][_near(points[~here], points[asked], VOTERS)]
            winner = np.array([np.bincount(row).argmax() for row in found])
            votes.append(float((winner == codes[asked]).mean()))
    return {
        "same": float(same.mean()),
        "ideal": float(((own - 1) / np.maximum(whole - 1, 1))[whole > 1].mean()),
        "purity": float(pure.mean()),
        "purity of types of one dataset": float(pure[alone].mean()) if alone.any() else float("nan"),
        "accuracy": float(np.mean(votes)) if votes else float("nan"),
    }


def _near(points: NDArray[Any], queries: NDArray[Any], k: int) -> NDArray[np.intp]:
    found = NearestNeighbors(n_neighbors=min(k, len(points)), metric="cosine").fit(points)
    return np.asarray(found.kneighbors(queries, return_distance=False))


def embeddings(study: Study, quick: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the embeddings that are compared, by name."""
    counts, dataset, _ = study
    names = [str(gene) for gene in range(counts.shape[1])]
    genes = select_genes(counts, dataset, 2000)
    components = principal_components(CountsInMemory(counts), names, genes, 30).embedding
    yield "principal components", components
    yield "Harmony on them", harmony_align(components, dataset, UNTOUCHED).embedding
    settings = ineumf_defaults().model_copy(update={"epochs": 10} if quick else {})
    cells = [str(cell) for cell in range(counts.shape[0])]
    model = fit(counts.astype(np.float32), settings, gene_names=names, cell_names=cells, dataset=dataset)
    learnt, space = model.cell_embedding("gmf", metric="gene"), common_space(model)
    yield "NeuMF, as learnt", learnt
    unguarded = AlignSettings(passes=2, guarded=False)
    yield "NeuMF, as learnt, aligned", harmony_align(learnt, dataset, unguarded).embedding
    yield "NeuMF, common space", space
    yield "NeuMF, common space, aligned", harmony_align(space, dataset, unguarded).embedding
    yield "NeuMF, common space, aligned as far as it costs nothing", harmony_align(space, dataset).embedding


def main(quick: bool = False) -> dict[str, Any]:
    sources = {"simulated": simulated_pair(400 if quick else 3000)}
    for name, found in () if quick else harness.real_studies():
        if name == REAL:
            first, second = found.values()
            sources[name] = (first, second)
    rows = []
    for source, (first, second) in sources.items():
        for name, study in studies(first, second, 0):
            for method, points in embeddings(study, quick):
                scores = judge(points, study[1], study[2])
                row = {"cells": source, "study": name, "embedding": method}
                rows.append(row | {key: round(value, 3) for key, value in scores.items() if value == value})
                harness.say(rows[-1])
    return {
        "title": "over-mixing: datasets that share all types of cells, some, or none",
        "rows": rows,
        "skipped": {} if quick else {k: v for k, v in harness.absent_studies().items() if k == REAL},
        "notes": ["`same` below `ideal` is over-mixed; a seed of the cut and of every method."],
    }


def simulated_pair(cells: int) -> tuple[AnnData, AnnData]:
    """Return two simulated datasets of the same types, the second one stimulated."""
    named = [
        SimulatedDatasetSettings(name="ctrl", cells=cells),
        SimulatedDatasetSettings(name="stim", cells=cells, condition="stimulated"),
    ]
    found = simulate_study(SimulatorSettings(datasets=tuple(named), genes=2000, seed=0))
    first, second = (one.counts for one in found.values())
    return first, second


if __name__ == "__main__":
    harness.script(main)
