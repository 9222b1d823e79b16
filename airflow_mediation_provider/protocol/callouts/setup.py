"""Set up callouts: the template and settings to paste into Zuora, and a signed test callout to check the route.

Zuora documents the labels of the event's fields, but not all of their merge fields. The undocumented ones are marked:
users compare them with those that the template editor inserts. No text made here contains a secret. The receiver stores
the test callout as a test: it changes no session and starts no Dag.

``setup_faults`` finds what is set up wrongly by the newest callouts: what all of them have in common, because a session
may have no previous status, and a callout may be late by Zuora's queue, or by its retries, half an hour apart by
default.

* **The zone.** A session starts and ends within seconds before the callout of that. If its time is a multiple of a
  quarter of an hour off its arrival, in each of the two newest sessions by the same, and in none of the three before
  by nothing, then it was written in another zone than it is read in. A zone that does not exist is a late callout.
* **A field.** It has no value in any of the newest callouts that should have it: its merge field is a wrong one.
* **The end time.** A session has ended, and the newest callouts do not even have the field: the template lacks it. Its
  end time alone shows that a repeated report is about the same end. Zuora documents it "if completed", so an empty one
  is a fault only where sessions are COMPLETED.

Sources: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation and
https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/create-a-callout-template
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Final

import pendulum

from airflow_mediation_provider.protocol.callouts.fields import UnparsedCalloutError, event_fields
from airflow_mediation_provider.protocol.callouts.parse import NOTIFICATION_HEADER, TEST_FIELD
from airflow_mediation_provider.protocol.callouts.settings import SignedHeader
from airflow_mediation_provider.protocol.callouts.tenant_times import names_its_zone, read_time
from airflow_mediation_provider.protocol.callouts.verify import sign
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, SessionStatus, parse_status
from airflow_mediation_provider.protocol.times import humanize, quarters_off, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.callouts.fields import EventFields
    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings

SECONDS: Final = 25.0
"""Zuora's timeout for an answer, in all."""
# Meaning of the statuses that the endpoint itself answers with.
_OURS: Final = {
    401: "the credentials are refused. The API server has other secrets in this connection (after a change it needs "
    "five seconds), or a proxy removes headers or changes the body",
    404: "the API server has no connection with exactly this id and of type mediation (a new one may need two "
    "minutes), or the connection has no callout authentication",
    408: "the API server did not receive the whole body in time",
    503: "the API server cannot store callouts, or the connection's callout fields are wrong there. See its log",
}
# Meaning of the same statuses from a proxy or another server.
_OTHERS: Final = {
    401: "something before Airflow asks for credentials of its own",
    403: "something before Airflow forbids it: a proxy, a firewall, a gateway",
    404: "nothing is at this address. Its path must end with /mediation/callouts/ and the connection's id",
    405: "Airflow answers, but not this provider. Is it installed where the API server runs, and was that restarted? "
    "Zuora never retries after 405",
    413: "a proxy allows no body of this size",
    502: "a proxy does not reach the API server",
    503: "a proxy does not reach the API server, or Airflow is starting",
    504: "a proxy timed out waiting for the API server",
}


@dataclass(frozen=True, slots=True)
class MergeField:
    """One field of the *Meter Session Status Change* event.

    :param key: its name in the recommended body
    :param tag: its merge field
    :param label: its label in Zuora's documentation
    :param documented: whether Zuora's documentation shows the tag itself, not only the label
    """

    key: str
    tag: str
    label: str
    documented: bool


# The meter's name is left out: a quote in it would break the JSON, and Zuora neither sends nor retries such a callout.
FIELDS: Final = (
    MergeField("meterId", "Meter.Id", "Meter Id", documented=True),
    MergeField("sessionId", "MeterSession.Id", "Session Id", documented=False),
    MergeField("runType", "MeterSession.RunType", "Session Run Type", documented=True),
    MergeField("status", "MeterSession.Status", "Session Status", documented=True),
    MergeField("previousStatus", "MeterSession.PreviousStatus", "Session Previous Status", documented=False),
    MergeField("startTime", "MeterSession.StartTime", "Session start time", documented=False),
    MergeField("endTime", "MeterSession.EndTime", "Session end time", documented=False),
)


