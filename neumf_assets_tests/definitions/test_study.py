"""The Study component: declared in YAML, refused when wrong, usable from another project."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import dagster as dg
import pytest

from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.definitions import defs
from neumf_assets.definitions.studies import all_studies, find_or_register, parse_study, read_study
from neumf_assets.definitions.study import study_definitions
from neumf_assets.home import Home
from neumf_assets.study.launchpad import config_schema, with_overrides
from neumf_assets.study.settings import StudySettings


def test_a_study_has_its_own_group_keys_jobs_and_sensors() -> None:
    definitions = study_definitions(parse_study({"name": "pbmc"}, "here"))
    graph = definitions.resolve_asset_graph()
    keys = {key.path[0] for key in graph.get_all_asset_keys()}
    assert keys == {"pbmc"}
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} == {"pbmc"}
    jobs = {job.name for job in definitions.resolve_all_job_defs()}
    assert {"pbmc_ingest", "pbmc_train", "pbmc_integrate", "pbmc_everything"} <= jobs
    sensors = {sensor.name for sensor in definitions.sensors or []}
    assert sensors == {"pbmc_arrivals", "pbmc_automation"}


def test_every_asset_is_described_owned_and_has_kinds() -> None:
    graph = study_definitions(StudySettings(name="pbmc")).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert len(node.description or "") > 60, key
        assert node.owners, key
        assert node.kinds, key


def test_arms_can_be_left_out() -> None:
    only = study_definitions(StudySettings(name="pbmc", arms=("liger",))).resolve_asset_graph()
    parts = {key.path[1] for key in only.get_all_asset_keys()}
    assert "liger" in parts
    assert "ineumf" not in parts
    assert "neumf_liger" not in parts


def test_a_schedule_only_where_asked_for() -> None:
    assert not study_definitions(StudySettings(name="a")).schedules
    asked = parse_study({"name": "a", "schedule": {"cron": "0 3 * * *"}}, "here")
    schedules = list(study_definitions(asked).schedules or [])
    assert [schedule.name for schedule in schedules] == ["a_refresh"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "a/b"}, ["name", "a/b", "1 to 64 letters, digits"]),
        ({}, ["name: Field required"]),
        ({"name": "a", "modle": {}}, ["modle", "not a setting", "model"]),
        ({"name": "a", "model": {"epochs": 0}}, ["model.epochs = 0", "at least 1, at most 10000"]),
        (
            {"name": "a", "model": {"epochs": "many"}},
            ["model.epochs", "integer", "at least 1, at most 10000"],
        ),
        ({"name": "a", "model": {"tower": [64, 0]}}, ["model.tower.1 = 0", "at least 1, at most 4096"]),
        ({"name": "a", "model": {"learning_rate": 0}}, ["model.learning_rate", "above 0, at most 1"]),
        ({"name": "a", "model": {"epoch": 5}}, ["model.epoch", "not a setting", "epochs"]),
        ({"name": "a", "arms": ["liger", "scvi"]}, ["arms.1", "scvi", "'ineumf'"]),
        ({"name": "a", "arms": ["liger", "liger"]}, ["twice"]),
        ({"name": "a", "qc": {"max_mito": 2}}, ["qc.max_mito = 2", "at least 0.0, at most 1.0"]),
        ({"name": "a", "schedule": {"cron": "99 3 * * *"}}, ["schedule.cron", "99 3", "minute 0-59"]),
        ({"name": "a", "schedule": {"timezone": "Mars/City"}}, ["schedule.timezone", "Mars/City"]),
        ({"name": "a", "owners": ["somebody"]}, ["owners", "'somebody'", "team:NAME"]),
        ({"name": "a", "requests": {"modle": {}}}, ["requests", "'modle'", "neumf_model"]),
        ({"name": "a", "clusters": {"default_resolution": 9}}, ["clusters", "must be one of [0.1"]),
    ],
)
def test_wrong_settings_are_named_with_what_is_allowed(values: dict, words: list[str]) -> None:
    with pytest.raises(BadSettings) as caught:
        parse_study(values, "study.yaml")
    message = str(caught.value)
    for word in ["study.yaml", *words]:
        assert word in message
    assert len(message.splitlines()) == 1
    assert "Value error" not in message


def test_every_wrong_setting_is_named_once() -> None:
    with pytest.raises(BadSettings) as caught:
        parse_study({"name": "a", "model": {"epochs": 0, "tower": [0]}, "arm": 1}, "study.yaml")
    keys = [line.split(": ")[1].split(" = ")[0] for line in str(caught.value).splitlines()]
    assert sorted(keys) == ["arm", "model.epochs", "model.tower.0"]


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- just\n- a list\n")
    with pytest.raises(BadSettings, match="key: value"):
        read_study(path)
    path.write_text("a: [")
    with pytest.raises(BadSettings, match="no YAML"):
        read_study(path)


@pytest.mark.parametrize(
    ("values", "meant"),
    [({"n_epochs": 3}, "epochs"), ({"Epochs": 3}, "epochs"), ({"learning-rate": 0.1}, "learning_rate")],
)
def test_the_nearest_setting_is_named(values: dict, meant: str) -> None:
    with pytest.raises(BadSettings, match=rf"Did you mean {meant}\?"):
        parse_study({"name": "a", "model": values}, "study.yaml")


def test_what_is_like_no_setting_gets_no_guess() -> None:
    with pytest.raises(BadSettings, match=r"not a setting\. Known here"):
        parse_study({"name": "a", "zzzz": 1}, "study.yaml")


WRONG = {
    "key.yaml": "name: key\nmodel: {n_epochs: 3}\n",
    "range.yaml": "name: range\nmodel: {epochs: -3}\n",
    "no-yaml.yaml": "name: [",
    "list.yaml": "- 1\n",
    "binary.yaml": b"\xff\xfe\x00",
    "twice.yaml": "name: good\n",
    "b.yaml": 'name: b\nowners: ["`nobody`"]\n',
}


@pytest.fixture
def studies(home: Path) -> Path:
    folder = home / "studies"
    folder.mkdir(parents=True)
    (folder / "good.yaml").write_text("name: good\n")
    for name, text in WRONG.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_studies_that_cannot_be_loaded_are_shown_and_leave_the_others(studies: Path) -> None:
    loaded = defs()
    assets = {key.to_user_string(): node for key, node in _nodes(loaded).items()}
    assert {"example/report", "good/report"} <= set(assets)
    broken = {key for key in assets if key.endswith("/settings_error")}
    assert broken == {
        f"{name}/settings_error" for name in ("key", "range", "no_yaml", "list", "binary", "twice", "b")
    }
    assert "Did you mean epochs?" in (assets["key/settings_error"].description or "")
    assert "at least 1" in (assets["range/settings_error"].description or "")
    assert "another study has this name" in (assets["twice/settings_error"].description or "")
    assert "good_arrivals" in {sensor.name for sensor in loaded.sensors or []}


def test_a_broken_component_leaves_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "some_defs"
    for name, text in (
        ("one", "name: one\n"),
        ("two", "name: two\n  sensorr: {}\n"),
        ("three", "naem: three\n"),
    ):
        (package / name).mkdir(parents=True)
        lines = "".join(f"  {line}\n" for line in text.splitlines())
        (package / name / "defs.yaml").write_text(f"type: neumf_assets.Study\nattributes:\n{lines}")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("neumf_assets.defs", importlib.import_module("some_defs"))
    assets = _nodes(defs())
    names = {key.to_user_string() for key in assets}
    assert "one/report" in names
    assert {name for name in names if name.endswith("/settings_error")} == {
        "two/settings_error",
        "three/settings_error",
    }


def test_commands_go_on_beside_a_broken_study_and_say_what_is_wrong_with_it(studies: Path) -> None:
    found = all_studies(Home.from_environment())
    assert {"example", "good"} == set(found.found)
    assert found.named("good").name == "good"
    with pytest.raises(BadSettings, match=r"Did you mean epochs\?"):
        found.named("key")
    with pytest.raises(BadSettings, match=r"There is no study 'other'. Known: example, good"):
        found.named("other")
    with pytest.raises(BadSettings, match=r"Did you mean epochs\?"):
        find_or_register(Home.from_environment(), "key", str(studies))


def _nodes(loaded: dg.Definitions) -> dict[dg.AssetKey, dg.AssetSpec]:
    return {spec.key: spec for spec in loaded.resolve_all_asset_specs()}


def test_the_launchpad_shows_every_setting_with_default_and_description() -> None:
    study = parse_study({"name": "a", "model": {"epochs": 7}}, "here")
    shape = config_schema(study, ["model"])["model"].config_type
    fields = shape.fields
    assert set(fields) == set(type(study.model).model_fields)
    assert fields["epochs"].default_value == 7
    assert all(field.description for field in fields.values())
    assert "at least 1" in fields["epochs"].description


def test_run_config_is_validated_again() -> None:
    study = StudySettings(name="a")
    assert with_overrides(study, {"model": {"epochs": 3}}).model.epochs == 3
    assert with_overrides(study, None) is study
    with pytest.raises(BadSettings, match=r"model\.epochs"):
        with_overrides(study, {"model": {"epochs": 0}})


def test_a_section_given_in_part_keeps_the_studys_other_defaults() -> None:
    default, study = StudySettings(name="a"), parse_study({"name": "a", "ineumf": {"epochs": 5}}, "here")
    assert study.ineumf == default.ineumf.model_copy(update={"epochs": 5})
    assert parse_study({"name": "a", "liger": {"k": 7}}, "here").liger.n_genes == default.liger.n_genes
    assert StudySettings.model_validate(study.model_dump(mode="json")) == study


def test_the_notebooks_preset_is_chosen_in_yaml_or_in_the_launchpad() -> None:
    study = parse_study({"name": "a", "model": {"preset": "notebook", "epochs": 5}}, "here")
    assert study.model == NeuMFSettings(preset="notebook", epochs=5)
    plain = StudySettings(name="a")
    form = {
        key: field.default_value
        for key, field in config_schema(plain, ["model"])["model"].config_type.fields.items()
    }
    assert with_overrides(plain, {"model": form}) == plain
    chosen = with_overrides(plain, {"model": form | {"preset": "notebook", "epochs": 5}})
    assert chosen.model == study.model
    back = with_overrides(study, {"model": study.model.model_dump(mode="json") | {"preset": "none"}})
    assert back.model == plain.model
    with pytest.raises(BadSettings, match="single dataset"):
        parse_study({"name": "a", "ineumf": {"preset": "notebook"}}, "here")


def _project(folder: Path, attributes: str) -> Path:
    """Another Dagster project that uses the component by its short type name."""
    package = folder / "lab"
    (package / "defs" / "pbmc").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (package / "defs" / "pbmc" / "defs.yaml").write_text(
        f"type: neumf_assets.Study\nattributes:\n{attributes}"
    )
    (package / "definitions.py").write_text(
        "from pathlib import Path\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (folder / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "lab"\n'
    )
    return folder


def _validate(folder: Path) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(
        """
        from lab.definitions import defs
        print(sorted(key.to_user_string() for key in defs().resolve_asset_graph().get_all_asset_keys())[:3])
        """
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_another_project_can_use_the_component(home: Path, tmp_path: Path) -> None:
    project = _project(tmp_path / "p", "  name: pbmc\n  inbox: '{{ env.LAB_INBOX }}'\n")
    result = _validate(project)
    assert result.returncode == 0, result.stderr
    assert "pbmc/composition" in result.stdout


def test_another_project_is_told_which_setting_is_wrong(home: Path, tmp_path: Path) -> None:
    project = _project(tmp_path / "p", "  name: pbmc\n  model:\n    epochs: -3\n")
    result = _validate(project)
    assert result.returncode != 0
    assert "epochs" in result.stderr
    assert "at least 1, at most 10000" in result.stderr
    assert "defs.yaml" in result.stderr


def test_definitions_of_several_studies_merge() -> None:
    both = dg.Definitions.merge(*(study_definitions(StudySettings(name=name)) for name in ("a", "b")))
    keys = {key.path[0] for key in both.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {"a", "b"}
