"""Where everything lives, read from the environment in one place.

``NEUMF_HOME``     folder for the Dagster instance, inboxes, storage and results (default ``.neumf``)
``NEUMF_STORAGE``  fsspec URL or folder for artifacts (default ``$NEUMF_HOME/storage``)
``NEUMF_DEVICE``   ``auto`` (default), ``cpu`` or ``cuda``
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from neumf_assets.core.cgroup import usable_cpus
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.store import Store, write_atomically

DEVICES = ("auto", "cpu", "cuda")

_LAUNCHER = "neumf_assets.running.run_launcher"
_DAGSTER_YAML = """\
# Written by neumf-assets on first use; yours to edit.
telemetry:
  enabled: false
nux:
  enabled: false
run_launcher:
  module: {launcher}
  class: LocalRunLauncher
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
concurrency:
  runs:
    max_concurrent_runs: {runs}
  pools:
    default_limit: 1
    granularity: op
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 5
run_retries:
  enabled: true
  max_retries: 1
  retry_on_asset_or_op_failure: false
"""


_WORKSPACE_YAML = """\
load_from:
  - python_module:
      module_name: neumf_assets.definitions
      location_name: neumf_assets
"""


@dataclass(frozen=True)
class Home:
    """The folders of one installation."""

    root: Path
    storage: str

    @classmethod
    def from_environment(cls) -> Home:
        """Read ``NEUMF_HOME`` and ``NEUMF_STORAGE``."""
        root = Path(os.environ.get("NEUMF_HOME") or ".neumf").expanduser().absolute()
        return cls(root=root, storage=os.environ.get("NEUMF_STORAGE") or str(root / "storage"))

    @property
    def dagster(self) -> Path:
        """The Dagster instance's folder (``DAGSTER_HOME``, unless that is set)."""
        return Path(os.environ.get("DAGSTER_HOME") or self.root / "dagster")

    @property
    def studies(self) -> Path:
        """One YAML file for each study that was registered by ``neumf-assets run``."""
        return self.root / "studies"

    def inbox(self, study: str) -> str:
        """The default inbox of a study."""
        return str(self.root / "inbox" / study)

    def results(self, study: str) -> Path:
        """Where a study's final files are copied for people to find."""
        return self.root / "results" / study

    def scratch(self, study: str, asset: tuple[str, ...], partition: str | None) -> Path:
        """Folder for checkpoints of work in progress; survives a killed step."""
        return self.root.joinpath("scratch", study, *asset, *([partition] if partition else []))

    @property
    def locks(self) -> Path:
        """Locks between processes; the operating system frees those of a process that dies."""
        return self.root / "locks"

    @property
    def run_locks(self) -> Path:
        """One locked file for each run that a process is executing."""
        return self.locks / "runs"

    def store(self) -> Store:
        """The artifact store."""
        return Store(self.storage, cache=self.root / "cache" / "artifacts")

    @property
    def workspace(self) -> Path:
        """The workspace file that the UI opens."""
        return self.dagster / "workspace.yaml"

    def prepare(self) -> None:
        """Create the folders and, where there is none yet, the Dagster instance's settings."""
        for folder in (self.dagster, self.studies, self.root / "inbox", self.root / "results"):
            folder.mkdir(parents=True, exist_ok=True)
        settings = _DAGSTER_YAML.format(launcher=_LAUNCHER, runs=max(2, usable_cpus() // 2))
        for path, text in ((self.dagster / "dagster.yaml", settings), (self.workspace, _WORKSPACE_YAML)):
            if not path.exists():
                write_atomically(path, text.encode())
        self._name_the_launcher_where_it_is()

    def announce(self) -> None:
        """Have Dagster, and all processes that are started from this one, use this home."""
        os.environ["NEUMF_HOME"] = str(self.root)
        os.environ["DAGSTER_HOME"] = str(self.dagster)

    def _name_the_launcher_where_it_is(self) -> None:
        """Mend the settings of a home that version 0.1 made: the launcher's module has moved."""
        settings = self.dagster / "dagster.yaml"
        text = settings.read_text()
        moved = text.replace("module: neumf_assets.run_launcher\n", f"module: {_LAUNCHER}\n")
        if moved != text:
            write_atomically(settings, moved.encode())


def requested_device() -> str:
    """The value of ``NEUMF_DEVICE``.

    Raises
    ------
    BadSettings
        If it is not one of ``auto``, ``cpu``, ``cuda``.
    """
    device = os.environ.get("NEUMF_DEVICE") or "auto"
    if device not in DEVICES:
        raise BadSettings(f"NEUMF_DEVICE is {device!r}; set it to one of {', '.join(DEVICES)}.")
    return device
