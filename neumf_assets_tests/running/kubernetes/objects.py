"""Whether a Kubernetes API server would accept an object: its schema, strictly, and rules that no schema states.

The schemas are Kubernetes' own, by ``kubernetes-validate``. They take any text for a quantity and know nothing of
one field's relation to another, so the rules that concern the pods of runs and steps are checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

OLD = "1.31"  # a cluster that has not been upgraded for long; the newest is whatever the package knows
_LABEL = re.compile(r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")


class Refused(ValueError):
    """An API server would answer 422."""


def check_object(found: Mapping[str, Any]) -> None:
    """Check one object as it goes over the wire.

    Raises
    ------
    Refused
        With the field and what is wrong with it.
    """
    import kubernetes_validate

    for version in (OLD, kubernetes_validate.latest_version()):
        for error in _validator(version, found["kind"], found["apiVersion"]).iter_errors(_plain(found)):
            raise Refused(f"Kubernetes {version}: {'.'.join(map(str, error.absolute_path))}: {error.message}")
    if found["kind"] == "Job":
        problems = [*_label_problems(found), *_pod_problems(found["spec"]["template"])]
        if problems:
            raise Refused("; ".join(problems))


@cache
def _validator(version: str, kind: str, api_version: str) -> Any:
    """A validator of one kind; ``kubernetes_validate.validate`` would read two megabytes for every object."""
    import jsonschema
    from kubernetes_validate.utils import all_versions, schema_contents
    from referencing import Registry, Resource

    full = next(name for name in all_versions() if name.startswith(version))
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema, definitions = (
        schema_contents(f"kubernetes-json-schema/v{full}-local-strict/{file}.json", full)
        for file in (f"{kind.lower()}-{group}", "_definitions")
    )
    registry: Any = Registry()
    for part in (schema, definitions):
        registry = Resource.from_contents(part) @ registry
    return jsonschema.validators.Draft202012Validator(schema, registry=registry)


def _plain(found: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(found))


def _label_problems(job: Mapping[str, Any]) -> Iterator[str]:
    for where in (job["metadata"], job["spec"]["template"]["metadata"]):
        if not _NAME.match(where["name"]):
            yield f"metadata.name: {where['name']!r} is no name"
        for key, value in where.get("labels", {}).items():
            if not _LABEL.match(value):
                yield f"metadata.labels.{key}: {value!r} is no value of a label"


def _pod_problems(template: Mapping[str, Any]) -> Iterator[str]:
    volumes = [volume["name"] for volume in template["spec"].get("volumes", [])]
    if len(set(volumes)) < len(volumes):
        yield f"volumes: a name stands there twice ({volumes})"
    for container in template["spec"]["containers"]:
        mounts = container.get("volumeMounts", [])
        paths = [mount["mountPath"] for mount in mounts]
        if len(set(paths)) < len(paths):
            yield f"volumeMounts: a path stands there twice ({paths})"
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"volumeMounts: there is no volume {mount['name']!r}"
        yield from _resource_problems(container.get("resources", {}))


def _resource_problems(resources: Mapping[str, Any]) -> Iterator[str]:
    requests, limits = ({k: _amount(v) for k, v in resources.get(part, {}).items()} for part in _PARTS)
    for name, amount in [*requests.items(), *limits.items()]:
        if amount is None or amount < 0:
            yield f"resources: {name} has an amount that is no quantity"
        elif "/" in name and (amount % 1 or requests.get(name, limits.get(name)) != limits.get(name)):
            yield f"resources: {name} needs a limit, a whole number, and no other request"
    for name in requests.keys() & limits.keys():
        asked, most = requests[name], limits[name]
        if asked is not None and most is not None and asked > most:
            yield f"resources: {name} asks for {asked}, and its limit is {most}"


_PARTS = ("requests", "limits")


def _amount(text: Any) -> Decimal | None:
    from kubernetes.utils.quantity import parse_quantity

    try:
        return Decimal(parse_quantity(text))
    except ValueError:
        return None
