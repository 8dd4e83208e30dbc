"""Which arm serves a study best, by a rule that is stated with the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from neumf_assets.core.cells.scoring.scores import ArmScores
from neumf_assets.core.settings import Settings

RULE_WITH_LABELS = (
    "Highest ARI against the labels, mean over the resolutions, averaged over the seeds. Arms whose mean "
    "lies within the spread of the leader's (the larger of the two standard deviations over the seeds) are "
    "tied with it; of them the best mixed one wins."
)
RULE_WITHOUT_LABELS = (
    "Highest harmonic mean of stability (agreement of Leiden between seeds) and mixing of the datasets (1 at "
    "the same-dataset share expected of mixed cells, 0 for separated datasets): clusters without structure "
    "are unstable, and datasets that were not integrated are not mixed. With one dataset, stability alone."
)


RULE_WITHOUT_EVIDENCE = (
    "Highest stability (agreement of Leiden between seeds). Mixing of the datasets does not count: nothing shows that "
    "they have cells of one kind and an effect of their own, and mixing cells of different kinds is no merit."
)


class ComparisonRow(Settings):
    """One Leiden run of one arm."""

    arm: str
    resolution: float
    seed: int
    n_clusters: int
    ari: float | None = None
    ami: float | None = None
    nmi: float | None = None


class Spread(Settings):
    """A score of one arm at one resolution over the seeds."""

    arm: str
    resolution: float
    n_seeds: int
    n_clusters_mean: float
    ari_mean: float | None = None
    ari_sd: float | None = None
    ami_mean: float | None = None
    ami_sd: float | None = None


class Comparison(Settings):
    """All arms side by side, and the best one.

    ``denoising_hurts`` tells whether LIGER on denoised counts scores below LIGER on counts, beyond the spread
    over the seeds; None where one of the two, or the labels, are missing. ``denoising_change`` is the change
    of the mean ARI. ``chance`` are the scores of a null run (empty where there was none).
    """

    best_arm: str | None = None
    rule: str
    reason: str
    with_labels: bool
    ranking: tuple[str, ...] = ()
    mixing: dict[str, float | None] = Field(default_factory=dict)
    rows: tuple[ComparisonRow, ...] = ()
    spreads: tuple[Spread, ...] = ()
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    denoising_hurts: bool | None = None
    denoising_change: float | None = None
    chance: dict[str, float] = Field(default_factory=dict)


def compare_arms(
    arms: Mapping[str, ArmScores],
    *,
    raw_arm: str = "liger",
    denoised_arm: str = "neumf_liger",
    evidence: bool = True,
) -> Comparison:
    """Compare arms that were scored on the same cells, graph, resolutions and seeds.

    With labels the arms are ranked by ``RULE_WITH_LABELS``, without by ``RULE_WITHOUT_LABELS``. Where neither
    applies (no labels and one seed) no arm is called best.

    Parameters
    ----------
    arms
        Scores by arm; the order decides where everything else is equal.
    raw_arm, denoised_arm
        The two arms that tell whether denoising hurts.
    evidence
        Whether an alignment that watches for it found that the datasets have something to be aligned by. Else arms are
        ranked by ``RULE_WITHOUT_EVIDENCE`` where there are no labels.
    """
    with_labels = bool(arms) and all(scores.ari_mean is not None for scores in arms.values())
    rule = RULE_WITH_LABELS
    if with_labels:
        ranking, reason = _rank_with_labels(arms)
    else:
        rule = RULE_WITHOUT_LABELS if evidence else RULE_WITHOUT_EVIDENCE
        ranking, reason = _rank_without_labels(arms, evidence)
    hurts, change = _denoising(arms.get(raw_arm), arms.get(denoised_arm))
    return Comparison(
        best_arm=ranking[0] if ranking else None,
        rule=rule,
        reason=reason,
        with_labels=with_labels,
        ranking=tuple(ranking),
        mixing={arm: mixing_score(scores) for arm, scores in arms.items()},
        rows=tuple(ComparisonRow(arm=arm, **run.model_dump()) for arm, s in arms.items() for run in s.runs),
        spreads=tuple(spread for arm, scores in arms.items() for spread in _spreads(arm, scores)),
        arms={arm: scores.summary() for arm, scores in arms.items()},
        denoising_hurts=hurts,
        denoising_change=change,
    )


def mixing_score(scores: ArmScores) -> float | None:
    """Place the same-dataset share between separated (0) and as expected of mixed cells (1).

    Where there are labels the expectation within them is used: it stays right when the datasets differ in
    their composition. A share below the expectation is as far from it as one above.
    """
    share = scores.same_batch_neighbours
    expected = scores.expected_same_batch_within_label or scores.expected_same_batch
    if share is None or expected is None or expected >= 1:
        return None
    return max(0.0, 1 - abs(share - expected) / (1 - expected))


def _rank_with_labels(arms: Mapping[str, ArmScores]) -> tuple[list[str], str]:
    by_ari = sorted(arms, key=lambda arm: -_number(arms[arm].ari_mean))
    leader = arms[by_ari[0]]
    tied = [arm for arm in by_ari if _within_spread(leader, arms[arm])]
    best = max(tied, key=lambda arm: _number(mixing_score(arms[arm])))
    ranking = [best, *(arm for arm in by_ari if arm != best)]
    reason = f"{best}: mean ARI {arms[best].ari_mean:.3f}"
    if len(tied) > 1:
        reason += f", tied with {', '.join(arm for arm in tied if arm != best)} and better mixed"
    elif len(by_ari) > 1:
        reason += f", next {by_ari[1]} {arms[by_ari[1]].ari_mean:.3f}"
    return ranking, reason


def _rank_without_labels(arms: Mapping[str, ArmScores], evidence: bool) -> tuple[list[str], str]:
    if not arms or any(scores.stability is None for scores in arms.values()):
        return [], "No arm can be called best: without labels two or more seeds of Leiden are needed."
    figures = {arm: _label_free_score(scores, evidence) for arm, scores in arms.items()}
    ranking = sorted(figures, key=lambda arm: -figures[arm])
    best = arms[ranking[0]]
    reason = f"{ranking[0]}: {figures[ranking[0]]:.3f} from stability {best.stability:.3f}"
    mixing = mixing_score(best) if evidence else None
    return ranking, reason if mixing is None else f"{reason} and mixing {mixing:.3f}"


def _label_free_score(scores: ArmScores, evidence: bool) -> float:
    steady = max(0.0, _number(scores.stability))
    mixed = mixing_score(scores) if evidence else None
    if mixed is None:
        return steady
    return 2 * steady * mixed / (steady + mixed) if steady + mixed > 0 else 0.0


def _within_spread(leader: ArmScores, other: ArmScores) -> bool:
    spread = max(_number(leader.ari_mean_sd), _number(other.ari_mean_sd))
    return _number(leader.ari_mean) - _number(other.ari_mean) <= spread


def _denoising(raw: ArmScores | None, denoised: ArmScores | None) -> tuple[bool | None, float | None]:
    if raw is None or denoised is None or raw.ari_mean is None or denoised.ari_mean is None:
        return None, None
    change = denoised.ari_mean - raw.ari_mean
    return change < 0 and not _within_spread(raw, denoised), change


def _spreads(arm: str, scores: ArmScores) -> list[Spread]:
    spreads = []
    for resolution in dict.fromkeys(run.resolution for run in scores.runs):
        runs = [run for run in scores.runs if run.resolution == resolution]
        ari_mean, ari_sd = _mean_and_sd([run.ari for run in runs])
        ami_mean, ami_sd = _mean_and_sd([run.ami for run in runs])
        clusters = sum(run.n_clusters for run in runs) / len(runs)
        spreads.append(
            Spread(
                arm=arm,
                resolution=resolution,
                n_seeds=len(runs),
                n_clusters_mean=clusters,
                ari_mean=ari_mean,
                ari_sd=ari_sd,
                ami_mean=ami_mean,
                ami_sd=ami_sd,
            )
        )
    return spreads


def _mean_and_sd(values: list[float | None]) -> tuple[float | None, float | None]:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None, None
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1))


def _number(value: float | None) -> float:
    return 0.0 if value is None else value
