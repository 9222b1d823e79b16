"""Conversion between the protocol's values and the journal's rows, and the one check of what a row may contain.

Every way into the database passes it: callouts, observations, history, waits, verdicts, notes, questions of the feed. A
value that fits no column is kept in the body, hashed or left out; no other item of the same request is affected. Texts
have the column's length, and neither NUL nor half a character; numbers have the column's size; times are within those
that MySQL stores.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam

from airflow_mediation_provider.journal.tables import Base, TransitionRow, VerdictRow
from airflow_mediation_provider.protocol.callouts.fields import UnparsedCalloutError
from airflow_mediation_provider.protocol.callouts.parse import bounded_id, storable
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict, marks_of
from airflow_mediation_provider.protocol.status import run_type_of_report
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import to_plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import ColumnElement, Row, Table

    from airflow_mediation_provider.journal.tables import SessionRow
    from airflow_mediation_provider.protocol.sessions.verdict import BestKnown

# Columns with the names of the fields. Not objects, and without the bodies: a session may have thousands of rows.
_CHANGE_NAMES: Final = tuple(field.name for field in fields(SessionTransition))
CHANGE_COLUMNS: Final = tuple(Base.metadata.tables[TransitionRow.__tablename__].c[name] for name in _CHANGE_NAMES)
# The prefixes of the ids of a meter's polls: of those that drive assets, and of all others.
POLL_DRIVES: Final = "drive"
POLL_ONLY: Final = "poll"
_NAMES: Final = ("meter_id", "session_id", "status", "previous_status")
_BEYOND_NUMBERS: Final = 2**31
# MySQL's TIMESTAMP.
_TIMES: Final = (datetime(1970, 1, 2, tzinfo=UTC), datetime(2038, 1, 18, tzinfo=UTC))
_VERDICT_NAMES: Final = tuple(field.name for field in fields(TaskVerdict))
CONCLUDED: Final = tuple(Base.metadata.tables[VerdictRow.__tablename__].c[name] for name in _VERDICT_NAMES)
_UNKNOWN: Final = "UNKNOWN"
_UNFIT: Final = "too long, too large, or with characters that no database stores"
_LONGEST_KEPT: Final = 20_000
# What a state consists of beside its transition, and its revision.
_STATE_NAMES: Final = tuple(field.name for field in fields(SessionState) if field.name != "transition")
STATE_COLUMNS: Final = (*_STATE_NAMES, "revision")
_FROM_TRANSITION: Final = ("status", "previous_status", "started_at", "ended_at")


def of_session(table: Table) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of a statement that is built once and run for each session.

    Its parameters are ``conn_id``, ``meter_id`` and ``session_id``, as the columns of the table.
    """
    return tuple(table.c[name] == bindparam(name) for name in ("conn_id", "meter_id", "session_id"))


def transition_values(entry: JournalEntry, *, conn_id: str, at: datetime) -> dict[str, Any]:
    """Return the columns of an entry's row.

    :param conn_id: the connection
    :param at: the time now
    """
    transition = entry.transition
    own_id = entry.notification_id
    fitting_id = own_id if not _unfit_names(TransitionRow, {"notification_id": own_id}) else bounded_id(own_id)
    values: dict[str, Any] = {
        "conn_id": conn_id,
        "kind": str(entry.kind),
        "notification_id": fitting_id,
        "meter_id": entry.meter_id,
        "meter_name": _storable(entry.meter_name),
        "session_id": entry.session_id,
        "run_type": str(transition.run_type) if transition else None,
        **{name: getattr(transition, name) if transition else None for name in _FROM_TRANSITION},
        "observed_at": entry.observed_at,
        "source": str(entry.source),
        "body": stored_json(entry.body),
        "created_at": at,
    }
    # These two are shown, and decide little.
    values |= dict.fromkeys(_unfit_names(TransitionRow, {name: values[name] for name in ("started_at", "ended_at")}))
    unfit = _unfit_names(TransitionRow, {name: values[name] for name in (*_NAMES, "observed_at")})
    if unfit:
        kept = {"error": f"{', '.join(unfit)}: {_UNFIT}", "entry": stored_json(_without_body(entry))}
        values |= unparsed_values(values, {**values["body"], **kept})
    return values


def refused_values(entry: JournalEntry, values: Mapping[str, Any], error: str) -> dict[str, Any]:
    """Return the columns of the row of an entry that the database refused: it is kept as plain ASCII.

    :param entry: the entry
    :param values: its columns, of ``transition_values``
    :param error: why it was refused
    """
    body = {"error": error, "entry": ascii(_without_body(entry)), "body": ascii(values["body"])[:_LONGEST_KEPT]}
    return {**values, **unparsed_values(values, body)}


