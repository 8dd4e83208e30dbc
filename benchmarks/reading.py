"""Reading a gzipped gene × cell CSV: seconds and peak memory of ours beside polars.read_csv alone.

The control cells of Kang et al. 2018 where they lie beside the checkout, else a simulated file. Ours reads,
checks and stores names, labels, digest and a sparse matrix; polars only parses the text into a dense table.
Each reading is a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness

REPEATS = 5
METHODS = {
    "ours": "from neumf_assets.core.counts.readers import read_counts as read",
    "polars.read_csv": "from polars import read_csv as read",
}
_PROGRAM = """
import json, re, sys, time
{imported}
begin = time.perf_counter()
found = read(sys.argv[1])
seconds = time.perf_counter() - begin
status = open("/proc/self/status").read()
print(json.dumps([seconds, int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024]))
"""


def requires() -> str | None:
    """Peak memory is read where Linux tells it."""
    return None if Path("/proc/self/status").exists() else "peak memory is measured on Linux only"


def write_simulated(folder: Path, cells: int, genes: int) -> Path:
    """Write simulated counts as a gzipped gene × cell CSV."""
    counts = harness.simulated_counts(cells, genes)
    path = folder / "ctrl.csv.gz"
    with gzip.open(path, "wt", compresslevel=6) as file:
        file.write("," + ",".join(f"cell{number}" for number in range(counts.shape[0])) + "\n")
        for gene, column in enumerate(counts.T.toarray()):
            file.write(f"gene{gene}," + ",".join(map(str, column.tolist())) + "\n")
    return path


def read_once(imported: str, path: Path) -> tuple[float, float]:
    """Read the file in a new process; return seconds and peak MiB."""
    command = [sys.executable, "-c", _PROGRAM.format(imported=imported), str(path)]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main(quick: bool = False) -> dict[str, Any]:
    """Read the file in turn by each method, several times."""
    real = harness.REAL_DATA / "kang_seed" / "ctrl.csv.gz"
    with tempfile.TemporaryDirectory() as folder:
        use_real = real.exists() and not quick
        path = real if use_real else write_simulated(Path(folder), 500, 2000)
        what = "Kang et al. 2018, 14,879 genes × 3,000 cells" if use_real else "simulated, 2,000 × 500"
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
        for _ in range(2 if quick else REPEATS):  # in turn, so that a busy moment meets both alike
            for name, imported in METHODS.items():
                found[name].append(read_once(imported, path))
    seconds = {name: statistics.median(one for one, _ in measured) for name, measured in found.items()}
    rows = [
        {
            "method": name,
            "seconds": harness.significant(seconds[name]),
            "peak_memory_mib": round(max(peak for _, peak in measured)),
        }
        for name, measured in found.items()
    ]
    ratio = harness.significant(seconds["ours"] / seconds["polars.read_csv"])
    return {
        "title": f"Reading a gzipped CSV ({what})",
        "rows": rows,
        "ratios": {"ours / polars.read_csv, seconds": ratio},
    }


if __name__ == "__main__":
    harness.script(main)
