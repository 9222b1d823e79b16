"""Zuora's callout history: the call that reads it, and the events that its records tell of, attempts put together.

A record holds the event's merge fields, whether its callout arrived or not, but no id of the event or notification, and
Zuora does not document whether each attempt makes a record. So attempts are put together here, by what they hold:

* Where the fields hold ``Event.Timestamp``, records with the same one are of the same event.
* Else a record is a further attempt at the one before with the same fields, notification and address, if its number is
  the next one and the one before ended so that Zuora tries again. Of several notifications for one event, the one
  that tells most of a change counts.

Source: https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from airflow_mediation_provider.protocol.api import Call
from airflow_mediation_provider.protocol.arguments import query_of
from airflow_mediation_provider.protocol.callout import plain_name, read_body, read_fields
from airflow_mediation_provider.protocol.callout_times import read_time
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.errors import PermanentError
from airflow_mediation_provider.protocol.replies import Json, Page, objects, text_of
from airflow_mediation_provider.protocol.times import to_json, to_utc
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings

# Zuora documents no longest range for callouts; a day is what it takes by itself.
WINDOW: Final = timedelta(days=1)
BODY_KEY: Final = "calloutHistory"
_SENT_BODY: Final = "sendxml"
_TIMESTAMP: Final = "eventtimestamp"


def callout_history(
    since: datetime,
    until: datetime,
    *,
    timezone: str = "UTC",
    event_category: str | None = None,
    object_id: str | None = None,
    failed_only: bool = False,
    page_size: int = 40,
) -> Generator[Call[Page], Page, None]:
    """Ask for the records of the callout history page by page, a day at a time, the oldest day first.

    :param since: start of the time window, with its zone
    :param until: end of the time window, with its zone
    :param timezone: the zone in which Zuora takes and gives times here: the tenant's
    :param event_category: only events of this category, ``{namespace}:{event type}``
    :param object_id: only events of this object
    :param failed_only: only records of attempts that failed; Zuora's own default is all of those and no others
    :param page_size: 1 to 40
    :raises PermanentError: a page came a second time: going on would never end

    https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
    """
    if not 1 <= page_size <= 40:
        raise ValueError(f"page_size must be from 1 to 40, not {page_size}")
    zone = ZoneInfo(timezone)
    start, end = to_utc("since", since), to_utc("until", until)
    if end < start:
        raise ValueError("until must not be before since")
    fixed = {
        "failedOnly": "true" if failed_only else "false",
        "eventCategory": event_category,
        "objectId": object_id,
        "pageSize": str(page_size),
    }
    return _windows(start, end, zone, fixed)


def _windows(
    start: datetime, end: datetime, zone: ZoneInfo, fixed: dict[str, str | None]
) -> Generator[Call[Page], Page, None]:
    while True:
        following = min(start + WINDOW, end)
        times = {"startTime": _local(start, zone), "endTime": _local(following, zone)}
        yield from _pages({**fixed, **times})
        if following >= end:
            return
        start = following


def _local(instant: datetime, zone: ZoneInfo) -> str:
    return f"{instant.astimezone(zone):%Y-%m-%dT%H:%M:%S}"


def _pages(query: dict[str, str | None]) -> Generator[Call[Page], Page, None]:
    # By number, never by the address of the next page: the token goes to the connection's host alone.
    number, last = 0, None
    while True:
        number += 1
        page = yield Call(
            what="callout history",
            method="GET",
            path="/v1/notification-history/callout",
            query=query_of(**query, page=str(number)),
            permission="'Events & Notifications View Access'",
            read=lambda reply: Page(objects(reply.get("calloutHistories")), text_of(reply.get("nextPage"))),
        )
        if page.next_cursor is None or not page.entries:
            return
        if page.entries == last:
            raise PermanentError("The callout history answers with the same page twice, so it would never end.")
        last = page.entries


@dataclass(frozen=True, slots=True)
class Attempt:
    """One record: an attempt, or several.

    :param number: ``attemptedNum``
    :param at: when, by the tenant's clock
    :param raw_at: the same, as it was told
    :param code: the receiver's answer; negative where there was none; ``None``: not told
    """

    number: int
    at: datetime
    raw_at: str
    code: int | None

    @property
    def final(self) -> bool:
        """Whether Zuora does not try again after it."""
        code = self.code
        if code is None:
            return False
        return code == -2000 or not (code < 200 or code in (403, 408, 429) or code >= 500)

    def to_dict(self) -> Json:
        """Return the attempt as plain JSON."""
        return {"number": self.number, "at": to_json(self.at), "code": self.code}


@dataclass(frozen=True, slots=True)
class History:
    """What the records of a time window tell.

    :param entries: one for each status change, the oldest first, whether it arrived or not
    :param records: how many records there were, each once
    :param siblings: how many of them are of Mediation's other events
    :param foreign: how many of them are of other events, or go to other receivers than us
    :param unreadable: how many of them could be of a session, but do not say what changed
    :param categories: how many records of status changes each event category has
    """

    entries: list[Entry]
    records: int
    siblings: int
    foreign: int
    unreadable: int
    categories: dict[str, int] = field(default_factory=dict)


def read_history(settings: CalloutSettings, records: Iterable[Json], now: datetime) -> History:
    """Put records together to events; of those that are of no session's change, none is held.

    :param settings: of the connection: how times are written, and in which zone
    :param records: in any order; one that was read twice counts once
    :param now: nothing is taken to have happened later
    """
    path = re.compile(rf"/callouts/{re.escape(settings.conn_id)}/?(?:[?#]|$)")
    seen: set[bytes] = set()
    # What goes to other receivers is left out; but where a proxy gives our path another name, none can be told apart.
    sides = {True: _Side(), False: _Side()}
    for record in records:
        digest = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode("utf-8", "replace")).digest()
        if digest in seen:
            continue
        seen.add(digest)
        side = sides[path.search(str(record.get("requestUrl") or "")) is not None]
        side.records += 1
        entry = _read_record(settings, record, now)
        if entry is None:
            side.unreadable += _could_be_a_sessions(record)
        elif entry.kind is not EntryKind.STATUS_CHANGE or entry.transition is None:
            side.siblings += 1
        else:
            change = entry.transition
            edge = (change.meter_id, change.session_id, change.previous_status, change.status)
            attempt, timestamp = _attempt(settings, record, now), _timestamp(record)
            side.told[edge].append(
                _Told(
                    entry=entry,
                    attempt=attempt,
                    category=str(record.get("eventCategory")),
                    notification=str(record.get("notification")),
                    url=str(record.get("requestUrl")),
                    timestamp=timestamp,
                    happened_at=min(_happened_at(settings, timestamp, attempt), now),
                )
            )
    ours = sides[True] if sides[True].records else sides[False]
    changes = sum(len(told) for told in ours.told.values())
    entries = [entry for edge, told in ours.told.items() for entry in _events(edge, told)]
    return History(
        entries=sorted(entries, key=lambda entry: (entry.observed_at, entry.notification_id or "")),
        records=len(seen),
        siblings=ours.siblings,
        foreign=len(seen) - changes - ours.siblings - ours.unreadable,
        unreadable=ours.unreadable,
        categories=dict(Counter(each.category for told in ours.told.values() for each in told)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A record that tells of a status change."""

    entry: Entry
    attempt: Attempt
    category: str
    notification: str
    url: str
    timestamp: str | None
    happened_at: datetime


