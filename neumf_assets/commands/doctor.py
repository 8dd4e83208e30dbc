"""``neumf-assets doctor``: what is wrong with the set-up, and the mend."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from neumf_assets.commands.ui import HOST, why_not_free
from neumf_assets.core.cgroup import memory_limit, usable_cpus
from neumf_assets.core.errors import NeumfError, printable
from neumf_assets.core.memory import budget
from neumf_assets.core.store import Draft
from neumf_assets.dagster_internals import daemon_statuses
from neumf_assets.home import Home, requested_device
from neumf_assets.running.device_lock import describe_holder
from neumf_assets.running.executors import executor
from neumf_assets.running.file_lock import FileLock
from neumf_assets.running.orphans import dead_runs

if TYPE_CHECKING:
    import dagster as dg

Verdict = Literal["ok", "warning", "problem"]

PACKAGE = "neumf-assets"
_GIB = 1024**3
_LITTLE_SPACE, _NO_SPACE = 10 * _GIB, 1 * _GIB
_STORAGE_SECONDS = 60.0
_GPU_MEND = (
    "install a CUDA build of torch (NEUMF_TORCH, see the README) and the driver, or set NEUMF_DEVICE=cpu"
)
_GPU_SIGNS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/dev/nvidiactl"))


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``mend`` says what to do, where there is something to do."""

    verdict: Verdict
    subject: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:<8} {self.subject:<12} {self.text}"
        return f"{line}\n{'':<22}mend: {self.mend}" if self.mend else line


def diagnose(port: int = 3000) -> Iterator[Finding]:
    """Examine everything that a study needs; a check that breaks down is itself a problem."""
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", check_versions),
        ("settings", check_settings),
        ("device", check_device),
        ("kernel", check_kernel),
        ("processors", check_processors),
        ("home", check_home),
        ("disk", check_disk),
        ("instance", check_instance),
        ("storage", check_storage),
        ("port", lambda: check_port(port)),
    ]
    for subject, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever breaks is what the user wants to hear of
            yield Finding("problem", subject, f"{type(error).__name__}: {_one_line(error)}")


def doctor(port: int = 3000) -> int:
    """Print the diagnosis; returns 1 if there is a problem, else 0."""
    counted: dict[str, int] = {"ok": 0, "warning": 0, "problem": 0}
    for finding in diagnose(port):
        counted[finding.verdict] += 1
        print(printable(str(finding)), flush=True)
    print(f"{counted['ok']} ok, {counted['warning']} warnings, {counted['problem']} problems")
    return 1 if counted["problem"] else 0


def check_versions() -> Iterator[Finding]:
    """Installed versions against the ranges that the package declares."""
    wrong = list(_out_of_range(importlib.metadata.requires(PACKAGE) or []))
    for text, required in wrong:
        yield Finding("problem", "versions", text, f"{sys.executable} -m pip install '{required}'")
    core, web = _version("dagster"), _version("dagster-webserver")
    if core != web:
        yield Finding(
            "problem",
            "versions",
            f"dagster {core} and dagster-webserver {web} differ",
            f"{sys.executable} -m pip install dagster-webserver=={core}",
        )
    if not wrong:
        python = ".".join(map(str, sys.version_info[:3]))
        yield Finding("ok", "versions", f"{PACKAGE} {_version(PACKAGE)}, dagster {core}, Python {python}")


def check_settings() -> Iterator[Finding]:
    """Environment variables and the files of registered studies."""
    from neumf_assets.definitions.studies import all_studies

    mends: list[tuple[Callable[[], object], str]] = [
        (requested_device, "correct NEUMF_DEVICE"),
        (executor, "correct NEUMF_EXECUTOR"),
        (budget, "correct NEUMF_MEMORY"),
    ]
    right = True
    for check, mend in mends:
        try:
            check()
        except NeumfError as error:
            right = False
            yield Finding("problem", "settings", str(error), mend)
    studies, broken = all_studies(Home.from_environment())
    for one in broken.values():
        yield Finding(
            "problem", "settings", str(one), "correct the study's file; the other studies are loaded"
        )
    if right and not broken:
        yield Finding("ok", "settings", f"studies: {', '.join(sorted(studies))}; executor {executor().name}")


