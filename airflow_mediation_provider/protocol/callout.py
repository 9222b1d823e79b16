"""Read a callout that is proven: whatever its body holds, it becomes an ``Entry``, and nothing of it gets lost.

Users write the body's template, so there is no one shape. Every name is brought into one form (letters and digits, in
lower case, without ``DataSource.``), objects in objects as if their names were joined, and looked up in one table. So
"Session Previous Status", ``MeterSession.PreviousStatus``, ``MeterSessionPreviousStatus``, ``previousStatus`` and
``previous_status`` are the same field.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation and
https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/insert-merge-fields-into-the-request-body-of-callout-templates
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from airflow_mediation_provider.protocol.callout_times import read_time
from airflow_mediation_provider.protocol.entry import NOTIFICATION_ID_LENGTH, Entry, EntryKind
from airflow_mediation_provider.protocol.status import DEBUG_ONLY, RunType, parse_status
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings

# The longest ids and statuses that the journal's columns hold; longer ones are not Zuora's.
LONGEST: Final = 64
DEEPEST: Final = 32
TEST_FIELD: Final = "mediationTest"
NOTIFICATION_HEADER: Final = "Zuora-Notification-Id"
# Kept of an unreadable callout. None of them proves anything.
_KEPT_HEADERS: Final = (NOTIFICATION_HEADER, "Zuora-Request-Id", "Content-Type", "User-Agent")


def _names(prefixes: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for prefix in prefixes for name in names)


_SESSION: Final = ("", "session", "metersession", "metersessionsession")
_ALIASES: Final[dict[str, str]] = {
    alias: field
    for field, aliases in {
        "meter_id": ("meterid", "metermeterid"),
        "meter_name": ("metername", "metermetername"),
        "session_id": _names(_SESSION[1:], ("id",)),
        "run_type": _names((*_SESSION, "meter"), ("runtype",)),
        "status": _names(_SESSION, ("status", "currentstatus", "newstatus")),
        "previous_status": _names(_SESSION, ("previousstatus", "prevstatus", "oldstatus")),
        "started_at": _names(_SESSION, ("starttime", "startedat", "startdate", "startdatetime", "start")),
        # The last one is Zuora's label in full: "Session end time (if completed)".
        "ended_at": _names(_SESSION, ("endtime", "endedat", "enddate", "enddatetime", "end", "endtimeifcompleted")),
    }.items()
    for alias in aliases
}
# Fields that no status change has, beside those whose names begin with ``MeterOperator`` or ``EventStoreQuery``.
_OPERATOR: Final = frozenset(
    {
        *_names(("", "operator"), ("errorpercentage",)),
        *_names(("operator",), ("id", "outputcount", "errorcount", "totalcount")),
    }
)
_QUERY: Final = frozenset({"eventstoreid", "eventstorename", "queryid", "querystatus", "modifiedrowcount"})
# These may be anybody's where the body holds a status.
_COUNTS: Final = frozenset({"outputcount", "errorcount", "totalcount"})

_UNRESOLVED: Final = re.compile(r"\{\{[^{}]*\}\}|<[A-Za-z][\w.]*>")
_TEST_NAME: Final = TEST_FIELD.lower()


def read_callout(settings: CalloutSettings, headers: Mapping[str, str], body: bytes, observed_at: datetime) -> Entry:
    """Read a callout that is proven.

    :param headers: of the request, names in any case
    :param body: as received
    :param observed_at: when it came
    :return: always an entry; of the kind UNPARSED where the body does not say which session changed to what
    """
    sent = {name.lower(): value for name, value in headers.items()}
    notification_id = bounded_id(sent.get(NOTIFICATION_HEADER.lower()))
    try:
        fields = read_body(body, sent.get("content-type", ""))
        return read_fields(
            settings, fields, observed_at=observed_at, source=Source.CALLOUT, notification_id=notification_id
        )
    except (ValueError, RecursionError) as error:
        return Entry(
            kind=EntryKind.UNPARSED,
            observed_at=observed_at,
            source=Source.CALLOUT,
            notification_id=notification_id,
            body={
                **_raw(body),
                "headers": {name: storable(sent[name.lower()]) for name in _KEPT_HEADERS if name.lower() in sent},
                "error": str(error) if isinstance(error, UnreadableCalloutError) else f"the body is not JSON: {error}",
            },
        )


def read_again(settings: CalloutSettings, body: Mapping[str, Any], observed_at: datetime) -> Entry | None:
    """Read an unreadable callout once more, with other settings or by another version of this package.

    :param body: of the UNPARSED entry
    :param observed_at: when the callout came
    :return: an entry without a notification id; ``None`` where the callout itself was not kept
    """
    text, encoded, headers = body.get("text"), body.get("base64"), body.get("headers")
    if isinstance(text, str):
        raw = text.encode("utf-8", "replace")
    elif isinstance(encoded, str):
        raw = base64.b64decode(encoded)
    else:
        return None
    sent = dict(headers) if isinstance(headers, dict) else {}
    sent.pop(NOTIFICATION_HEADER, None)
    return read_callout(settings, sent, raw, observed_at)


def read_fields(
    settings: CalloutSettings,
    fields: Mapping[str, Any],
    *,
    observed_at: datetime,
    source: Source,
    notification_id: str | None,
) -> Entry:
    """Read the fields of an event, whatever they are called.

    :param fields: by their names, objects in objects allowed
    :param source: a callout, or the callout history, which holds the same fields
    :raises UnreadableCalloutError: they do not say which session changed to what
    """
    body = storable(dict(fields))
    named = _named(body)
    kind = _kind(named)
    known = _known(named)
    if kind is not EntryKind.STATUS_CHANGE:
        return Entry(
            kind=kind,
            observed_at=observed_at,
            source=source,
            notification_id=notification_id,
            meter_id=_if_short(known.get("meter_id")),
            meter_name=known.get("meter_name"),
            session_id=_if_short(known.get("session_id")),
            body=body,
        )
    for name in ("session_id", "meter_id", "status"):
        if name not in known:
            raise UnreadableCalloutError(f"it holds no {name.replace('_', ' ')}")
    status = parse_status(known["status"])
    previous_status = parse_status(known["previous_status"]) if "previous_status" in known else None
    for name, text in (
        ("session id", known["session_id"]),
        ("meter id", known["meter_id"]),
        ("status", status),
        ("previous status", previous_status or ""),
    ):
        if len(text) > LONGEST:
            raise UnreadableCalloutError(f"its {name} has {len(text)} characters, which is none of Zuora's")
    return Entry(
        kind=kind,
        observed_at=observed_at,
        source=source,
        transition=SessionTransition(
            meter_id=known["meter_id"],
            meter_name=known.get("meter_name"),
            session_id=known["session_id"],
            run_type=_run_type(known.get("run_type"), status),
            status=status,
            previous_status=previous_status,
            started_at=read_time(settings, known.get("started_at")),
            ended_at=read_time(settings, known.get("ended_at")),
            observed_at=observed_at,
            source=source,
            notification_id=notification_id,
        ),
        body=body,
    )


def read_body(body: bytes, content_type: str = "") -> dict[str, Any]:
    """Return the fields of a body: JSON in any of its encodings, or a form.

    :param content_type: of the request; JSON needs none
    :raises ValueError: it is neither
    :raises RecursionError: it is nested too deep
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        text = body.decode("latin-1").strip("\ufeff \t\r\n")
        if isinstance(error, UnicodeDecodeError) and text.startswith(("{", "[")):
            value = json.loads(text)
        elif "form" in content_type.lower() or re.match(r"[\w.% +-]+=", text):
            value = dict(parse_qsl(body.decode("utf-8", "replace").strip(), keep_blank_values=True, max_num_fields=999))
        else:
            raise
    if not isinstance(value, dict) or not value:
        raise UnreadableCalloutError("the body is no object with fields")
    return value


