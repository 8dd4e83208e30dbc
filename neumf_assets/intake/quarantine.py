"""Files that were refused: the reason lies beside the file and shows in the UI, and nobody waits for them.

A refusal is kept below ``NEUMF_HOME/quarantine/<study>/`` and, where the inbox can be written to, as
``NAME.refused.txt`` beside the file. The dataset is taken out of the study's partitions, so that what needs
all datasets goes on without it, unless an earlier version is complete: that one stays in use. The refusal is
lifted when the file gets past the stage that refused it, or is taken away.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import dagster as dg

from neumf_assets.assets.catalogue import stages
from neumf_assets.assets.stage import Stage
from neumf_assets.core.counts.discover import REFUSAL_SUFFIX, DatasetFile, Inbox, is_url
from neumf_assets.core.errors import BadInput, NeumfError
from neumf_assets.core.store import Store, write_atomically
from neumf_assets.dagster_internals import BulkActionStatus
from neumf_assets.home import Home
from neumf_assets.study.names import partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.study.sources import inbox_of

CHECK = "nothing_refused"
CHECK_DESCRIPTION = "No file of the inbox is refused."
_BACKFILL = "dagster/backfill"
_BACKFILL_AT_WORK = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
_FILE_MARK = "@"  # dataset names begin with a letter or digit


@dataclass(frozen=True)
class Refusal:
    """Why a file is not used.

    Attributes
    ----------
    name
        Name of the dataset; of a file that is no dataset, its own name.
    reason
        What is wrong, where, and how to mend it.
    identity
        Identity of the content that was refused.
    stage, code_version
        The stage that refused it with its code and settings; empty where the inbox's listing did.
    run, backfill
        The run in which it happened, and the backfill that it belongs to.
    when
        Time in UTC.
    in_use
        Whether an earlier version stays in use.
    """

    name: str
    reason: str
    identity: str
    stage: str = ""
    code_version: str = ""
    run: str = ""
    backfill: str = ""
    when: str = ""
    in_use: bool = False

    @property
    def is_dataset(self) -> bool:
        """Whether the file was read, and not just listed."""
        return bool(self.stage)


class Quarantine:
    """The refused files of one study."""

    def __init__(self, study: StudySettings) -> None:
        self.study = study
        self.folder = Home.from_environment().root / "quarantine" / study.name

    def add(self, refusal: Refusal) -> bool:
        """Keep a refusal and write the note; returns whether the note could be written beside the file."""
        path = self._path(refusal.name, refusal.is_dataset)
        write_atomically(path, json.dumps(asdict(refusal), indent=1).encode())
        try:
            self._write_note(refusal)
        except Exception:  # each file system raises its own; the record above says the same
            return False
        return True

    def find(self, dataset: str) -> Refusal | None:
        """The refusal of a dataset."""
        return _read(self._path(dataset, True))

    def all(self) -> list[Refusal]:
        """All refusals, by name."""
        found = (_read(path) for path in sorted(self.folder.glob("*.json")))
        return [refusal for refusal in found if refusal is not None]

    def take_listing(self, refused: Mapping[str, str]) -> list[str] | None:
        """Keep what the inbox's listing refuses (reason by file name), and lift what it no longer does.

        Returns
        -------
        The reasons that are new; None where nothing changed.
        """
        kept = {refusal.name: refusal for refusal in self.all() if not refusal.is_dataset}
        new = [name for name, reason in refused.items() if name not in kept or kept[name].reason != reason]
        for name in new:
            self.add(Refusal(name, refused[name], "", when=_now()))
        lifted = set(kept) - set(refused)
        for name in lifted:
            self.lift(kept[name])
        return [refused[name] for name in new] if new or lifted else None

    def forget_gone(self, present: Collection[str]) -> bool:
        """Lift refusals of datasets whose file is no longer among those present; returns whether there were some."""
        gone = [refusal for refusal in self.all() if refusal.is_dataset and refusal.name not in present]
        for refusal in gone:
            self.lift(refusal)
        return bool(gone)

    def lift(self, refusal: Refusal) -> None:
        """Forget a refusal, and take its note away."""
        self._path(refusal.name, refusal.is_dataset).unlink(missing_ok=True)
        # A note that cannot be removed is out of date, nothing worse; each file system raises its own errors.
        with contextlib.suppress(Exception):
            self._remove_note(refusal)

    def holds(self, dataset: str, identity: str) -> bool:
        """Whether this very content was refused, by code and settings that are still the same."""
        refusal = self.find(dataset)
        return refusal is not None and refusal.identity == identity and not self.outdated(refusal)

    def outdated(self, refusal: Refusal) -> bool:
        """Whether code or settings changed since, so that the file deserves another try."""
        if not refusal.is_dataset:
            return False
        current = [item.code_version(self.study) for item in stages(self.study) if item.path == refusal.stage]
        return current != [refusal.code_version]

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """The state of the quarantine as a check of ``raw_counts``."""
        refused = self.all()
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey([self.study.name, "raw_counts"]),
            check_name=CHECK,
            passed=not refused,
            severity=dg.AssetCheckSeverity.WARN,
            description=self.summary(),
            metadata={refusal.name: refusal.reason for refusal in refused},
        )

    def is_shown(self, instance: dg.DagsterInstance) -> bool:
        """Whether the UI shows the present state of the quarantine, or is about to.

        Dagster takes a check for "not evaluated" when its asset has been materialised since, and here that is
        any other dataset of the study. The run that did so evaluates the check as well, but what counts as its
        last evaluation is the one that was planned last: in a burst, that may be another run's.
        """
        now = self.evaluation()
        key = dg.AssetCheckKey(now.asset_key, CHECK)
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
        if record is None:
            return now.passed
        told = record.evaluation
        if not isinstance(told, dg.AssetCheckEvaluation):  # planned, and not evaluated so far
            run = instance.get_run_by_id(record.run_id)
            return run is not None and not run.is_finished
        if (told.passed, told.description) != (now.passed, now.description):
            return False
        last = next(iter(instance.fetch_materializations(now.asset_key, limit=1).records), None)
        if last is None or last.run_id == record.run_id:
            return True
        if (target := told.target_materialization_data) is not None:
            return bool(target.storage_id == last.storage_id)
        return bool(last.timestamp < record.create_timestamp)

    def summary(self) -> str:
        """One line for people."""
        names = ", ".join(refusal.name for refusal in self.all())
        return f"Refused: {names}." if names else "No file is refused."

    def _path(self, name: str, is_dataset: bool) -> Path:
        safe = name if is_dataset else _FILE_MARK + quote(name, safe=" ")[-200:]
        return self.folder / f"{safe}.json"

    def _note(self, name: str) -> str:
        return f"{inbox_of(self.study).rstrip('/')}/{name}{REFUSAL_SUFFIX}"

    def _write_note(self, refusal: Refusal) -> None:
        text = _note_text(refusal).encode()
        note = self._note(refusal.name)
        if not is_url(note):
            write_atomically(Path(note), text)
            return
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(note)
        filesystem.pipe_file(path, text)

    def _remove_note(self, refusal: Refusal) -> None:
        note = self._note(refusal.name)
        if not is_url(note):
            Path(note).unlink(missing_ok=True)
            return
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(note)
        filesystem.rm_file(path)


def listed_refusals(inbox: Inbox) -> dict[str, str]:
    """What the listing of an inbox refuses: the reason by the file's name."""
    return {PurePosixPath(error.file).name: str(error) for error in inbox.refused}


