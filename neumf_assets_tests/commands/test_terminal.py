"""What a person sees while ``neumf-assets run`` works: in a real terminal, and in a file."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from neumf_assets.commands.terminal import LiveProgress, make_console, show_results
from neumf_assets.core.counts.simulate.inbox import write_inbox
from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.definitions.studies import find_or_register
from neumf_assets.home import Home

# Long enough that a look at the disk falls into it; the other stages are as short as can be.
TRAINING = "model: {kind: gmf, gmf_size: 16, epochs: 300, patience: null, threads: 1}\narms: [liger]\n"
LIMIT = 300.0


def _study(folder: Path, model: str) -> Home:
    settings = {"datasets": [["ctrl", 300, "control"]], "genes": 600, "seed": 3}
    write_inbox(SimulatorSettings.model_validate(settings), folder / "in")
    home = Home.from_environment()
    home.prepare()
    find_or_register(home, "tiny", str(folder / "in"))
    path = home.studies / "tiny.yaml"
    path.write_text(path.read_text() + model)
    return home


def _in_a_terminal(command: list[str], environment: Mapping[str, str], seen: Callable[[str], bool]) -> str:
    """Run a command in a terminal until what it showed so far will do; it is interrupted then."""
    leading, following = pty.openpty()
    process = subprocess.Popen(
        command, stdin=following, stdout=following, stderr=following, env=environment, start_new_session=True
    )
    os.close(following)
    shown, until = "", time.monotonic() + LIMIT
    try:
        while not seen(shown):
            assert time.monotonic() < until, f"within {LIMIT:.0f} s there was only: {shown[-2000:]}"
            if not select.select([leading], [], [], 1.0)[0]:
                continue
            try:
                shown += os.read(leading, 65536).decode(errors="replace")
            except OSError:  # the terminal of a process that ended
                break
    finally:
        process.terminate()
        process.wait(60)
        os.close(leading)
    return shown


def test_a_terminal_shows_the_progress_of_a_step_while_it_runs(home: Path, tmp_path: Path) -> None:
    folders = _study(tmp_path, TRAINING)
    stored = folders.root / "storage" / "tiny" / "neumf_model" / "ctrl" / "manifest.json"
    state: list[bool] = []

    def seen(shown: str) -> bool:
        if re.search(r"train \w+.* [1-9]\d*/300", shown):
            state.append(stored.exists())
        return bool(state)

    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-m", "neumf_assets.cli", "run", "--study", "tiny"]
    shown = _in_a_terminal(command, environment, seen)
    assert state == [False], f"nothing was shown before the model was stored: {shown[-2000:]}"


def test_a_pipe_gets_a_dated_line_as_each_asset_begins_and_ends(home: Path, tmp_path: Path) -> None:
    folders = _study(tmp_path, TRAINING)
    process = subprocess.Popen(
        [sys.executable, "-m", "neumf_assets.cli", "run", "--study", "tiny"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    stored = folders.root / "storage" / "tiny" / "neumf_model" / "ctrl" / "manifest.json"
    told: list[tuple[str, str]] = []
    try:
        for line in process.stdout:
            found = re.match(
                r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ctrl: (\w+) (begins|ends after [\d.]+ s)$", line
            )
            if found is None:
                continue
            told.append((found[1], found[2].split()[0]))
            if found[1] == "neumf_model":
                assert stored.exists() == (told[-1][1] == "ends"), line
            if told[-1] == ("neumf_model", "ends"):
                break
    finally:
        process.terminate()
        process.wait(60)
    made = ["raw_counts", "counts"]
    assert told[:4] == [(name, what) for name in made for what in ("begins", "ends")]
    assert told[-2:] == [("neumf_model", "begins"), ("neumf_model", "ends")]


def test_the_console_writes_where_standard_output_was_when_it_was_made(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from neumf_assets.commands.terminal import make_console\n"
        "console = make_console()\n"
        "log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.dup2(log, 1)\n"
        "console.print('shown')\n"
        "print('logged', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "shown\n"
    assert (tmp_path / "log").read_text() == "logged\n"


def test_a_console_without_a_descriptor_is_one_all_the_same(capsys: object) -> None:
    assert make_console().width >= 80


def test_names_of_files_neither_act_nor_format(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "in/a\x1b]0;title\x07[bold red]b[/].csv"
    study = find_or_register(Home.from_environment(), "example", None)
    console = Console(file=sys.stdout, force_terminal=True, width=400)
    show_results(
        console, study, Home.from_environment(), {name: f"{name}: is wrong"}, {name: "[link=x]y"}, 1.0
    )
    with LiveProgress(console) as progress:
        progress.say(30, name)
        progress.begin(name, 1)
    said = capsys.readouterr().out
    assert "\x1b]0;" not in said and "\x07" not in said
    assert said.count(r"in/a\x1b]0;title\x07[bold red]b[/].csv") == 5
    assert "[link=x]y" in said
