"""The Study component: one YAML file becomes a study's assets, checks, jobs, sensor and schedule."""

from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import BaseModel

from neumf_assets.core.settings import Settings
from neumf_assets.definitions.broken import broken_study
from neumf_assets.definitions.studies import check_new, parse_study, read_component, read_study
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
        return self.definitions()

    def definitions(self) -> dg.Definitions:
        """The definitions of all registered studies; what is wrong with one is shown in its place."""
        names: set[str] = set()
        found = []
        for path in sorted(self.folder.glob("*.yaml")):
            try:
                study = check_new(read_study(path), names, path)
                found.append(study_definitions(study))
                names.add(study.name)
            except Exception as error:  # whatever it is, the other studies go on
                found.append(broken_study(path.stem, path, error))
        return dg.Definitions.merge(*found)


def without_tree(path: Path) -> dg.Definitions:
    """The definitions of a component's file, texts as they stand there: no ``{{ env.NAME }}`` is resolved.

    Raises
    ------
    BadSettings
        If the file is wrong.
    ValueError
        If the component is none of this package.
    """
    study = read_component(path)
    if study is not None:
        return study_definitions(study)
    if "RegisteredStudies" not in path.read_text(encoding="utf-8"):
        raise ValueError(f"{path} holds no component of this package")
    return RegisteredStudies(Home.from_environment().studies).definitions()
