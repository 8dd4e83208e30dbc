"""What an evaluation found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from neumf_assets.core.neumf.evaluation.ranking import RankingScores
from neumf_assets.core.neumf.evaluation.scorers import CalibrationBin
from neumf_assets.core.neumf.evaluation.settings import EvaluationSettings
from neumf_assets.core.neumf.settings import NeuMFSettings

PART_OF = {"neumf": "gmf"}
"""What a model starts from: it stands beside the model to show what the rest is worth."""


@dataclass(frozen=True)
class MethodScore:
    """What one method reached.

    Parameters
    ----------
    heldout_deviance
        Mean Poisson deviance of the test part; ``None`` where the method predicts no means.
    seconds
        Wall time of training on the train part and prediction.
    calibration
        Predicted against observed mean, in bins; empty where the method predicts no means.
    ranking
        ``sampled`` and ``full`` ranking scores; empty without ranking.
    """

    heldout_deviance: float | None
    seconds: float
    calibration: list[CalibrationBin] = field(default_factory=list)
    ranking: dict[str, RankingScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A model's scores beside those of the baselines.

    Parameters
    ----------
    model
        Name of the model among ``methods``.
    methods
        Scores by method.
    popularity
        Ranking scores of the genes' popularity; empty without ranking.
    cells, genes
        How many were judged.
    settings
        The settings of the evaluation.
    """

    model: str
    methods: dict[str, MethodScore]
    popularity: dict[str, RankingScores]
    cells: int
    genes: int
    settings: dict[str, Any]

    @property
    def heldout_deviance(self) -> dict[str, float | None]:
        """Held-out deviance of the model and every baseline."""
        return {name: score.heldout_deviance for name, score in self.methods.items()}

    @property
    def best_baseline(self) -> str | None:
        """The baseline with the lowest held-out deviance; NeuMF's own GMF part, which it starts from, is none."""
        own = {self.model, PART_OF.get(self.model)}
        known = {
            name: value
            for name, value in self.heldout_deviance.items()
            if name not in own and value is not None
        }
        return min(known, key=known.__getitem__) if known else None

    @property
    def beats_best_baseline(self) -> bool | None:
        """Whether the model's held-out deviance is below the best baseline's.

        A model that predicts no means (``bce``, ``bpr``) is judged by its full ranking instead (NDCG at the
        largest K, beside popularity and the baselines). ``None`` where there is nothing to compare.
        """
        own = self.methods[self.model]
        if own.heldout_deviance is not None:
            if self.best_baseline is None:
                return None
            best = self.methods[self.best_baseline].heldout_deviance
            return best is not None and own.heldout_deviance < best
        if not own.ranking:
            return None
        own_names = {self.model, PART_OF.get(self.model)}
        others = [score.ranking for name, score in self.methods.items() if name not in own_names]
        rivals = [_last_ndcg(scores) for scores in (*others, self.popularity)]
        return _last_ndcg(own.ranking) > max(rivals)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        summary = {
            "heldout_deviance": self.heldout_deviance,
            "best_baseline": self.best_baseline,
            "beats_best_baseline": self.beats_best_baseline,
        }
        return asdict(self) | summary


def not_judged(settings: NeuMFSettings, evaluation: EvaluationSettings) -> Evaluation:
    """Evaluation of a model of values that are no counts: only molecules can be split into two parts."""
    unknown: dict[str, MethodScore] = {settings.kind: MethodScore(heldout_deviance=None, seconds=0.0)}
    return Evaluation(settings.kind, unknown, {}, 0, 0, evaluation.model_dump(mode="json"))


def _last_ndcg(scores: dict[str, RankingScores]) -> float:
    ndcg = scores["full"].ndcg
    return ndcg[max(ndcg)]
