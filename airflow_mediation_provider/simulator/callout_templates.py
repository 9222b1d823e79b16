"""Events and the requests that a callout template makes of them: merge fields, dates of a locale, signatures; no I/O.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation (fields) and
https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/merge-fields-for-email-and-callout-templates/merge-field-syntax
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from airflow_mediation_provider.simulator.callout_config import HASHES, SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_mediation_provider.simulator.callout_config import CalloutConfig, EventKind
    from airflow_mediation_provider.simulator.sessions import SessionChange

Value = str | int | float | datetime | None


class Field(NamedTuple):
    """A field of an event: its label in Zuora's documentation, its merge field, and what a user would call it."""

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
        Field("Error Count", "MeterOperator.ErrorCount", "error count"),
        Field("Total Count", "MeterOperator.TotalCount", "total count"),
        Field("Error Percentage", "MeterOperator.ErrorPercentage", "error percentage"),
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
LOCALES: Final = {
    "en_US": "%m/%d/%Y %I:%M:%S %p",
    "en_GB": "%d/%m/%Y %H:%M:%S",
    "de_DE": "%d.%m.%Y %H:%M:%S",
    "ja_JP": "%Y/%m/%d %H:%M:%S",
}
_TAG: Final = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}|<([A-Za-z]+\.[A-Za-z. ]+)>")


def _spell(field: Field, spelling: str) -> str:
    first, *rest = field.words.split()
    return {
        "labels": field.label,
        "dotted": field.tag,
        "concatenated": field.tag.replace(".", ""),
        "camelCase": first + "".join(word.capitalize() for word in rest),
        "snake_case": "_".join([first, *rest]),
    }[spelling]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that notifications can be about.

    :param kind: which of Mediation's events it is
    :param id: the event's id
    :param at: when it happened, seconds since the epoch
    :param values: its merge fields
    :param change: ``seq`` of the log entry of the change that it tells
    """

    kind: EventKind
    id: str
    at: float
    values: Mapping[str, Value]
    change: int | None = None

    @classmethod
    def of_change(cls, change: SessionChange, meter_name: str, event_id: str) -> Event:
        """Return the *Meter Session Status Change* of a change."""
        session = change.session
        values = {
            "Meter.Id": session.meter_id,
            "Meter.Name": meter_name,
            "MeterSession.Id": session.session_id,
            "MeterSession.RunType": str(session.run_type),
            "MeterSession.Status": change.status,
            "MeterSession.PreviousStatus": change.previous,
            "MeterSession.StartTime": datetime.fromtimestamp(session.started_at, UTC),
            "MeterSession.EndTime": None if session.ended_at is None else datetime.fromtimestamp(session.ended_at, UTC),
        }
        return cls("status_change", event_id, change.at, values, change.entry)

    def text(self, name: str, config: CalloutConfig) -> str:
        """Return what a merge field becomes, by its dotted name or label; nothing for one that the event has not."""
        wanted = _plain(name.removeprefix("DataSource."))
        for field in FIELDS[self.kind]:
            if wanted in (_plain(field.tag), _plain(field.label)):
                return _text(self.values.get(field.tag), config)
        system: dict[str, Value] = {"eventid": self.id, "eventcategory": config.category}
        if wanted in ("eventtimestamp", "eventdate"):
            return _text(datetime.fromtimestamp(self.at, UTC), config)
        return _text(system.get(wanted, ""), config)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _text(value: Value, config: CalloutConfig) -> str:
    if value is None:
        return config.null_text
    return date_text(value, config.date_format, config.timezone) if isinstance(value, datetime) else str(value)


def date_text(when: datetime, form: str, timezone: str) -> str:
    """Return an instant as the tenant's locale writes it.

    :param form: ``iso``, ``epoch_ms``, a locale of ``LOCALES`` or a pattern of ``strftime``
    """
    local = when.astimezone(ZoneInfo(timezone))
    if form == "epoch_ms":
        return str(int(when.timestamp() * 1000))
    if form == "iso":
        return local.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return local.strftime(LOCALES.get(form, form))


def fill(template: str, value_of: Callable[[str], str]) -> str:
    """Return a template with its merge fields filled in, as they are: Zuora escapes nothing."""
    return _TAG.sub(lambda found: value_of(found[1] or found[2]), template)


def render(config: CalloutConfig, event: Event) -> str:
    """Return the body of an event's callout; whether it is JSON depends on the values."""
    template = str(config.body)
    if template in SPELLINGS:
        pairs = {_spell(field, template): f"{{{{{field.tag}}}}}" for field in FIELDS[event.kind]}
        template = json.dumps(pairs)
    return fill(template, lambda name: event.text(name, config))


def headers(config: CalloutConfig, event: Event, body: str, own: Mapping[str, str]) -> dict[str, str]:
    """Return all headers of an attempt, the signature among them.

    :param own: the headers that Zuora adds to this attempt, which the signed message may name
    """
    custom = {name: fill(value, lambda tag: event.text(tag, config)) for name, value in config.headers.items()}
    sent = {"Content-Type": "application/json", **own, **custom}
    if config.hmac_secret is None:
        return sent
    known = {name.lower(): value for name, value in sent.items()}

    def part(name: str) -> str:
        if name == "Request.Body":
            return body
        if name.startswith("Request.Headers."):
            return known.get(name.removeprefix("Request.Headers.").lower(), "")
        return event.text(name, config)

    message = fill(config.hmac_data, part)
    signed = signature(config.hmac_secret, message, config.hmac_algorithm, config.hmac_output_format)
    value = fill(config.hmac_value, lambda name: signed if name == "Request.HMAC.Signed" else part(name))
    return {**sent, config.hmac_key: value}


def signature(secret: str, message: str, algorithm: str, output_format: str) -> str:
    """Return the HMAC of a message as text.

    :param algorithm: as Zuora names it, for example ``SHA-256``
    :param output_format: ``BASE64`` or ``HEX``
    """
    digest = hmac.new(secret.encode(), message.encode(), HASHES[algorithm]).digest()
    return digest.hex() if output_format == "HEX" else base64.b64encode(digest).decode()


def context(config: CalloutConfig, event: Event, body: str) -> dict[str, Any]:
    """Return the ``eventContext`` of the callout history: merge fields in angle brackets, and the body itself."""
    fields = {f"<{field.tag}>": event.text(field.tag, config) for field in FIELDS[event.kind]}
    system = {f"<{name}>": event.text(name, config) for name in ("Event.Id", "Event.Category", "Event.Timestamp")}
    return {**fields, **system, "<sendXML>": body}
