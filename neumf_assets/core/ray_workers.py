"""Workers of a training or a factorisation on a Ray cluster, run by Ray Train."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from neumf_assets.core.errors import NeumfError
from neumf_assets.core.processes import end_after, to_the_end

_logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2

DISCONNECT_SECONDS = 30.0

REACH_SECONDS = 10.0
"""How long the head of a cluster may refuse connections, as it does while it is started again."""

SILENT_SECONDS = 15.0
"""After this long without an answer of the cluster it is said what is waited for; Ray itself tries for minutes."""

NEUMF, INMF = "neumf_assets.core.neumf.large.parallel", "neumf_assets.core.liger.inmf.sharded"


class HasWorkers(Protocol):
    """Settings that say how many workers there are."""

    @property
    def workers(self) -> int:
        """Number of workers."""
        ...


def machines_of(settings: HasWorkers) -> int:
    """On how many machines' memory workers are: each worker's on Ray, else this one's."""
    return settings.workers if os.environ.get("NEUMF_EXECUTOR") == "ray" else 1


@dataclass(frozen=True)
class RayWorkers:
    """Runs workers as Ray Train's, spread over the nodes of a cluster.

    The training's folder must be the same on all nodes. A worker that is lost (killed, out of memory, with its
    node) is replaced, and all continue from the last checkpoint, which :mod:`neumf_assets.core.neumf.large.parallel`
    writes into that folder.

    Parameters
    ----------
    cpus, gpu
        What each worker asks for.
    restarts
        How often lost workers are replaced: all are started again.
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
        to_the_end(lambda: self._attempt(folder, size, poll), self.restarts, "on Ray")

    def _attempt(self, folder: Path, size: int, poll: Callable[[], None]) -> str:
        """Run all workers from a process of their own; return what kept them from coming to the end.

        With the process goes its connection to the cluster, and with that all that is left of the attempt. Ray
        Train itself would replace lost workers, but gives up where one is lost as it is given its work; and Ray
        crashes now and then while it disconnects.
        """
        context = multiprocessing.get_context("spawn")
        told, tell = context.Pipe(duplex=False)
        leader = context.Process(target=_lead, args=(self, folder.absolute(), size, self._cluster(), tell))
        leader.start()
        tell.close()
        try:
            outcome = _listen(told, poll, self.named_cluster())
            leader.join(DISCONNECT_SECONDS)
        except EOFError:
            leader.join(DISCONNECT_SECONDS)
            outcome = {"failed": f"the process that leads the workers ended with {leader.exitcode}"}
        finally:
            leader.kill()
            leader.join()
            shutil.rmtree(folder / "ray", ignore_errors=True)
        if "refused" in outcome:
            raise NeumfError(outcome["refused"])
        return str(outcome.get("failed", ""))

    def _cluster(self) -> str:
        """Return the cluster's address; within somebody's session with Ray that session's, if none is given."""
        ray = sys.modules.get("ray")
        if self.address is None and ray is not None and ray.is_initialized():
            return str(ray.get_runtime_context().gcs_address)
        return self.address or "auto"

    def named_cluster(self) -> str:
        """Where the cluster is looked for, as the user would know it."""
        address = self._cluster()
        return os.environ.get("RAY_ADDRESS") or address if address == "auto" else address

    def fit(self, folder: Path, size: int) -> None:
        """Train over a connection to the cluster that is there."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        TorchTrainer(
            worker,
            train_loop_config={"folder": str(folder), "module": self.module},
            torch_config=TorchConfig(backend="nccl" if self.gpu else "gloo", timeout_s=600),
            scaling_config=ScalingConfig(
                num_workers=size,
                use_gpu=self.gpu,
                resources_per_worker={"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})},
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,  # a name that was used before would be continued
                storage_path=str(folder / "ray"),
            ),
        ).fit()


def _listen(told: Connection, poll: Callable[[], None], cluster: str) -> dict[str, Any]:
    """Wait for the outcome of an attempt, and say it where the cluster does not answer."""
    connected, silent_since = False, time.monotonic()
    while True:
        while not told.poll(POLL_SECONDS):
            poll()
            if not connected and time.monotonic() - silent_since > SILENT_SECONDS:
                connected = True  # once is enough
                _logger.warning("workers: the Ray cluster at %s does not answer yet; still trying", cluster)
        message: dict[str, Any] = json.loads(told.recv_bytes())
        if "connected" not in message:
            return message
        connected = True


def _lead(workers: RayWorkers, folder: Path, size: int, address: str, tell: Connection) -> None:
    """Lead the workers of one attempt, in a process that ends with the one that started it."""
    import ray

    parent = multiprocessing.parent_process()
    assert parent is not None
    end_after(parent.join)
    outcome = {}
    try:
        _connect(address, workers.named_cluster())
        tell.send_bytes(json.dumps({"connected": True}).encode())
        workers.fit(folder, size)
    except NeumfError as error:
        outcome["refused"] = str(error)
    except Exception as error:  # told by the process that waits
        outcome["failed"] = str(error)
    tell.send_bytes(json.dumps(outcome).encode())
    tell.close()
    ray.shutdown()


def _connect(address: str, known: str) -> None:
    """Connect this process to the cluster; without one, another attempt would find none either."""
    import ray

    try:
        _reach(known)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise NeumfError(
            f"workers: no Ray cluster at {known} ({error}); set RAY_ADDRESS, or workers to 1"
        ) from error


def _reach(address: str) -> None:
    """Try whether anything listens at ``host:port``, for Ray would try for minutes.

    Raises
    ------
    OSError
        If nothing does within :data:`REACH_SECONDS`.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto": Ray looks for a cluster of this machine, and says at once where there is none
    until = time.monotonic() + REACH_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=max(1.0, until - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.5)


def worker(config: dict[str, Any]) -> None:
    """Be one of Ray Train's workers."""
    import ray.train

    context = ray.train.get_context()
    import_module(config["module"]).work(
        Path(config["folder"]), context.get_world_rank(), context.get_world_size()
    )
