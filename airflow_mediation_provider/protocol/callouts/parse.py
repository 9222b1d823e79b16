"""Parse a verified callout: every body becomes a ``JournalEntry``, and no part of it is lost.

Users write the body's template, so there is no single shape; ``fields`` finds the event's fields in it.

Merge fields write times in the tenant's locale, which ``tenant_times`` reads. A time that cannot be read is left out of
the entry, and stays in the stored body.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from airflow_mediation_provider.protocol.callouts.fields import (
    DEEPEST,
    UnparsedCalloutError,
    documented_field,
    event_fields,
    object_of,
)
from airflow_mediation_provider.protocol.callouts.tenant_times import read_time
from airflow_mediation_provider.protocol.sessions.journal_entry import NOTIFICATION_ID_LENGTH, EntryKind, JournalEntry
from airflow_mediation_provider.protocol.status import parse_status, run_type_of_report
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.callouts.fields import EventFields
    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings


# The longest ids and statuses that the journal's columns hold; longer ones are not Zuora's.
LONGEST: Final = 64
TEST_FIELD: Final = "mediationTest"
NOTIFICATION_HEADER: Final = "Zuora-Notification-Id"
# Stored with an unparsed callout. None of them proves anything.
_KEPT_HEADERS: Final = (NOTIFICATION_HEADER, "Zuora-Request-Id", "Content-Type", "User-Agent")
_QUERY: Final = frozenset({"eventstoreid", "eventstorename", "queryid", "querystatus", "modifiedrowcount"})
# Where the body has a status, these may be fields of any of the events.
_COUNTS: Final = frozenset({"outputcount", "errorcount", "totalcount"})
_TEST_NAME: Final = TEST_FIELD.lower()
# A locale writes the number 1010 as one of 1,010 1.010 1'010 and 1 010.
_GROUPED: Final = re.compile(r"[0-9]{1,3}(?:[.,'\u2019\s][0-9]{3})+")
_UNPROVEN: Final = (
    "; the fields in its address are not read, because the signature does not cover them: put them into the body, or "
    "set callout_token or callout_username as well"
)
# What a number beyond a computer's range is written as, and one that is none.
_NOT_FINITE: Final = re.compile(r"[-+]?inf(?:inity)?|nan", re.IGNORECASE)
# Fields that no status change has, besides those whose names begin with ``MeterOperator`` or ``EventStoreQuery``.
_OPERATOR: Final = frozenset(
    {
        "errorpercentage",
        *("operator" + name for name in ("id", "outputcount", "errorcount", "totalcount", "errorpercentage")),
    }
)


def read_callout(
    settings: CalloutSettings,
    headers: Mapping[str, str],
    body: bytes,
    observed_at: datetime,
    query: Mapping[str, str] | None = None,
) -> JournalEntry:
    """Parse an authenticated callout.

    :param settings: of the connection
    :param headers: of the request, names in any case
    :param body: as received
    :param observed_at: when it was received
    :param query: the parameters of its address, which may have merge fields too; unknown ones are not kept, because
        they may be the key of a gateway
    :return: always an entry; of the kind UNPARSED where the body lacks the session or its new status
    """
    sent = {name.lower(): value for name, value in headers.items()}
    notification_id = bounded_id(sent.get(NOTIFICATION_HEADER.lower()))
    proven = _proven(settings, query or {})
    try:
        fields = {} if proven and not body.strip() else read_body(body, sent.get("content-type", ""))
        return read_fields(
            settings,
            {**_lacking(fields, proven), **fields},
            observed_at=observed_at,
            source=Source.CALLOUT,
            notification_id=notification_id,
        )
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, UnparsedCalloutError) else f"the body is not JSON: {error}"
        unproven = query and not proven and any(map(documented_field, query))
        return JournalEntry(
            kind=EntryKind.UNPARSED,
            observed_at=observed_at,
            source=Source.CALLOUT,
            notification_id=notification_id,
            body={
                **_raw(body),
                **({"query": storable(proven)} if proven else {}),
                "headers": {name: storable(sent[name.lower()]) for name in _KEPT_HEADERS if name.lower() in sent},
                "error": reason + (_UNPROVEN if unproven else ""),
            },
        )


def _proven(settings: CalloutSettings, query: Mapping[str, str]) -> dict[str, str]:
    """Return the documented fields in an address. A signature does not cover it; a password or a token proves both."""
    if settings.basic is None and settings.token is None:
        return {}
    return {name: value for name, value in query.items() if documented_field(name)}


def _lacking(fields: Mapping[str, Any], proven: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of an address that the body lacks, by any name; the body's own count even where it is empty.

    :raises UnparsedCalloutError: the body holds several events, or is nested too deep
    """
    if not proven:
        return {}
    event = event_fields(storable(dict(fields)))
    return {name: value for name, value in proven.items() if documented_field(name) not in {*event.known, *event.empty}}


def read_again(settings: CalloutSettings, body: Mapping[str, Any], observed_at: datetime) -> JournalEntry | None:
    """Parse a stored unparsed callout again, with other settings or by another version of this package.

    :param settings: of the connection, as they are now
    :param body: of the UNPARSED entry
    :param observed_at: when the callout was received
    :return: an entry without a notification id; ``None`` where the callout itself was not stored
    """
    text, encoded, headers, query = (body.get(name) for name in ("text", "base64", "headers", "query"))
    if isinstance(text, str):
        raw = text.encode("utf-8", "replace")
    elif isinstance(encoded, str):
        raw = base64.b64decode(encoded)
    else:
        return None
    sent = dict(headers) if isinstance(headers, dict) else {}
    sent.pop(NOTIFICATION_HEADER, None)
    return read_callout(settings, sent, raw, observed_at, query if isinstance(query, dict) else None)


