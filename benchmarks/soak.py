"""Leaves a study to itself for a while: datasets arrive, some are bad, runs are killed; what is left of it?

A real daemon and a real code server watch the inbox of a small study. A dataset arrives every interval, one in
six cannot be used, and the process of one run in ten is killed (SIGKILL). When the time is up and everything
has come to rest: is every good dataset in the study's last result, does every bad one have its note with the
reason, is no run in progress, and did the memory of the two services stay as it was?
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import harness

MINUTES, QUICK_MINUTES = 30.0, 3.0
INTERVAL, QUICK_INTERVAL = 60.0, 15.0
PATIENCE = 900.0  # seconds for what is still to be done when the last dataset has arrived
BAD_EVERY, KILL_EVERY = 6, 10
SAMPLE_EVERY = 5.0
FLAT = 0.05  # of the memory at first: how much more it may be at the end
JUDGED_AFTER = 20.0  # minutes; before, services still import what they use for the first time
NAME = "soak"
STUDY = """\
name: soak
label_column: cell_type
arms: [liger]
arrival: {{poll_seconds: {poll}, quiet_seconds: {poll}, attempts: 5}}
qc: {{min_genes: 10}}
model: {{kind: gmf, gmf_size: 4, epochs: 2, threads: 1}}
evaluation: {{baselines: [gene_mean]}}
liger: {{k: 5, iterations: 5, trial_iterations: 1}}
clusters: {{resolutions: [0.4], default_resolution: 0.4, seeds: [0], hdbscan_min_size: 10}}
umap: {{n_epochs: 10}}
"""
CELLS, GENES = 80, 400
_MONITORING = "run_monitoring:\n  enabled: true\n"


@dataclass
class Arrivals:
    """What was put into the inbox, and when."""

    good: dict[str, float] = field(default_factory=dict)
    bad: dict[str, Path] = field(default_factory=dict)  # where the note with the reason has to appear

    @property
    def number(self) -> int:
        """How many there were."""
        return len(self.good) + len(self.bad)


class Feeder:
    """Puts datasets into an inbox, as careful people do: under another name first."""

    def __init__(self, inbox: Path, number: int) -> None:
        from neumf_assets.core.counts.simulate.inbox import write_inbox
        from neumf_assets.core.counts.simulate.settings import SimulatorSettings

        self.inbox, self.arrivals = inbox, Arrivals()
        self._stock = inbox.with_name("stock")
        names = [f"d{one:03d}" for one in range(number)]
        datasets = [[name, CELLS, "control"] for name in names]
        settings = SimulatorSettings.model_validate({"datasets": datasets, "genes": GENES, "seed": 3})
        write_inbox(settings, self._stock)
        self._names = iter(names)

    def next(self) -> None:
        """One more arrival; every sixth is bad, each in another way."""
        name, number = next(self._names), self.arrivals.number
        if number % BAD_EVERY == BAD_EVERY - 1:
            self._put_bad(name, number // BAD_EVERY)
            return
        for suffix in (".labels.csv", ".csv.gz"):
            self._put(name + suffix, (self._stock / (name + suffix)).read_bytes())
        self.arrivals.good[name] = time.monotonic()

    def _put_bad(self, name: str, number: int) -> None:
        table = gzip.decompress((self._stock / f"{name}.csv.gz").read_bytes())
        first, second, rest = table.split(b"\n", 2)
        gene, _, values = second.partition(b",")
        words, minus = (
            b"\n".join([first, gene + b"," + b + b"," + values.partition(b",")[2], rest])
            for b in (b"many", b"-3")
        )
        kinds = [
            (f"{name}.csv", words),
            (f"{name}.csv.gz", gzip.compress(table)[:-200]),
            (f"{name}.docx", b"not counts"),
            (f"{name}.csv", minus),
            (f"{name}.csv", b""),
        ]
        file, content = kinds[number % len(kinds)]
        self._put(file, content)
        self.arrivals.bad[file] = self.inbox / f"{file if file.endswith('.docx') else name}.refused.txt"

    def _put(self, file: str, content: bytes) -> None:
        partial = self.inbox / f"{file}.part"
        partial.write_bytes(content)
        partial.rename(self.inbox / file)


class Reaper:
    """Kills the process of one run in ten, some seconds after it has begun."""

    def __init__(self, locks: Path, code_server: int, seed: int = 0) -> None:
        self._locks, self._code_server = locks, code_server
        self._random = random.Random(seed)
        self._seen: set[str] = set()
        self._due: dict[str, float] = {}
        self.killed: list[str] = []

    def look(self) -> None:
        """Condemn a run that has come, kill one whose time is up."""
        for path in sorted(self._locks.glob("[!.]*")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                if len(self._seen) % KILL_EVERY == KILL_EVERY // 2:
                    self._due[path.name] = time.monotonic() + self._random.uniform(0.0, 6.0)
        for run in [run for run, due in self._due.items() if time.monotonic() >= due]:
            del self._due[run]
            if self._kill(self._locks / run):
                self.killed.append(run)
            else:  # it had ended by then: another one instead
                self._seen.discard(run)

    def _kill(self, lock: Path) -> bool:
        """Kill the process that holds a run's lock, if it is a child of the code server started here."""
        try:
            process = psutil.Process(int(json.loads(lock.read_text())["pid"]))
            if self._code_server not in {parent.pid for parent in process.parents()}:
                return False
            process.kill()
        except (OSError, ValueError, psutil.NoSuchProcess):
            return False
        return True