def template_body() -> str:
    """Return the recommended body of the callout template: JSON with Zuora's merge fields."""
    return json.dumps({field.key: f"{{{{{field.tag}}}}}" for field in FIELDS}, indent=2)


def settings_to_paste(settings: CalloutSettings, url: str) -> list[tuple[str, str]]:
    """Return what to choose and type in Zuora's form, with the form's own labels, in its order.

    :param settings: of the connection; a secret is shown only by the name of its field
    :param url: the address under which Zuora reaches the endpoint
    """
    rows = [
        ("Related Event", "Meter Session Status Change"),
        ("Http Method", "POST"),
        ("Request URL", url),
        ("Retriable", "on: without it, one failed attempt loses the event"),
        ("Confirm success by parsing response content", "on or off: the answer has the form that Zuora documents"),
    ]
    if settings.basic is not None:
        rows += [
            ("Authorization", "Basic"),
            ("Username", settings.basic.username),
            ("Password", "the connection's callout_password"),
            ("Enable Preemptive Authentication", "on saves one request per callout; off works too"),
        ]
    if settings.token is not None:
        rows.append(("Custom header", f"{settings.token.header}: the connection's callout_token"))
    if settings.hmac is not None:
        rows += [
            ("HMAC algorithm", settings.hmac.algorithm),
            ("HMAC output format", settings.hmac.encoding),
            ("HMAC secret", "the connection's callout_hmac_secret"),
            ("HMAC data", settings.hmac.message),
            ("HMAC header name", settings.hmac.header),
            ("HMAC header value", f"{settings.hmac.prefix}{{{{Request.HMAC.Signed}}}}{settings.hmac.suffix}"),
        ]
    return rows


def template_text(settings: CalloutSettings, url: str) -> str:
    """Return settings and body as one text to copy from.

    :param settings: of the connection
    :param url: the address under which Zuora reaches the endpoint
    """
    rows = settings_to_paste(settings, url)
    width = max(len(name) for name, _ in rows)
    inferred = [field for field in FIELDS if not field.documented]
    lines = [
        "In Zuora, Extension Studio > Events & Notifications > Callout Templates > + Add New Callout Template:",
        "",
        *(f"  {name:<{width}}  {value}" for name, value in rows),
        "",
        "Body (JSON):",
        "",
        template_body(),
        "",
        "Zuora documents these merge fields by their labels only. Compare each with what '+ Insert Merge Fields'",
        "inserts: a wrong one stays empty, and a callout without the session id cannot be used.",
        "",
        *(f"  {{{{{field.tag}}}}}  is meant to be  {field.label!r}" for field in inferred),
        "",
    ]
    if not settings.enabled:
        lines += [
            f"Connection {settings.conn_id!r} accepts no callouts yet: set callout_hmac_secret, or callout_username",
            "and callout_password, or callout_token in its extra. Then run this command again: it adds their settings.",
            "If Zuora cannot reach Airflow, and the callout history is read instead, leave them out.",
            "",
        ]
    if settings.date_format is None:
        lines += [
            "Zuora writes times in the locale of your tenant, or of a user. What can be read in one way only is",
            "read; for a form like 04/05/2026, set callout_date_format.",
            "",
        ]
    lines += [
        f"Times without a zone are read as {settings.timezone}: callout_timezone must be the zone in which Zuora",
        "writes them. The health line on the page of sessions shows after two sessions whether it is.",
        "",
    ]
    return "\n".join(lines)