def check_device() -> Iterator[Finding]:
    """The device that models are trained on, and whether a GPU lies idle."""
    import torch

    wanted, build = os.environ.get("NEUMF_DEVICE") or "auto", f"torch {torch.__version__}"
    if torch.cuda.is_available() and wanted != "cpu":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding("ok", "device", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free ({build})")
        yield from _gpu_kernels()
        yield from _held_devices()
    elif wanted == "cuda":
        reason = "is a CPU build" if torch.version.cuda is None else "finds no CUDA device"
        yield Finding("problem", "device", f"NEUMF_DEVICE is cuda, but {build} {reason}", _GPU_MEND)
    elif wanted == "auto" and any(sign.exists() for sign in _GPU_SIGNS):
        yield Finding("warning", "device", f"there is a GPU, but {build} does not use it", _GPU_MEND)
    else:
        yield Finding("ok", "device", f"cpu ({build}, NEUMF_DEVICE={wanted})")


def _gpu_kernels() -> Iterator[Finding]:
    import torch

    from neumf_assets.core.neumf.gpu.gmf import available

    usable, reason = available(torch.device("cuda"))
    if usable:
        yield Finding("ok", "GPU kernels", "Triton kernels agree with float64 on this card")
    else:
        mend = 'install Triton with `pip install "neumf-assets[gpu]"`; training on the GPU is many times slower without'
        yield Finding("warning", "GPU kernels", f"not used: {reason}", mend)


def check_kernel() -> Iterator[Finding]:
    """The compiled kernel of the model's tower, which makes training on the CPU several times faster."""
    from neumf_assets.core.neumf.fused.tower import available, best_precision

    usable, reason = available()
    if usable:
        yield Finding("ok", "kernel", f"fused kernel of the tower, {best_precision()}")
    else:
        yield Finding(
            "warning",
            "kernel",
            f"training on the CPU is slower: {reason}",
            "install a C++17 compiler (Debian: apt-get install g++), or name one in CXX",
        )


def check_processors() -> Iterator[Finding]:
    """Processors and memory that this process may use."""
    import psutil  # type: ignore[import-untyped]

    memory = min(psutil.virtual_memory().available, memory_limit() or sys.maxsize)
    text = f"{usable_cpus()} of {os.cpu_count()} usable, {memory / _GIB:.1f} GiB of memory available"
    if memory < 2 * _GIB:
        yield Finding("warning", "processors", text, "free memory, or keep studies small")
    else:
        yield Finding("ok", "processors", text)


def check_home() -> Iterator[Finding]:
    """``NEUMF_HOME`` can be written, and its file system knows renames and locks."""
    root = Home.from_environment().root
    folder = _existing(root)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".neumf-doctor-") as name:
            (Path(name) / "a").write_text("x")
            (Path(name) / "a").rename(Path(name) / "b")
            lock = FileLock(Path(name) / "lock")
            if not lock.acquire() or (os.name == "posix" and not lock.held()):
                yield Finding(
                    "problem",
                    "home",
                    f"{root} lies on a file system without locks",
                    "put NEUMF_HOME on a local disk; NEUMF_STORAGE may stay where it is",
                )
                return
            lock.release()
    except OSError as error:
        mend = f"give {_user()} the right to write in {folder}, or set NEUMF_HOME to another folder"
        yield Finding("problem", "home", f"{folder} cannot be written: {error.strerror or error}", mend)
        return
    yield Finding("ok", "home", f"{root}{'' if root.exists() else ' (made on first use)'}")


def check_disk() -> Iterator[Finding]:
    """Space where data is written; what goes to object storage passes through the temporary folder."""
    home = Home.from_environment()
    places = {"NEUMF_HOME": home.root}
    local = home.store().local_root
    places |= {"NEUMF_STORAGE": local} if local is not None else {"TMPDIR": Path(tempfile.gettempdir())}
    for name, path in places.items():
        free = shutil.disk_usage(_existing(path)).free
        text = f"{free / _GIB:.1f} GiB free for {name} ({path})"
        if free < _LITTLE_SPACE:
            verdict: Verdict = "problem" if free < _NO_SPACE else "warning"
            yield Finding(verdict, "disk", text, f"free space there, or point {name} to a larger disk")
        else:
            yield Finding("ok", "disk", text)


def check_instance() -> Iterator[Finding]:
    """The Dagster instance: its settings, its databases' schema, the daemon, runs that are dead."""
    import dagster as dg

    home = Home.from_environment()
    file = home.dagster / "dagster.yaml"
    if not file.exists():
        yield Finding("ok", "instance", f"none yet in {home.dagster}; made on first use")
        return
    try:
        instance = dg.DagsterInstance.from_config(str(home.dagster))
    except Exception as error:  # Dagster raises whatever its storages raise
        yield Finding(
            "problem",
            "instance",
            f"{file}: {type(error).__name__}: {_one_line(_first_cause(error))}",
            f"correct {file} and the variables that it names, and see that its database is up",
        )
        return
    with instance:
        yield from _schema(instance, home)
        yield from _daemon(instance)
        yield from _dead(instance, home)
        if type(instance.run_launcher).__name__ == "DefaultRunLauncher":
            yield Finding(
                "warning",
                "instance",
                "a run whose process dies with the code server would stay in progress for ever",
                f"in {file}: run_launcher: {{module: neumf_assets.running.run_launcher, class: LocalRunLauncher}}",
            )