def read_fields(
    settings: CalloutSettings,
    fields: Mapping[str, Any],
    *,
    observed_at: datetime,
    source: Source,
    notification_id: str | None,
) -> JournalEntry:
    """Parse the fields of an event, in any of the supported spellings of their names.

    :param settings: of the connection
    :param fields: by their names, nested objects allowed
    :param observed_at: when the event was received
    :param source: a callout, or the callout history, which holds the same fields
    :param notification_id: Zuora's id of the notification, where there is one
    :raises UnparsedCalloutError: the session or its new status is missing, or an id is invalid
    :raises ValueError: the status is empty
    """
    body = storable(dict(fields))
    event = event_fields(body)
    kind, known = _kind(event), event.known
    if kind is not EntryKind.STATUS_CHANGE:
        return JournalEntry(
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
        label = name.replace("_", " ")
        if name not in known:
            raise UnparsedCalloutError(f"it holds no {label}")
        if name != "status" and _GROUPED.fullmatch(known[name]):
            raise UnparsedCalloutError(f"its {label} is {known[name]!r}, a number with separators: an id has none")
        if name != "status" and _NOT_FINITE.fullmatch(known[name]):
            raise UnparsedCalloutError(f"its {label} is {known[name]!r}, which is no id")
    status = parse_status(known["status"])
    previous_status = parse_status(known["previous_status"]) if "previous_status" in known else None
    for name, text in (
        ("session id", known["session_id"]),
        ("meter id", known["meter_id"]),
        ("status", status),
        ("previous status", previous_status or ""),
    ):
        if len(text) > LONGEST:
            raise UnparsedCalloutError(f"its {name} has {len(text)} characters, more than any of Zuora's")
    return JournalEntry(
        kind=kind,
        observed_at=observed_at,
        source=source,
        transition=SessionTransition(
            meter_id=known["meter_id"],
            meter_name=known.get("meter_name"),
            session_id=known["session_id"],
            run_type=run_type_of_report(known.get("run_type"), status),
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
    """Return the fields of a body: a form, or a JSON object in any of its encodings, also alone in a list or as a text.

    :param body: as received
    :param content_type: of the request; JSON needs none
    :raises ValueError: it is neither JSON nor a form
    :raises RecursionError: it is nested too deep
    """
    try:
        value = _json(body)
    except ValueError as error:
        text = body.decode("latin-1").strip("\ufeff \t\r\n")
        if isinstance(error, UnicodeDecodeError) and text.startswith(("{", "[")):
            value = _json(text)
        elif "form" in content_type.lower() or re.match(r"[\w.%\[\] +-]+=", text):
            value = dict(parse_qsl(body.decode("utf-8", "replace").strip(), keep_blank_values=True, max_num_fields=999))
        else:
            raise
    if isinstance(value, list) and len(value) > 1:
        raise UnparsedCalloutError(f"the body is a list of {len(value)}, and a callout has one event")
    fields = object_of(value)
    if not fields:
        raise UnparsedCalloutError("the body is no object with fields")
    return dict(fields)


def _json(body: bytes | str) -> Any:
    # Zuora does not document that it escapes control characters, which a name may have.
    return json.loads(body, strict=False)


def bounded_id(text: str | None) -> str | None:
    """Return a notification id as the journal stores it: hashed where it is too long or has unusual characters."""
    text = (text or "").strip()
    if not text:
        return None
    if re.fullmatch(r"[\w.-]+", text, re.ASCII) and len(text) <= NOTIFICATION_ID_LENGTH:
        return text
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"


def storable(value: Any, depth: int = 0) -> Any:
    """Return JSON that every database accepts: no NUL, no lone surrogate, no number that JSON does not have.

    :raises UnparsedCalloutError: it is nested too deep
    """
    if depth > DEEPEST:
        raise UnparsedCalloutError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        return {storable(name): storable(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [storable(each, depth + 1) for each in value]
    if isinstance(value, str):
        # Nearly every text is ASCII, and needs no search.
        return value if value.isascii() and "\0" not in value else re.sub("[\0\ud800-\udfff]", "\ufffd", value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _raw(body: bytes) -> dict[str, str]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"base64": base64.b64encode(body).decode()} if "\0" in text else {"text": text}


def _kind(fields: EventFields) -> EntryKind:
    """Distinguish the events by their non-empty fields: a template may have the fields of all events."""
    names = fields.names
    if _TEST_NAME in names:
        return EntryKind.TEST
    operator = any(name.startswith("meteroperator") for name in names) or names & _OPERATOR
    if operator or ("status" not in fields.known and names & _COUNTS):
        return EntryKind.PERIODIC
    query = any(name.startswith("eventstorequery") for name in names) or names & _QUERY
    return EntryKind.EVENT_STORE_QUERY if query and "session_id" not in fields.known else EntryKind.STATUS_CHANGE


def _if_short(text: str | None) -> str | None:
    return text if text is not None and len(text) <= LONGEST else None
