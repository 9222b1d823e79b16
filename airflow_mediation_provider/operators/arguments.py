"""Checks of arguments that the operators share; a template is let through, and checked again once it is rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow_mediation_provider.protocol.status import RunType


def is_template(value: object) -> bool:
    """Whether a value is known only when the task runs: a Jinja template, or another task's output."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    return hasattr(value, "resolve")


def check_meter(meter_id: object, version: object) -> None:
    """Check the two arguments that name a meter version.

    :raises ValueError: one of them is empty
    """
    for name, value in (("meter_id", meter_id), ("version", version)):
        if value is None or (not is_template(value) and not str(value).strip()):
            raise ValueError(f"{name} must not be empty")
        if isinstance(value, bool | list | dict):
            raise ValueError(f"{name} must be a text, not {type(value).__name__}")


def run_type_of(value: object) -> RunType:
    """Return the run type by its name.

    :raises ValueError: neither NORMAL nor DEBUG
    """
    try:
        return RunType(str(value).upper())
    except ValueError:
        raise ValueError(f"run_type must be one of {', '.join(RunType)}, not {value!r}") from None


def seconds(name: str, value: timedelta | float, *, least: float = 0.0) -> float:
    """Return a duration in seconds.

    :param name: the argument, for the error
    :param value: seconds, or a timedelta
    :param least: the smallest value that makes sense
    :raises ValueError: it is no duration, or shorter than that
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not number >= least:
        raise ValueError(f"{name} must be a timedelta or a number of seconds from {least:g} up, not {value!r}")
    return float(number)


def loaded(name: str, value: Any) -> Any:
    """Return a rendered argument that stands for an object or a list; a template renders to text, so read JSON.

    :raises ValueError: it is text, but no JSON
    """
    if not isinstance(value, str):
        return value
    if not value.strip() or value.strip() in ("None", "null"):
        return None
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"{name} was rendered to a text that is not JSON: {value[:60]!r}") from None


def instant(name: str, value: Any) -> datetime | None:
    """Return a rendered argument that stands for an instant: a datetime, ISO 8601 text, or nothing.

    :raises ValueError: it is no instant, or has no zone
    """
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    try:
        moment = datetime.fromisoformat(value.strip()) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} must be an ISO 8601 time, not {value!r}") from None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"{name} must be a time with a zone, not {value!r}")
    return moment


def session_of(value: Any) -> dict[str, Any]:
    """Return the session in a rendered ``session`` argument: the output of an operator or sensor of this provider.

    :raises ValueError: there is none, or it is something else
    """
    session = loaded("session", value)
    if not session:
        raise ValueError("session is empty: the task that should give it has no output. Did it fail or skip?")
    if not isinstance(session, Mapping) or not session.get("status") or not session.get("meter_id"):
        raise ValueError(f"session must be the output of a RunMeterOperator or MeterSessionSensor, not {session!r:.80}")
    return dict(session)