def check_storage() -> Iterator[Finding]:
    """Artifacts can be written, read and removed where ``NEUMF_STORAGE`` says."""
    home = Home.from_environment()
    result: list[BaseException | float] = []
    thread = threading.Thread(target=_probe_storage, args=(home, result), daemon=True)
    thread.start()
    thread.join(_STORAGE_SECONDS)
    if not result:
        text = f"{home.storage} does not answer within {_STORAGE_SECONDS:.0f} s"
        yield Finding("problem", "storage", text, "see that the server is up and AWS_ENDPOINT_URL is right")
    elif isinstance(result[0], ImportError):
        mend = f"{sys.executable} -m pip install '{PACKAGE}[s3]' (or the fsspec package of that protocol)"
        yield Finding("problem", "storage", f"{home.storage}: {_one_line(result[0])}", mend)
    elif isinstance(result[0], BaseException):
        text = f"{home.storage}: {type(result[0]).__name__}: {_one_line(result[0])}"
        mend = "see that it exists, that the credentials (AWS_…) are right, and that they may write there"
        yield Finding("problem", "storage", text, mend)
    else:
        yield Finding("ok", "storage", f"{home.storage}, written and read in {result[0]:.2f} s")


def check_port(port: int) -> Iterator[Finding]:
    """The web interface's port is free, or Dagster is what answers there."""
    address = f"{HOST}:{port}"
    if why_not_free(port) is None:
        yield Finding("ok", "port", f"{address} is free")
    elif _is_dagster(address):
        yield Finding("ok", "port", f"a Dagster web interface answers at http://{address}")
    else:
        yield Finding(
            "warning",
            "port",
            f"{address} is taken by another program",
            f"choose another: make ui PORT={port + 1}",
        )


def _out_of_range(declared: Iterable[str]) -> Iterator[tuple[str, Requirement]]:
    for text in declared:
        required = Requirement(text)
        found = _version(required.name)
        wanted = required.marker is None or required.marker.evaluate({"extra": ""})
        if found is None and wanted:
            yield f"{required.name} is not installed", required
        elif found is not None and not required.specifier.contains(found, prereleases=True):
            required.marker = None
            yield f"{required.name} {found} is installed, supported is {required.specifier}", required


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(canonicalize_name(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def _held_devices() -> Iterator[Finding]:
    for path in sorted(Home.from_environment().locks.glob("gpu-*.lock")):
        lock = FileLock(path)
        if lock.held():
            yield Finding("warning", "device", describe_holder(lock))


def _schema(instance: dg.DagsterInstance, home: Home) -> Iterator[Finding]:
    behind = []
    for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        found = storage.alembic_version() if storage is not None else None
        if found is not None and found[0] != found[1]:
            behind.append(f"{type(storage).__name__} is at {found[0]}, this Dagster needs {found[1]}")
    if behind:
        mend = f"stop all services, then: DAGSTER_HOME={home.dagster} dagster instance migrate"
        yield Finding("problem", "instance", "; ".join(behind), mend)
    else:
        kind = type(instance.run_storage).__name__.removesuffix("RunStorage")
        yield Finding("ok", "instance", f"{home.dagster} ({kind}), schema up to date")


def _daemon(instance: dg.DagsterInstance) -> Iterator[Finding]:
    statuses = daemon_statuses(instance)
    ill = sorted(name for name, status in statuses.items() if not status.healthy)
    if not ill:
        yield Finding("ok", "daemon", "its heartbeat is fresh")
        return
    text = "not running" if len(ill) == len(statuses) else f"no heartbeat of {', '.join(ill)}"
    yield Finding(
        "warning",
        "daemon",
        f"{text}: sensors, schedules, backfills and queued runs wait",
        "start it: neumf-assets ui, or systemctl start neumf-daemon",
    )


def _dead(instance: dg.DagsterInstance, home: Home) -> Iterator[Finding]:
    dead = [run.run_id for run in dead_runs(instance, home)]
    if dead:
        yield Finding(
            "warning",
            "runs",
            f"in progress, but their process is gone: {', '.join(dead)}",
            "the daemon and `neumf-assets run` mark them as failed",
        )


def _probe_storage(home: Home, result: list[BaseException | float]) -> None:
    start = time.perf_counter()
    key = ("neumf-doctor", f"probe-{os.getpid()}")
    try:
        store = home.store()
        store.publish(key, _write_probe, Draft(fingerprint="probe"))
        found = store.get(key)
        if (found.path / "probe.txt").read_text() != "probe":
            raise NeumfError("what was written is not what is read")
        store.delete(key)
    except Exception as error:  # handed to the caller, in its own thread
        result.append(error)
    else:
        result.append(time.perf_counter() - start)


def _write_probe(folder: Path) -> None:
    (folder / "probe.txt").write_text("probe")


def _is_dagster(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/server_info", timeout=5) as answer:
            return b"dagster" in answer.read(4096)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _user() -> str:
    return os.environ.get("USER") or f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"


def _first_cause(error: BaseException) -> BaseException:
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return error


def _one_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
