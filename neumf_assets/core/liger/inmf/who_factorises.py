"""Who factorises with ``workers`` above 1: Ray Train on a Ray cluster, else processes of this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import INMF, RayWorkers

if TYPE_CHECKING:
    from neumf_assets.core.liger.settings import LigerSettings
    from neumf_assets.core.processes import Launch


def inmf_launch(settings: LigerSettings) -> Launch | None:
    """What runs the processes of integrative NMF; ``None``: the calling process factorises alone."""
    if settings.workers == 1:
        return None
    if os.environ.get("NEUMF_EXECUTOR") == "ray":
        return RayWorkers(cpus=settings.threads, module=INMF)
    return LocalProcesses(INMF, threads=settings.threads)
