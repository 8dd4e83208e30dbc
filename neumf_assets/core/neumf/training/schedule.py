"""The step size over a training, and the rule that stops it."""

from __future__ import annotations

import numpy as np

from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.state import State


def stalled(state: State, settings: NeuMFSettings) -> bool:
    """Tell whether the held-out loss has not improved for as many epochs as the settings have patience."""
    return bool(state.best and settings.patience and state.epoch - state.best_epoch >= settings.patience)


def rate_shares(settings: NeuMFSettings, epoch: int, epochs: int, steps: int) -> list[float]:
    """Return the share of its peak that the step size has in every step of an epoch."""
    done = (epoch * steps + np.arange(steps) + 1) / (epochs * steps)
    last = settings.final_rate
    shape = {
        "constant": np.ones(steps),
        "linear": 1 - (1 - last) * done,
        "cosine": last + (1 - last) * 0.5 * (1 + np.cos(np.pi * done)),
    }[settings.schedule]
    rise = np.minimum(1.0, done / settings.warmup) if settings.warmup else 1.0
    return [float(share) for share in shape * rise]
