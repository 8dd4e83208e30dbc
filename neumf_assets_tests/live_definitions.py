"""The code location with its science replaced, for daemons that tests start.

``liger/cell_embedding`` waits as long as there is a file called ``hold`` in NEUMF_HOME; it holds no device,
for which a dataset would have to wait.
"""

import os
import time
from pathlib import Path

import pytest

from neumf_assets.assets.stage import Stage, Step
from neumf_assets.definitions import defs
from neumf_assets_tests.live import stubbed

__all__ = ["defs"]


def _hold(declared: Stage, step: Step) -> None:
    hold = Path(os.environ["NEUMF_HOME"]) / "hold"
    while declared.path == "liger/cell_embedding" and hold.exists():
        time.sleep(0.2)


stubbed(pytest.MonkeyPatch(), _hold)
