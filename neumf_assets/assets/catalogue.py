"""All stages of a study, upstream first."""

from neumf_assets.assets import ingest, model
from neumf_assets.assets.stage import Stage
from neumf_assets.settings import StudySettings


def stages(study: StudySettings) -> list[Stage]:
    """The stages that a study's settings ask for, in an order in which they can be computed."""
    return [*ingest.STAGES, *model.STAGES]
