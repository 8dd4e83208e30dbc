"""Reading, finding and registering studies."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

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


class Studies(NamedTuple):
    """All studies of the code location.

    Parameters
    ----------
    found
        By name.
    broken
        What is wrong with the others, by what their file (or folder) is called: their settings cannot be read.
    """

    found: dict[str, StudySettings]
    broken: dict[str, BadSettings]

    def named(self, name: str, mend: str = "") -> StudySettings:
        """Return the study called ``name``.

        Raises
        ------
        BadSettings
            What is wrong with its settings; or that there is none, and ``mend``.
        """
        if name in self.found:
            return self.found[name]
        if name in self.broken:
            raise self.broken[name]
        known = ", ".join(sorted(self.found))
        raise BadSettings(f"There is no study {name!r}. Known: {known}.{mend}")


def all_studies(home: Home) -> Studies:
    """Every study that the code location holds; one that cannot be read leaves the others as they are."""
    shipped = [(path.parent.name, path, read_component) for path in sorted(_DEFS.glob("*/defs.yaml"))]
    registered = [(path.stem, path, read_study) for path in sorted(home.studies.glob("*.yaml"))]
    found: dict[str, StudySettings] = {}
    broken: dict[str, BadSettings] = {}
    for name, path, read in [*shipped, *registered]:
        try:
            study = read(path)
            if study is not None:
                found[study.name] = check_new(study, found, path)
        except BadSettings as error:
            broken[name] = error
    return Studies(found, broken)


def check_new(study: StudySettings, others: Container[str], where: Path) -> StudySettings:
    """Return a study whose name no other has.

    Raises
    ------
    BadSettings
        If another has it: their assets would be the same.
    """
    if study.name in others:
        raise BadSettings(
            f"{where}: name = {study.name!r}: another study has this name. Give one of them another."
        )
    return study


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
    if inbox is None or name in studies.broken:
        return studies.named(name, " Give an inbox to make a new one.")
    if name in studies.found:
        return _same_inbox(home, studies.found[name], inbox)
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
    return parse_study(_mapping_in(path), str(path))


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


def _same_inbox(home: Home, study: StudySettings, inbox: str) -> StudySettings:
    if inbox == study.inbox:
        return study
    file = home.studies / f"{study.name}.yaml"
    change = (
        f", or change it in {file}" if file.exists() else ""
    )  # not in a study that is part of the package
    raise BadSettings(
        f"Study {study.name!r} exists with the inbox {study.inbox or home.inbox(study.name)}. "
        f"Leave the inbox out, or choose another --study name{change}."
    )


def read_component(path: Path) -> StudySettings | None:
    """Read the settings of a study from the YAML file of its component; ``None`` where it is another component.

    Raises
    ------
    BadSettings
        As :func:`read_study`.
    """
    values = _mapping_in(path)
    if not str(values.get("type", "")).endswith(".Study"):
        return None
    return parse_study(values.get("attributes") or {}, str(path))


def _mapping_in(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror or error}.") from None
    if not isinstance(values, dict):
        raise BadSettings(f"{path} must hold settings as 'key: value' lines.")
    return values
