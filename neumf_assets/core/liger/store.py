"""Factors on disk: loadings of genes and cells with their names, and the objective's curve."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neumf_assets.core.liger.inmf.solver import INMFResult


@dataclass(frozen=True)
class NamedFactors:
    """A factorisation with the names of what was factorised.

    Parameters
    ----------
    result
        The factors.
    datasets
        Names of the datasets, in the order of ``result.V`` and ``result.H``.
    genes
        Names of the columns of W and V.
    """

    result: INMFResult
    datasets: tuple[str, ...]
    genes: tuple[str, ...]

    @property
    def loadings(self) -> NDArray[np.float32]:
        """Cell loadings of all datasets, one after the other: cells × k."""
        return np.vstack(self.result.H)

    def save(self, folder: Path) -> None:
        """Write ``factors.npz`` and ``factors.json``."""
        result = self.result
        arrays: dict[str, Any] = {"W": result.W, "objective": result.objective}
        for name, v, h in zip(self.datasets, result.V, result.H, strict=True):
            arrays[f"V:{name}"], arrays[f"H:{name}"] = v, h
        np.savez(folder / "factors.npz", **arrays)
        described = {
            "datasets": self.datasets,
            "genes": self.genes,
            "seconds": result.seconds,
            "kkt": result.kkt,
            "converged": result.converged,
            "trials": result.trials,
            "online": result.online,
        }
        (folder / "factors.json").write_text(json.dumps(described))

    @classmethod
    def load(cls, folder: Path) -> NamedFactors:
        """Read what :meth:`save` wrote."""
        described = json.loads((folder / "factors.json").read_text())
        datasets = tuple(described["datasets"])
        with np.load(folder / "factors.npz", allow_pickle=False) as arrays:
            result = INMFResult(
                W=arrays["W"],
                V=[arrays[f"V:{name}"] for name in datasets],
                H=[arrays[f"H:{name}"] for name in datasets],
                objective=arrays["objective"],
                seconds=described["seconds"],
                kkt=described["kkt"],
                converged=described["converged"],
                trials=tuple(described["trials"]),
                online=described.get("online", False),
            )
        return cls(result, datasets, tuple(described["genes"]))
