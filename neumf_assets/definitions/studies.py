"""Reading, finding and registering studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from neumf_assets.assets.catalogue import check_requests
from neumf_assets.core.counts.discover import is_url
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.store import write_atomically
from neumf_assets.home import Home
from neumf_assets.study.settings import StudySettings, check_name, explain

_DEFS = Path(__file__).parents[1] / "defs"
EXAMPLE = "example"


def all_studies(home: Home) -> dict[str, StudySettings]:
    """Every study that the code location holds, by name."""
    shipped = [_read_component(path) for path in sorted(_DEFS.glob("*/defs.yaml"))]
    registered = [read_study(path) for path in sorted(home.studies.glob("*.yaml"))]
    return {study.name: study for study in [*filter(None, shipped), *registered]}


def find_or_register(home: Home, name: str | None, inbox: str | None) -> StudySettings:
    """The study called ``name``; a new one is registered when there is an inbox to go with it.

    Raises
    ------
    BadSettings
        If the name is unknown and no inbox is given, the name breaks the rule, the inbox is no folder, or the
        study exists with another inbox.
    """
    if inbox is not None and not is_url(inbox):
        if not Path(inbox).is_dir():
            raise BadSettings(f"{inbox} is no folder. Give the folder that holds the study's count files.")
        inbox = str(Path(inbox).resolve())
    name = check_name(name or (Path(inbox).name if inbox else EXAMPLE), "study")
    studies = all_studies(home)
    if name in studies:
        return _same_inbox(home, studies[name], inbox)
    if inbox is None:
        raise BadSettings(
            f"There is no study {name!r}. Known: {', '.join(sorted(studies))}. "
            "Give an inbox to make a new one."
        )
    study = StudySettings(name=name, inbox=inbox)
    values = {"name": name, "inbox": inbox}
    text = (
        "# Settings of this study; every key of neumf_assets.study.settings.StudySettings may stand here.\n"
    )
    write_atomically(home.studies / f"{name}.yaml", (text + yaml.safe_dump(values, sort_keys=False)).encode())
    return study


def read_study(path: Path) -> StudySettings:
    """Read a study's settings from a YAML file.

    Raises
    ------
    BadSettings
        If the file is no YAML mapping, or a setting is unknown or out of range.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BadSettings(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadSettings(f"{path} must hold settings as 'key: value' lines.")
    return parse_study(values, str(path))


def parse_study(values: dict[str, Any], where: str) -> StudySettings:
    """Validate a study's settings.

    Raises
    ------
    BadSettings
        Naming each wrong key and what is allowed.
    """
    try:
        study = StudySettings.model_validate(values)
    except ValidationError as error:
        raise explain(error, where) from None
    check_requests(study, where)
    return study


def _same_inbox(home: Home, study: StudySettings, inbox: str | None) -> StudySettings:
    if inbox is None or inbox == study.inbox:
        return study
    file = home.studies / f"{study.name}.yaml"
    change = (
        f", or change it in {file}" if file.exists() else ""
    )  # not in a study that is part of the package
    raise BadSettings(
        f"Study {study.name!r} exists with the inbox {study.inbox or home.inbox(study.name)}. "
        f"Leave the inbox out, or choose another --study name{change}."
    )


def _read_component(path: Path) -> StudySettings | None:
    values = yaml.safe_load(path.read_text())
    if not str(values.get("type", "")).endswith(".Study"):
        return None
    return parse_study(values.get("attributes") or {}, str(path))
