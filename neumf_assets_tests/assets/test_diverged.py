"""A model whose training got worse is told by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from neumf_assets.assets.model import say_if_diverged


@pytest.mark.parametrize(
    ("losses", "told"), [((2.0, 1.0), False), ((1.0, 2.0), True), ((1.0, float("nan")), True)]
)
def test_a_training_that_ends_worse_is_warned_of(
    losses: tuple[float, float], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = SimpleNamespace(history=[{"train_loss": loss} for loss in losses])
    say_if_diverged(model, "The model of ctrl")
    assert ("The model of ctrl: the training diverged" in caplog.text) is told
