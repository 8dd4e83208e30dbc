"""Plain words for arms, scores and methods, for people who see them for the first time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["higher", "lower", "expected", "none"]


@dataclass(frozen=True)
class Metric:
    """A score: short title, what counts as better, and what it means."""

    title: str
    better: Better
    meaning: str


METRICS: dict[str, Metric] = {
    "ari": Metric(
        "ARI",
        "higher",
        "Adjusted Rand index: do pairs of cells that share a label share a cluster, and pairs that differ, "
        "differ? 1 is a perfect match, 0 is what chance gives. At the default clustering resolution.",
    ),
    "ari_best": Metric("ARI, best", "higher", "The highest ARI over all clustering resolutions."),
    "ari_mean": Metric(
        "ARI, mean",
        "higher",
        "The ARI averaged over all resolutions: it rewards arms that need no lucky choice.",
    ),
    "ami": Metric(
        "AMI",
        "higher",
        "Adjusted mutual information: how much the cluster tells about the label. 1 is everything, 0 is "
        "chance. Kinder to small cell types than the ARI.",
    ),
    "ami_best": Metric("AMI, best", "higher", "The highest AMI over all clustering resolutions."),
    "ami_mean": Metric("AMI, mean", "higher", "The AMI averaged over all clustering resolutions."),
    "nmi": Metric("NMI", "higher", "Normalised mutual information: like AMI, not corrected for chance."),
    "same_batch_neighbours": Metric(
        "Same-dataset neighbours",
        "expected",
        "Share of a cell's 20 nearest neighbours that come from its own dataset. Well-mixed datasets give "
        "the expected share; 1 means that the datasets lie apart.",
    ),
    "expected_same_batch": Metric(
        "… if mixed", "none", "The share of same-dataset neighbours that perfectly mixed datasets would show."
    ),
    "expected_same_batch_within_label": Metric(
        "… if mixed in each type",
        "none",
        "The same, if datasets were perfectly mixed within every cell type: fair where their shares differ.",
    ),
    "cross_batch_label_accuracy": Metric(
        "Label accuracy across datasets",
        "higher",
        "Each cell is named by a vote of its 15 nearest neighbours in the other datasets; share of right "
        "names. High means that the same cell types of different datasets lie together.",
    ),
    "alignment": Metric(
        "Alignment", "higher", "LIGER's own mixing score: 1 when datasets are perfectly mixed, 0 when apart."
    ),
    "agreement": Metric(
        "Agreement",
        "higher",
        "LIGER's faithfulness score: are neighbours within one dataset still neighbours after integration?",
    ),
    "silhouette_label": Metric(
        "Silhouette, label",
        "higher",
        "How compact and separate the cell types are: −1 to 1, higher is better.",
    ),
    "silhouette_batch": Metric(
        "Silhouette, dataset", "higher", "How little datasets separate within cell types: 1 is fully mixed."
    ),
    "ilisi": Metric("iLISI", "higher", "How mixed the datasets are around a cell: 0 apart, 1 fully mixed."),
    "clisi": Metric("cLISI", "higher", "How pure the cell types are around a cell: 1 is one type only."),
    "stability": Metric(
        "Stability",
        "higher",
        "Do clusterings that differ in their random start only agree? Mean ARI of pairs.",
    ),
    "n_clusters": Metric("Clusters", "none", "Number of clusters at the default resolution."),
    "seconds": Metric("Seconds", "lower", "Time of the whole arm on the machine that ran it."),
}

ARMS: dict[str, tuple[str, str]] = {
    "pca": (
        "PCA",
        "principal components of log-normalised counts, nothing aligned: what integration has to beat",
    ),
    "harmony": (
        "Harmony",
        "principal components, datasets aligned by Harmony with its own defaults (Korsunsky et al. 2019)",
    ),
    "liger": (
        "LIGER",
        "integrative non-negative matrix factorisation of the counts, then quantile normalisation "
        "(Welch et al. 2019)",
    ),
    "neumf_liger": (
        "NeuMF → LIGER",
        "a neural matrix factorisation of each dataset on its own; LIGER on the matrices that it predicts",
    ),
    "ineumf": (
        "Integrative NeuMF",
        "one neural matrix factorisation of all datasets: genes have a shared part and a part per dataset, "
        "cells lie in one common space",
    ),
}

METHODS: dict[str, str] = {
    "neumf": "NeuMF",
    "gmf": "GMF (no hidden layers)",
    "mlp": "MLP",
    "gene_mean": "Gene mean × size factor",
    "svd": "SVD of log counts",
    "nmf": "NMF (KL)",
    "nmf_normalised": "NMF (KL) of normalised counts",
    "popularity": "Popularity",
}


def metric(key: str) -> Metric:
    """The metric ``key``; an unknown one is shown under its own name, without a judgement."""
    return METRICS.get(key, Metric(key.replace("_", " "), "none", ""))


def arm_title(name: str) -> str:
    """Name of an arm for a heading."""
    return ARMS[name][0] if name in ARMS else name


def method_title(name: str) -> str:
    """Name of a method of prediction for a table."""
    return METHODS.get(name, name)


def ranking_by_method(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Ranking scores of an evaluation (as JSON types) by method, popularity last, and titled measure."""
    rankings = {name: method["ranking"] for name, method in evaluation["methods"].items()}
    rankings["popularity"] = evaluation["popularity"]
    negatives = evaluation["settings"]["n_negatives"]
    table: dict[str, dict[str, float]] = {}
    for name, ranking in rankings.items():
        for how, values in ranking.items():
            among = f"{negatives} negatives" if how == "sampled" else "all genes"
            for measure, title in (("hit_rate", "HR"), ("ndcg", "NDCG")):
                for k, value in values[measure].items():
                    table.setdefault(name, {})[f"{title}@{k}, {among}"] = value
    return table


