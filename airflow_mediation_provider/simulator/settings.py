"""Reading settings: from mappings, with errors that name what is wrong and the allowed values."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_Settings = TypeVar("_Settings")


def from_mapping(cls: type[_Settings], value: Mapping[str, Any], what: str) -> _Settings:
    """Make a dataclass of settings from a mapping of its fields.

    :param what: the name of the mapping in an error
    :raises ValueError: a field is unknown, missing or wrong
    """
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := [str(key) for key in value if key not in known]:
        raise ValueError(f"{what}: unknown setting {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        return cls(**value)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def one_of(settings: Any, name: str, allowed: Collection[str]) -> None:
    """Check that a setting has one of the allowed values.

    :raises ValueError: it has another one
    """
    if getattr(settings, name) not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(settings, name)!r}")


def not_negative(settings: Any, *names: str) -> None:
    """Check that settings are numbers that are not negative.

    :raises ValueError: one is not
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{name} must be a number >= 0, got {value!r}")
