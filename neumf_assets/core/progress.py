"""How long-running work tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by long-running work after each unit (an epoch, a block, an iteration).

    ``stage`` names the work, ``done`` of ``total`` units are finished, ``figures`` holds what a person would
    like to see move (losses, rates).
    """

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Tell that ``done`` of ``total`` units are finished."""


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Ignore all progress."""