@contextlib.contextmanager
def refusing(study: StudySettings, declared: Stage, context: dg.AssetExecutionContext) -> Iterator[None]:
    """Put a dataset into quarantine when the body finds it unusable; the error goes on."""
    try:
        yield
    except NeumfError as error:
        if declared.per_dataset:
            _refuse(study, declared, context, error)
        raise
    if declared.per_dataset:
        lift_after(study, declared, context.partition_key, context.instance)


def lift_after(study: StudySettings, declared: Stage, dataset: str, instance: dg.DagsterInstance) -> None:
    """Lift the refusal of a dataset that has got past the stage that refused it."""
    quarantine = Quarantine(study)
    refusal = quarantine.find(dataset)
    if refusal is not None and refusal.stage == declared.path:
        quarantine.lift(refusal)
        instance.report_runless_asset_event(quarantine.evaluation())


def is_complete(study: StudySettings, dataset: str, store: Store) -> bool:
    """Whether everything that the study as a whole takes from a dataset is there."""
    declared = stages(study)
    taken = {name for item in declared if not item.per_dataset for name in item.inputs}
    needed = [item for item in declared if item.per_dataset and item.path in taken]
    return all(store.find((study.name, *item.name, dataset)) is not None for item in needed)


def give_up(
    study: StudySettings, item: DatasetFile, instance: dg.DagsterInstance, run_id: str, failures: int
) -> list[dg.AssetObservation | dg.AssetCheckEvaluation]:
    """Go on without a dataset whose runs keep failing, though not through a fault found in its file."""
    quarantine, first = Quarantine(study), stages(study)[0]
    in_use = is_complete(study, item.name, Home.from_environment().store())
    reason = (
        f"{failures} runs failed, the last one {run_id}: see there for the cause. Once it is mended, run "
        f"neumf-assets backfill --study {study.name} --dataset {item.name}."
    )
    quarantine.add(
        Refusal(
            name=item.name,
            reason=reason,
            identity=item.identity,
            stage=first.path,
            code_version=first.code_version(study),
            run=run_id,
            when=_now(),
            in_use=in_use,
        )
    )
    if not in_use:
        instance.delete_dynamic_partition(partitions_name(study.name), item.name)
    return [
        _observation(study, item.name, {"refused": reason, "earlier version in use": in_use}),
        quarantine.evaluation(),
    ]


