"""The code location with its science replaced, for daemons that tests start; :func:`live.hold` holds its steps."""

import pytest

from neumf_assets.definitions import defs
from neumf_assets_tests.live import hold, stubbed

__all__ = ["defs"]

stubbed(pytest.MonkeyPatch(), hold)
