"""All stages of a study, upstream first."""

from neumf_assets.assets import ingest, integrate, model
from neumf_assets.assets.arms import common_stages
from neumf_assets.assets.report import report_stages
from neumf_assets.assets.stage import Stage
from neumf_assets.settings import ARMS, StudySettings


def stages(study: StudySettings) -> list[Stage]:
    """The stages that a study's settings ask for, in an order in which they can be computed."""
    arms = [arm for arm in ARMS if arm in study.arms]
    own = [integrate.shared_genes, *(item for arm in arms for item in integrate.STAGES[arm])]
    common = [item for arm in arms for item in common_stages(arm)]
    return [*ingest.STAGES, *model.STAGES, *own, *common, *report_stages(study.arms)]
