"""The IO manager: publishes products atomically and hands on handles, never data."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from neumf_assets.assets.metadata import cost_metadata, path_metadata
from neumf_assets.assets.stage import Product
from neumf_assets.core.measure import measured
from neumf_assets.core.store import Artifact, Draft, MissingArtifact, Store, copy_atomically
from neumf_assets.freshness.reuse import Unchanged
from neumf_assets.home import Home
from neumf_assets.running.resources import StoreResource


@dataclass
class Delivery:
    """A product with what its manifest will say.

    Parameters
    ----------
    give_up
        Frees what is held for it (the device), when it cannot be stored: its maker waits at a ``yield``, and is
        told of a failure only when Python collects it, which may be much later.
    """

    product: Product
    draft: Draft
    give_up: Callable[[], None]


class ArtifactIOManager(dg.ConfigurableIOManager):
    """Stores every result under study/asset/partition, whole or not at all, and hands on where it is.

    An asset of the study that takes one of the datasets gets a dict by dataset, however many there are;
    datasets that were deleted or never materialised are left out.
    """

    store: dg.ResourceDependency[StoreResource]

    def handle_output(self, context: dg.OutputContext, obj: Delivery | Unchanged) -> None:
        """Publish the product as the current version, or leave the version there is."""
        if isinstance(obj, Unchanged):
            return
        try:
            self._publish(context, obj)
        except BaseException:
            obj.give_up()
            raise

    def _publish(self, context: dg.OutputContext, obj: Delivery) -> None:
        partition = context.asset_partition_key if context.has_asset_partitions else None
        figures: dict[str, Any] = dict(obj.draft.figures)

        def write(folder: Path) -> None:
            with measured() as cost:
                obj.product.save(folder)
            figures["seconds"] = round(figures.get("seconds", 0.0) + cost.seconds, 3)
            figures["peak_memory_mib"] = round(max(figures.get("peak_memory_mib", 0.0), cost.peak_mib), 1)

        draft = Draft(
            fingerprint=obj.draft.fingerprint,
            code_version=obj.draft.code_version,
            settings=obj.draft.settings,
            inputs=obj.draft.inputs,
            figures=figures,
        )
        artifact = self.store.open().publish(storage_key(context.asset_key.path, partition), write, draft)
        published = _publish_results(artifact, obj.product.publish)
        context.add_output_metadata(
            cost_metadata(figures, artifact.manifest.bytes, artifact.location) | path_metadata(published)
        )

    def load_input(self, context: dg.InputContext) -> Artifact | dict[str, Artifact]:
        """A handle on the upstream artifact, or one for each dataset."""
        store, path = self.store.open(), context.asset_key.path
        if not context.has_asset_partitions:
            return load_one(store, storage_key(path, None))
        if context.has_partition_key:
            return load_one(store, storage_key(path, context.asset_partition_key))
        return load_all(store, path, context.asset_partition_keys)


def storage_key(path: Iterable[str], partition: str | None) -> tuple[str, ...]:
    """Where an asset's partition lives in the store."""
    return (*path, *([partition] if partition is not None else []))


def load_all(store: Store, path: Iterable[str], partitions: Iterable[str]) -> dict[str, Artifact]:
    """Handles on the partitions that exist, by name, sorted."""
    path = tuple(path)
    found = {name: store.find(storage_key(path, name)) for name in sorted(set(partitions))}
    return {name: artifact for name, artifact in found.items() if artifact is not None}


def _publish_results(artifact: Artifact, names: Mapping[str, str]) -> list[Path]:
    results = Home.from_environment().results(artifact.key[0])
    for target, source in names.items():
        copy_atomically(artifact.path / source, results / target)
    return [results / target for target in names]


def load_one(store: Store, key: tuple[str, ...]) -> Artifact:
    """A handle on an artifact; the step fails plainly where there is none."""
    try:
        return store.get(key)
    except MissingArtifact as error:
        raise dg.Failure(str(error), allow_retries=False) from None
