"""What 1 to 100 million cells would take: a plan on paper from measured constants, its network part simulated.

Measured here: pairs that a core trains in a second, and bytes that workers sum in a step. Measured by the
benchmark ``scale``, where its result is at hand: seconds and memory of all stages. The rest is assumed, and said.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.parallel import train_by

GENES, COLUMNS, EPOCHS = 2000, 33, 50
STEP_CELLS = 256
"""Cells of each worker in a step: with more workers a step holds more cells, so that sums stay as rare."""
FLEETS = ((1_000_000, 2), (10_000_000, 16), (100_000_000, 64), (100_000_000, 256))
SCALE = harness.ROOT / "benchmarks" / "results" / "scale.json"


@dataclass(frozen=True)
class Constants:
    """What the plan rests on.

    Parameters
    ----------
    pairs_per_second
        Of a worker on one core; measured.
    bytes_per_step
        Of the tensors that are summed; measured.
    entries_per_cell
        Non-zeros; the simulator's.
    bytes_per_second, latency
        Of a worker's network; assumed: 10 Gbit/s, 50 µs for a message.
    price
        Of a core for an hour; assumed.
    jitter
        Standard deviation of the logarithm of a step's time; assumed.
    """

    pairs_per_second: float
    bytes_per_step: float
    entries_per_cell: float = 130.0
    bytes_per_second: float = 1.25e9
    latency: float = 50e-6
    price: float = 0.04
    jitter: float = 0.1


def step_seconds(known: Constants, workers: int) -> tuple[float, float]:
    """Return the seconds of a step that are computed, and those of a ring all-reduce after it."""
    computed = STEP_CELLS * GENES / known.pairs_per_second
    messages = 2 * (workers - 1)
    return computed, messages * hop_seconds(known, workers)


def hop_seconds(known: Constants, workers: int) -> float:
    """Return the seconds of one message of a ring: a worker's part of what is summed."""
    return known.bytes_per_step / workers / known.bytes_per_second + known.latency


def simulated_step(known: Constants, workers: int, steps: int = 50, seed: int = 0) -> float:
    """Return the mean seconds of a step of workers whose times vary, every message of the ring played through.

    A worker sends on when it has computed and its neighbour's message is there; no one waits for all.
    """
    rng = np.random.default_rng(seed)
    computed, _ = step_seconds(known, workers)
    now = np.zeros(workers)
    for _ in range(steps):
        now += computed * rng.lognormal(-(known.jitter**2) / 2, known.jitter, workers)
        for _ in range(2 * (workers - 1)):
            now = np.maximum(now, np.roll(now, 1)) + hop_seconds(known, workers)
    return float(now.max() / steps)


def training(known: Constants, cells: int, workers: int) -> dict[str, Any]:
    """Return what training one model of all cells takes."""
    computed, summed = step_seconds(known, workers)
    simulated = simulated_step(known, workers)
    steps = EPOCHS * cells / (STEP_CELLS * workers)
    hours = steps * simulated / 3600
    # the counts of its cells as positions and values; their embeddings with Adam's state and a checkpoint's copy
    held = cells / workers * (8 * known.entries_per_cell + 4 * 4 * COLUMNS)
    return {
        "cells": cells,
        "workers": workers,
        "hours": harness.significant(hours, 3),
        "share_of_sums": harness.significant(summed / (computed + summed), 2),
        "simulated_over_formula": harness.significant(simulated / (computed + summed), 3),
        "sent_gib_per_worker": harness.significant(
            steps * known.bytes_per_step * 2 * (workers - 1) / workers / 2**30, 3
        ),
        "gib_per_worker": harness.significant(held / 2**30, 3),
        "disk_gib": harness.significant(cells * (3 * 8 * known.entries_per_cell + 2 * GENES) / 2**30, 3),
        "cost": harness.significant(hours * workers * known.price, 3),
    }


def extrapolated(wholes: list[dict[str, Any]], what: str, cells: int) -> float:
    """Return what a straight line through the two largest sizes gives for ``cells``."""
    (x, y), (u, v) = [(row["cells"], row[what]) for row in sorted(wholes, key=lambda row: row["cells"])][-2:]
    return y + (v - y) / (u - x) * (cells - x)


def whole_study(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what all stages take by the measured sizes, and how well the smaller ones foretell the largest."""
    wholes = [row for row in rows if row["stage"] == "whole study" and "failed" not in row]
    if len(wholes) < 2:
        return {}
    found = {}
    largest = max(wholes, key=lambda row: row["cells"])
    others = [row for row in wholes if row is not largest]
    for what in ("seconds", "peak_mib"):
        if len(others) > 1:
            told = extrapolated(others, what, largest["cells"])
            name = f"{what} of {largest['cells']:,} cells, measured over foretold from the smaller sizes"
            found[name] = harness.significant(largest[what] / told, 3)
        for cells in (10_000_000, 100_000_000):
            name = f"{what} of {cells:,} cells on one machine like this"
            found[name] = harness.significant(extrapolated(wholes, what, cells), 3)
    return found


def main(quick: bool = False) -> dict[str, Any]:
    cells, genes = (1000, 400) if quick else (8000, GENES)
    alone, _ = train_by(1, cells, genes, "gmf", 3)
    _, pair = train_by(2, 1000, GENES, "gmf", 1)
    known = Constants(alone, pair.traffic.bytes_per_step)
    rows = [training(known, *fleet) for fleet in FLEETS]
    measured = json.loads(SCALE.read_text())["rows"] if SCALE.exists() else []
    return {
        "title": f"plan for training one model of {GENES} genes, {EPOCHS} epochs, workers of one core",
        "rows": rows,
        "ratios": whole_study(measured),
        "notes": [f"{name}: {value:.4g}" for name, value in asdict(known).items()],
    }


if __name__ == "__main__":
    harness.script(main)
