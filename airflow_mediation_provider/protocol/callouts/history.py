"""Zuora's callout history: the call that reads it, and the events in its records, with their attempts grouped.

A record has the event's merge fields, whether its callout arrived or not, but no id of the event or notification, and
Zuora does not document whether each attempt makes a record. So the attempts are grouped here by their content:

* Where the fields hold ``Event.Timestamp``, records with the same one, in any spelling, are of the same event.
* Else a record is a further attempt at the one before with the same fields, notification and address, if its number is
  the next one, Zuora retries after the result of the one before, and it comes after the usual interval. Where several
  notifications report the same change, the one with the most events of it counts; those that another notification
  reports with their time, are the same as the ones near them.

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

from airflow_mediation_provider.protocol.callouts.fields import plain_name
from airflow_mediation_provider.protocol.callouts.parse import read_body, read_fields
from airflow_mediation_provider.protocol.callouts.tenant_times import read_time
from airflow_mediation_provider.protocol.ids import event_category_of
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.times import to_json, to_utc
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.urls import takes_callouts_of
from airflow_mediation_provider.protocol.zuora.errors import PermanentError
from airflow_mediation_provider.protocol.zuora.replies import Json, Page, check_page_number, objects, text_of
from airflow_mediation_provider.protocol.zuora.requests import Call, query_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from datetime import tzinfo

    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings

# Zuora documents no maximum range for callouts; a day is its own default.
WINDOW: Final = timedelta(days=1)
NEAR: Final = timedelta(minutes=5)
"""How far the time of an attempt and that of its arrival may differ, by clocks."""
# https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/configure-callout-settings
_MOST_ATTEMPTS: Final = 5
_LONGEST_INTERVAL: Final = timedelta(minutes=1440)
BODY_KEY: Final = "calloutHistory"
_SENT_BODY: Final = "sendxml"
_TIMESTAMP: Final = "eventtimestamp"
_TIME: Final = "%Y-%m-%dT%H:%M:%S"


def callout_history(
    since: datetime,
    until: datetime,
    *,
    timezone: str = "UTC",
    event_category: str | int | None = None,
    object_id: str | None = None,
    failed_only: bool = False,
    page_size: int = 40,
) -> Generator[Call[Page], Page, None]:
    """Yield the records of the callout history, a day at a time, the oldest day first; each page when it is needed.

    :param since: start of the time window, with its zone
    :param until: end of the time window, with its zone
    :param timezone: the zone of the times in this call's query and reply: the tenant's
    :param event_category: only events of this category: ``{namespace}:{event type}``, or a standard event's number
    :param object_id: only events of this object
    :param failed_only: only records of attempts that failed, which is Zuora's own default
    :param page_size: 1 to 40
    :raises PermanentError: a page was received twice, or there are more than 10,000: the paging would never end

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
        "eventCategory": event_category_of("event_category", event_category),
        "objectId": object_id,
        "pageSize": str(page_size),
    }
    return _windows(start, end, zone, fixed)


def history_span(
    start: datetime, end: datetime | None, *, event_category: str | None = None
) -> Generator[Call[Page], Page, None]:
    """Ask for the records of one span page by page, successful ones too.

    :param start: the start of the span by Zuora's clock, without a zone
    :param end: its end; ``None``: up to now
    :param event_category: only events of this category
    :raises PermanentError: a page was received twice, or there are more than 10,000: the paging would never end

    https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
    """
    times = {"startTime": f"{start:{_TIME}}", "endTime": None if end is None else f"{end:{_TIME}}"}
    return _pages({"failedOnly": "false", "eventCategory": event_category, "pageSize": "40", **times})


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
    return f"{instant.astimezone(zone):{_TIME}}"


