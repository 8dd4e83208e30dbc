"""From a study's settings to Dagster definitions: every stage becomes an asset of the study's group."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TypeVar

import dagster as dg

from neumf_assets.assets.catalogue import PER_DATASET, direct_inputs, stages
from neumf_assets.assets.metadata import (
    definition_metadata,
    description_of,
    kinds_of,
    materialisation_metadata,
    notes_metadata,
    tags_of,
)
from neumf_assets.assets.provenance import provenance
from neumf_assets.assets.stage import Product, Stage, Step
from neumf_assets.core.errors import NeumfError
from neumf_assets.core.measure import Cost, measured
from neumf_assets.core.store import Artifact, Draft
from neumf_assets.definitions.checks import check_results, check_specs, outcomes
from neumf_assets.definitions.jobs import study_jobs
from neumf_assets.freshness.fan_in import MADE_OF, made_of, same_state
from neumf_assets.freshness.plan import STANDS_FOR, told
from neumf_assets.freshness.reuse import CHECKS, Unchanged, kept_metadata, kept_outcomes, reusable
from neumf_assets.home import Home
from neumf_assets.intake.left_out import left_out
from neumf_assets.intake.quarantine import refusing
from neumf_assets.running.device_lock import device_turn
from neumf_assets.running.io_managers import ArtifactIOManager, Delivery, load_all, load_one, storage_key
from neumf_assets.running.orphans import end_with_run
from neumf_assets.running.out_of_memory import computed
from neumf_assets.running.progress_log import heard, log_progress, making
from neumf_assets.running.resources import DeviceResource, StoreResource
from neumf_assets.running.step_requests import memory_of, request_tags
from neumf_assets.study.launchpad import config_schema, with_overrides
from neumf_assets.study.names import dataset_partitions, partitions_name
from neumf_assets.study.settings import StudySettings
from neumf_assets.triggers.automation import condition_of, freshness_of
from neumf_assets.triggers.refresh import RETRAIN_TAG
from neumf_assets.triggers.schedules import study_schedules
from neumf_assets.triggers.sensors import study_sensors

# Data versions work and are what makes staleness visible; each use would print a warning into the run.
warnings.filterwarnings("ignore", message=".*data_version.*", category=dg.BetaWarning)

GPU_POOL = "gpu"
T = TypeVar("T")

_STORE = StoreResource()
# One object each: Dagster refuses to merge studies whose resources differ under the same name.
RESOURCES = {"store": _STORE, "device": DeviceResource(), "artifacts": ArtifactIOManager(store=_STORE)}


def study_definitions(
    study: StudySettings, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """All Dagster definitions of one study.

    Parameters
    ----------
    study
        The study's settings.
    resource_overrides
        Resources to use instead of the default ones (``store``, ``device``, ``artifacts``).
    """
    declared = stages(study)
    direct = direct_inputs(declared)
    assets = [asset_of(study, item, direct[item.path], declared) for item in declared]
    return dg.Definitions(
        assets=assets,
        jobs=study_jobs(study, declared),
        sensors=study_sensors(study),
        schedules=study_schedules(study),
        resources={**RESOURCES, **(resource_overrides or {})},
    )


def asset_of(
    study: StudySettings, declared: Stage, direct: Sequence[str], everything: Sequence[Stage]
) -> dg.AssetsDefinition:
    """The Dagster asset of one stage of one study.

    ``direct`` are the inputs that it shows as edges, ``everything`` are all stages of the study.
    """

    @dg.asset(
        key=[study.name, *declared.name],
        group_name=study.name,
        description=description_of(declared),
        ins={
            _input_name(name): dg.AssetIn(key=[study.name, *name.split("/")], dagster_type=dg.Any)
            for name in direct
        },
        dagster_type=dg.Any,
        partitions_def=dataset_partitions(study.name) if declared.per_dataset else None,
        config_schema=config_schema(study, declared.settings),
        io_manager_key="artifacts",
        code_version=declared.code_version(study),
        kinds=kinds_of(declared),
        owners=list(study.owners),
        tags=tags_of(declared),
        op_tags=request_tags(study, declared),
        metadata=definition_metadata(declared),
        pool=GPU_POOL if declared.uses_device else None,
        automation_condition=condition_of(declared, study, everything),
        freshness_policy=freshness_of(declared, study),
        check_specs=check_specs(declared, study),
        required_resource_keys={"device", "store"},
    )
    def materialised(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
        with making(declared.path):
            yield from _compute(study, declared, context, inputs)

    return materialised


def _compute(
    study: StudySettings, declared: Stage, context: dg.AssetExecutionContext, inputs: Mapping[str, Any]
) -> Iterator[Any]:
    end_with_run(Home.from_environment(), context.instance, context.run.run_id)
    given = {name: inputs.get(_input_name(name)) for name in declared.inputs}
    stored = {
        n: _stored(study, declared, context, n) if found is None else found for n, found in given.items()
    }
    named = _failing_plainly(lambda: same_state(study, declared, context, stored))
    step = _failing_plainly(lambda: _step(study, declared, context, named))
    fingerprints = told(declared, {n: input_fingerprint(value) for n, value in named.items()}, step.left_out)
    if step.replaced is not None and reusable(declared, step.study, context, fingerprints, step.replaced):
        yield dg.Output(
            Unchanged(step.replaced),
            metadata=kept_metadata(context, step.dataset),
            data_version=dg.DataVersion(step.replaced.fingerprint),
        )
        yield from check_results(declared, study, kept_outcomes(step.replaced))
        return
    # The device is held while the output is stored too: a dense matrix is computed as it is written.
    said: list[str] = []
    with ExitStack() as held:
        held.enter_context(heard(context.log.log))
        held.enter_context(heard(lambda _, text: said.append(text)))
        held.enter_context(memory_of(step.study, declared))
        held.enter_context(
            device_turn(step.device, context.log, f"{declared.path} of run {context.run.run_id}")
        )
        with measured() as cost:
            product = _failing_plainly(lambda: _product(study, declared, step, context))
        found, origin = outcomes(declared, step, product), provenance(declared, step, named, product)
        origin["run"] = context.run.run_id
        extra = {CHECKS: [asdict(one) for one in found], "provenance": origin}
        if not declared.per_dataset:
            extra[MADE_OF] = made_of(named, product.members)
        if said:
            extra["notes"] = said
        draft = _draft(step.study, declared, fingerprints, product, cost, extra)
        yield dg.Output(
            Delivery(product, draft, give_up=held.close),
            metadata={
                **materialisation_metadata(declared, product, step),
                **notes_metadata(said),
                "provenance": dg.MetadataValue.json(origin),
            },
            data_version=dg.DataVersion(draft.fingerprint),
        )
        product.discard()  # Dagster keeps every output of a run in memory
    yield from check_results(declared, study, found)


def _product(study: StudySettings, declared: Stage, step: Step, context: dg.AssetExecutionContext) -> Product:
    with refusing(study, declared, context):
        return computed(declared, step)


def _stored(
    study: StudySettings, declared: Stage, context: dg.AssetExecutionContext, name: str
) -> Artifact | dict[str, Artifact]:
    """An input that Dagster does not hand over, because another input depends on it already."""
    store, path = context.resources.store.open(), (study.name, *name.split("/"))
    if name in PER_DATASET and not declared.per_dataset:
        return load_all(store, path, context.instance.get_dynamic_partitions(partitions_name(study.name)))
    return load_one(store, storage_key(path, context.partition_key if declared.per_dataset else None))


def _failing_plainly(work: Callable[[], T]) -> T:
    """Turn an error that is meant for the user into a failure without a traceback."""
    try:
        return work()
    except NeumfError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def _step(
    study: StudySettings, declared: Stage, context: dg.AssetExecutionContext, inputs: Mapping[str, Any]
) -> Step:
    partition = context.partition_key if declared.per_dataset else None
    store = context.resources.store.open()
    previous = store.find(storage_key([study.name, *declared.name], partition))
    known = context.instance.get_dynamic_partitions(partitions_name(study.name))
    return Step(
        study=_asked_for(study, context),
        inputs=inputs,
        dataset=partition,
        device=context.resources.device.resolve() if declared.uses_device else "cpu",
        scratch=Home.from_environment().scratch(study.name, declared.name, partition),
        previous=None if previous is None else previous.manifest.figures,
        replaced=previous,
        progress=log_progress(context.log),
        left_out=left_out(study, store, known) if declared.names_left_out else {},
        log=context.log,
    )


def _asked_for(study: StudySettings, context: dg.AssetExecutionContext) -> StudySettings:
    """The study's settings with what this run's config and tags ask for."""
    asked = with_overrides(study, context.op_execution_context.op_config)
    return asked.model_copy(update={"update": "retrain"}) if RETRAIN_TAG in context.run.tags else asked


def _draft(
    study: StudySettings,
    declared: Stage,
    inputs: Mapping[str, Any],
    product: Product,
    cost: Cost,
    extra: Mapping[str, Any],
) -> Draft:
    fingerprints = {**inputs, **product.sources}
    figures = {**product.figures, **extra, "seconds": cost.seconds, "peak_memory_mib": cost.peak_mib}
    if inputs and product.sources:  # made in a shorter way, from more than the declared inputs
        figures[STANDS_FOR] = declared.fingerprint(study, inputs)
    return Draft(
        fingerprint=declared.fingerprint(study, fingerprints),
        code_version=declared.code_version(study),
        settings=declared.settings_of(study),
        inputs=fingerprints,
        figures=figures,
    )


def input_fingerprint(value: Artifact | Mapping[str, Artifact]) -> Any:
    """The fingerprint of an input; of a fan-in, the map from dataset to fingerprint."""
    if isinstance(value, Artifact):
        return value.fingerprint
    return {name: artifact.fingerprint for name, artifact in sorted(value.items())}


def _input_name(name: str) -> str:
    return name.replace("/", "__")
