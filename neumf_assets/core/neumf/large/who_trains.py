"""Who trains a model with ``workers`` above 1: Ray Train on a Ray cluster, else processes of this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from neumf_assets.core.processes import LocalProcesses
from neumf_assets.core.ray_workers import NEUMF, RayWorkers

if TYPE_CHECKING:
    from neumf_assets.core.neumf.settings import NeuMFSettings
    from neumf_assets.core.neumf.training.fit import Training


def training_of(settings: NeuMFSettings, device: str) -> Training | None:
    """What :func:`neumf_assets.core.neumf.training.fit.fit` is to train with; ``None``: the calling process alone.

    Parameters
    ----------
    settings
        ``workers`` decides; each gets ``threads`` processors (1 where that is not set).
    device
        On ``cuda``, each worker gets a GPU of its own; on this machine there is one process for them all.
    """
    if settings.workers == 1:
        return None
    from neumf_assets.core.neumf.large.parallel import ParallelTraining

    if os.environ.get("NEUMF_EXECUTOR") == "ray":
        on_ray = RayWorkers(cpus=settings.threads or 1, gpu=device != "cpu")
        return ParallelTraining(settings.workers, on_ray)
    if device != "cpu":
        return None  # local workers would share one GPU, and be slower than one process
    return ParallelTraining(settings.workers, LocalProcesses(NEUMF, threads=settings.threads))
