"""The Study component: one YAML file becomes a study's assets, checks, jobs, sensor and schedule."""

from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import BaseModel

from neumf_assets.core.settings import Settings
from neumf_assets.definitions.studies import parse_study, read_study
from neumf_assets.definitions.study import study_definitions
from neumf_assets.home import Home
from neumf_assets.study.settings import StudySettings


class Study(dg.Component):
    """A single-cell study: several datasets, one NeuMF model each, integrated and compared.

    Attributes are those of :class:`neumf_assets.study.settings.StudySettings`; only ``name`` is required.
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