class Services:
    """A code server and a daemon, as ``deploy/`` starts them, on a home of their own."""

    def __init__(self, folder: Path) -> None:
        from neumf_assets_tests.e2e.servers import BIN, Server, free_port

        port = free_port()
        workspace = folder / "workspace.yaml"
        workspace.write_text(
            f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: neumf_assets}}\n"
        )
        code = [str(BIN / "dagster"), "code-server", "start", "-m", "neumf_assets.definitions"]
        code += ["--location-name", "neumf_assets", "--host", "127.0.0.1", "--port", str(port)]
        daemon = [str(BIN / "dagster-daemon"), "run", "-w", str(workspace)]
        environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), "OMP_NUM_THREADS": "1"}
        self._port, self._folder = port, folder
        self.code = Server(code, folder / "code.log", env=environment, cwd=folder)
        self.daemon = Server(daemon, folder / "daemon.log", env=environment, cwd=folder)
        self.samples: dict[str, list[tuple[float, float]]] = {"daemon": [], "code server": []}
        self._lasting: dict[str, list[psutil.Process]] = {}

    def start(self) -> None:
        """Start both, and remember which processes are to stay."""
        from neumf_assets_tests.e2e.servers import listening, wait_for

        self.code.start()
        wait_for(lambda: listening(self._port), "the code server")
        assert self.code.process is not None
        code = psutil.Process(self.code.process.pid)
        self._lasting["code server"] = [code, *code.children(recursive=True)]
        self.daemon.start()
        assert self.daemon.process is not None
        self._lasting["daemon"] = [psutil.Process(self.daemon.process.pid)]

    def stop(self) -> None:
        """Stop both."""
        self.daemon.stop()
        self.code.stop(signal.SIGTERM)

    def sample(self) -> None:
        """Note the memory of both, in MiB: what the system would get back if they ended."""
        for name, processes in self._lasting.items():
            used = sum(process.memory_full_info().uss for process in processes) / 2**20
            self.samples[name].append((time.monotonic(), used))

    def left_over(self, patience: float) -> int:
        """How many processes of runs are still there, though they have had time to end."""
        end = time.monotonic() + patience
        while (found := self._runs()) and time.monotonic() < end:
            time.sleep(1)
        return found

    def _runs(self) -> int:
        assert self.code.process is not None
        lasting = {process.pid for process in self._lasting["code server"]}
        children = psutil.Process(self.code.process.pid).children(recursive=True)
        return sum(
            child.pid not in lasting and child.status() != psutil.STATUS_ZOMBIE and _is_run(child)
            for child in children
        )

    def memory(self) -> list[dict[str, Any]]:
        """How the memory of both developed, without the first minutes, in which everything is imported."""
        return [
            {"service": name, **_trend(samples), "each_minute_mib": _each_minute(samples)}
            for name, samples in self.samples.items()
        ]

    def logs(self) -> str:
        """The ends of what they said."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self._folder.glob("*.log"))


def _is_run(process: psutil.Process) -> bool:
    """Multiprocessing keeps a tracker of its resources beside the code server: that is no run."""
    return not any("resource_tracker" in part for part in process.cmdline())


def _each_minute(samples: list[tuple[float, float]]) -> list[float]:
    return [round(used, 1) for _, used in samples[:: round(60 / SAMPLE_EVERY)]]


def _trend(samples: list[tuple[float, float]]) -> dict[str, Any]:
    times, used = np.array(samples).T
    times = (times - times[0]) / 3600
    warm = times >= times[-1] * 0.1
    slope = float(np.polyfit(times[warm], used[warm], 1)[0])
    third = max(2, warm.sum() // 3)
    last_slope = float(np.polyfit(times[-third:], used[-third:], 1)[0])
    first, last = (statistics.median(part) for part in (used[warm][:third], used[warm][-third:]))
    figures = {"first_third_mib": first, "last_third_mib": last, "peak_mib": used.max()}
    return {
        "flat": bool(last <= first * (1 + FLAT)),
        **{name: round(float(value), 1) for name, value in figures.items()},
        "slope_mib_per_hour": round(slope, 1),
        "slope_of_last_third_mib_per_hour": round(last_slope, 1),
    }


class Soak:
    """One study under a daemon, from the first arrival until everything has come to rest."""

    def __init__(self, root: Path, minutes: float, interval: float) -> None:
        from neumf_assets.home import Home

        os.environ |= {"NEUMF_HOME": str(root), "DAGSTER_HOME": str(root / "dagster"), "NEUMF_DEVICE": "cpu"}
        for name in ("NEUMF_STORAGE", "NEUMF_EXECUTOR"):
            os.environ.pop(name, None)
        self.home = Home.from_environment()
        self.home.prepare()
        settings = self.home.dagster / "dagster.yaml"
        text = settings.read_text()
        assert _MONITORING in text
        settings.write_text(text.replace(_MONITORING, f"{_MONITORING}  poll_interval_seconds: 10\n"))
        poll = max(2, round(interval / 6))
        (self.home.studies / f"{NAME}.yaml").write_text(STUDY.format(poll=poll))
        inbox = Path(self.home.inbox(NAME))
        inbox.mkdir(parents=True)
        self.minutes, self.interval = minutes, interval
        self.feeder = Feeder(inbox, int(minutes * 60 / interval) + 1)
        self.services = Services(root)
        self.waited: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Let it run, and say what is left."""
        import dagster as dg

        with dg.DagsterInstance.get() as instance:
            instance.get_runs_count()  # so that the databases are there: two processes cannot create them at once
            self.services.start()
            try:
                return self._watch(instance)
            finally:
                self.services.stop()

    def _watch(self, instance: Any) -> dict[str, Any]:
        assert self.services.code.process is not None
        reaper = Reaper(self.home.run_locks, self.services.code.process.pid)
        begin = time.monotonic()
        until, next_arrival, next_sample = begin + 60 * self.minutes, begin + 10, begin
        while (now := time.monotonic()) < until + PATIENCE:
            if next_arrival <= now < until:
                self.feeder.next()
                next_arrival += self.interval
            if now >= next_sample:
                next_sample += SAMPLE_EVERY
                self.services.sample()
                self._note_integrated(now)
                if now >= until and self._at_rest(instance):
                    break
            if now < until:
                reaper.look()
            time.sleep(0.2)
        return self._findings(instance, reaper, time.monotonic() - until)

    def _note_integrated(self, now: float) -> None:
        for name in self._integrated():
            if name not in self.waited:
                self.waited[name] = now - self.feeder.arrivals.good.get(name, now)

    def _integrated(self) -> list[str]:
        report = self.home.store().find((NAME, "report"))
        return [] if report is None else list(report.manifest.figures["made_of"]["counts"])

    def _unfinished(self, instance: Any) -> list[Any]:
        return [run for run in instance.get_runs() if not run.is_finished]

    def _at_rest(self, instance: Any) -> bool:
        arrivals = self.feeder.arrivals
        done = set(arrivals.good) <= set(self._integrated()) and not self._unnoted()
        return done and not self._unfinished(instance)

    def _unnoted(self) -> list[str]:
        """Bad files without a note that gives a reason."""
        without = []
        for file, note in self.feeder.arrivals.bad.items():
            with contextlib.suppress(FileNotFoundError):
                if "was refused" in note.read_text():
                    continue
            without.append(file)
        return without

    def _findings(self, instance: Any, reaper: Reaper, rest_after: float) -> dict[str, Any]:
        from neumf_assets.running.file_lock import FileLock

        arrivals, integrated = self.feeder.arrivals, set(self._integrated())
        left_over = self.services.left_over(patience=30.0)
        statuses = Counter(run.status.value for run in instance.get_runs())
        waited = [self.waited[name] for name in arrivals.good if name in self.waited]
        figures = {
            "minutes": self.minutes,
            "good datasets": len(arrivals.good),
            "integrated": len(integrated & set(arrivals.good)),
            "bad files": len(arrivals.bad),
            "refused with reason": len(arrivals.bad) - len(self._unnoted()),
            "bad ones integrated": len(integrated - set(arrivals.good)),
            "runs": sum(statuses.values()),
            "runs killed": len(reaper.killed),
            "in progress at the end": len(self._unfinished(instance)),
            "processes left over": left_over,
            "locks held at the end": sum(FileLock(path).held() for path in self.home.run_locks.glob("[!.]*")),
            "arrival to integrated, median s": round(statistics.median(waited), 1) if waited else None,
            "arrival to integrated, longest s": round(max(waited), 1) if waited else None,
            "at rest after the last arrival, s": round(rest_after + self.interval, 1),
        }
        lost = sorted(set(arrivals.good) - integrated)
        unnoted = self._unnoted()
        wrong = [lost, unnoted, integrated - set(arrivals.good), self._unfinished(instance)]
        passed = (
            not any(wrong) and not figures["processes left over"] and not figures["locks held at the end"]
        )
        notes = [f"runs by status: {dict(statuses)}"]
        notes += [f"not integrated: {', '.join(lost)}"] if lost else []
        notes += [f"not refused: {', '.join(unnoted)}"] if unnoted else []
        if not passed:
            harness.say(self.services.logs())
        return {"passed": passed, "figures": figures, "memory": self.services.memory(), "notes": notes}