@dataclass(slots=True)
class _Side:
    """The records that go to us, or those that go to others."""

    records: int = 0
    siblings: int = 0
    unreadable: int = 0
    told: dict[tuple[Any, ...], list[_Told]] = field(default_factory=lambda: defaultdict(list))


def _read_record(settings: CalloutSettings, record: Json, now: datetime) -> Entry | None:
    """Return the event of a record: by the body that was sent, as the receiver reads it, else by its merge fields."""
    context = record.get("eventContext")
    if not isinstance(context, dict):
        return None
    sent = [value for name, value in context.items() if plain_name(name) == _SENT_BODY and isinstance(value, str)]
    merged = {name: value for name, value in context.items() if plain_name(name) != _SENT_BODY}
    for fields in (*map(_body_fields, sent), merged):
        try:
            return read_fields(settings, fields, observed_at=now, source=Source.HISTORY, notification_id=None)
        except (ValueError, RecursionError):
            continue
    return None


def _body_fields(text: str) -> Json:
    """Return the fields of a body that was sent; nothing of one that could not be, because it is no JSON."""
    try:
        return read_body(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}


def _could_be_a_sessions(record: Json) -> bool:
    return "session" in json.dumps(record.get("eventContext"), default=str).lower()


def _attempt(settings: CalloutSettings, record: Json, now: datetime) -> Attempt:
    number, code, raw = (text_of(record.get(name)) for name in ("attemptedNum", "responseCode", "createTime"))
    return Attempt(
        number=int(number) if number and number.isdecimal() else 1,
        at=min(read_time(settings, raw) or now, now),
        raw_at=raw or "",
        code=int(code) if code and re.fullmatch(r"-?\d{1,6}", code, re.ASCII) else None,
    )


