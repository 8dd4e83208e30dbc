"""Parts of the page that its template knows: pictures, tables and their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neumf_assets.core.report.content import ArmResult, Comparison, ReportContent
from neumf_assets.core.report.image import data_uri, inches_wide
from neumf_assets.core.report.plots.basis import Values
from neumf_assets.core.report.wording import mean


@dataclass(frozen=True)
class Picture:
    """A PNG to embed, with the words for those who cannot see it."""

    image: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """Address that holds the image itself."""
        return data_uri(self.image)

    @property
    def width(self) -> int:
        """Width in CSS pixels, so that letters have the same size in all pictures."""
        return round(96 * inches_wide(self.image))


@dataclass(frozen=True)
class Cell:
    """One cell of a table: main text, a smaller remark below, and whether it is the best of its column."""

    text: str
    remark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table: the first column names the rows; the row or column called ``highlight`` is stressed."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    corner: str = ""
    highlight: str = ""
    badge: str = ""
    wordy: bool = False


def main_arm(content: ReportContent) -> ArmResult | None:
    """The best arm, else the one whose markers are shown, else the first."""
    best = content.comparison.best_arm if content.comparison else None
    for name in (best, content.markers_arm):
        for arm in content.arms:
            if arm.name == name:
                return arm
    return content.arms[0] if content.arms else None


def mean_scores(comparison: Comparison) -> dict[str, dict[str, float | None]]:
    """Each arm's scores, averaged over the seeds."""
    return {
        arm: {key: mean(values) for key, values in scores.items()}
        for arm, scores in comparison.scores.items()
    }


def any_values(series: Mapping[str, Values]) -> bool:
    """Tell whether there is anything to draw."""
    return any(len(values) for values in series.values())
