"""Whatever happens in an inbox, whatever is under way meanwhile: how many runs that takes, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from neumf_assets.assets.stage import Stage, Step
from neumf_assets_tests.conftest import use_home
from neumf_assets_tests.live import BROKEN, Live, Snapshot, counts_csv, live_study, stubbed


def arrives(live: Live) -> None:
    live.put("c.csv", counts_csv(3))


def burst(live: Live) -> None:
    for number, name in enumerate("cde"):
        live.put(f"{name}.csv", counts_csv(number + 3))


def broken(live: Live) -> None:
    live.put("c.csv", BROKEN)


def corrected(live: Live) -> None:
    live.put("bad.csv", counts_csv(3))


def changed(live: Live) -> None:
    live.put("a.csv", counts_csv(3))


def changed_for_the_worse(live: Live) -> None:
    live.put("a.csv", BROKEN)


def deleted(live: Live) -> None:
    (live.inbox / "a.csv").unlink()


def uploaded_again(live: Live) -> None:
    live.put("a.csv", counts_csv(1))


def deleted_and_put_back(live: Live) -> None:
    deleted(live)
    live.arrivals()
    uploaded_again(live)


def under_another_name_so_far(live: Live) -> None:
    live.put("c.csv.part", counts_csv(3))


def still_growing(live: Live) -> None:
    text = counts_csv(3)
    for share in (0.3, 0.6, 1.0):
        live.put("c.csv", text[: int(share * len(text))])
        assert "c" not in live.arrivals()


def interrupted_and_taken_up(live: Live) -> None:
    """Half a file that rests is refused; the whole one is taken when the upload goes on."""
    text = counts_csv(3)
    live.put("c.csv", text[: len(text) // 2])
    work_off(live)
    assert (live.inbox / "c.refused.txt").exists()
    live.put("c.csv", text)


@dataclass(frozen=True)
class Row:
    """What an event comes to.

    Attributes
    ----------
    runs
        Datasets that are run, in no particular order.
    rebuilds
        Whether the study is made anew for it.
    made_of
        What the study is made of in the end, beside ``a``, ``b`` and what was under way.
    refused
        Notes that lie beside files in the end.
    news
        Words that the sensor's log holds once.
    leaves
        Datasets that leave the study; its last result holds them until it is made anew.
    """

    event: Callable[[Live], None]
    runs: str = ""
    rebuilds: bool = False
    made_of: str = ""
    refused: tuple[str, ...] = ("bad",)
    news: tuple[str, ...] = field(default=())
    leaves: str = ""


TABLE = [
    Row(arrives, "c", True, "c"),
    Row(burst, "cde", True, "cde"),
    Row(broken, "c", refused=("bad", "c")),
    Row(corrected, "B", True, "B", refused=()),
    Row(changed, "a", True),
    Row(changed_for_the_worse, "a", refused=("a", "bad")),
    Row(deleted, news=("The source of dataset a is gone: it leaves the study",), leaves="a"),
    Row(uploaded_again),
    Row(deleted_and_put_back),
    Row(under_another_name_so_far),
    Row(still_growing, "c", True, "c"),
    Row(interrupted_and_taken_up, "cc", True, "c"),
]
NAMES = {"B": "bad"}


def named(letters: str) -> list[str]:
    return sorted(NAMES.get(letter, letter) for letter in letters)


def work_off(live: Live) -> None:
    """Tick the sensor, and run what it asks for, while something else is under way."""
    for _ in range(3):
        for name in live.arrivals():
            live.run_dataset(name)


class Watched:
    """The study's state when the event begins, and all that the sensor has said since."""

    def __init__(self, live: Live, row: Row, said: list[str]) -> None:
        self.live, self.row, self.said = live, row, said
        self.runs, self.rebuilds = len(live.dataset_runs), len(live.study_runs)

    def check(self, under_way: str, rebuilds_under_way: int, made_without: bool = False) -> None:
        """Compare with the row of the table."""
        live, row = self.live, self.row
        assert sorted(live.dataset_runs[self.runs :]) == named(row.runs)
        assert len(live.study_runs) - self.rebuilds == row.rebuilds + rebuilds_under_way
        members = {"a", "b", *under_way, *named(row.made_of)}
        left = set(named(row.leaves))
        assert live.integrated() == sorted(members - left if made_without else members)
        assert live.partitions() == members - left
        notes = sorted(path.name.removesuffix(".refused.txt") for path in live.inbox.glob("*.refused.txt"))
        assert notes == sorted(row.refused)
        for words in row.news:
            assert sum(words in line for line in self.said) == 1


class CompleteStudy:
    """A study made of two datasets, with a third that is refused.

    Attributes
    ----------
    said
        What its sensor says.
    during
        Called from within every stage.
    """

    def __init__(self, live: Live) -> None:
        self.live = live
        self.said: list[str] = []
        self.during: Callable[[Stage, Step], None] = lambda declared, step: None

    def begins(self, row: Row) -> Watched:
        """Watch the study from now on."""
        return Watched(self.live, row, self.said)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CompleteStudy, Snapshot]]:
    """The study, and how it was when it was made."""
    root, kept = tmp_path_factory.mktemp("study") / "root", tmp_path_factory.mktemp("kept") / "root"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, root / "home")
        stubbed(patch, lambda declared, step: study.during(declared, step))
        with live_study(root) as live:
            study = CompleteStudy(live)
            live.put("a.csv", counts_csv(1))
            live.put("b.csv", counts_csv(2))
            live.put("bad.csv", BROKEN)
            live.settle()
            assert (len(live.dataset_runs), len(live.study_runs)) == (3, 1)
            look = live.arrivals

            def arrivals() -> list[str]:
                asked = look()
                study.said.extend(live.last.news)
                return asked

            live.arrivals = arrivals  # type: ignore[method-assign]
            yield study, Snapshot(live, root, kept)


@pytest.fixture
def study(made: tuple[CompleteStudy, Snapshot]) -> CompleteStudy:
    """The study as it was made."""
    study, snapshot = made
    snapshot.restore()
    study.said.clear()
    study.during = lambda declared, step: None
    return study


def _ids(row: Row) -> str:
    return row.event.__name__


@pytest.mark.parametrize("row", TABLE, ids=_ids)
def test_while_the_study_is_idle(row: Row, study: CompleteStudy) -> None:
    watched = study.begins(row)
    row.event(study.live)
    study.live.settle()
    watched.check("", 0)


@pytest.mark.parametrize("row", TABLE, ids=_ids)
@pytest.mark.parametrize("at", ["neumf_model", "liger/factors"], ids=["dataset_trains", "study_is_rebuilt"])
def test_while_something_is_under_way(at: str, row: Row, study: CompleteStudy) -> None:
    """Dataset ``x`` arrives first; the event falls into its training, or into the rebuild that takes it in."""
    live, begun = study.live, []

    def during(declared: Stage, step: Step) -> None:
        if begun or declared.path != at or step.dataset not in (None, "x"):
            return
        if live.materialisations("raw_counts", "x") == 0:
            return
        begun.append(study.begins(row))
        row.event(live)
        work_off(live)
        assert live.conditions() == set()  # nothing is rebuilt meanwhile

    study.during = during
    live.put("x.csv", counts_csv(9))
    live.settle()
    assert begun, "the event has not happened"
    in_training = at == "neumf_model"
    # A rebuild that is still to come takes the event in; one that is under way is followed by another.
    begun[0].check("x", 1 - row.rebuilds if in_training else 0, made_without=in_training)
