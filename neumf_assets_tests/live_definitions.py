"""The code location with its science replaced, for daemons that tests start.

The asset that a file called ``hold`` in NEUMF_HOME names waits as long as the file is there, and says so by
another called ``held``. An empty one stands for ``liger/cell_embedding``, which holds no device that a dataset
would have to wait for.
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
    while declared.path == _waiting(hold):
        hold.with_name("held").touch()
        time.sleep(0.2)


def _waiting(hold: Path) -> str | None:
    try:
        return hold.read_text() or "liger/cell_embedding"
    except FileNotFoundError:
        return None


stubbed(pytest.MonkeyPatch(), _hold)
