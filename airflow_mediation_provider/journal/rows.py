"""Between the protocol's values and the journal's rows; what does not fit into a column is kept whole nevertheless."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.lifecycle import SessionState
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Row

    from airflow_mediation_provider.journal.tables import SessionRow

# Named alike. Columns, not objects, and without the bodies: a session may have thousands of rows.
_TOLD_NAMES: Final = tuple(field.name for field in fields(SessionTransition))
TOLD: Final = tuple(getattr(TransitionRow, name) for name in _TOLD_NAMES)
# What the ids of a meter's polls begin with: of those that drive assets, and of all others.
POLL_DRIVES: Final = "drive"
POLL_TELLS: Final = "poll"
_LENGTHS: Final = {"meter_id": 64, "session_id": 64, "status": 64, "previous_status": 64}
_FROM_TRANSITION: Final = ("status", "previous_status", "started_at", "ended_at")


def transition_values(entry: Entry, *, conn_id: str, at: datetime) -> dict[str, Any]:
    """Return the columns of an entry's row.

    :param conn_id: the connection
    :param at: the time now
    """
    told = entry.transition
    values: dict[str, Any] = {
        "conn_id": conn_id,
        "kind": str(entry.kind),
        "notification_id": entry.notification_id,
        "meter_id": entry.meter_id,
        "meter_name": _storable(entry.meter_name),
        "session_id": entry.session_id,
        "run_type": str(told.run_type) if told else None,
        **{name: getattr(told, name) if told else None for name in _FROM_TRANSITION},
        "observed_at": entry.observed_at,
        "source": str(entry.source),
        "body": entry.body,
        "created_at": at,
    }
    unfit = [
        name
        for name, length in _LENGTHS.items()
        if values[name] is not None and (len(values[name]) > length or _storable(values[name]) != values[name])
    ]
    if unfit:
        values |= dict.fromkeys((*_LENGTHS, *_FROM_TRANSITION, "run_type"))
        error = f"{', '.join(unfit)}: too long for an id or a status, or with characters that no database takes"
        values |= {"kind": str(EntryKind.UNPARSED), "body": {**entry.body, "error": error, "entry": entry.to_dict()}}
    return values


def transition_of(row: Row[Any]) -> SessionTransition:
    """Return the transition that a row keeps; rows of changes and polls have one.

    :param row: with the columns ``TOLD``
    """
    values = dict(zip(_TOLD_NAMES, row, strict=True))
    values["run_type"] = RunType(values["run_type"])
    values["source"] = Source(values["source"])
    return SessionTransition(**values)


def state_of(row: SessionRow) -> SessionState:
    """Return the state that a session's row keeps."""
    return SessionState(
        session_id=row.session_id,
        meter_id=row.meter_id,
        status=row.status,
        previous_status=row.previous_status,
        run_type=RunType(row.run_type),
        started_at=row.started_at,
        ended_at=row.ended_at,
        first_observed_at=row.first_observed_at,
        last_observed_at=row.last_observed_at,
        conflict=row.conflict,
        ambiguous=row.ambiguous,
        transition=SessionTransition.from_dict(row.transition),
    )


def session_values(state: SessionState) -> dict[str, Any]:
    """Return the columns that a session's state decides."""
    return {
        "meter_name": state.transition.meter_name,
        "run_type": str(state.run_type),
        "status": state.status,
        "previous_status": state.previous_status,
        "started_at": state.started_at,
        "ended_at": state.ended_at,
        "begun_at": state.begun_at,
        "first_observed_at": state.first_observed_at,
        "last_observed_at": state.last_observed_at,
        "conflict": state.conflict,
        "ambiguous": state.ambiguous,
        "terminal": state.terminal,
        "source": str(state.source),
        "transition": state.transition.to_dict(),
    }


def _storable(text: str | None) -> str | None:
    """Return a text as every database takes it: without NUL, and without halves of characters."""
    return None if text is None else text.replace("\x00", "").encode("utf-8", "ignore").decode("utf-8")
