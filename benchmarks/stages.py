"""Stages of a study, computed and stored as the pipeline does it, without Dagster around them."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from neumf_assets.assets.catalogue import PER_DATASET, stages
from neumf_assets.assets.stage import Stage, Step
from neumf_assets.core.measure import measured
from neumf_assets.core.store import Artifact, Draft, Store
from neumf_assets.study.settings import StudySettings


@dataclass(frozen=True)
class StagedStudy:
    """A study whose artifacts lie below a folder of its own.

    Parameters
    ----------
    study
        Its settings; ``inbox`` is where its files are.
    datasets
        Names of its datasets.
    root
        Where artifacts and checkpoints go.
    """

    study: StudySettings
    datasets: tuple[str, ...]
    root: Path

    @property
    def store(self) -> Store:
        """The published artifacts."""
        return Store(self.root / "storage")

    def artifact(self, path: str, dataset: str | None = None) -> Artifact:
        """Return what a stage has stored."""
        return self.store.get((self.study.name, *path.split("/"), *([dataset] if dataset else [])))

    def compute(self, path: str) -> None:
        """Compute and store a stage; one by dataset for every dataset."""
        declared = self.declared(path)
        for dataset in self.datasets if declared.per_dataset else (None,):
            self.compute_one(declared, dataset)

    def declared(self, path: str) -> Stage:
        """Return a stage of the study."""
        return {item.path: item for item in stages(self.study)}[path]

    def compute_one(self, declared: Stage, dataset: str | None) -> None:
        """Compute and store a stage, of one dataset where it is computed by dataset."""
        step = Step(
            study=self.study,
            inputs={name: self._input(name, dataset) for name in declared.inputs},
            dataset=dataset,
            scratch=self.root / "scratch" / declared.path / (dataset or "study"),
        )
        begin = time.perf_counter()
        product = declared.compute(step)
        # what later stages read among the figures; the dense matrix is computed while it is saved
        spent = {"seconds": time.perf_counter() - begin, "peak_memory_mib": 0.0}
        figures = json.loads(json.dumps(product.figures | spent, default=str))
        key = (self.study.name, *declared.name, *([dataset] if dataset else []))

        def save(folder: Path) -> None:
            product.save(folder)

        self.store.publish(key, save, Draft(fingerprint=declared.path, figures=figures))

    def _input(self, name: str, dataset: str | None) -> Artifact | dict[str, Artifact]:
        if name not in PER_DATASET:
            return self.artifact(name)
        if dataset:
            return self.artifact(name, dataset)
        return {each: self.artifact(name, each) for each in self.datasets}


@contextlib.contextmanager
def fresh_process() -> Iterator[Callable[..., Any]]:
    """Give a function that calls another in a process of its own, so that memory and caches are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _begin() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(harness.cores())


def compute_measured(staged: StagedStudy, paths: tuple[str, ...]) -> dict[str, Any]:
    """Compute stages one after another; return the seconds of each, and the peak memory of all, MiB."""
    seconds = {}
    peak = 0.0
    for path in paths:
        with measured() as cost:
            staged.compute(path)
        seconds[path] = cost.seconds
        peak = max(peak, cost.peak_mib)
    return {"seconds": seconds, "peak_mib": peak}