def probe(
    settings: CalloutSettings, *, nonce: str, now: datetime, authorized: bool = True
) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a test callout.

    :param settings: of the connection; its current secrets are used
    :param nonce: letters and digits that no other test has
    :param now: the time now
    :param authorized: with credentials; without them, the request is that of an unauthenticated client, and Zuora's
        first request where Basic authentication is not preemptive
    """
    body = json.dumps(
        {
            TEST_FIELD: to_json(now),
            "meterId": "0",
            "sessionId": f"TEST-{nonce}",
            "runType": "DEBUG",
            "status": "TESTING",
            "previousStatus": "",
        }
    ).encode()
    headers = {
        "Content-Type": "application/json",
        "Date": format_datetime(now, usegmt=True),
        "Zuora-Request-Id": nonce,
        NOTIFICATION_HEADER: f"test-{nonce}",
    }
    hmac = settings.hmac
    if hmac is not None:
        known = {name.lower() for name in headers}
        headers |= {
            part.name: "test"
            for part in hmac.parts
            if isinstance(part, SignedHeader) and part.name.lower() not in known
        }
    return (headers | _credentials(settings, headers, body) if authorized else headers), body


def _credentials(settings: CalloutSettings, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    made = {}
    if settings.token is not None:
        made[settings.token.header] = settings.token.tokens[0]
    if settings.basic is not None:
        pair = f"{settings.basic.username}:{settings.basic.passwords[0]}"
        made["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    if settings.hmac is not None:
        sent = {name.lower(): value for name, value in {**headers, **made}.items()}
        made[settings.hmac.header] = sign(settings.hmac, sent, body, settings.hmac.secrets[0])
    return made


def explain_refusal(status: int, headers: Mapping[str, str], body: str, settings: CalloutSettings) -> str | None:
    """Return what is wrong with the answer to a callout without credentials; ``None``: nothing.

    :param status: the answer's status
    :param headers: the answer's, names in lower case
    :param body: the answer's
    :param settings: of the connection
    """
    if status == 200:
        return (
            "a callout without credentials was answered 200: the answer is not from this endpoint, and Zuora would "
            "take it for success"
        )
    if status != 401:
        return explain_answer(status, headers, body)
    if settings.basic is not None and "basic" not in headers.get("www-authenticate", "").lower():
        return (
            "the answer 401 does not ask for Basic credentials (WWW-Authenticate): something between Zuora and Airflow "
            "removes the header or answers itself, so Zuora never sends its credentials unless they are preemptive"
        )
    return None


def explain_answer(status: int, headers: Mapping[str, str], body: str) -> str | None:
    """Return what is wrong with the answer to a callout with the right credentials; ``None``: nothing.

    :param status: the answer's status
    :param headers: the answer's, names in lower case
    :param body: the answer's
    """
    success = _success(body)
    if status == 200:
        return None if success else "the answer is 200, but not from this endpoint: Zuora would take it for success"
    if 300 <= status < 400:
        return f"the answer is {status}, to {headers.get('location', 'nowhere')}: Zuora follows no redirect"
    known = _OURS.get(status) if success is False else _OTHERS.get(status)
    return f"the answer is {status}: {known or 'it is not from this endpoint, but from something before Airflow'}"


def _success(body: str) -> bool | None:
    """Return the ``success`` of this endpoint's answer; ``None``: the answer is not from this endpoint."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    success = reply.get("success") if isinstance(reply, dict) else None
    return success if isinstance(success, bool) else None


