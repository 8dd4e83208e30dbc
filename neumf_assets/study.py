"""The Study component: one YAML file becomes a study's assets, checks, jobs, sensor and schedule."""

from pathlib import Path
from typing import Any, Self

import dagster as dg
import yaml
from pydantic import BaseModel, ValidationError

from neumf_assets.core.errors import BadSettings
from neumf_assets.home import Home
from neumf_assets.settings import Settings, StudySettings, explain
from neumf_assets.study_definitions import study_definitions


class Study(dg.Component):
    """A single-cell study: several datasets, one NeuMF model each, integrated and compared.

    Attributes are those of :class:`neumf_assets.settings.StudySettings`; only ``name`` is required.
    """

    def __init__(self, settings: StudySettings) -> None:
        self.settings = settings

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema of ``attributes``, for the editor and for Dagster's own validation."""
        return StudySettings

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Build from validated attributes; ``{{ env.NAME }}`` in texts is resolved."""
        assert isinstance(attributes, StudySettings)
        values = context.resolution_context.resolve_value(
            attributes.model_dump(mode="json", exclude_unset=True), as_type=dict[str, Any]
        )
        return cls(parse_study(values, str(context.path)))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """All definitions of the study."""
        return study_definitions(self.settings)


class RegisteredStudiesSettings(Settings):
    """Attributes of :class:`RegisteredStudies`."""

    folder: str | None = None


class RegisteredStudies(dg.Component):
    """Every study that ``neumf-assets run INBOX --study NAME`` registered, one YAML file each.

    ``folder`` holds the files; by default it is ``studies/`` below ``NEUMF_HOME``. A file holds what would
    stand under ``attributes`` of a Study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema of ``attributes``."""
        return RegisteredStudiesSettings

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Build from validated attributes."""
        folder = attributes.folder if isinstance(attributes, RegisteredStudiesSettings) else None
        return cls(Path(folder) if folder else Home.from_environment().studies)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The definitions of all registered studies."""
        studies = [read_study(path) for path in sorted(self.folder.glob("*.yaml"))]
        return dg.Definitions.merge(*(study_definitions(study) for study in studies))


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
        return StudySettings.model_validate(values)
    except ValidationError as error:
        raise explain(error, where) from None