def main(quick: bool = False) -> dict[str, Any]:
    """Soak a study; ``NEUMF_SOAK_MINUTES`` sets another length."""
    minutes = float(os.environ.get("NEUMF_SOAK_MINUTES") or (QUICK_MINUTES if quick else MINUTES))
    interval = QUICK_INTERVAL if quick else INTERVAL
    with tempfile.TemporaryDirectory(prefix="neumf-soak-") as name:
        found = Soak(Path(name) / "home", minutes, interval).run()
    if not found["passed"]:
        print(json.dumps(found), file=sys.stderr)
    rows = [{"what": name, "value": value} for name, value in found["figures"].items()]
    growing = [one["service"] for one in found["memory"] if not one["flat"]]
    memory = f"memory of the {' and the '.join(growing)} GROWS" if growing else "memory flat"
    if minutes < JUDGED_AFTER:
        memory = "too short to judge the memory"
    return {
        "title": f"{minutes:g} minutes, a dataset every {interval:g} s, one in {BAD_EVERY} bad, "
        f"one run in {KILL_EVERY} killed: {'passed' if found['passed'] else 'FAILED'}, {memory}",
        **found,
        "rows": rows,
        "notes": [
            *found["notes"],
            *(
                f"memory of the {one['service']} (unique set, MiB): first third {one['first_third_mib']}, "
                f"last third {one['last_third_mib']}, peak {one['peak_mib']}, "
                f"slope {one['slope_mib_per_hour']:+} an hour, in the last third "
                f"{one['slope_of_last_third_mib_per_hour']:+}"
                for one in found["memory"]
            ),
        ],
    }


if __name__ == "__main__":
    harness.script(main)