CALLOUTS: Final = 10
"""A field without a value in this many callouts is a fault."""
_ENDS: Final = 3
"""Sessions that are COMPLETED and have no end time."""
_AGREEING: Final = 2
_SESSIONS: Final = 5
_FIRST: Final = frozenset({SessionStatus.INITIALIZING, SessionStatus.TESTING})
_STARTING: Final = _FIRST | {SessionStatus.RUNNING}
_BEFORE_START: Final = frozenset({None, SessionStatus.NEVER_RUN, SessionStatus.INITIALIZING})
_TAGS: Final = {
    "previous_status": next(field.tag for field in FIELDS if field.key == "previousStatus"),
    "started_at": next(field.tag for field in FIELDS if field.key == "startTime"),
    "ended_at": next(field.tag for field in FIELDS if field.key == "endTime"),
    "meter_name": "Meter.Name",
}
# The offsets from UTC, in hours, that zones have today.
_OFFSETS: Final = frozenset(
    timedelta(hours=hours)
    for hours in (*range(-12, 15), -9.5, -3.5, -2.5, 3.5, 4.5, 5.5, 5.75, 6.5, 8.75, 9.5, 10.5, 12.75, 13.75)
)
# Zones to suggest, the most likely first.
_ZONES: Final = (
    *("America/Los_Angeles", "America/New_York", "America/Chicago", "America/Denver", "America/Phoenix"),
    *("Europe/London", "Europe/Berlin", "Europe/Athens", "UTC", "America/Toronto", "America/Sao_Paulo"),
    *("Asia/Kolkata", "Asia/Singapore", "Asia/Tokyo", "Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland"),
    *("America/St_Johns", "America/Halifax", "America/Anchorage", "Pacific/Honolulu", "Asia/Dubai", "Asia/Kathmandu"),
)


@dataclass(frozen=True, slots=True)
class ReceivedCallout:
    """A callout of a status change, as it was received.

    :param body: its fields
    :param received_at: when
    """

    body: Mapping[str, Any]
    received_at: datetime


@dataclass(frozen=True, slots=True)
class _Read:
    fields: EventFields
    status: str
    previous_status: str | None
    received_at: datetime

    @property
    def session(self) -> tuple[str | None, str | None]:
        return self.fields.known.get("meter_id"), self.fields.known.get("session_id")

    @property
    def change_time(self) -> str | None:
        """The text of the time of this very change, where the callout has it: of a start or an end."""
        if self.status in ANY_TERMINAL:
            return self.fields.known.get("ended_at")
        starts = self.status in _STARTING and self.previous_status in _BEFORE_START
        return self.fields.known.get("started_at") if starts else None

    def shift(self, settings: CalloutSettings) -> timedelta | None:
        """Return by how many quarters of an hour that time is off its arrival; ``None`` where it shows nothing."""
        time = read_time(settings, self.change_time)
        return None if time is None else quarters_off(time, self.received_at)


def setup_faults(settings: CalloutSettings, callouts: Iterable[ReceivedCallout]) -> list[str]:
    """Return what the newest callouts show to be set up wrongly, each in one sentence with the remedy.

    :param settings: of the connection, as they are now: a corrected setting ends the fault at once
    :param callouts: the newest ones of status changes, the newest first
    """
    read = [each for callout in callouts if (each := _read(callout)) is not None]
    return [*_wrong_zone(settings, read), *_without_value(settings, read), *_without_end(read)]


def _read(callout: ReceivedCallout) -> _Read | None:
    try:
        fields = event_fields(callout.body)
        status = parse_status(fields.known.get("status"))
        before = fields.known.get("previous_status")
        return _Read(fields, status, before and parse_status(before), callout.received_at)
    except (UnparsedCalloutError, ValueError, RecursionError):
        return None


