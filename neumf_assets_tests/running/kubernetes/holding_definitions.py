"""The code location with all its science, for tests that hold a step; :func:`live.hold` says how."""

import pytest

from neumf_assets.assets.catalogue import stages
from neumf_assets.definitions import defs
from neumf_assets.study.settings import StudySettings
from neumf_assets_tests.live import hold, stubbed

__all__ = ["defs"]

stubbed(pytest.MonkeyPatch(), hold, frozenset(item.path for item in stages(StudySettings(name="tiny"))))
