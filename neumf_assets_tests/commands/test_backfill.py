"""Backfills from the command line: a real backfill of the instance, on the datasets that were meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.cli import main
from neumf_assets.commands.backfill import backfill, choose_datasets
from neumf_assets.core.errors import BadSettings
from neumf_assets.definitions.studies import find_or_register
from neumf_assets.home import Home
from neumf_assets.intake.quarantine import Quarantine, Refusal
from neumf_assets.study.settings import StudySettings
from neumf_assets_tests.live import counts_csv


@pytest.fixture
def instance(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    folders = Home.from_environment()
    folders.prepare()
    inbox = tmp_path / "in"
    inbox.mkdir()
    for name in ("a", "b", "refused"):
        (inbox / f"{name}.csv").write_text(counts_csv())
    study = find_or_register(folders, "pbmc", str(inbox))
    found = next(path for path in inbox.iterdir() if path.stem == "refused")
    assert found.exists()
    _refuse(study, "refused")
    with dg.DagsterInstance.get() as opened:
        yield opened


def _study() -> StudySettings:
    return find_or_register(Home.from_environment(), "pbmc", None)


def _refuse(study: StudySettings, name: str) -> None:
    from neumf_assets.assets.catalogue import stages
    from neumf_assets.study.sources import find_sources

    item = next(item for item in find_sources(study).datasets if item.name == name)
    first = stages(study)[0]
    Quarantine(study).add(
        Refusal(name, "no good", item.identity, stage=first.path, code_version=first.code_version(study))
    )


def test_all_datasets_but_refused_ones_by_default(instance: dg.DagsterInstance) -> None:
    assert choose_datasets(_study(), instance, None) == ["a", "b"]
    assert set(instance.get_dynamic_partitions("pbmc_datasets")) == {"a", "b"}


def test_a_refused_dataset_can_be_asked_for_by_name(instance: dg.DagsterInstance) -> None:
    assert choose_datasets(_study(), instance, ["refused"]) == ["refused"]
    assert set(instance.get_dynamic_partitions("pbmc_datasets")) == {"refused"}


def test_an_unknown_dataset_or_study_is_named(instance: dg.DagsterInstance) -> None:
    with pytest.raises(BadSettings, match=r"nowhere.*Known: a, b"):
        choose_datasets(_study(), instance, ["a", "nowhere"])
    with pytest.raises(BadSettings, match=r"elsewhere.*pbmc"):
        backfill("elsewhere", None, "train")
    assert set(instance.get_dynamic_partitions("pbmc_datasets")) == set()


@pytest.mark.parametrize(("job", "per_dataset", "of_study"), [("ingest", 3, 0), ("everything", 6, 33)])
def test_the_instance_gets_a_backfill_of_the_jobs_assets(
    instance: dg.DagsterInstance,
    capsys: pytest.CaptureFixture[str],
    job: str,
    per_dataset: int,
    of_study: int,
) -> None:
    assert main(["backfill", "--study", "pbmc", "--dataset", "a", "--dataset", "b", "--job", job]) == 0
    shown = capsys.readouterr().out
    [found] = instance.get_backfills()
    assert found.backfill_id in shown
    assert "daemon" in shown
    assert found.tags["study"] == "pbmc"
    data = found.asset_backfill_data
    assert data is not None
    subset = data.target_subset
    assert {len(one) for one in subset.partitions_subsets_by_asset_key.values()} == {2}
    assert len(subset.partitions_subsets_by_asset_key) == per_dataset
    assert len(subset.non_partitioned_asset_keys) == of_study
    assert os.environ["DAGSTER_HOME"] == str(Home.from_environment().dagster)
