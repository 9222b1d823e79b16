"""The arguments of the REST calls: checked, with an error that names the argument, and written as Zuora takes them.

Source: https://developer.zuora.com/v1-api-reference/api/meters/ (paths, times, repeated query parameters)
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_mediation_provider.protocol.status import RunType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def meter_text(meter_id: str | int) -> str:
    """Return a meter id as text.

    :raises ValueError: it is empty
    """
    meter = str(meter_id).strip()
    if not meter:
        raise ValueError("meter_id must not be empty")
    return meter


def path_part(name: str, part: str) -> str:
    """Return one part of a path, quoted.

    :raises ValueError: it is empty
    """
    if not part.strip():
        raise ValueError(f"{name} must not be empty")
    return quote(part, safe="")


def run_type_of(value: RunType | str) -> RunType:
    """Return a run type.

    :raises ValueError: it is neither NORMAL nor DEBUG
    """
    return RunType(one_of("run_type", str(value), tuple(RunType)))


def format_time(name: str, value: datetime | str) -> str:
    """Write a time as the queries take it, ``2026-01-31T22:00:00+0000``, in UTC.

    :param name: the argument, for the error
    :param value: a datetime with its zone, or the same as ISO 8601 text
    :raises ValueError: it is no time, or has no zone
    """
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} must be an ISO 8601 time, not {value!r}") from None
    if time.tzinfo is None:
        raise ValueError(f"{name} must have a time zone, {value!s} has none")
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is allowed.

    :raises ValueError: it is not; names the argument and the allowed values
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def texts(name: str, values: Iterable[str]) -> list[str]:
    """Return a list of texts.

    :raises ValueError: it is one text: that would silently become one value per letter
    """
    if isinstance(values, str):
        raise ValueError(f"{name} must be a list, not the text {values!r}")
    return [str(value) for value in values]


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields of a body that were given."""
    return {name: value for name, value in fields.items() if value is not None and value != []}


def query_of(**fields: str | list[str] | None) -> tuple[tuple[str, str], ...]:
    """Return query parameters; a list as one parameter repeated, OpenAPI's default."""
    return tuple(
        (name, value)
        for name, values in fields.items()
        for value in ([] if values is None else [values] if isinstance(values, str) else values)
    )
