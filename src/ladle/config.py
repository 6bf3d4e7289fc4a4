"""The base of every configuration model, and the split between what decides a result and what only carries it out.

A step's fingerprint covers its *identity* fields. A field declared with `execution(default)` (worker counts, devices,
log settings) or `location(...)` (a path or id whose *content* enters the fingerprint as an input instead) never does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

IsoDate = Annotated[str, BeforeValidator(lambda day: date.fromisoformat(str(day)).isoformat())]
"""A day, which YAML reads as a date unless it is quoted."""
_NOT_IDENTITY: dict[str, Any] = {"is_identity": False}


def execution(default: Any, **kwargs: Any) -> Any:
    """Declare a field that changes how a step runs, never what it produces."""
    return Field(default, json_schema_extra=_NOT_IDENTITY, **kwargs)


def location(default: Any = ..., **kwargs: Any) -> Any:
    """Declare a field that names an input; the input's content is fingerprinted, not its name."""
    return Field(default, json_schema_extra=_NOT_IDENTITY, **kwargs)


def accepts_text(section: type[Config], parse: Callable[[str], dict[str, str]]) -> BeforeValidator:
    """Annotate a section that text can stand for, as `parse` reads it."""
    return BeforeValidator(
        lambda value: parse(value) if isinstance(value, str) else value, json_schema_input_type=str | section
    )


class Config(BaseModel):
    """A frozen, typed section of a recipe; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    takes_recipe_seed: ClassVar[bool] = True
    """Whether the recipe's seed is the default of a `seed` here."""

    @classmethod
    def part_of(cls, section: Config, **changes: Any) -> Self:
        """Return the values of a section that are fields of this class too, with changes."""
        shared = cls.model_fields.keys() & type(section).model_fields.keys()
        return cls(**{name: getattr(section, name) for name in shared} | changes)

    def identity(self) -> dict[str, Any]:
        """Return the JSON-able fields that decide the result, nested sections included."""
        return {
            name: _identity_of(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if field.json_schema_extra != _NOT_IDENTITY
        }


def _identity_of(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {key: _identity_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity_of(item) for item in value]
    return value
