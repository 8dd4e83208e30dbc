"""What happens when data arrive: the exact number of runs, and what the study is made of afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import fsspec
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.loader import LoadingContextForTest

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.stage import Stage, Step
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.study.names import job_name
from neumf_assets_tests.live import BROKEN, Live, counts_csv, live_study, stubbed


@pytest.fixture
def live(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    stubbed(monkeypatch)
    with live_study(tmp_path) as study:
        yield study


def all_of(live: Live) -> set[str]:
    """All that belongs to the study as a whole."""
    return {item.path for item in stages(live.study) if not item.per_dataset}


def test_idle_nothing_runs(live: Live) -> None:
    live.settle()
    assert live.dataset_runs == []
    assert live.study_runs == []


def test_an_arrival_is_one_run_of_the_dataset_and_one_of_the_study(live: Live) -> None:
    live.put("ctrl.csv", counts_csv())
    live.settle()
    assert live.dataset_runs == ["ctrl"]
    assert live.study_runs == [all_of(live)]
    assert live.integrated() == ["ctrl"]


def test_a_burst_rebuilds_the_study_once(live: Live) -> None:
    for number in range(5):
        live.put(f"d{number}.csv", counts_csv(number))
    live.settle()
    assert sorted(live.dataset_runs) == [f"d{number}" for number in range(5)]
    assert live.study_runs == [all_of(live)]
    assert live.integrated() == [f"d{number}" for number in range(5)]


def test_the_study_waits_until_every_dataset_of_a_burst_is_done(live: Live) -> None:
    live.put("a.csv", counts_csv(1))
    live.put("b.csv", counts_csv(2))
    live.arrivals()
    assert sorted(live.arrivals()) == ["a", "b"]
    live.run_dataset("a")
    assert live.conditions() == set()
    assert live.conditions() == set()
    live.run_dataset("b")
    assert live.conditions() == all_of(live)


def test_an_inbox_that_is_not_quiet_is_waited_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed(monkeypatch)
    with live_study(tmp_path, arrival={"quiet_seconds": 100, "poll_seconds": 30}) as live:
        for number in range(4):  # one at each look: never quiet for 100 seconds
            live.put(f"d{number}.csv", counts_csv(number))
            assert live.arrivals() == []
        assert live.arrivals() == []
        assert "waiting" in live.last.summary
        assert live.arrivals() == []
        assert live.arrivals() == []
        assert sorted(live.arrivals()) == ["d0", "d1", "d2", "d3"]


def test_an_inbox_that_never_gets_quiet_is_not_waited_for_for_ever(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed(monkeypatch)
    with live_study(tmp_path, arrival={"quiet_seconds": 60, "poll_seconds": 30}) as live:
        asked: list[str] = []
        for number in range(40):
            live.put(f"d{number}.csv", counts_csv(number % 7))
            asked += live.arrivals()
        assert "d0" in asked
        assert len(set(asked)) == len(asked)


def test_a_dataset_that_lands_while_the_study_is_rebuilt_is_integrated_by_the_next_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study: list[Live] = []

    def during(declared: Stage, step: Step) -> None:
        live = study[0]
        if declared.path == "liger/factors" and live.dataset_runs == ["a"]:
            live.put("late.csv", counts_csv(5))
            live.arrivals()
            assert live.arrivals() == ["late"]
            assert live.run_dataset("late")
            assert live.conditions() == set()  # the rebuild is in progress

    stubbed(monkeypatch, during)
    with live_study(tmp_path, arms=["liger", "neumf_liger", "ineumf"]) as live:
        study.append(live)
        live.put("a.csv", counts_csv(1))
        live.settle()
        assert live.dataset_runs == ["a", "late"]
        assert live.study_runs == [all_of(live), all_of(live)]
        assert all(result.success for result in live.results)
        assert live.integrated() == ["a", "late"]


def test_a_changed_dataset_waits_for_the_rebuild_that_uses_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study: list[Live] = []

    def during(declared: Stage, step: Step) -> None:
        live = study[0]
        if declared.path == "liger/factors" and live.dataset_runs == ["a"]:
            live.put("a.csv", counts_csv(2))
            live.arrivals()
            assert live.arrivals() == []

    stubbed(monkeypatch, during)
    with live_study(tmp_path) as live:
        study.append(live)
        live.put("a.csv", counts_csv(1))
        live.settle()
        assert live.dataset_runs == ["a", "a"]
        assert len(live.study_runs) == 2
        assert all(result.success for result in live.results)


def test_a_broken_file_is_refused_with_its_reason_everywhere_and_holds_nobody_up(live: Live) -> None:
    live.put("good.csv", counts_csv())
    live.put("bad.csv", BROKEN)
    live.settle()
    assert sorted(live.dataset_runs) == ["bad", "good"]
    assert len(live.study_runs) == 1
    assert live.integrated() == ["good"]
    assert live.partitions() == {"good"}
    note = (live.inbox / "bad.refused.txt").read_text()
    assert "line 2" in note
    assert "'x'" in note
    failed = next(result for result in live.results if not result.success)
    event = next(e for e in failed.all_events if e.event_type_value == "STEP_FAILURE")
    assert "line 2" in event.step_failure_data.user_failure_data.description
    key = dg.AssetKey(["pbmc", "raw_counts"])
    observed = live.instance.fetch_observations(key, limit=10).records
    assert any("line 2" in str(record.event_log_entry.asset_observation.metadata) for record in observed)
    check = live.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(key, "nothing_refused"), limit=1
    )[0]
    assert check.event.dagster_event.event_specific_data.passed is False
    assert "Refused: bad" in live.last.summary


def _shown(live: Live) -> bool | None:
    """What the UI shows of the check on refused files: passed, failed, or (None) "not evaluated"."""
    key = dg.AssetCheckKey(dg.AssetKey(["pbmc", "raw_counts"]), "nothing_refused")
    record = live.instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    if record is None or not isinstance(record.evaluation, dg.AssetCheckEvaluation):
        return None
    current = asyncio.run(record.targets_latest_materialization(LoadingContextForTest(live.instance)))
    return bool(record.evaluation.passed) if current else None


def test_a_refusal_stays_visible_when_other_datasets_are_materialised(live: Live) -> None:
    live.put("bad.csv", BROKEN)
    live.settle()
    live.put("good.csv", counts_csv(1))
    live.settle()
    assert _shown(live) is False
    # As in a burst, where the check of a run that was planned earlier does not count as the last one
    live.instance.report_runless_asset_event(
        dg.AssetMaterialization(["pbmc", "raw_counts"], partition="good")
    )
    assert _shown(live) is None
    live.arrivals()
    assert _shown(live) is False
    assert live.last.events != []
    live.arrivals()
    assert live.last.events == []  # told once


def test_a_run_that_is_cut_off_does_not_hide_what_is_refused(live: Live) -> None:
    live.put("bad.csv", BROKEN)
    live.settle()
    job = live.definitions.resolve_job_def(job_name("pbmc", "train"))
    run = live.instance.create_run_for_job(job, tags={"dagster/partition": "good"})
    key = dg.AssetKey(["pbmc", "raw_counts"])
    planned = AssetCheckEvaluationPlanned(asset_key=key, check_name="nothing_refused")
    live.instance.report_dagster_event(
        DagsterEvent(
            DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value, job.name, event_specific_data=planned
        ),
        run.run_id,
    )
    assert _shown(live) is None
    live.arrivals()
    assert _shown(live) is None  # it will be evaluated by the run
    live.instance.report_run_failed(run, "killed")
    live.arrivals()
    assert _shown(live) is False


def test_a_corrected_file_comes_back_under_the_same_name(live: Live) -> None:
    live.put("bad.csv", BROKEN)
    live.settle()
    assert live.partitions() == set()
    assert live.study_runs == []
    live.put("bad.csv", counts_csv())
    live.settle()
    assert live.dataset_runs == ["bad", "bad"]
    assert len(live.study_runs) == 1
    assert live.integrated() == ["bad"]
    assert not (live.inbox / "bad.refused.txt").exists()
    assert "No file is refused" in live.last.summary


def test_a_broken_update_leaves_the_earlier_version_in_use(live: Live) -> None:
    live.put("a.csv", counts_csv(1))
    live.put("b.csv", counts_csv(2))
    live.settle()
    live.put("a.csv", BROKEN)
    live.settle()
    assert sorted(live.dataset_runs) == ["a", "a", "b"]
    assert len(live.study_runs) == 1
    assert live.partitions() == {"a", "b"}
    assert "stays in use" in (live.inbox / "a.refused.txt").read_text()
    live.put("c.csv", counts_csv(3))
    live.settle()
    assert len(live.study_runs) == 2
    assert live.integrated() == ["a", "b", "c"]


def test_a_dataset_whose_file_is_deleted_leaves_the_study_and_that_is_said_once(live: Live) -> None:
    live.put("a.csv", counts_csv(1))
    live.put("b.csv", counts_csv(2))
    live.settle()
    (live.inbox / "a.csv").unlink()
    news = []
    for _ in range(4):
        live.arrivals()
        news += live.last.news
    assert len([line for line in news if "gone: it leaves the study" in line]) == 1
    assert live.partitions() == {"b"}
    live.put("c.csv", counts_csv(3))
    live.settle()
    assert live.integrated() == ["b", "c"]
    observed = live.instance.fetch_observations(dg.AssetKey(["pbmc", "raw_counts"]), limit=10).records
    assert len(observed) == 1


def test_a_renamed_file_is_not_counted_twice(live: Live) -> None:
    live.put("a.csv", counts_csv(1))
    live.put("b.csv", counts_csv(2))
    live.settle()
    (live.inbox / "a.csv").rename(live.inbox / "patient.csv")
    live.settle()
    assert live.integrated() == ["b", "patient"]


def test_a_deleted_file_of_a_dataset_to_be_kept_is_reported_once_and_its_results_stay(live: Live) -> None:
    live.use(live.study.model_copy(update={"keep": ("a",)}))
    live.put("a.csv", counts_csv(1))
    live.settle()
    (live.inbox / "a.csv").unlink()
    news = []
    for _ in range(4):
        live.arrivals()
        news += live.last.news
    assert len([line for line in news if "gone" in line]) == 1
    assert live.partitions() == {"a"}
    live.settle()
    assert live.dataset_runs == ["a"]
    assert len(live.study_runs) == 1
    observed = live.instance.fetch_observations(dg.AssetKey(["pbmc", "raw_counts"]), limit=10).records
    assert len(observed) == 1


def test_the_same_small_file_put_back_needs_no_run(live: Live) -> None:
    live.put("a.csv", counts_csv(1))
    live.settle()
    (live.inbox / "a.csv").unlink()
    live.settle()
    live.put("a.csv", counts_csv(1))
    live.settle()
    assert live.dataset_runs.count("a") <= 2
    assert live.materialisations("raw_counts", "a") == 1


def test_the_same_large_file_uploaded_again_is_read_and_nothing_else(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neumf_assets.core.counts.discover.SMALL", 1)  # so that time of change counts
    live.put("a.csv", counts_csv(1))
    live.settle()
    live.put("a.csv", counts_csv(1))
    live.settle()
    assert live.dataset_runs == ["a", "a"]
    assert live.materialisations("raw_counts", "a") == 2
    assert live.materialisations("counts", "a") == 1
    assert live.materialisations("neumf_model", "a") == 1
    assert len(live.study_runs) == 1


def test_changed_content_runs_the_dataset_and_the_study_again(live: Live) -> None:
    live.put("a.csv", counts_csv(1))
    live.settle()
    live.put("a.csv", counts_csv(2))
    live.settle()
    assert live.dataset_runs == ["a", "a"]
    assert len(live.study_runs) == 2


def test_runs_that_fail_through_no_fault_of_the_file_are_repeated_and_then_given_up(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"a"}

    def during(declared: Stage, step: Step) -> None:
        if declared.path == "neumf_model" and step.dataset in failing:
            raise OSError("No space left on device")

    stubbed(monkeypatch, during)
    with live_study(tmp_path) as live:
        live.put("a.csv", counts_csv(1))
        live.put("b.csv", counts_csv(2))
        live.settle()
        assert live.dataset_runs.count("a") == live.study.arrival.attempts
        assert live.dataset_runs.count("b") == 1
        assert live.integrated() == ["b"]
        assert "3 runs failed" in (live.inbox / "a.refused.txt").read_text()
        failing.clear()
        live.put("a.csv", counts_csv(3))
        live.settle()
        assert live.integrated() == ["a", "b"]


def test_a_file_that_cannot_be_a_dataset_is_noted_once_it_rests(live: Live) -> None:
    live.put("bad name!.csv", counts_csv())
    news = []
    for _ in range(4):
        live.arrivals()
        news += live.last.news
    assert len(news) == 1
    assert (live.inbox / "bad name!.csv.refused.txt").exists()
    (live.inbox / "bad name!.csv").unlink()
    live.arrivals()
    assert not (live.inbox / "bad name!.csv.refused.txt").exists()


def test_an_inbox_that_cannot_be_written_to_keeps_the_reason_at_home(live: Live, home: Path) -> None:
    live.put("bad.csv", BROKEN)
    (live.inbox / "bad.refused.txt").mkdir()  # stands in for missing permission, which root has anyway
    live.settle()
    assert live.partitions() == set()
    assert "line 2" in (home / "quarantine" / "pbmc" / "bad.json").read_text()


def test_settings_that_could_make_a_refused_file_readable_give_it_another_try(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed(monkeypatch)
    with live_study(tmp_path) as live:
        live.put("bad.csv", BROKEN)
        live.settle()
        live.settle()
        assert live.dataset_runs == ["bad"]
        live.use(live.study.model_copy(update={"read": ReadSettings(orientation="genes_by_cells")}))
        live.settle()
        assert live.dataset_runs == ["bad", "bad"]


def test_an_inbox_may_be_a_url(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch)
    files, folder = fsspec.filesystem("memory"), f"/{tmp_path.name}"
    files.makedirs(folder)
    with live_study(tmp_path, inbox=f"memory:/{folder}") as live:
        files.pipe_file(f"{folder}/good.csv", counts_csv(1).encode())
        files.pipe_file(f"{folder}/bad.csv", BROKEN.encode())
        live.settle()
        assert sorted(live.dataset_runs) == ["bad", "good"]
        assert live.integrated() == ["good"]
        assert "line 2" in files.cat_file(f"{folder}/bad.refused.txt").decode()
        files.pipe_file(f"{folder}/bad.csv", counts_csv(2).encode())
        live.settle()
        assert live.integrated() == ["bad", "good"]
        assert not files.exists(f"{folder}/bad.refused.txt")
        files.rm_file(f"{folder}/good.csv")
        live.arrivals()
        live.arrivals()
        assert "gone" in " ".join(live.last.news)
        assert live.partitions() == {"bad"}