def plain_name(name: object) -> str:
    """Return the one form of a field's name: its letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def bounded_id(text: str | None) -> str | None:
    """Return a notification id as the journal keeps it: one that is too long, or like none of Zuora's, by its hash."""
    text = (text or "").strip()
    if not text:
        return None
    if re.fullmatch(r"[\w.-]+", text, re.ASCII) and len(text) <= NOTIFICATION_ID_LENGTH:
        return text
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"


def storable(value: Any, depth: int = 0) -> Any:
    """Return JSON as every database takes it: no NUL, no half of a character, no number that JSON does not have.

    :raises UnreadableCalloutError: it is nested too deep
    """
    if depth > DEEPEST:
        raise UnreadableCalloutError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        return {storable(name): storable(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [storable(each, depth + 1) for each in value]
    if isinstance(value, str):
        return re.sub("[\0\ud800-\udfff]", "\ufffd", value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class UnreadableCalloutError(ValueError):
    """A body that does not say which session changed to what."""


def _raw(body: bytes) -> dict[str, str]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"base64": base64.b64encode(body).decode()} if "\0" in text else {"text": text}


def _named(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return every field that holds something, by its name in the one form; of two, the first one counts."""
    named: dict[str, str] = {}
    for name, text in _leaves(fields, ""):
        named.setdefault(name, text)
    return named


def _leaves(fields: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        joined = path + plain_name(name)
        if isinstance(value, dict):
            yield from _leaves(value, joined)
        elif (text := _text(value)) is not None:
            yield joined.removeprefix("datasource"), text


def _text(value: object) -> str | None:
    """Return what a field says, ``None`` where it says nothing: empty, or a merge field that was not resolved."""
    if value is None or isinstance(value, (bool, list)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text.lower() in ("", "null") or _UNRESOLVED.fullmatch(text) else text


def _known(named: Mapping[str, str]) -> dict[str, str]:
    """Return the eight documented fields; of two names of one, the longer is the more exact."""
    known: dict[str, str] = {}
    for name in sorted(named, key=len, reverse=True):
        if field := _ALIASES.get(name):
            known.setdefault(field, named[name])
    return known


def _kind(named: Mapping[str, str]) -> EntryKind:
    """Tell the events apart by the fields that hold something: a template may have those of all, the others empty."""
    if _TEST_NAME in named:
        return EntryKind.TEST
    names, held = set(named), {_ALIASES.get(name) for name in named}
    operator = any(name.startswith("meteroperator") for name in names) or names & _OPERATOR
    if operator or ("status" not in held and names & _COUNTS):
        return EntryKind.PERIODIC
    query = any(name.startswith("eventstorequery") for name in names) or names & _QUERY
    return EntryKind.EVENT_STORE_QUERY if query and "session_id" not in held else EntryKind.STATUS_CHANGE


def _run_type(text: str | None, status: str) -> RunType:
    if status in DEBUG_ONLY or (text or "").upper() in ("DEBUG", "2"):
        return RunType.DEBUG
    return RunType.NORMAL


def _if_short(text: str | None) -> str | None:
    return text if text is not None and len(text) <= LONGEST else None
