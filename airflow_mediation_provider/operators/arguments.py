"""Checks of arguments that the operators share; a template is let through, and checked again once it is rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from airflow_mediation_provider.protocol.status import RunType

_LONGEST: Final = timedelta(days=3650)


def is_template(value: object) -> bool:
    """Whether a value is known only when the task runs: a Jinja template, or another task's output."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    return hasattr(value, "resolve")


def check_text(name: str, value: object) -> None:
    """Check an argument that names something.

    :param name: the argument, for the error
    :raises ValueError: it is empty, or no text
    """
    if is_template(value):
        return
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} must not be empty")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {value!r:.80}")


def check_meter(meter_id: object, version: object) -> None:
    """Check the two arguments that name a meter version; a meter's id may be a number.

    :raises ValueError: one of them is empty, or of another type
    """
    check_text("meter_id", str(meter_id) if type(meter_id) is int else meter_id)
    check_text("version", version)


def check_flags(**flags: object) -> None:
    """Check arguments that are on or off: any text, that of a template too, would count as on.

    :raises ValueError: one of them is neither ``True`` nor ``False``
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False (it takes no template), not {value!r:.80}")


def status_names(name: str, value: object) -> tuple[str, ...] | None:
    """Return the statuses that were given, one or several, by their names; whether they exist is checked elsewhere.

    :raises ValueError: it is neither a text nor a list of texts
    """
    if value is None:
        return None
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{name} must be a status or a list of statuses (it takes no template), not {value!r:.80}")
    return tuple(item.strip().upper() for item in (items if isinstance(items, list | tuple) else sorted(items)))


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
    known = isinstance(number, int | float) and not isinstance(number, bool)
    if not known or not least <= number <= _LONGEST.total_seconds():
        raise ValueError(
            f"{name} must be a timedelta or a number of seconds, from {least:g} seconds to ten years, not {value!r:.80}"
        )
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
        raise ValueError(f"{name} is a text that is not JSON: {value[:60]!r}") from None


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


def check_instant(name: str, value: Any) -> None:
    """Check an argument that stands for an instant, or for none.

    :raises ValueError: it is empty, no instant, or has no zone
    """
    if value is not None and not is_template(value) and instant(name, value) is None:
        raise ValueError(f"{name} must be a time with a zone, not {value!r}")


def check_session_id(value: Any) -> None:
    """Check an argument that names a session, by its id or by the output of an operator that has it, or none.

    :raises ValueError: it is empty, or of another type
    """
    if value is not None and not isinstance(value, Mapping):
        check_text("session_id", value)


def session_id_of(value: Any, *, given: bool) -> str | None:
    """Return a rendered session id; ``None`` only where none was given.

    :param value: the id, or the output of an operator or sensor of this provider
    :param given: whether the argument was given: what it stands for may turn out to be nothing, and to wait for any
        other session then would be wrong
    :raises ValueError: it was given, and names no session
    """
    if not given and value is None:
        return None
    found = value.get("session_id") if isinstance(value, Mapping) else value
    text = "" if found is None else str(found).strip()
    if text in ("", "None"):
        raise ValueError(
            f"session_id was rendered to {value!r:.80}, which names no session. Did the task that should give it fail "
            f"or skip, or lose the reply of its run call?"
        )
    return text


def check_session(value: Any) -> None:
    """Check a ``session`` argument: a task's output, or the same as a template or written out.

    :raises ValueError: it is something else
    """
    if not is_template(value):
        session_of(value)


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