def left_behind(study: StudySettings, instance: dg.DagsterInstance) -> list[str]:
    """Refused datasets that a backfill has kept among the study's partitions, and which is over."""
    known = set(instance.get_dynamic_partitions(partitions_name(study.name)))
    return [
        refusal.name
        for refusal in Quarantine(study).all()
        if refusal.backfill
        and refusal.name in known
        and not refusal.in_use
        and not _at_work(instance, refusal.backfill)
    ]


def _at_work(instance: dg.DagsterInstance, backfill: str) -> bool:
    found = instance.get_backfill(backfill)
    return found is not None and found.status in _BACKFILL_AT_WORK


def _refuse(
    study: StudySettings, declared: Stage, context: dg.AssetExecutionContext, error: NeumfError
) -> None:
    store, dataset = context.resources.store.open(), context.partition_key
    in_use = is_complete(study, dataset, store)
    identity = _identity(study, declared, error, dataset, store)
    if identity is None:
        return  # no fault of the file
    quarantine, backfill = Quarantine(study), context.run.tags.get(_BACKFILL, "")
    if identity:
        refusal = Refusal(
            name=dataset,
            reason=str(error),
            identity=identity,
            stage=declared.path,
            code_version=declared.code_version(study),
            run=context.run.run_id,
            backfill=backfill,
            when=_now(),
            in_use=in_use,
        )
        if not quarantine.add(refusal):
            context.log.warning(
                "The inbox cannot be written to: the reason is kept here and not beside the file."
            )
    if not in_use and not backfill:  # a backfill fails as a whole when one of its partitions disappears
        context.instance.delete_dynamic_partition(partitions_name(study.name), dataset)
    context.log_event(_observation(study, dataset, {"refused": str(error), "earlier version in use": in_use}))
    context.instance.report_runless_asset_event(quarantine.evaluation())


def _identity(
    study: StudySettings, declared: Stage, error: NeumfError, dataset: str, store: Store
) -> str | None:
    """Identity of what was read: not what lies in the inbox by now, which may be the corrected file."""
    if declared.inputs:
        raw = store.find((study.name, "raw_counts", dataset))
        return None if raw is None else str(raw.manifest.figures.get("identity", ""))
    return error.identity if isinstance(error, BadInput) else None


def _observation(study: StudySettings, dataset: str, metadata: dict[str, Any]) -> dg.AssetObservation:
    return dg.AssetObservation(
        asset_key=dg.AssetKey([study.name, "raw_counts"]), partition=dataset, metadata=metadata
    )


def gone(study: StudySettings, dataset: str) -> dg.AssetObservation:
    """Says in the UI that a dataset's source was taken away."""
    kept = (
        "is to be kept: the results made from it stay in use" if dataset in study.keep else "leaves the study"
    )
    text = f"The source is gone from the inbox; the dataset {kept}."
    return _observation(study, dataset, {"source": text})


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _note_text(refusal: Refusal) -> str:
    if refusal.in_use:
        meanwhile = "The version before it stays in use."
    else:
        meanwhile = "The study goes on without it."
    return (
        f"{refusal.name} was refused{' on ' + refusal.when if refusal.when else ''}:\n\n{refusal.reason}\n\n"
        f"{meanwhile} Put a corrected file into its place; this note goes away by itself.\n"
        + (f"Run {refusal.run}, asset {refusal.stage}.\n" if refusal.run else "")
    )


def _read(path: Path) -> Refusal | None:
    try:
        return Refusal(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