def _pages(query: dict[str, str | None]) -> Generator[Call[Page], Page, None]:
    # By number, never by the address of the next page: the token goes to the connection's host alone.
    number, last = 0, None
    while True:
        number += 1
        check_page_number("callout history", number)
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
    :param raw_at: the same as Zuora wrote it
    :param code: the status of the receiver's answer; negative where there was none; ``None``: not recorded
    """

    number: int
    at: datetime
    raw_at: str
    code: int | None

    @property
    def final(self) -> bool:
        """Whether Zuora does not retry after it."""
        code = self.code
        if code is None:
            return False
        return code == -2000 or not (code < 200 or code in (403, 408, 429) or code >= 500)

    def to_dict(self) -> Json:
        """Return the attempt as plain JSON."""
        return {"number": self.number, "at": to_json(self.at), "code": self.code}


@dataclass(frozen=True, slots=True)
class History:
    """The content of the records of a time window.

    :param entries: one for each status change, the oldest first, whether its callout arrived or not
    :param records: number of records, duplicates left out
    :param siblings: how many of them are of Mediation's other events
    :param foreign: how many of them are of other events, or were sent to other receivers
    :param unreadable: how many of them may be of a session, but lack the change
    :param categories: number of records of status changes by event category
    """

    entries: list[JournalEntry]
    records: int
    siblings: int
    foreign: int
    unreadable: int
    categories: dict[str, int] = field(default_factory=dict)


def read_history(
    settings: CalloutSettings, records: Iterable[Json], now: datetime, *, zone: tzinfo | None = None
) -> History:
    """Group records into events; records of anything but a session's status change are only counted.

    :param settings: of the connection: how times are written, and in which zone
    :param records: in any order; duplicates count once
    :param now: the time now; later times are replaced by it
    :param zone: of the records' own times, where it is known; otherwise that of the settings
    """
    seen: set[bytes] = set()
    # Records of other receivers are left out, unless no record has our path: a proxy may have renamed it in all.
    sides = {True: _Side(), False: _Side()}
    for record in records:
        digest = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode("utf-8", "replace")).digest()
        if digest in seen:
            continue
        seen.add(digest)
        side = sides[takes_callouts_of(str(record.get("requestUrl") or ""), settings.conn_id)]
        side.records += 1
        entry = _read_record(settings, record, now)
        if entry is None:
            side.unreadable += _could_be_a_sessions(record)
        elif entry.kind is not EntryKind.STATUS_CHANGE or entry.transition is None:
            side.siblings += 1
        else:
            change = entry.transition
            edge = (change.meter_id, change.session_id, change.previous_status, change.status)
            attempt, timestamp = _attempt(settings, record, now, zone), _timestamp(record)
            instant = read_time(settings, timestamp)
            # Where the attempts' times are right, a time without a zone that is hours away is of another zone.
            longest = WINDOW if zone is None or event_time(record) is not None else NEAR
            side.changes[edge].append(
                _HistoryEvent(
                    entry=entry,
                    attempt=attempt,
                    category=str(record.get("eventCategory")),
                    notification=str(record.get("notification")),
                    url=str(record.get("requestUrl")),
                    # One instant may be written in several ways, by several notifications.
                    timestamp=timestamp if instant is None else to_json(instant),
                    happened_at=min(_happened_at(instant, attempt, longest), now),
                )
            )
    ours = sides[True] if sides[True].records else sides[False]
    changes = sum(len(events) for events in ours.changes.values())
    entries = [entry for edge, events in ours.changes.items() for entry in _events(edge, events)]
    return History(
        entries=sorted(entries, key=lambda entry: (entry.observed_at, entry.notification_id or "")),
        records=len(seen),
        siblings=ours.siblings,
        foreign=len(seen) - changes - ours.siblings - ours.unreadable,
        unreadable=ours.unreadable,
        categories=dict(Counter(each.category for events in ours.changes.values() for each in events)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _HistoryEvent:
    """A record of a status change."""

    entry: JournalEntry
    attempt: Attempt
    category: str
    notification: str
    url: str
    timestamp: str | None
    happened_at: datetime


@dataclass(slots=True)
class _Side:
    """The records that were sent to this receiver, or those that were sent to others."""

    records: int = 0
    siblings: int = 0
    unreadable: int = 0
    changes: dict[tuple[Any, ...], list[_HistoryEvent]] = field(default_factory=lambda: defaultdict(list))


def _read_record(settings: CalloutSettings, record: Json, now: datetime) -> JournalEntry | None:
    """Return the event of a record: parsed from the body that was sent, as a callout is, else from its merge fields."""
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
    """Return the fields of a body that was sent; none where it cannot be parsed."""
    try:
        return read_body(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}


def _could_be_a_sessions(record: Json) -> bool:
    return "session" in json.dumps(record.get("eventContext"), default=str).lower()


def created_at(record: Json) -> datetime | None:
    """Return the time of a record by Zuora's clock, without a zone; ``None`` where it has none that can be read."""
    try:
        at = datetime.fromisoformat(str(record.get("createTime"))).replace(tzinfo=None)
    except ValueError:
        return None
    return at if 2000 <= at.year < 2200 else None  # no zone takes such a time out of what Python has


