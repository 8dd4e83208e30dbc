"""What each step asks of the cluster it runs on: processors, memory and a GPU, as tags of its asset."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from neumf_assets.core import memory
from neumf_assets.home import requested_device

if TYPE_CHECKING:
    from neumf_assets.assets.stage import Stage
    from neumf_assets.study.settings import StudySettings

RAY_TAG = "dagster-ray/config"
KUBERNETES_TAG = "dagster-k8s/config"
_MIB = 2**20


def request_tags(study: StudySettings, declared: Stage) -> dict[str, Any]:
    """Tags with the request of a stage, for Ray and for Kubernetes; elsewhere they say nothing.

    The study's ``requests`` may name the asset, else its group. A GPU is asked for where ``NEUMF_DEVICE`` is
    ``cuda`` and the stage can use one: a request that no node can fulfil waits for ever.
    """
    request = study.request_of(declared.path, declared.group)
    gpus = 1 if declared.uses_device and requested_device() == "cuda" else 0
    if _trains_elsewhere(study, declared):
        cpus = (
            0.0  # its workers ask for themselves; a step that held a processor could keep them from starting
        )
    else:
        cpus = request.cpus
    ray: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "memory": request.memory_mib * _MIB}
    amounts = {"cpu": f"{round(request.cpus * 1000)}m", "memory": f"{request.memory_mib}Mi"}
    limits = {"memory": amounts["memory"], **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    container = {"resources": {"requests": amounts, "limits": limits}}
    # Shallow: a limit on the code server's processors, say, is no limit on those of a step.
    kubernetes = {"container_config": container, "merge_behavior": "SHALLOW"}
    return {RAY_TAG: ray, KUBERNETES_TAG: kubernetes}


def memory_of(study: StudySettings, declared: Stage) -> AbstractContextManager[None]:
    """Hold a step to the memory that it asked for: Ray reserves it, but keeps nobody from taking more.

    On Kubernetes the control group says so.
    """
    if os.environ.get("NEUMF_EXECUTOR") != "ray":
        return nullcontext()
    return memory.asked_for(study.request_of(declared.path, declared.group).memory_mib * _MIB)


def _trains_elsewhere(study: StudySettings, declared: Stage) -> bool:
    workers = {"neumf_model": study.model.workers, "ineumf/model": study.ineumf.workers}
    if requested_device() != "cuda":  # on a GPU one process factorises
        workers["liger/factors"] = study.liger.workers
    return os.environ.get("NEUMF_EXECUTOR") == "ray" and workers.get(declared.path, 1) > 1
