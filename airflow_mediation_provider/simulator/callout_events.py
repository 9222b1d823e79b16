"""Mediation's events and their fields: a session's status changed, a periodic update, a query of the event store.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation and its pages
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow_mediation_provider.simulator.records import SINK, rejected, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_mediation_provider.simulator.callout_config import EventKind
    from airflow_mediation_provider.simulator.sessions import Session, SessionChange

Value = str | int | float | datetime | None


class Field(NamedTuple):
    """A field of an event: its label in Zuora's documentation, its merge field, and a plain name."""

    label: str
    tag: str
    words: str


_METER: Final = (Field("Meter Id", "Meter.Id", "meter id"), Field("Meter Name", "Meter.Name", "meter name"))
# Zuora documents the labels; of the merge fields only some (Meter.Id, MeterSession.Status and RunType, MeterOperator.Id
# and ErrorPercentage, those of the event store): the others follow their pattern.
FIELDS: Final[dict[str, tuple[Field, ...]]] = {
    "status_change": (
        *_METER,
        Field("Session Id", "MeterSession.Id", "session id"),
        Field("Session Run Type", "MeterSession.RunType", "run type"),
        Field("Session Status", "MeterSession.Status", "status"),
        Field("Session Previous Status", "MeterSession.PreviousStatus", "previous status"),
        Field("Session start time", "MeterSession.StartTime", "start time"),
        Field("Session end time", "MeterSession.EndTime", "end time"),
    ),
    "periodic": (
        *_METER,
        Field("Operator Id", "MeterOperator.Id", "operator id"),
        Field("Session Id", "MeterSession.Id", "session id"),
        Field("Session Run Type", "MeterSession.RunType", "run type"),
        Field("Session start time", "MeterSession.StartTime", "start time"),
        Field("Session end time", "MeterSession.EndTime", "end time"),
        Field("Operator Output Count", "MeterOperator.OutputCount", "output count"),
        Field("Operator Error Count", "MeterOperator.ErrorCount", "error count"),
        Field("Operator Total Count", "MeterOperator.TotalCount", "total count"),
        Field("Operator Error Percentage", "MeterOperator.ErrorPercentage", "error percentage"),
    ),
    "event_store_query": (
        Field("Event Store Query Id", "EventStoreQuery.Id", "query id"),
        Field("Event Store Query", "EventStoreQuery.Query", "query"),
        Field("Event Store Query Status", "EventStoreQuery.Status", "status"),
        Field("Modified Row Count", "EventStoreQuery.ModifiedRowCount", "modified row count"),
        Field("Event Store Id", "EventStore.Id", "event store id"),
        Field("Event Store Name", "EventStore.Name", "event store name"),
    ),
}


@dataclass(frozen=True, slots=True)
class Event:
    """An event that notifications can be about.

    :param kind: which of Mediation's events it is
    :param id: the event's id
    :param at: when it happened, seconds since the epoch
    :param values: its merge fields
    :param change: ``seq`` of the log entry of the change that it reports
    """

    kind: EventKind
    id: str
    at: float
    values: Mapping[str, Value]
    change: int | None = None


def status_change(change: SessionChange, meter_name: str) -> Event:
    """Return the *Meter Session Status Change* of a change."""
    told = {"MeterSession.Status": change.status, "MeterSession.PreviousStatus": change.previous}
    values = {**_session(change.session, meter_name), **told}
    return Event("status_change", uuid.uuid4().hex, change.at, values, change.entry)


def periodic(session: Session, meter_name: str, now: float) -> list[Event]:
    """Return the *Meter Session Periodic Status Update* of each operator of a session; it contains no status."""
    output, errors = visible(session)
    counts = {SINK: (output, 0)}
    for operator, _, _, failed in rejected(errors):
        counts[operator] = (counts.get(operator, (0, 0))[0], failed)
    events = []
    for operator, (put_out, failed) in counts.items():
        total = put_out + failed
        values = {
            **_session(session, meter_name),
            "MeterOperator.Id": operator.id,
            "MeterOperator.OutputCount": put_out,
            "MeterOperator.ErrorCount": failed,
            "MeterOperator.TotalCount": total,
            "MeterOperator.ErrorPercentage": round(100 * failed / total, 2) if total else 0,
        }
        events.append(Event("periodic", uuid.uuid4().hex, now, values))
    return events


def event_store_query(values: Mapping[str, Any], now: float) -> Event:
    """Return an *Event Store Query Status Changed*.

    :param values: merge fields that differ from those of a successful query
    :raises ValueError: the event has no such field
    """
    ended: dict[str, Value] = {
        "EventStoreQuery.Id": uuid.uuid4().hex,
        "EventStoreQuery.Query": "DELETE FROM usage WHERE AccountNumber = 'A-1'",
        "EventStoreQuery.Status": "COMPLETED",
        "EventStoreQuery.ModifiedRowCount": 12,
        "EventStore.Id": "301",
        "EventStore.Name": "Usage store",
    }
    if unknown := sorted(set(values) - set(ended)):
        raise ValueError(f"event_store_query: unknown field {', '.join(unknown)}; known: {', '.join(ended)}")
    return Event("event_store_query", uuid.uuid4().hex, now, {**ended, **values})


def _session(session: Session, meter_name: str) -> dict[str, Value]:
    ended = session.ended_at
    return {
        "Meter.Id": session.meter_id,
        "Meter.Name": meter_name,
        "MeterSession.Id": session.session_id,
        "MeterSession.RunType": str(session.run_type),
        "MeterSession.StartTime": datetime.fromtimestamp(session.started_at, UTC),
        "MeterSession.EndTime": None if ended is None else datetime.fromtimestamp(ended, UTC),
    }
