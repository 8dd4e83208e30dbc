"""The run launcher: Dagster's own, which can also tell that the process of a run has died.

Dagster's default launcher cannot, so a run whose process dies together with the code server (a power cut, a
restart of the service) would stay "in progress" for ever and keep its place in the queue.
"""

import dagster as dg

from neumf_assets.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClassData,
    DefaultRunLauncher,
    WorkerStatus,
)
from neumf_assets.home import Home
from neumf_assets.running.orphans import forget, process_is_gone


class LocalRunLauncher(DefaultRunLauncher):
    """Runs are processes of this machine; run monitoring fails those whose process is gone."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes, by the lock that the process of a run holds."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Failed if the run's process held its lock and holds it no more, else running."""
        home = Home.from_environment()
        if not process_is_gone(home, run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        forget(home, run.run_id)
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            "the process that executed it is gone: killed, out of memory, or the machine stopped",
        )