def expected_share(scores: Mapping[str, float | None]) -> float | None:
    """Share of same-dataset neighbours in mixed data: within cell types where that is known, else overall."""
    within = scores.get("expected_same_batch_within_label")
    return scores.get("expected_same_batch") if within is None else within


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for a person: grouped thousands, ``digits`` decimals for small values, – when unknown."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.1f}"
    return f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "–" if value is None or value != value else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the known values; None if there are none."""
    known = [v for v in values if v is not None and v == v]
    return sum(known) / len(known) if known else None


def match_in_words(ari: float) -> str:
    """The ARI as a person would put it."""
    steps = (
        (0.9, "almost perfectly"),
        (0.7, "well"),
        (0.5, "fairly well"),
        (0.25, "roughly"),
        (0.1, "weakly"),
    )
    return next((words for bound, words in steps if ari >= bound), "hardly better than chance")


def headline(
    best_arm: str | None,
    scores: Mapping[str, Mapping[str, float | None]],
) -> list[str]:
    """Sentences that say what the comparison found.

    Parameters
    ----------
    best_arm
        The arm that the rule chose; None when no choice was made.
    scores
        Arm -> metric -> mean over seeds.
    """
    arm = best_arm or (next(iter(scores)) if len(scores) == 1 else None)
    if arm is None or arm not in scores:
        return []
    own, said = scores[arm], []
    key = next((k for k in ("ari_mean", "ari", "ari_best") if own.get(k) is not None), None)
    if key is not None:
        said.append(_labels_sentence(arm, key, scores))
    said.append(_mixing_sentence(own))
    accuracy = own.get("cross_batch_label_accuracy")
    if accuracy is not None:
        said.append(
            f"Asking a cell's neighbours in the other datasets for its type gives the right answer for "
            f"{percent(accuracy, 0)} of the cells."
        )
    return [sentence for sentence in said if sentence]


def _labels_sentence(arm: str, key: str, scores: Mapping[str, Mapping[str, float | None]]) -> str:
    value = scores[arm][key] or 0.0
    others = {a: s[key] for a, s in scores.items() if a != arm and s.get(key) is not None}
    text = (
        f"Its clusters match the given cell labels {match_in_words(value)}: "
        f"{metric(key).title} {number(value, 2)}, where 1 is a perfect match and 0 is chance"
    )
    if not others:
        return text + "."
    listed = ", ".join(f"{arm_title(a)} {number(v, 2)}" for a, v in others.items())
    return f"{text} ({listed})."


def _mixing_sentence(own: Mapping[str, float | None]) -> str:
    share, expected = own.get("same_batch_neighbours"), expected_share(own)
    if share is None or expected is None:
        return ""
    excess = share - expected
    if excess <= 0.05:
        verdict = "the datasets are mixed as if they were one"
    elif excess <= 0.15:
        verdict = "the datasets are mostly mixed"
    else:
        verdict = "the datasets still lie apart"
    return (
        f"Of a cell's nearest neighbours, {percent(share, 0)} come from its own dataset, where perfect "
        f"mixing would give {percent(expected, 0)}: {verdict}."
    )
