"""What a step asks of a cluster is what it works with."""

from __future__ import annotations

from pathlib import Path

import pytest

from neumf_assets.assets.stage import Stage, Step
from neumf_assets.core import memory
from neumf_assets_tests.live import counts_csv, live_study, stubbed

REQUESTS = {
    "ingest": {"memory_mib": 3000},
    "counts": {"memory_mib": 1024},
    "neumf_model": {"memory_mib": 2**24},
}


@pytest.mark.parametrize(("executor", "counts"), [("ray", 512 << 20), ("in_process", 32 << 30)])
def test_on_ray_a_step_works_with_half_of_the_memory_that_it_asked_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, counts: int
) -> None:
    found = {}

    def note(declared: Stage, step: Step) -> None:
        found[declared.path] = memory.budget()

    monkeypatch.delenv("NEUMF_MEMORY", raising=False)
    monkeypatch.setenv("NEUMF_EXECUTOR", executor)
    monkeypatch.setattr(memory, "available", lambda: 64 << 30)
    stubbed(monkeypatch, during=note)
    with live_study(tmp_path, requests=REQUESTS) as live:
        live.put("ctrl.csv", counts_csv())
        live.arrivals()
        live.arrivals()
        assert live.run_dataset("ctrl")
    assert found["counts"] == counts
    assert found["neumf_model"] == 32 << 30, "a machine has no more"
    assert memory.budget() == 32 << 30
