"""What ``neumf-assets run`` shows: live progress, then a table of results and the paths."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from neumf_assets.core.errors import printable
from neumf_assets.home import Home
from neumf_assets.study.settings import StudySettings

_FIGURES_SHOWN = 3
_WIDTH = 110


def make_console() -> Console:
    """A console that writes to what standard output is now, wide enough for the tables where that is a file.

    It has a descriptor of its own: while a step runs, Dagster turns descriptor 1 into the step's log, and what
    is shown would go there, all at once and for nobody to see.
    """
    try:
        descriptor = os.dup(sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is closed, or an object without a descriptor
        return Console(width=_WIDTH)
    output = os.fdopen(
        descriptor, "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors or "replace"
    )
    console = Console(file=output)
    return console if console.is_terminal else Console(file=output, width=_WIDTH)


def shown(text: object) -> str:
    """Return a text that may come from a file or its name for the console: it neither acts nor formats."""
    return escape(printable(str(text)))


class LiveProgress:
    """What is under way: in a terminal a line for each stage of work, else a dated line for each asset.

    Usable as a progress callback.
    """

    def __init__(self, console: Console) -> None:
        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            redirect_stdout=False,  # what a step prints belongs into its log
            redirect_stderr=False,
        )
        self._live = console.is_terminal
        self._prefix = ""
        self._tasks: dict[str, TaskID] = {}
        self._running: list[str] = []

    def __enter__(self) -> Self:
        if self._live:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def begin(self, what: str, assets: int) -> None:
        """Start the work on a dataset, or on the study as a whole."""
        self._prefix = what
        self._display.console.print(
            f"[bold]{shown(what)}[/bold]: {assets} asset{'' if assets == 1 else 's'} out of date",
            highlight=False,
        )

    def say(self, level: int, text: str) -> None:
        """Print a message above the display."""
        style = "yellow" if level >= logging.WARNING else ""
        self._display.console.print(
            Text(printable(f"{self._prefix}: {text}" if self._prefix else text), style)
        )

    def asset_begins(self, asset: str) -> None:
        """Say it, where no display shows it."""
        self._running = []
        self._note(f"{asset} begins")

    def asset_ends(self, asset: str, seconds: float, done: bool) -> None:
        """Say it; the asset's stages are over, also those that were through early."""
        self._note(f"{asset} {'ends' if done else 'FAILED'} after {seconds:.1f} s")
        for name in self._running if done else []:
            task = self._display.tasks[self._display.task_ids.index(self._tasks[name])]
            self._display.update(task.id, total=task.completed or 1, completed=task.completed or 1)

    def _note(self, text: str) -> None:
        if not self._live:
            now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            self._display.console.print(Text(printable(f"{now} {self._prefix}: {text}")), soft_wrap=True)

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Move the line of a stage."""
        if not self._live:
            return
        name = f"{self._prefix}: {stage}" if self._prefix else stage
        if name not in self._tasks:
            self._tasks[name] = self._display.add_task(name, total=total, figures="")
        if name not in self._running:
            self._running.append(name)
        shown = [f"{key} {value:.4g}" for key, value in list(figures.items())[:_FIGURES_SHOWN]]
        self._display.update(self._tasks[name], completed=done, total=total, figures="  ".join(shown))


def show_results(
    console: Console,
    study: StudySettings,
    home: Home,
    failures: Mapping[str, str],
    left_out: Mapping[str, str],
    seconds: float,
) -> None:
    """Print the datasets, the arms' scores, what failed or was left out, and where the results are."""
    folder = home.results(study.name)
    summary = folder / "summary.json"
    if summary.exists():
        content = json.loads(summary.read_text())
        console.print(_datasets_table(content, study.model.kind))
        console.print(_arms_table(content))
    for place, reason in failures.items():
        console.print(f"[red]failed[/red] {shown(place)}\n  {shown(reason)}", highlight=False)
    for dataset, reason in left_out.items():
        console.print(f"[yellow]left out[/yellow] {shown(dataset)}\n  {shown(reason)}.", highlight=False)
    console.print(f"{seconds:.0f} s. Results:", highlight=False)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        console.print(f"  {shown(path)}", highlight=False, soft_wrap=True)
    console.print("See it in the Dagster UI with: make ui", highlight=False)


def _datasets_table(summary: Mapping[str, Any], model: str) -> Table:
    from neumf_assets.core.neumf.evaluation.results import PART_OF

    table = Table(title="Datasets (held-out deviance: lower is better)", title_justify="left")
    table.add_column("dataset")
    for column in ("cells", "genes", "zeros", "held-out deviance", "best baseline"):
        table.add_column(column, justify="right")
    for name, data in summary["datasets"].items():
        deviance = data.get("heldout_deviance") or {}
        own = (model, PART_OF.get(model))
        others = {key: value for key, value in deviance.items() if key not in own and value is not None}
        best = min(others, key=lambda key: others[key]) if others else None
        table.add_row(
            name,
            f"{data['cells']:,}",
            f"{data['genes']:,}",
            f"{100 * data['zero_fraction']:.1f} %",
            _number(deviance.get(model), 4),
            f"{_number(others[best], 4)} ({best})" if best else "-",
        )
    return table


def _arms_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Arms", title_justify="left")
    table.add_column("arm")
    columns = {
        "n_clusters": "clusters",
        "ari_mean": "mean ARI",
        "ari_best": "best ARI",
        "ami_best": "best AMI",
        "same_batch_neighbours": "same-batch",
        "expected_same_batch": "if mixed",
        "cross_batch_label_accuracy": "labels across",
        "seconds": "seconds",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for arm, scores in summary["arms"].items():
        best = " (best)" if arm == summary.get("best_arm") else ""
        table.add_row(arm + best, *(_number(scores.get(key), 3) for key in columns))
    return table


def _number(value: float | int | None, digits: int) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
