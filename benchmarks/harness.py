"""What every benchmark shares: the machine's description, timing, peak memory, data, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from neumf_assets.core.measure import measured

if TYPE_CHECKING:  # a machine that measures the trainer alone has no reader of files
    from anndata import AnnData

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
REAL_STUDIES = ("kang_seed", "kang_ifnb")
LAYER = ((65_536, 64, 32),)
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, load, versions, GPU."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


_highest = [0.0]


def peak_rss_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _highest.append(round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1))
    return max(_highest)


@contextlib.contextmanager
def peak_noted(peaks: dict[str, float], name: str) -> Iterator[None]:
    """Note the most memory that this process held in the body, in MiB; the largest where it is entered again."""
    peak_rss_mib()  # measuring starts the system's own mark anew
    with measured() as cost:
        yield
    _highest.append(round(cost.peak_mib, 1))
    peaks[name] = max(peaks.get(name, 0.0), round(cost.peak_mib, 1))


def seconds_per_call(function: Callable[[], object], at_least: float, repeats: int = 3) -> float:
    """Return the median over ``repeats`` rounds of a call's wall time, after one call to warm up.

    Parameters
    ----------
    function
        What is measured.
    at_least
        Seconds that all rounds take together.
    repeats
        Rounds.
    """
    function()
    rounds = []
    for _ in range(repeats):
        calls, begin = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - begin < at_least / repeats:
            function()
            calls += 1
        rounds.append((time.perf_counter() - begin) / calls)
    return statistics.median(rounds)


def matrix_rate(
    dtype: torch.dtype,
    device: str = "cpu",
    at_least: float = 1.5,
    shapes: tuple[tuple[int, int, int], ...] = ((1024, 1024, 1024), (2048, 2048, 2048)),
) -> float:
    """Return the matrix product rate that torch reaches on this machine now, in FLOP/s.

    The best over ``shapes`` (rows, inner, columns); large squares by default, ``LAYER`` for what the same call
    reaches on the narrow layers of a tower.
    """
    best = 0.0
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)

        def product(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            left @ right
            if device != "cpu":
                torch.cuda.synchronize()

        best = max(best, 2.0 * rows * inner * columns / seconds_per_call(product, at_least / len(shapes)))
    return best


@cache
def control_counts() -> tuple[csr_matrix, str]:
    """Return the counts that the benchmarks train on, and what they are.

    The control cells of Kang et al. 2018 (3,000 cells x 14,879 genes) where they lie beside the checkout,
    else simulated counts of the same number of cells.
    """
    from neumf_assets.core.counts.readers import read_counts

    path = REAL_DATA / "kang_seed" / "ctrl.csv.gz"
    if path.exists():
        return csr_matrix(read_counts(str(path)).X), "Kang et al. 2018, control, 3,000 cells"
    return simulated_counts(3000, 3000), "simulated, 3,000 cells x 3,000 genes"


def real_studies() -> Iterator[tuple[str, dict[str, AnnData]]]:
    """Yield the real studies that lie beside the checkout, each with its datasets by name."""
    from neumf_assets.core.counts.discover import list_datasets
    from neumf_assets.core.counts.readers import read_counts

    for study in REAL_STUDIES:
        if (REAL_DATA / study).is_dir():
            datasets = list_datasets(REAL_DATA / study).datasets
            yield study, {dataset.name: read_counts(dataset.path) for dataset in datasets}


def absent_studies() -> dict[str, str]:
    """Return the real studies that do not lie beside the checkout, with the reason to skip them."""
    absent = [study for study in REAL_STUDIES if not (REAL_DATA / study).is_dir()]
    return dict.fromkeys(absent, "the count files are not beside the checkout")


def simulated_counts(cells: int, genes: int, seed: int = 0) -> csr_matrix:
    """Return simulated counts of one dataset, cells x genes."""
    from neumf_assets.core.counts.simulate.settings import SimulatedDatasetSettings, SimulatorSettings
    from neumf_assets.core.counts.simulate.study import simulate_study

    dataset = SimulatedDatasetSettings(name="ctrl", cells=cells, library_mean=0.08 * genes)
    (study,) = simulate_study(SimulatorSettings(datasets=(dataset,), genes=genes, seed=seed)).values()
    return csr_matrix(study.counts.X)


def interpreter_with(module: str, variable: str) -> str | None:
    """Return a Python that has ``module``: the one an environment variable names, this one, or ``None``.

    Peers whose requirements exclude ours (TensorFlow 2.15 needs NumPy 1) live in an environment of their own.
    """
    for python in (os.environ.get(variable), sys.executable):
        if (
            python
            and subprocess.run([python, "-c", _FIND.format(module)], capture_output=True).returncode == 0
        ):
            return python
    return None


_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec({!r}) is None)"


def run_peer(python: str, script: str, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Run a peer's script of this folder in its own interpreter and return the JSON it prints last."""
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [python, str(path), json.dumps(dict(arguments))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def significant(value: float, digits: int = 4) -> float:
    """Round to significant digits: a benchmark's figures are not known better."""
    return float(f"{value:.{digits}g}")


def say(*words: object) -> None:
    """Print to standard error: standard output belongs to the JSON document."""
    print(*words, file=sys.stderr, flush=True)


def script(main: Callable[[bool], dict[str, Any]]) -> None:
    """Run ``main`` as a script: parse ``--quick``, measure, print one JSON document."""
    module = sys.modules[main.__module__]
    parser = argparse.ArgumentParser(description=(module.__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: about 30 seconds")
    quick = parser.parse_args().quick
    torch.set_num_threads(cores())
    np.random.seed(0)  # noqa: NPY002 - peers draw from NumPy's global generator
    load = os.getloadavg()[0]
    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        found = main(quick)
    name = Path(module.__file__ or "").stem
    document = {"benchmark": name, "quick": quick, **found}
    document |= {
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_rss_mib": peak_rss_mib(),
        "machine": machine() | {"load_before": round(load, 1)},
    }
    if load > 0.5:
        told = f"load was {load:.1f} before it began: something else ran, and absolute times are too long"
        document["notes"] = [*document.get("notes", []), told]
    print(json.dumps(document))