def _timestamp(record: Json) -> str | None:
    """Return when the event happened, as it is written; a day alone does not tell two events apart."""
    for name, value in record["eventContext"].items():
        text = text_of(value)
        if plain_name(name) == _TIMESTAMP and text and (":" in text or re.fullmatch(r"\d{12,13}", text)):
            return text
    return None


def _happened_at(settings: CalloutSettings, timestamp: str | None, attempt: Attempt) -> datetime:
    """Return the event's own time where it can be right; the attempt's is in whole seconds, and later."""
    time = read_time(settings, timestamp)
    known = time is not None and attempt.at - WINDOW <= time < attempt.at + timedelta(seconds=1)
    return time if time is not None and known else attempt.at


def _events(edge: tuple[Any, ...], told: list[_Told]) -> list[Entry]:
    """Return one entry for each event of one change of one session."""
    stamped: dict[str, list[_Told]] = defaultdict(list)
    streams: dict[tuple[str, str], list[_Told]] = defaultdict(list)
    for each in sorted(told, key=lambda each: (each.attempt.at, each.attempt.number)):
        if each.timestamp is not None:
            stamped[each.timestamp].append(each)
        else:
            streams[each.notification, each.url].append(each)
    found = [_event(edge, timestamp, same) for timestamp, same in stamped.items()]
    if streams:
        chains = max((_chains(stream) for _, stream in sorted(streams.items())), key=len)
        found += [_event(edge, chain[0].attempt.raw_at, chain) for chain in chains]
    return found


def _chains(stream: list[_Told]) -> list[list[_Told]]:
    """Put the attempts at one callout together, and keep callouts apart; sorted by time."""
    chains: list[list[_Told]] = []
    for each in stream:
        for chain in chains:
            last = chain[-1].attempt
            if each.attempt.number == last.number + 1 and not last.final:
                chain.append(each)
                break
        else:
            chains.append([each])
    return chains


def _event(edge: tuple[Any, ...], instance: str, told: list[_Told]) -> Entry:
    first = told[0]
    digest = hashlib.sha256(json.dumps([*edge, instance]).encode()).hexdigest()
    history = {
        "attempts": [each.attempt.to_dict() for each in told],
        "category": first.category,
        "notification": first.notification,
        "url": first.url,
    }
    entry = first.entry
    assert entry.transition is not None  # noqa: S101  # a status change has one
    return replace(
        entry,
        observed_at=first.happened_at,
        notification_id=f"history:{digest[:40]}",
        transition=replace(entry.transition, observed_at=first.happened_at),
        body={**entry.body, BODY_KEY: history},
    )


def attempts_of(entry: Entry) -> list[tuple[datetime, int | None]]:
    """Return when the callout of an entry of the history was tried, and how that ended."""
    history = entry.body.get(BODY_KEY)
    found = objects(history.get("attempts")) if isinstance(history, dict) else []
    times = [(read_attempt_time(each.get("at")), each.get("code")) for each in found]
    known = [(at, code if isinstance(code, int) else None) for at, code in times if at is not None]
    return known or [(entry.observed_at, None)]


def read_attempt_time(value: object) -> datetime | None:
    """Return the time of an attempt as ``Attempt.to_dict`` wrote it."""
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC)
    except ValueError:
        return None