def attempt_number(record: Json) -> int:
    """Return which attempt a record is of, from 1."""
    number = text_of(record.get("attemptedNum"))
    return int(number) if number and re.fullmatch(r"[0-9]{1,9}", number) else 1


def _attempt(settings: CalloutSettings, record: Json, now: datetime, zone: tzinfo | None) -> Attempt:
    code, raw = (text_of(record.get(name)) for name in ("responseCode", "createTime"))
    created = None if zone is None else created_at(record)
    at = read_time(settings, raw) if created is None else created.replace(tzinfo=zone).astimezone(UTC)
    return Attempt(
        number=attempt_number(record),
        at=min(at or now, now),
        raw_at=raw or "",
        code=int(code) if code and re.fullmatch(r"-?\d{1,6}", code, re.ASCII) else None,
    )


def _timestamp(record: Json) -> str | None:
    """Return the event's time as it is written; ``None`` for a date alone, which does not distinguish two events."""
    for name, value in record["eventContext"].items():
        text = text_of(value)
        if plain_name(name) == _TIMESTAMP and text and (":" in text or re.fullmatch(r"\d{12,13}", text)):
            return text
    return None


def event_time(record: Json) -> datetime | None:
    """Return when the event of a record happened, where that has a zone, as ``Event.Timestamp`` in Zuora's example."""
    text = _timestamp(record) if isinstance(record.get("eventContext"), dict) else None
    try:
        at = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at is not None and at.tzinfo is not None and 2000 <= at.year < 2200 else None


def _happened_at(time: datetime | None, attempt: Attempt, longest: timedelta) -> datetime:
    """Return the event's own time where it is plausible, else the attempt's, which is in whole seconds and later.

    :param longest: the longest plausible time from the event to the attempt
    """
    known = time is not None and attempt.at - longest <= time < attempt.at + timedelta(seconds=1)
    return time if time is not None and known else attempt.at


def _events(edge: tuple[Any, ...], records: list[_HistoryEvent]) -> list[JournalEntry]:
    """Return one entry for each event of one change of one session."""
    stamped: dict[str, list[_HistoryEvent]] = defaultdict(list)
    streams: dict[tuple[str, str], list[_HistoryEvent]] = defaultdict(list)
    for each in sorted(records, key=lambda each: (each.attempt.at, each.attempt.number)):
        if each.timestamp is not None:
            stamped[each.timestamp].append(each)
        else:
            streams[each.notification, each.url].append(each)
    if streams:
        chains = max((_chains(stream) for _, stream in sorted(streams.items())), key=len)
        # Another notification may report the same events, and have their times.
        events = list(stamped.values())
        distances = [
            (_distance(event, chain), number, place)
            for number, event in enumerate(events)
            for place, chain in enumerate(chains)
        ]
        same = _nearest([each for each in distances if each[0] <= NEAR])
        for number, place in same.items():
            events[number] += chains[place]
        for chain in (chain for place, chain in enumerate(chains) if place not in same.values()):
            stamped[chain[0].attempt.raw_at] += chain
    return [_event(edge, instance, same) for instance, same in stamped.items()]


def _distance(event: list[_HistoryEvent], chain: list[_HistoryEvent]) -> timedelta:
    return min(abs(one.attempt.at - other.attempt.at) for one in event for other in chain)


