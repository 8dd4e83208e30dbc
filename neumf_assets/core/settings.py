"""The base of all settings: immutable, and strict about names, types and ranges."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

Place = tuple[int | str, ...]

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_OUT_OF_RANGE = frozenset({"greater_than_equal", "greater_than", "less_than_equal", "less_than"})
_WRONG_NUMBER = frozenset({"int_type", "int_parsing", "int_from_float", "float_type", "float_parsing"})


class Settings(BaseModel):
    """Validated settings of one stage.

    Each stage declares its own subclass in its ``settings.py``, which imports nothing heavy: Dagster
    definitions load these classes, so they must not pull in torch, scikit-learn, umap or numba.
    Every field has a ``Field(default, ge=…, le=…, description=…)``; the description explains the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _tell_what_is_allowed(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Complete pydantic's messages, wherever the settings are read: the whole range, the known names."""
        try:
            return validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False)
            places = [problem["loc"] for problem in found]
            details = [
                _completed(cls, dict(problem))
                for problem in found
                if not (problem["type"] == "too_short" and _has_wrong_items(problem["loc"], places))
            ]
            raise ValidationError.from_exception_data(error.title, details) from None


def allowed(field: FieldInfo) -> str:
    """The range of a setting in words, as ``at least 1, at most 10``; empty where there are no bounds."""
    return ", ".join(
        f"{word} {getattr(item, name)}"
        for item in field.metadata
        for name, word in _BOUNDS.items()
        if getattr(item, name, None) is not None
    )


def _has_wrong_items(place: Place, places: list[Place]) -> bool:
    """Whether a list counts as too short only because its items were refused."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _completed(model: type[BaseModel], problem: dict[str, Any]) -> InitErrorDetails:
    """The same problem with a message that says what is allowed."""
    add, place = _ADDITIONS.get(problem["type"]), problem["loc"]
    message = problem["msg"].removeprefix("Value error, ")
    if add is not None and (len(place) == 1 or (len(place) == 2 and isinstance(place[1], int))):
        message = add(model, place, message)
    kind = PydanticCustomError(problem["type"], message)
    return InitErrorDetails(type=kind, loc=problem["loc"], input=problem["input"])


def _with_range(model: type[BaseModel], place: Place, message: str) -> str:
    field = model.model_fields[str(place[0])]
    limits = allowed(field if len(place) == 1 else _items_of(field))
    return f"{message} (allowed: {limits})" if limits else message


def _items_of(field: FieldInfo) -> FieldInfo:
    """What is said of the items of a list: ``tuple[Annotated[int, Field(ge=1)], ...]``."""
    said = [said for item in get_args(field.annotation) for said in getattr(item, "__metadata__", ())]
    return next((one for one in said if isinstance(one, FieldInfo)), FieldInfo())


def _with_description(model: type[BaseModel], place: Place, message: str) -> str:
    return f"{message} ({model.model_fields[str(place[0])].description})"


def _with_names(model: type[BaseModel], place: Place, message: str) -> str:
    known = sorted(model.model_fields)
    near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.6)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"not a setting.{meant} Known here: {', '.join(known)}"


_ADDITIONS: dict[str, Callable[[type[BaseModel], Place, str], str]] = {
    **dict.fromkeys(_OUT_OF_RANGE | _WRONG_NUMBER, _with_range),
    "string_pattern_mismatch": _with_description,
    "extra_forbidden": _with_names,
}
