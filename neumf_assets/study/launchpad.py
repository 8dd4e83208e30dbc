"""The launchpad's form: a study's settings as Dagster config, with defaults and descriptions."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from neumf_assets.core.settings import Settings, allowed
from neumf_assets.study.settings import StudySettings, explain


def config_schema(study: StudySettings, sections: Sequence[str]) -> dict[str, dg.Field]:
    """A config field for each whole section of settings, with the study's values as defaults."""
    whole = [name for name in sections if "." not in name and _is_form(study, name)]
    return {name: _section(getattr(study, name), name) for name in whole}


def with_overrides(study: StudySettings, config: Mapping[str, Any] | None) -> StudySettings:
    """The study's settings with a run's config laid over them, validated again.

    Raises
    ------
    BadSettings
        If a value is out of range: Dagster itself checks types only.
    """
    if not config:
        return study
    values = study.model_dump(mode="json")
    for section, overrides in config.items():
        own = values[section]
        if "preset" in own and overrides.get("preset", own["preset"]) != own["preset"]:
            # the form fills in every setting: only those that differ were chosen beside the other preset
            values[section] = {key: value for key, value in overrides.items() if value != own[key]}
        else:
            values[section] = {**own, **overrides}
    try:
        return StudySettings.model_validate(values)
    except ValidationError as error:
        raise explain(error, "run config") from None


def _is_form(study: StudySettings, name: str) -> bool:
    return isinstance(getattr(study, name), Settings)


def _section(section: Settings, name: str) -> dg.Field:
    values = section.model_dump(mode="json")
    fields = {
        key: dg.Field(
            _type(field.annotation, f"{type(section).__name__}_{key}"),
            default_value=values[key],
            is_required=False,
            description=_describe(field),
        )
        for key, field in type(section).model_fields.items()
    }
    return dg.Field(
        dg.Shape(fields), is_required=False, description=StudySettings.model_fields[name].description
    )


def _describe(field: FieldInfo) -> str:
    limits = allowed(field)
    return f"{field.description or ''} Allowed: {limits}." if limits else field.description or ""


def _type(annotation: Any, name: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (int, float, str, bool):
        return annotation
    if origin is Literal:
        return _enum(name, arguments)
    if origin in (Union, types.UnionType):
        inner = [part for part in arguments if part is not type(None)]
        if len(inner) == 1:
            return dg.Noneable(_type(inner[0], name))
        return dg.Any
    if origin in (tuple, list):
        return dg.Array(_type(arguments[0], name))
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(annotation.__origin__, name)
    return dg.Any


@cache
def _enum(name: str, values: tuple[str, ...]) -> dg.Enum:
    return dg.Enum(name, [dg.EnumValue(value) for value in values])
