"""Random numbers by purpose, so that more of one thing changes nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from neumf_assets.core.counts.simulate.settings import SimulatorSettings

Floats = npt.NDArray[np.float64]

Ints = npt.NDArray[np.int64]

GENES, PILOT, DATASET, CELLS = range(4)  # what a stream of random numbers is for


def stream(settings: SimulatorSettings, *purpose: int) -> np.random.Generator:
    """Random numbers for a purpose, which others do not disturb."""
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=purpose))


def settings_hash(settings: SimulatorSettings) -> str:
    """SHA-256 of the settings: what the simulated data follow from."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
