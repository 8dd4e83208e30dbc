"""The benchmark of scale: a run that was broken off goes on, and what it says of the sizes together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan, scale


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Let the stages cost nothing; give what was called."""
    made: list[tuple[Any, ...]] = []

    def in_child(*call: Any) -> dict[str, float]:
        made.append(call)
        return {"seconds": 1.0, "peak_mib": 100 + len(made), "read_mib": 2}

    monkeypatch.setattr(scale, "in_child", in_child)
    return made


def test_what_is_done_is_not_repeated(
    tmp_path: Path, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = scale.in_child

    def breaks(*call: Any) -> dict[str, float]:
        if call[2] == "shared_genes":
            raise RuntimeError("killed")
        return working(*call)

    (tmp_path / "storage").mkdir()
    monkeypatch.setattr(scale, "in_child", breaks)
    first = scale.measure(tmp_path, 1000)
    assert first[-1]["failed"] == "RuntimeError: killed" and first[-1]["stage"] == "shared_genes"
    assert (tmp_path / "storage").exists()
    done = len(calls)
    monkeypatch.setattr(scale, "in_child", working)
    second = scale.measure(tmp_path, 1000)
    assert second[:done] == first[:done] and calls[done][2] == "shared_genes"
    assert [row["stage"] for row in second][-1] == "report"
    assert not (tmp_path / "storage").exists()
    assert len(calls) == len(second)
    assert scale.measure(tmp_path, 1000) == second and len(calls) == len(second)


def test_another_budget_is_another_run(
    tmp_path: Path, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUMF_MEMORY", "1GiB")
    rows = scale.measure(tmp_path, 1000)
    monkeypatch.setenv("NEUMF_MEMORY", "2GiB")
    scale.measure(tmp_path, 1000)
    assert len(calls) == 2 * len(rows)


def test_sizes_are_compared_by_cell_and_by_exponent() -> None:
    rows = [
        {"stage": stage, "cells": cells, "seconds": seconds * cells, "peak_mib": peak, "read_mib": 3}
        for cells in (1000, 10_000)
        for stage, seconds, peak in (("a", 1e-3, 400), ("b", 2e-3, 300 * (cells / 1000) ** 0.5))
    ]
    small, large = (scale.totals([row for row in rows if row["cells"] == c], c) for c in (1000, 10_000))
    assert small == {
        "stage": "whole study",
        "cells": 1000,
        "seconds": 3.0,
        "processor_seconds": 0,
        "read_mib": 6,
        "written_mib": 0,
        "disk_read_mib": 0,
        "disk_written_mib": 0,
        "peak_mib": 400,
        "microseconds_per_cell": 3000.0,
    }
    found = scale.growth([small, large])
    assert found["time of a cell from 1,000 to 10,000 cells, times"] == 1.0
    assert found["peak memory from 1,000 to 10,000 cells, times"] == pytest.approx(949 / 400, abs=0.01)
    fitted = scale.exponents([*rows, small, large])
    assert fitted["exponent of seconds in cells: whole study"] == 1.0
    assert fitted["exponent of peak_mib in cells: b"] == 0.5


def test_bytes_and_processor_seconds_of_a_call_are_counted(tmp_path: Path) -> None:
    found = scale.in_child("simulated_inbox", tmp_path / "inbox", 200)
    assert found["processor_seconds"] > 0 and found["written_mib"] >= 0
    assert {"peak_mib", "read_mib", "disk_read_mib", "disk_written_mib"} <= set(found)
    assert len(list((tmp_path / "inbox").glob("*.h5ad"))) == 2


KNOWN = plan.Constants(pairs_per_second=1e7, bytes_per_step=2.7e5, jitter=0.0)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_the_plan_agrees_with_a_simulation_of_every_message(workers: int) -> None:
    computed, summed = plan.step_seconds(KNOWN, workers)
    assert plan.simulated_step(KNOWN, workers) == pytest.approx(computed + summed, rel=1e-9)
    varied = replace(KNOWN, jitter=0.1)
    assert computed + summed <= 1.02 * plan.simulated_step(varied, workers) < 1.5 * (computed + summed)


def test_what_is_sent_follows_from_workers_and_steps_and_memory_from_cells_of_a_worker() -> None:
    small, large = (plan.training(KNOWN, cells, workers) for cells, workers in ((10**6, 4), (10**8, 400)))
    assert small["gib_per_worker"] == large["gib_per_worker"]
    steps = [sum(plan.step_seconds(KNOWN, workers)) for workers in (4, 400)]
    assert large["hours"] / small["hours"] == pytest.approx(steps[1] / steps[0], rel=0.02)
    sent = large["sent_gib_per_worker"] / small["sent_gib_per_worker"]
    assert sent == pytest.approx((399 / 400) / (3 / 4), rel=0.02)
    alone = plan.training(KNOWN, 10**6, 1)
    assert alone["share_of_sums"] == alone["sent_gib_per_worker"] == 0


def test_a_straight_line_tells_what_the_largest_size_takes() -> None:
    rows = [
        {"stage": "whole study", "cells": cells, "seconds": 50 + 0.003 * cells, "peak_mib": 600.0}
        for cells in (10_000, 100_000, 1_000_000)
    ]
    found = plan.whole_study(rows)
    assert found["seconds of 1,000,000 cells, measured over foretold from the smaller sizes"] == 1.0
    assert found["seconds of 100,000,000 cells on one machine like this"] == pytest.approx(300_050, rel=0.01)
    assert plan.whole_study(rows[:1]) == {}
