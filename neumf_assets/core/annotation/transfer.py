"""Labels of cells that have none, from cells that have one, in the space that an arm puts them all into.

How sure a label is, and below which support a cell counts as unknown, is learnt from labelled cells whose labels were
held out: a dataset at a time, since it is from one dataset to another that labels are carried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neumf_assets.core.annotation.settings import LabelSettings
from neumf_assets.core.annotation.support import mutual_support
from neumf_assets.core.cells.neighbours import find_references, row_blocks
from neumf_assets.core.errors import NeumfError

UNKNOWN = "unknown"
FOLDS = 5
ENOUGH = 0.9
"""A cell with so much support has its counterpart, even where nearly all have more."""
_FEWEST = 10
"""Held-out cells from which a probability can be learnt."""


@dataclass(frozen=True)
class LabelTransfer:
    """What was carried over, and how well that does where the truth is known.

    Parameters
    ----------
    cells
        One row per cell: ``label`` (given; missing where none was), ``predicted`` (from other cells than itself;
        ``unknown`` where too little speaks for any), ``best_guess`` (the same, unless unknown), ``probability`` (of
        the best guess, calibrated), ``support`` (share of the cell's nearest references that point back).
    accuracy
        One row per label: ``label``, ``cells`` (held out and asked), ``right`` (share that got its label back, unknown
        or not), ``unknown`` (share called unknown), ``mostly_taken_for`` (the commonest wrong label).
    bound
        Support below which a cell is unknown.
    held_out
        ``datasets`` (one at a time), or ``cells`` (folds of the only labelled dataset: optimistic).
    right
        Share of all held-out cells, whose label some reference has, that got it back; None where none was asked.
    """

    cells: pd.DataFrame
    accuracy: pd.DataFrame
    bound: float
    held_out: str
    right: float | None


@dataclass(frozen=True)
class _Votes:
    """For some cells: the code of the likeliest label, the vote for it, the support."""

    code: np.ndarray
    vote: np.ndarray
    support: np.ndarray


def transfer_labels(
    embedding: np.ndarray,
    labels: pd.Series,
    dataset: np.ndarray,
    settings: LabelSettings | None = None,
) -> LabelTransfer:
    """Carry labels over to the cells that have none.

    Each label's share is the mean of two: among the nearest labelled cells, nearer ones weighing more; and of a
    multinomial logistic regression on the embedding, which sees what a vote does not: where the border lies. Both are
    then calibrated (isotonic regression) on held-out cells.

    Parameters
    ----------
    embedding
        Cells × dimensions, aligned between the datasets.
    labels
        The label of every cell as text, missing where there is none.
    dataset
        The dataset of every cell.

    Returns
    -------
    LabelTransfer
        In the order of the cells.

    Raises
    ------
    NeumfError
        Lengths differ, or fewer than two labels occur.
    """
    settings = settings or LabelSettings()
    points = np.ascontiguousarray(embedding, dtype=np.float32)
    dataset, given = np.asarray(dataset, dtype=str), labels.astype(object).to_numpy()
    if not len(points) == len(given) == len(dataset):
        raise NeumfError(f"{len(given)} labels and {len(dataset)} datasets do not fit {len(points)} cells.")
    known = ~pd.isna(given)
    names, codes = _coded(given, known)
    if len(names) < 2:
        raise NeumfError(
            "Labels are carried over where there are at least two; found: " + (", ".join(names) or "none")
        )
    work = _Transfer(points, codes, dataset, len(names), settings)
    held_out, votes = work.held_out()
    asked = known & (votes.code >= 0)
    calibrate = _calibration(votes.vote[asked], (votes.code == codes)[asked])
    bound = work.bound(held_out, votes, asked)
    work.answer(votes, ~known)
    probability = calibrate(votes.vote)
    unknown = (votes.support < bound) | (probability < settings.min_probability) | (votes.code < 0)
    guess = np.where(votes.code >= 0, names[np.maximum(votes.code, 0)], UNKNOWN)
    cells = pd.DataFrame(
        {
            "label": pd.Series(given).where(known, None),
            "predicted": np.where(unknown, UNKNOWN, guess),
            "best_guess": guess,
            "probability": probability,
            "support": votes.support,
        }
    )
    return LabelTransfer(
        cells=cells,
        accuracy=_accuracy(cells[asked], names),
        bound=bound,
        held_out=held_out,
        right=float((votes.code == codes)[asked].mean()) if asked.any() else None,
    )


def _coded(given: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    names, found = np.unique(given[known].astype(str), return_inverse=True)
    codes = np.full(len(given), -1)
    codes[known] = found
    return names.astype(object), codes


class _Transfer:
    def __init__(
        self, points: np.ndarray, codes: np.ndarray, dataset: np.ndarray, n: int, settings: LabelSettings
    ) -> None:
        self.points, self.codes, self.dataset, self.n = points, codes, dataset, n
        self.settings = settings
        self.rng = np.random.default_rng(settings.seed)

    def held_out(self) -> tuple[str, _Votes]:
        """Ask for every labelled cell those of the other datasets; of a single labelled dataset, other folds."""
        size = len(self.codes)
        votes = _Votes(np.full(size, -1), np.zeros(size), np.zeros(size))
        known = self.codes >= 0
        labelled = np.unique(self.dataset[known])
        if len(labelled) > 1:
            for name in labelled:
                own = self.dataset == name
                self._ask(votes, np.flatnonzero(own & known), np.flatnonzero(known & ~own))
            return "datasets", votes
        cells = self.rng.permutation(np.flatnonzero(known))
        for fold in range(FOLDS):
            asked = np.sort(cells[fold::FOLDS])
            self._ask(votes, asked, np.setdiff1d(cells, asked))
        return "cells", votes

    def answer(self, votes: _Votes, wanted: np.ndarray) -> None:
        """Ask all labelled cells about those without a label, dataset by dataset."""
        references = np.flatnonzero(self.codes >= 0)
        for name in np.unique(self.dataset[wanted]):
            self._ask(votes, np.flatnonzero(wanted & (self.dataset == name)), references)

    def bound(self, held_out: str, votes: _Votes, asked: np.ndarray) -> float:
        """The support that all but a share of the held-out cells reach.

        Where one dataset alone has labels, its own cells support each other more than those of another would. What its
        cells find in the others is the measure then, which needs no label: most have their counterparts there.
        """
        supports = votes.support[asked]
        if held_out == "cells":
            supports = self._found_in_others(supports)
        if not len(supports):
            return 0.0
        return min(ENOUGH, float(np.quantile(supports, self.settings.unknown_share)))

    def _found_in_others(self, otherwise: np.ndarray) -> np.ndarray:
        """The support of labelled cells among the cells of each dataset without labels."""
        known = self.codes >= 0
        labelled = self._drawn(np.flatnonzero(known))
        parts = [
            self._support(labelled, self._some(np.flatnonzero(self.dataset == name)))
            for name in np.unique(self.dataset)
            if not (known & (self.dataset == name)).any()
        ]
        return np.concatenate(parts) if parts else otherwise

    def _some(self, cells: np.ndarray) -> np.ndarray:
        most = self.settings.reference_cells
        return cells if len(cells) <= most else np.sort(self.rng.choice(cells, most, replace=False))

    def _support(self, queries: np.ndarray, references: np.ndarray) -> np.ndarray:
        return mutual_support(
            self.points[queries],
            self.points[references],
            k=self.settings.neighbors,
            metric=self.settings.metric,
        )

    def _ask(self, votes: _Votes, queries: np.ndarray, references: np.ndarray) -> None:
        """Fill in the votes of some cells; those whose label no reference has are not asked, but counted as such."""
        if not len(queries) or not len(references):
            return
        references = self._drawn(references)
        support = self._support(queries, references)
        regression = self._regression(references)
        named = (self.codes[queries] < 0) | np.isin(self.codes[queries], self.codes[references])
        for block in row_blocks(len(queries)):
            rows = queries[block]
            shares = (self._neighbours(rows, references) + regression(rows)) / 2
            kept = named[block]
            votes.code[rows[kept]] = shares.argmax(axis=1)[kept]
            votes.vote[rows[kept]] = shares.max(axis=1)[kept]
        votes.support[queries[named]] = support[named]

    def _drawn(self, references: np.ndarray) -> np.ndarray:
        """So many references at most; of every label as many, the rare ones whole."""
        most, own = self.settings.reference_cells, self.codes[references]
        if len(references) <= most:
            return references
        sizes = np.bincount(own, minlength=self.n)
        quota = _quota(sizes, most)
        parts = [
            self.rng.choice(references[own == code], min(sizes[code], quota), replace=False)
            for code in np.flatnonzero(sizes)
        ]
        return np.sort(np.concatenate(parts))

    def _neighbours(self, queries: np.ndarray, references: np.ndarray) -> np.ndarray:
        near, apart = find_references(
            self.points[queries], self.points[references], self.settings.neighbors, self.settings.metric
        )
        weights = np.exp(-((apart / np.maximum(apart[:, -1:], 1e-9)) ** 2))
        shares = np.zeros((len(queries), self.n))
        np.add.at(shares, (np.arange(len(queries))[:, None], self.codes[references][near]), weights)
        return shares / shares.sum(axis=1, keepdims=True)

    def _regression(self, references: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """What gives each label's share for some cells, learnt from the references."""
        from sklearn.linear_model import LogisticRegression

        own = self.codes[references]
        labels = np.unique(own)
        if len(labels) < 2:
            alone = np.eye(self.n)[labels]
            return lambda queries: np.repeat(alone, len(queries), axis=0)
        known = self.points[references].astype(np.float64)
        middle, spread = known.mean(axis=0), known.std(axis=0)
        spread[spread == 0] = 1
        model = LogisticRegression(max_iter=300).fit((known - middle) / spread, own)

        def shares(queries: np.ndarray) -> np.ndarray:
            found = np.zeros((len(queries), self.n))
            found[:, model.classes_] = model.predict_proba((self.points[queries] - middle) / spread)
            return found

        return shares


def _quota(sizes: np.ndarray, most: int) -> int:
    """The number of cells of a label that may be kept, so that all together are at most ``most``."""
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= most else (low, middle - 1)
    return low


def _calibration(vote: np.ndarray, right: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """How probable a label is that got so large a vote; the vote itself where too few cells tell."""
    from sklearn.isotonic import IsotonicRegression

    if len(vote) < _FEWEST:
        return lambda votes: votes
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(vote, right.astype(float))

    def calibrated(votes: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(votes), dtype=np.float64)

    return calibrated


def _accuracy(asked: pd.DataFrame, names: np.ndarray) -> pd.DataFrame:
    rows = []
    for name in names:
        own = asked[asked["label"] == name]
        if own.empty:
            continue
        wrong = own.loc[own["best_guess"] != name, "best_guess"]
        rows.append(
            {
                "label": name,
                "cells": len(own),
                "right": float((own["best_guess"] == name).mean()),
                "unknown": float((own["predicted"] == UNKNOWN).mean()),
                "mostly_taken_for": str(wrong.value_counts().index[0]) if len(wrong) else "",
            }
        )
    columns = ["label", "cells", "right", "unknown", "mostly_taken_for"]
    return pd.DataFrame(rows, columns=columns).sort_values("cells", ascending=False, ignore_index=True)