def _wrong_zone(settings: CalloutSettings, callouts: Sequence[_Read]) -> Iterator[str]:
    sessions: dict[tuple[str | None, str | None], list[tuple[timedelta, _Read]]] = {}
    for each in callouts:
        shift = each.shift(settings)
        if shift is not None:
            sessions.setdefault(each.session, []).append((shift, each))
    in_order = list(sessions.values())
    newest = [each for session in in_order[:_AGREEING] for _, each in session]
    shifts = {shift for session in in_order[:_AGREEING] for shift, _ in session}
    was_right = any(not shift for session in in_order[_AGREEING:_SESSIONS] for shift, _ in session)
    if len(sessions) < _AGREEING or len(shifts) != 1 or timedelta(0) in shifts or was_right:
        return
    (shift,) = shifts
    side = "before" if shift > timedelta(0) else "after"
    words = f"the times in callouts are {humanize(abs(shift))} {side} their arrival"
    if all(names_its_zone(settings, each.change_time) for each in newest):
        yield f"{words}, and name a zone that is not theirs: correct it in Zuora's callout template"
        return
    offset = _offset_of(settings.timezone, newest[0].received_at) - shift
    if offset in _OFFSETS:
        alike = (zone for zone in _ZONES if all(_offset_of(zone, each.received_at) == offset for each in newest))
        zone = next(alike, None) or _fixed_zone(offset)
        yield (
            f"{words}: set callout_timezone to the tenant's zone, which is now UTC{_signed(offset)}, such as {zone}, "
            f"and not {settings.timezone}"
        )


def _offset_of(zone: str, at: datetime) -> timedelta:
    return at.astimezone(pendulum.timezone(zone)).utcoffset() or timedelta(0)


def _signed(offset: timedelta) -> str:
    minutes = abs(offset) // timedelta(minutes=1)
    return f"{'-' if offset < timedelta(0) else '+'}{minutes // 60:02}:{minutes % 60:02}"


def _fixed_zone(offset: timedelta) -> str:
    """Return the zone of an offset in whole hours; in its name the sign is reversed."""
    return f"Etc/GMT{-(offset // timedelta(hours=1)):+}"


def _without_value(settings: CalloutSettings, callouts: Sequence[_Read]) -> Iterator[str]:
    later = [each for each in callouts if each.status not in _FIRST][:CALLOUTS]
    newest = callouts[:CALLOUTS]
    lacking = []
    if len(later) == CALLOUTS and not any(each.previous_status for each in later):
        lacking.append(("previous status", "previous_status"))
    if len(newest) == CALLOUTS and not any("started_at" in each.fields.known for each in newest):
        lacking.append(("start time", "started_at"))
    # The recommended template has no meter name; one that has it means it.
    if len(newest) == CALLOUTS and all("meter_name" in each.fields.empty for each in newest):
        lacking.append(("meter name", "meter_name"))
    for label, name in lacking:
        yield (
            f"no {label} in the last {CALLOUTS} callouts: compare {{{{{_TAGS[name]}}}}} in the callout template with "
            "what '+ Insert Merge Fields' inserts"
        )
    for label, name in (("start", "started_at"), ("end", "ended_at")):
        texts = [text for each in newest if (text := each.fields.known.get(name))]
        unread = sum(read_time(settings, text) is None for text in texts)
        if unread:
            # Without the text, which may be anything that a template has, and so customers' data.
            yield (
                f"the {label} time cannot be read in {unread} of the last {len(texts)} callouts that have one: set "
                "callout_date_format to how the tenant writes times"
            )


def _without_end(callouts: Sequence[_Read]) -> Iterator[str]:
    """Return whether the template lacks the end time; the newest callout decides whether it was corrected."""
    name, tag = "ended_at", f"{{{{{_TAGS['ended_at']}}}}}"
    ends = [each for each in callouts if each.status in ANY_TERMINAL]
    completed = [each for each in ends if each.status == SessionStatus.COMPLETED][:_ENDS]
    if ends and name not in {*callouts[0].fields.known, *callouts[0].fields.empty, *ends[0].fields.known}:
        yield (
            f'the callout template has no end time: add "endTime": "{tag}" to its body. Without it, a callout of an '
            "end that is sent again under another id may count as another end"
        )
    elif len(completed) == _ENDS and not any(name in each.fields.known for each in completed):
        yield (
            f"no end time in the last {_ENDS} callouts of COMPLETED: compare {tag} in the callout template with what "
            "'+ Insert Merge Fields' inserts"
        )
