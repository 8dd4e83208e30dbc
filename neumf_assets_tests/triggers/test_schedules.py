"""Timed refreshes: off unless asked for, just what is out of date, and a full training where data were mapped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from neumf_assets.core.errors import BadSettings
from neumf_assets.definitions.studies import parse_study
from neumf_assets.definitions.study import study_definitions
from neumf_assets.triggers.refresh import out_of_date_requests
from neumf_assets_tests.live import BROKEN, Live, counts_csv, live_study, stubbed


@pytest.fixture
def live(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    stubbed(monkeypatch)
    with live_study(tmp_path, on_disk=True, schedule={"cron": "0 2 * * *"}) as study:
        study.put("a.csv", counts_csv(1))
        study.put("b.csv", counts_csv(2))
        study.settle()
        yield study


def _requests(live: Live) -> list[tuple[str | None, int]]:
    found = out_of_date_requests(live.study, live.instance)
    return [(request.partition_key, len(request.asset_selection or ())) for request in found]


def _schedules(**values: Any) -> dict[str, str]:
    definitions = study_definitions(parse_study({"name": "a", **values}, "here"))
    return {one.name: str(one.cron_schedule) for one in definitions.schedules or []}


def test_nothing_runs_at_night_unless_asked() -> None:
    assert _schedules() == {}
    assert _schedules(schedule={"cron": "0 2 * * *"}) == {"a_refresh": "0 2 * * *"}


def test_a_full_training_every_week_where_data_are_mapped() -> None:
    assert _schedules(update="auto") == {"a_retrain": "0 3 * * 0"}
    assert _schedules(update="map", schedule={"retrain": "0 5 1 * *"}) == {"a_retrain": "0 5 1 * *"}
    assert _schedules(update="map", schedule={"retrain": None}) == {}
    assert _schedules(update="map", arms=["liger"]) == {}


@pytest.mark.parametrize("cron", ["nightly", "0 2 * *", ""])
def test_a_cron_expression_that_is_none_is_refused(cron: str) -> None:
    with pytest.raises(BadSettings, match=r"schedule\.cron"):
        parse_study({"name": "a", "schedule": {"cron": cron}}, "here")


def test_nothing_out_of_date_asks_for_nothing(live: Live) -> None:
    assert _requests(live) == []
    schedule = next(iter(live.definitions.schedules or []))
    assert isinstance(schedule, dg.ScheduleDefinition)
    answer = schedule(dg.build_schedule_context(instance=live.instance))
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == "Everything is up to date."


@pytest.mark.parametrize("changed", [[], ["b"], ["a", "b", "c"]])
def test_dagster_takes_what_a_tick_of_the_refresh_asks_for(live: Live, changed: list[str]) -> None:
    live.put("c.csv", counts_csv(3))
    live.settle()
    for name in changed:
        live.put(f"{name}.csv", counts_csv({"a": 2, "b": 3, "c": 4}[name]))
    refresh = live.definitions.resolve_schedule_def("pbmc_refresh")
    for hour in (2, 3):  # the same again as long as it is out of date
        tick = tick_of(refresh, live, hour)
        assert [request.partition_key for request in tick.run_requests or []] == changed
        assert sorted({request.run_key for request in tick.run_requests or []}) == changed
        assert tick.skip_message == (None if changed else "Everything is up to date.")


def test_dagster_takes_a_refresh_of_the_study_alone(live: Live) -> None:
    umap = live.study.umap.model_copy(update={"n_epochs": 77})
    live.use(live.study.model_copy(update={"umap": umap}))
    tick = tick_of(live.definitions.resolve_schedule_def("pbmc_refresh"), live, 2)
    assert [request.partition_key for request in tick.run_requests or []] == [None]


def tick_of(schedule: dg.ScheduleDefinition, live: Live, hour: int) -> Any:
    """What Dagster's scheduler makes of a tick: it resolves partitions and refuses what it cannot launch."""
    context = dg.build_schedule_context(
        instance=live.instance,
        scheduled_execution_time=datetime(2026, 1, 1, hour, tzinfo=UTC),
        repository_def=live.definitions.get_repository_def(),
    )
    return schedule.evaluate_tick(context)


def test_a_changed_file_asks_for_its_dataset_alone(live: Live) -> None:
    live.put("b.csv", counts_csv(5))
    [(dataset, assets)] = _requests(live)
    assert dataset == "b"
    assert assets == 6


def test_a_changed_setting_of_the_study_asks_for_what_depends_on_it(live: Live) -> None:
    umap = live.study.umap.model_copy(update={"n_epochs": 77})
    live.use(live.study.model_copy(update={"umap": umap}))
    [(dataset, assets)] = _requests(live)
    assert dataset is None
    assert 1 < assets < 10


def test_a_refused_file_is_no_reason_to_run(live: Live) -> None:
    live.put("b.csv", BROKEN)
    live.settle()
    runs = list(live.dataset_runs)
    assert _requests(live) == []
    assert runs.count("b") == 2


def test_a_deleted_file_is_a_reason_to_make_the_study_without_it(live: Live) -> None:
    (live.inbox / "a.csv").unlink()
    live.settle()
    [request] = out_of_date_requests(live.study, live.instance)
    assert request.partition_key is None
    live.run_study({"/".join(key.path[1:]) for key in request.asset_selection or ()})
    assert live.integrated() == ["b"]


def test_a_dataset_taken_out_by_hand_leaves_the_study_with_the_next_refresh(live: Live) -> None:
    live.instance.delete_dynamic_partition("pbmc_datasets", "a")
    [(dataset, _)] = _requests(live)
    assert dataset is None
    [request] = out_of_date_requests(live.study, live.instance)
    live.run_study({"/".join(key.path[1:]) for key in request.asset_selection or ()})
    assert live.integrated() == ["b"]
    assert _requests(live) == []


def test_results_of_a_study_that_is_fed_regularly_have_a_time_limit() -> None:
    def policies(**schedule: Any) -> dict[str, dg.FreshnessPolicy | None]:
        graph = study_definitions(
            parse_study({"name": "a", "schedule": schedule}, "here")
        ).resolve_asset_graph()
        return {key.path[-1]: graph.get(key).freshness_policy for key in graph.get_all_asset_keys()}

    assert set(policies().values()) == {None}
    limited = policies(fresh_within_hours=48)
    assert limited["report"] is not None
    assert limited["counts"] is None
