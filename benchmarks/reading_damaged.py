"""Reading damaged files of every format: tracebacks, hangs, memory, and matrices that are wrong without a word.

A process of its own reads, and is ended where it does not come to an end.

What a reader makes of a damaged file is a refusal of ours, or a matrix. A matrix counts as wrong where it differs from
the truth in more than one cell and more than one gene at a time without a word: one number, one row or one column that
was changed into another of its kind cannot be told by anybody.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import re
import shutil
import tempfile
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness

HANG_SECONDS = 20.0
MEMORY_FACTOR, MEMORY_BYTES = 4, 300 * 2**20
CELLS, GENES = 60, 80
_WRONG = ("wrong, and said", "wrong without a word")
_FAULTS = ("traceback", "hang", "crash")


def truth() -> Any:
    """A dataset in memory that every format can hold."""
    from neumf_assets_tests.core.counts.files import Case

    counts = np.random.default_rng(0).poisson(0.7, (CELLS, GENES))
    letters = np.array(list("ACGT"))[(np.arange(CELLS)[:, None] // 4 ** np.arange(12)) % 4]
    cells = ["".join(row) + "-1" for row in letters]
    genes = ["ACTB", "B2M", "CD3D", "GAPDH", "MT-CO1", *(f"LINC{number:05d}" for number in range(GENES - 5))]
    return Case(counts, cells, genes)


def mutate(path: Path, random_: random.Random) -> str:
    """Damage one file of a dataset in place; say how."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    file = random_.choice([one for one in files if one.stat().st_size])
    content = bytearray(file.read_bytes())
    lines = bytes(content).split(b"\n")
    kind = random_.choice(["flip", "truncate", "drop line", "double line", "empty field"])
    at = random_.randrange(len(lines))
    if kind == "flip":
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    elif kind == "truncate":
        del content[random_.randrange(len(content)) :]
    elif kind == "drop line":
        content = bytearray(b"\n".join(lines[:at] + lines[at + 1 :]))
    elif kind == "double line":
        content = bytearray(b"\n".join(lines[: at + 1] + lines[at:]))
    else:
        fields = re.split(rb"([,\t; ])", lines[at])
        fields[random_.randrange(len(fields))] = b""
        lines[at] = b"".join(fields)
        content = bytearray(b"\n".join(lines))
    file.write_bytes(content)
    return kind


def serve(pipe: Connection) -> None:
    """Read what is asked for; tell what became of it, and the memory that it took."""
    from neumf_assets.core.counts.readers import read_counts
    from neumf_assets.core.errors import BadInput
    from neumf_assets_tests.core.counts.files import FORMATS

    warnings.simplefilter("ignore")
    case, said = truth(), []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("neumf_assets").addHandler(handler)
    logging.getLogger("neumf_assets").setLevel(logging.INFO)
    while True:
        path, name = pipe.recv()
        said.clear()
        Path("/proc/self/clear_refs").write_text("5")
        before = _peak()
        try:
            found = read_counts(path, FORMATS[name][1])
            outcome = _judged(found, case, bool(said))
        except BadInput:
            outcome = "refused"
        except Exception as error:  # what is looked for
            outcome = f"traceback: {type(error).__name__}: {error}"[:200]
        pipe.send((outcome, _peak() - before))


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _judged(found: Any, case: Any, said: bool) -> str:
    """Whether a matrix that was read is the truth, or differs in no more than one row, column or name."""
    names = list(found.obs_names), list(found.var["original_name"])
    rows = dict(zip(names[0], found.X.toarray(), strict=True))
    wrong_cells = sum(
        name not in rows or len(rows[name]) != len(case.genes) or (rows[name] != row).any()
        for name, row in zip(case.cells, case.counts, strict=True)
    )
    columns = dict(zip(names[1], found.X.toarray().T, strict=True))
    wrong_genes = sum(
        name not in columns or len(columns[name]) != len(case.cells) or (columns[name] != column).any()
        for name, column in zip(case.genes, case.counts.T, strict=True)
    )
    if not wrong_cells and not wrong_genes:
        return "right"
    if min(wrong_cells, wrong_genes) <= 1:
        return "one row, column or name differs"
    return "wrong, and said" if said else "wrong without a word"


def main(quick: bool = False) -> dict[str, Any]:
    """Read 2,000 damaged files (quick: 200); count what became of them by format."""
    from neumf_assets_tests.core.counts.files import FORMATS

    number = 200 if quick else 2000
    random_, case = random.Random(0), truth()
    context = multiprocessing.get_context("spawn")
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in FORMATS}
    examples: list[str] = []
    worst, worker, pipe = 0.0, None, None
    with tempfile.TemporaryDirectory() as folder:
        sound = {
            name: writer(_made(Path(folder) / str(place)), case)
            for place, (name, (writer, _)) in enumerate(FORMATS.items())
        }
        for turn in range(number):
            name = random_.choice(list(FORMATS))
            scratch = _made(Path(folder) / "scratch")
            shutil.copytree(sound[name].parent, scratch, dirs_exist_ok=True)
            path = scratch / sound[name].name
            kind = mutate(path, random_)
            size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
            if worker is None or not worker.is_alive():
                pipe, theirs = context.Pipe()
                worker = context.Process(target=serve, args=(theirs,), daemon=True)
                worker.start()
                theirs.close()
            assert pipe is not None
            pipe.send((str(path), name))
            try:
                answered = pipe.poll(HANG_SECONDS if turn else 60.0)
                outcome, memory = pipe.recv() if answered else ("hang", 0)
            except EOFError:
                outcome, memory = "crash", 0
            if outcome == "hang":
                worker.kill()
                worker.join()
            worst = max(worst, memory / (MEMORY_FACTOR * size + MEMORY_BYTES))
            if outcome.startswith(("traceback", "hang", "crash", "wrong without")):
                examples.append(f"{name}, {kind} (turn {turn}): {outcome}")
            outcomes[name][outcome.split(":")[0]] += 1
            shutil.rmtree(scratch)
    if worker is not None:
        worker.kill()
        worker.join()
    kinds = ("right", "one row, column or name differs", "refused", *_WRONG, *_FAULTS)
    rows = [
        {"format": name, "files": sum(found.values()), **{kind: found[kind] for kind in kinds}}
        for name, found in outcomes.items()
    ]
    total = sum(outcomes.values(), Counter[str]())
    return {
        "title": f"Reading {number} damaged files",
        "rows": rows,
        "ratios": {
            "tracebacks": total["traceback"] + total["crash"],
            "hangs over 20 s": total["hang"],
            "wrong without a word": total["wrong without a word"],
            "peak memory / (4 times the input + 300 MiB), at most": round(worst, 3),
        },
        "notes": examples[:20],
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    harness.script(main)
