"""The arrival sensor: what it asks for when files come, change, go and come back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.core.store import Store
from neumf_assets.intake.arrival import Watch
from neumf_assets.study.settings import ArrivalSettings, StudySettings
from neumf_assets.triggers.sensors import arrival_sensor

CSV = ",AAAC-1,AAAG-1\nISG15,1,0\nCD3D,0,2\n"


class Ticks:
    """One study's sensor, ticked by hand."""

    def __init__(self, inbox: Path, instance: dg.DagsterInstance) -> None:
        self.inbox, self.instance = inbox, instance
        self.cursor: str | None = None
        self.sensor = arrival_sensor(
            StudySettings(name="pbmc", inbox=str(inbox), arrival=ArrivalSettings(quiet_seconds=0))
        )

    def tick(self) -> list[str]:
        """Partitions that runs were asked for."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = self.sensor(context)
        self.cursor = context.cursor
        self.keys: list[str | None] = []
        if isinstance(result, dg.SkipReason):
            return []
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(
                    request.partitions_def_name, list(request.partition_keys)
                )
                continue
            for key in request.partition_keys:
                self.instance.delete_dynamic_partition(request.partitions_def_name, key)
        self.keys = [request.run_key for request in result.run_requests or []]
        return [str(request.partition_key) for request in result.run_requests or []]

    def partitions(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions("pbmc_datasets"))


@pytest.fixture
def ticks(home: Path, tmp_path: Path):
    inbox = tmp_path / "in"
    inbox.mkdir()
    with dg.instance_for_test() as instance:
        yield Ticks(inbox, instance)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


def test_a_new_file_becomes_a_partition_and_one_run_once_it_rests(ticks: Ticks) -> None:
    _write(ticks.inbox / "ctrl.csv", CSV)
    assert ticks.tick() == []
    assert ticks.tick() == ["ctrl"]
    assert ticks.partitions() == {"ctrl"}
    assert ticks.tick() == []
    assert ticks.tick() == []


def test_a_file_that_still_grows_waits(ticks: Ticks) -> None:
    for rows in range(3):
        _write(ticks.inbox / "ctrl.csv", CSV + "MS4A1,1,1\n" * rows)
        assert ticks.tick() == []
    assert ticks.tick() == ["ctrl"]


def test_a_burst_asks_for_one_run_each(ticks: Ticks) -> None:
    for number in range(12):
        _write(ticks.inbox / f"d{number}.csv", CSV)
    ticks.tick()
    assert sorted(ticks.tick()) == sorted(f"d{number}" for number in range(12))
    assert ticks.tick() == []


def test_a_tick_at_rest_looks_into_the_folder_and_not_into_the_storage(
    ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        _write(ticks.inbox / f"d{number}.csv", CSV)
    ticks.tick()
    ticks.tick()

    def find(*arguments: object) -> None:
        raise AssertionError(f"looked for {arguments}")

    monkeypatch.setattr(Store, "find", find)
    assert ticks.tick() == []
    assert ticks.tick() == []


def test_what_one_look_cannot_compare_with_the_storage_waits_and_then_all_is_asked_for_at_once(
    ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage far away may take longer over a thousand datasets than a tick may last."""
    monkeypatch.setattr("neumf_assets.intake.arrival.LOOK_SECONDS", 0.0)
    for number in range(4):
        _write(ticks.inbox / f"d{number}.csv", CSV)
    asked = [ticks.tick() for _ in range(4)]
    assert asked == [[], [], [], []]  # one to see that they rest, and one for each but the last
    assert sorted(ticks.tick()) == ["d0", "d1", "d2", "d3"]
    assert ticks.tick() == []


def test_a_changed_file_runs_again_and_so_does_one_that_changes_back(ticks: Ticks) -> None:
    path = ticks.inbox / "ctrl.csv"
    keys = []
    for text in (CSV, CSV + "MS4A1,1,1\n", CSV):
        _write(path, text)
        ticks.tick()
        assert ticks.tick() == ["ctrl"]
        keys += ticks.keys
    assert len(set(keys)) == 3  # Dagster drops a run key that it has seen before


def test_a_changed_label_file_runs_again(ticks: Ticks) -> None:
    _write(ticks.inbox / "ctrl.csv", CSV)
    ticks.tick()
    ticks.tick()
    _write(ticks.inbox / "ctrl.labels.csv", "cell,cell_type\nAAAC-1,B\nAAAG-1,T\n")
    ticks.tick()
    assert ticks.tick() == ["ctrl"]


def test_a_deleted_file_leaves_at_two_ticks_in_a_row_and_can_come_back(ticks: Ticks) -> None:
    path = ticks.inbox / "ctrl.csv"
    _write(path, CSV)
    ticks.tick()
    ticks.tick()
    path.unlink()
    assert ticks.tick() == []
    assert ticks.partitions() == {"ctrl"}
    assert ticks.tick() == []
    assert ticks.partitions() == set()
    _write(path, CSV)
    ticks.tick()
    assert ticks.tick() == ["ctrl"]


def test_a_name_that_breaks_the_rule_is_not_asked_for(ticks: Ticks) -> None:
    _write(ticks.inbox / "bad name!.csv", CSV)
    _write(ticks.inbox / "good.csv", CSV)
    ticks.tick()
    assert ticks.tick() == ["good"]
    assert ticks.partitions() == {"good"}


def test_an_inbox_that_is_not_there_skips_with_the_reason(home: Path, tmp_path: Path) -> None:
    sensor = arrival_sensor(StudySettings(name="pbmc", inbox=str(tmp_path / "gone")))
    with dg.instance_for_test() as instance:
        result = sensor(dg.build_sensor_context(instance=instance))
    assert isinstance(result, dg.SkipReason)
    assert "gone" in (result.skip_message or "")


def test_a_departure_is_told_once() -> None:
    watch = Watch(requested={"ctrl": "x"})
    assert watch.departures(set()) == ["ctrl"]
    assert watch.departures(set()) == []
    assert Watch.from_cursor(watch.to_cursor()) == watch