def _chains(stream: list[_HistoryEvent]) -> list[list[_HistoryEvent]]:
    """Group the attempts by callout; sorted by time.

    Zuora's attempts are evenly spaced. So a further attempt is not one of the next round, where that of its own round
    is not among the records any more.
    """
    gaps = [
        (later.attempt.at - each.attempt.at, number, other)
        for number, each in enumerate(stream)
        if not each.attempt.final
        for other, later in enumerate(stream)
        if later.attempt.number == each.attempt.number + 1 and later.attempt.at > each.attempt.at
    ]
    interval = _usual([gap for gap, _, _ in gaps])
    off = [(abs(gap - interval), number, other) for gap, number, other in gaps]
    following = _nearest([each for each in off if each[0] <= NEAR])
    chains = []
    for number in sorted(set(range(len(stream))) - set(following.values())):
        chain, at = [stream[number]], number
        while at in following:
            at = following[at]
            chain.append(stream[at])
        chains.append(chain)
    return chains


def _usual(gaps: list[timedelta]) -> timedelta:
    """Return the most frequent gap to the minute; of several the longest.

    Attempts without their first one are older than those with it, so what is too short goes on to one of another round.
    """
    minutes = Counter(round(gap / timedelta(minutes=1)) for gap in gaps)
    usual = max(minutes, key=lambda each: (sum(minutes[each + near] for near in (-1, 0, 1)), each), default=0)
    return timedelta(minutes=usual)


def _nearest(pairs: list[tuple[timedelta, int, int]]) -> dict[int, int]:
    """Match each of some items with one other, the nearest first.

    :param pairs: how far two items are apart, and their numbers
    """
    found: dict[int, int] = {}
    taken = set()
    for _, one, other in sorted(pairs):
        if one not in found and other not in taken:
            found[one] = other
            taken.add(other)
    return found


def _event(edge: tuple[Any, ...], instance: str, records: list[_HistoryEvent]) -> JournalEntry:
    first = records[0]
    digest = hashlib.sha256(json.dumps([*edge, instance]).encode()).hexdigest()
    history = {
        "attempts": [each.attempt.to_dict() for each in records],
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


def attempts_of(entry: JournalEntry) -> list[tuple[datetime, int | None]]:
    """Return the time and the result of each attempt at the callout of a history entry."""
    history = entry.body.get(BODY_KEY)
    found = objects(history.get("attempts")) if isinstance(history, dict) else []
    times = [(read_attempt_time(each.get("at")), each.get("code")) for each in found]
    known = [(at, code if isinstance(code, int) else None) for at, code in times if at is not None]
    return known or [(entry.observed_at, None)]


def awaits(body: Json, arrived_at: datetime) -> bool:
    """Return whether a callout may be of the change that the callout history reported before it arrived.

    :param body: of the history entry
    :param arrived_at: when a callout of the same change arrived
    """
    history = body.get(BODY_KEY)
    found = objects(history.get("attempts")) if isinstance(history, dict) else []
    attempts = sorted(filter(None, map(_read_attempt, found)), key=lambda each: each.at)
    if any(abs(each.at - arrived_at) <= NEAR for each in attempts):
        return True
    if not attempts or attempts[-1].final or attempts[-1].number >= _MOST_ATTEMPTS or attempts[-1].at > arrived_at:
        return False
    if len(attempts) == 1:
        return arrived_at <= attempts[0].at + _LONGEST_INTERVAL + NEAR
    # Zuora's attempts are evenly spaced.
    return abs(2 * (attempts[-1].at - attempts[-2].at) + attempts[-2].at - arrived_at) <= NEAR


def _read_attempt(value: Json) -> Attempt | None:
    """Return an attempt from what ``Attempt.to_dict`` wrote."""
    at, number, code = read_attempt_time(value.get("at")), value.get("number"), value.get("code")
    if at is None or not isinstance(number, int):
        return None
    return Attempt(number=number, at=at, raw_at="", code=code if isinstance(code, int) else None)


def begins_later(entry: JournalEntry) -> bool:
    """Return whether the first attempt at the callout of a history entry is not among its records."""
    history = entry.body.get(BODY_KEY)
    found = objects(history.get("attempts")) if isinstance(history, dict) else []
    return bool(found) and all(each.get("number") != 1 for each in found)


def read_attempt_time(value: object) -> datetime | None:
    """Return the time of an attempt as ``Attempt.to_dict`` wrote it."""
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC)
    except ValueError:
        return None
