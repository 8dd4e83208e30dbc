"""A real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neumf_assets.running.file_lock import FileLock

OBJECT_STORE = 80 * 2**20
NODE = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, "node_ip_address": "127.0.0.1"}
VARIABLES = {
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on loopback
}


@contextmanager
def only_cluster() -> Iterator[None]:
    """Wait until no other test has a Ray cluster here: two of them would take each other's ports and jobs."""
    lock = FileLock(Path(tempfile.gettempdir()) / "neumf-tests-ray.lock")
    while not lock.acquire():
        time.sleep(0.5)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Start two nodes with one processor each, on loopback; yield the cluster."""
    with only_cluster():
        yield from _two_nodes()


def _two_nodes() -> Iterator[Any]:
    before = dict(os.environ)
    os.environ |= VARIABLES
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