def unparsed_values(values: Mapping[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return what changes in the columns of a row that cannot be stored as what it is.

    :param values: its columns
    :param body: what is kept of it
    """
    nothing = dict.fromkeys((*_NAMES, *_FROM_TRANSITION, "run_type", "meter_name"))
    return {**nothing, "kind": str(EntryKind.UNPARSED), "observed_at": values["created_at"], "body": body}


def _without_body(entry: JournalEntry) -> Any:
    return to_plain(replace(entry, body={}))


def transition_of(row: Row[Any]) -> SessionTransition:
    """Return the transition that a row contains; only rows of changes and polls have one.

    :param row: with the columns ``CHANGE_COLUMNS``
    """
    values = dict(zip(_CHANGE_NAMES, row, strict=True))
    values["source"] = Source(values["source"])
    return SessionTransition(**values)


def state_of(row: SessionRow) -> SessionState:
    """Return the state that a session's row contains."""
    return SessionState(
        session_id=row.session_id,
        meter_id=row.meter_id,
        status=row.status,
        previous_status=row.previous_status,
        run_type=run_type_of_report(row.run_type),
        started_at=row.started_at,
        ended_at=row.ended_at,
        first_observed_at=row.first_observed_at,
        last_observed_at=row.last_observed_at,
        conflict=row.conflict,
        ambiguous=row.ambiguous,
        transition=SessionTransition.from_dict(row.transition),
    )


def state_values(row: Row[Any]) -> dict[str, Any]:
    """Return the state that a row contains as plain JSON, without its transition.

    :param row: with the columns ``STATE_COLUMNS``
    """
    values = {name: getattr(row, name) for name in _STATE_NAMES}
    values["run_type"] = str(run_type_of_report(row.run_type))
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def session_values(state: SessionState, best: BestKnown) -> dict[str, Any]:
    """Return the columns that a session's state determines, and its best known status."""
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
        "reported": True,
        **best_values(best, state),
    }


def unreported_values(verdicts: Collection[TaskVerdict]) -> dict[str, Any]:
    """Return the columns of the row of a session that only tasks reported.

    An API server of an older version, which takes the row for a report of Zuora, finds a session of unknown status that
    ends no wait and is not live.

    :param verdicts: at least one
    """
    first = min(verdicts, key=lambda each: (each.at, each.ti_id))
    unknown = SessionTransition(
        meter_id=first.meter_id,
        session_id=first.session_id,
        run_type=first.run_type,
        status=_UNKNOWN,
        observed_at=first.at,
        source=Source.POLL,
    )
    return {
        "run_type": first.run_type,
        "status": _UNKNOWN,
        "begun_at": first.at,
        "first_observed_at": first.at,
        "last_observed_at": first.at,
        "conflict": False,
        "ambiguous": True,
        "terminal": True,
        "source": str(Source.POLL),
        "transition": unknown.to_dict(),
        "emitted": {},
        "revision": 0,
        "updated_at": first.at,
        "reported": False,
    }


def best_values(best: BestKnown, state: SessionState | None) -> dict[str, Any]:
    """Return the columns that the best known status of a session determines.

    :param best: the best known status
    :param state: the fold of Zuora's reports, if there are any
    """
    return {
        "best_status": best.status,
        "best_evidence": best.evidence,
        "best_certain": best.certain,
        "best_ended": best.ended,
        "best_ended_at": best.ended_at,
        "best_differs": bool(best.differing),
        "best_marks": " ".join(sorted(marks_of(state, best))),
    }


def verdict_values(verdict: TaskVerdict, *, conn_id: str, at: datetime) -> dict[str, Any]:
    """Return the columns of a verdict's row.

    :param conn_id: the connection
    :param at: the time now
    """
    return {"conn_id": conn_id, "created_at": at, **{name: getattr(verdict, name) for name in _VERDICT_NAMES}}


def verdict_of(row: Row[Any]) -> TaskVerdict:
    """Return the verdict that a row contains.

    :param row: with the columns ``CONCLUDED``
    """
    return TaskVerdict(**dict(zip(_VERDICT_NAMES, row, strict=True)))


def why_unfit(table: type[Base], values: Mapping[str, Any]) -> str:
    """Return why a row cannot be stored, empty if it can."""
    unfit = _unfit_names(table, values)
    return f"{', '.join(unfit)} cannot be stored: {_UNFIT}" if unfit else ""


def _unfit_names(table: type[Base], values: Mapping[str, Any]) -> list[str]:
    """Return the columns that cannot store their value; values of JSON are for ``stored_json``."""
    lengths = _lengths(table)

    def fits(name: str, value: Any) -> bool:
        match value:
            case str():
                return _is_storable(value) and len(value) <= lengths[name]
            case datetime():
                return _TIMES[0] <= value <= _TIMES[1]
            case int() | float():
                return abs(value) < _BEYOND_NUMBERS  # never true of NaN
        return True

    return [name for name, value in values.items() if not fits(name, value)]


@cache
def _lengths(table: type[Base]) -> Mapping[str, float]:
    """Return how many characters each column of a table has, infinite where there is no limit."""
    return {each.name: getattr(each.type, "length", None) or math.inf for each in table.__table__.columns}


def stored_json(value: Any) -> Any:
    """Return JSON as every database stores it; in place of what is nested too deep, the reason."""
    try:
        return storable(value)
    except UnparsedCalloutError as error:
        return {"error": str(error)}


def may_be_stored(table: type[Base], name: str, values: Iterable[str]) -> frozenset[str]:
    """Return those of some values that a row can have: the others need not be searched, and no database takes them."""
    length = _lengths(table)[name]
    return frozenset(value for value in values if len(value) <= length and _is_storable(value))


def _is_storable(text: str) -> bool:
    """Return whether every database stores a text as it is."""
    # Asked for each text of each wait, and the usual ones need not be encoded.
    return "\0" not in text if text.isascii() else _storable(text) == text


def _storable(text: str | None) -> str | None:
    """Return a text that every database stores: without NUL and without lone surrogates."""
    return None if text is None else text.replace("\x00", "").encode("utf-8", "ignore").decode("utf-8")
