"""Who trains a model with ``workers`` above 1: Ray Train on a Ray cluster, else processes of this machine."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumf_assets.core.errors import NeumfError

if TYPE_CHECKING:
    from neumf_assets.core.liger.settings import LigerSettings
    from neumf_assets.core.neumf.parallel import Launch
    from neumf_assets.core.neumf.settings import NeuMFSettings
    from neumf_assets.core.neumf.train import Training

POLL_SECONDS = 0.2
NEUMF, INMF = "neumf_assets.core.neumf.parallel", "neumf_assets.core.liger.sharded"


def training_of(settings: NeuMFSettings, device: str) -> Training | None:
    """What :func:`neumf_assets.core.neumf.train.fit` is to train with; ``None``: the calling process alone.

    Parameters
    ----------
    settings
        ``workers`` decides; each gets ``threads`` processors (1 where that is not set).
    device
        On ``cuda``, each worker gets a GPU of its own; on this machine there is one process for them all.
    """
    if settings.workers == 1:
        return None
    from neumf_assets.core.neumf.parallel import LocalProcesses, ParallelTraining

    if os.environ.get("NEUMF_EXECUTOR") == "ray":
        on_ray = RayWorkers(cpus=settings.threads or 1, gpu=device != "cpu")
        return ParallelTraining(settings.workers, on_ray)
    if device != "cpu":
        return None  # local workers would share one GPU, and be slower than one process
    return ParallelTraining(settings.workers, LocalProcesses(threads=settings.threads))


def machines_of(settings: NeuMFSettings | LigerSettings) -> int:
    """On how many machines' memory workers are: each worker's on Ray, else this one's."""
    return settings.workers if os.environ.get("NEUMF_EXECUTOR") == "ray" else 1


def inmf_launch(settings: LigerSettings) -> Launch | None:
    """What runs the processes of integrative NMF; ``None``: the calling process factorises alone."""
    if settings.workers == 1:
        return None
    from neumf_assets.core.neumf.parallel import LocalProcesses

    if os.environ.get("NEUMF_EXECUTOR") == "ray":
        return RayWorkers(cpus=settings.threads, module=INMF)
    return LocalProcesses(threads=settings.threads, module=INMF)


@dataclass(frozen=True)
class RayWorkers:
    """Runs workers as Ray Train's, spread over the nodes of a cluster.

    The training's folder must be the same on all nodes. A worker that is lost (killed, out of memory, with its
    node) is replaced, and all continue from the last checkpoint, which :mod:`neumf_assets.core.neumf.parallel`
    writes into that folder.

    Parameters
    ----------
    cpus, gpu
        What each worker asks for.
    restarts
        How often lost workers are replaced: all are started again, over a new connection to the cluster. Over a
        connection that was there before it is Ray Train that does so, which gives up where a worker is lost in
        the moment when it is given its work.
    address
        The cluster; ``None``: ``RAY_ADDRESS``, inside a Ray job its own cluster.
    module
        Whose ``work`` they do.
    """

    cpus: int = 1
    gpu: bool = False
    restarts: int = 3
    address: str | None = None
    module: str = NEUMF

    def __call__(self, folder: Path, size: int, poll: Callable[[], None]) -> None:
        """Run all workers to the end.

        Raises
        ------
        NeumfError
            If there is no cluster, or workers fail again and again.
        """
        import ray

        own, failures = not ray.is_initialized(), list[Exception]()
        while len(failures) <= (self.restarts if own else 0):
            if own:
                self._connect()
            try:
                failure = self._attempt(folder, size, poll, restarts=0 if own else self.restarts)
            finally:
                if own:
                    ray.shutdown()  # and so ends what is left of the attempt, which has the next one's processors
            if failure is None:
                return
            failures.append(failure)
        raise NeumfError(
            f"parallel training on Ray failed in {self.restarts + 1} attempts, last because {failures[-1]}. "
            "Started again, it goes on from its last checkpoint."
        ) from failures[-1]

    def _connect(self) -> None:
        import ray

        try:
            ray.init(address=self.address or "auto", log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise NeumfError(
                f"workers: no Ray cluster at {self.address or os.environ.get('RAY_ADDRESS') or 'auto'} "
                f"({error}); set RAY_ADDRESS, or workers to 1"
            ) from None

    def _attempt(self, folder: Path, size: int, poll: Callable[[], None], restarts: int) -> Exception | None:
        """Run all workers; return what kept them from coming to the end."""
        failures: list[Exception] = []
        thread = threading.Thread(target=self._fit, args=(folder, size, restarts, failures), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            poll()
        shutil.rmtree(folder / "ray", ignore_errors=True)
        return failures[0] if failures else None

    def _fit(self, folder: Path, size: int, restarts: int, failures: list[Exception]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        try:
            TorchTrainer(
                worker,
                train_loop_config={"folder": str(folder.absolute()), "module": self.module},
                torch_config=TorchConfig(backend="nccl" if self.gpu else "gloo", timeout_s=600),
                scaling_config=ScalingConfig(
                    num_workers=size,
                    use_gpu=self.gpu,
                    resources_per_worker={"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})},
                    placement_strategy="SPREAD",
                ),
                run_config=RunConfig(
                    name=uuid.uuid4().hex,  # a name that was used before would be continued
                    storage_path=str(folder.absolute() / "ray"),
                    failure_config=FailureConfig(max_failures=restarts),
                ),
            ).fit()
        except Exception as error:  # told by the thread that waits
            failures.append(error)


def worker(config: dict[str, Any]) -> None:
    """Be one of Ray Train's workers."""
    import ray.train

    context = ray.train.get_context()
    import_module(config["module"]).work(
        Path(config["folder"]), context.get_world_rank(), context.get_world_size()
    )
