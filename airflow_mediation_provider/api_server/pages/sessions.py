"""The list of sessions, newest first, with filters kept in its URL; and the chart of their numbers over time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, Texts, Urls, page, tone
from airflow_mediation_provider.journal import triggered_runs
from airflow_mediation_provider.journal.health import SILENT
from airflow_mediation_provider.journal.meters import RunsOfMeter
from airflow_mediation_provider.journal.session_find import Dags, dags_of_sessions, find
from airflow_mediation_provider.journal.session_list import (
    ListedSession,
    count_by_status,
    known_connections,
    list_sessions,
    with_phases,
)
from airflow_mediation_provider.journal.session_search import (
    COUNTED,
    SCANNED,
    SORTED,
    Filters,
    GoneError,
    Group,
    Keyset,
    Only,
    Sort,
)
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.sessions.usual import Punctuality
from airflow_mediation_provider.protocol.status import RunType, SessionStatus, names_nothing, parse_status
from airflow_mediation_provider.protocol.times import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.auth import Reader
    from airflow_mediation_provider.journal.meters import Tempos
    from airflow_mediation_provider.journal.session_find import Found
    from airflow_mediation_provider.journal.session_list import Listing, SessionKey
    from airflow_mediation_provider.journal.triggered_runs import Consumer, Scheduled, Started, StartedRun, Wait
    from airflow_mediation_provider.protocol.sessions.usual import Rhythm, Tempo


_Name = TypeVar("_Name", bound=StrEnum)
HEIGHT: Final = 60.0
_ORDER: Final = ("failed", "canceled", "paused", "none", "queued", "running", "pushing", "success")

router = APIRouter(route_class=PageRoute)
PAGE: Final = 50
MISSED_SCANNED: Final = 300
"""So many sessions are compared with Airflow's runs at once."""
GROUPS: Final = {
    Group.FAILED: "Failed",
    Group.ENDED: "Ended",
    Group.LIVE: "Live",
    Group.ATTENTION: "Needs attention",
}
PROPERTIES: Final = {
    Only.UNCERTAIN: "uncertain",
    Only.CONFLICT: "conflict",
    Only.AMBIGUOUS: "ambiguous",
    Only.UNKNOWN: "unknown status",
    Only.SILENT: "silent",
    Only.NO_RUN: "no run started",
}
ORDERS: Final = {Sort.START: "Start Date", Sort.END: "End Date", Sort.DURATION: "Duration"}
SPANS: Final = {"1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days", "30d": "last 30 days"}
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# Each is a part of the statement, and SQLite takes five hundred.
_MOST_STATUSES: Final = 50
_LONGEST_STATUS: Final = 64
_DURATION: Final = re.compile(r"([0-9]{1,4})([smhd])")
_BARS: Final = 24
_STEPS: Final = (
    *(timedelta(minutes=each) for each in (1, 5, 15, 60, 6 * 60)),
    *(timedelta(days=each) for each in (1, 2, 7, 30, 90, 365)),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Other years are typos, and some of them cannot be stored by any database.
_YEARS: Final = range(1970, 9999)


@dataclass(frozen=True, slots=True)
class ChartSegment:
    """One status of a bar: its position, and the number of its sessions."""

    status: str
    count: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """The sessions that started in one span of time."""

    since: datetime
    until: datetime
    parts: tuple[ChartSegment, ...]

    @property
    def count(self) -> int:
        """The number of its sessions."""
        return sum(part.count for part in self.parts)


@dataclass(frozen=True, slots=True)
class Chart:
    """All bars, and the sums of each status over all of them, the most severe first."""

    bars: tuple[Bar, ...]
    totals: tuple[tuple[str, int], ...]
    highest: int
    height: float = HEIGHT

    @property
    def count(self) -> int:
        """The number of its sessions."""
        return sum(count for _, count in self.totals)


def bars(counts: Sequence[dict[str, int]], *, since: datetime, until: datetime) -> Chart:
    """Return the chart.

    :param counts: status -> number of sessions, for equal spans of time
    :param since: where the first span begins
    :param until: where the last one ends
    """
    highest = max((sum(each.values()) for each in counts), default=0)
    step = (until - since) / len(counts)
    drawn = []
    for number, by_status in enumerate(counts):
        y, parts = HEIGHT, []
        for status, count in sorted(by_status.items(), key=lambda item: _grave(item[0])):
            # At least so high that it is visible.
            height = max(HEIGHT * count / highest, 1.0)
            y -= height
            parts.append(ChartSegment(status, count, round(max(y, 0.0), 2), round(height, 2)))
        drawn.append(Bar(since + step * number, since + step * (number + 1), tuple(parts)))
    sums: dict[str, int] = {}
    for by_status in counts:
        for status, count in by_status.items():
            sums[status] = sums.get(status, 0) + count
    return Chart(tuple(drawn), tuple(sorted(sums.items(), key=lambda item: _grave(item[0]))), highest)


def _grave(status: str) -> tuple[int, str]:
    return _ORDER.index(tone(status)), status


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The search that an address contains.

    :param q: the start of an id or of a name
    :param status: names of statuses, any of them
    :param group: names of a ``Group``, any of them, or of the statuses
    :param only: names of an ``Only``, all of them
    :param longer: a duration such as ``45m``
    :param since: ISO 8601, in the zone ``tz`` if it has none; or one of ``SPANS``
    :param tz: the user's time zone
    :param sort: the name of a ``Sort``
    """

    q: str = ""
    conn: str = ""
    meter: str = ""
    status: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    run_type: str = ""
    longer: str = ""
    since: str = ""
    until: str = ""
    tz: str = ""
    sort: str = ""

    def filters(self, now: datetime) -> Filters:
        """Return the filters.

        :raises HTTPException: a part is invalid; the message names it
        """
        return Filters(
            conn_id=self.conn.strip() or None,
            meter_id=self.meter.strip() or None,
            statuses=self._statuses(),
            groups=tuple(_named(Group, "group", each) for each in self.group if each),
            only=tuple(_named(Only, "only", each) for each in self.only if each),
            run_type=self.run_type.strip().upper() or None,
            longer=self._duration(),
            since=instant("since", self.since, self.tz, now),
            until=instant("until", self.until, self.tz, now),
            sort=_named(Sort, "sort", self.sort or Sort.START),
            now=now,
        )

    def parameters(self, **other: Any) -> dict[str, Any]:
        """Return the parameters of the same address.

        :param other: those that differ
        """
        return {name: getattr(self, name) for name in self.__slots__} | other

    @property
    def filtered(self) -> bool:
        """Whether it leaves out any session."""
        return any(value for name, value in self.parameters().items() if name not in ("tz", "sort"))

    def _statuses(self) -> tuple[str, ...]:
        if len(self.status) > _MOST_STATUSES:
            raise HTTPException(400, f"status is given {len(self.status)} times, and {_MOST_STATUSES} is the limit.")
        if any(len(each) > _LONGEST_STATUS for each in self.status):
            raise HTTPException(400, f"A status has at most {_LONGEST_STATUS} characters.")
        return tuple(dict.fromkeys(parse_status(each) for each in self.status if not names_nothing(each)))

    def _duration(self) -> timedelta | None:
        text = "".join(self.longer.split()).lower()
        if not text:
            return None
        parts = _DURATION.findall(text)
        if "".join(map("".join, parts)) != text:
            raise HTTPException(400, f"longer={self.longer} is not a duration: write 90s, 45m, 2h, 1h 30m or 1d.")
        return sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())


def instant(name: str, text: str, tz: str, now: datetime) -> datetime | None:
    """Return the instant that a parameter of an address names.

    :param name: of the parameter
    :param text: its value: ISO 8601, or one of ``SPANS``; empty: none
    :param tz: the zone of a time without one
    :raises HTTPException: it is invalid; the message names it
    """
    text = text.strip()
    if not text:
        return None
    if text in SPANS:
        return now - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    try:
        named = datetime.fromisoformat(text)
        named = named if named.tzinfo else named.replace(tzinfo=ZoneInfo(tz or "UTC"))
        if named.year not in _YEARS:
            raise ValueError
        return named.astimezone(UTC)
    except (ValueError, OverflowError, ZoneInfoNotFoundError, OSError):  # a zone is looked up as a file
        raise HTTPException(
            400, f"{name}={text} is not a valid time: write 2026-03-31T09:00, or one of {', '.join(SPANS)}."
        ) from None


def _named(names: type[_Name], parameter: str, value: str) -> _Name:
    try:
        return names(value.strip().lower())
    except ValueError:
        raise HTTPException(400, f"{parameter}={value} is not one of {', '.join(names)}.") from None


def _search(
    status: Texts,
    group: Texts,
    only: Texts,
    q: Text = "",
    conn: Text = "",
    meter: Text = "",
    run_type: Text = "",
    longer: Text = "",
    since: Text = "",
    until: Text = "",
    tz: Text = "",
    sort: Text = "",
) -> Search:
    return Search(**locals())


SearchDep = Annotated[Search, Depends(_search)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the list.

    :param tasks: what tasks that the user may see did with it, those that wait first
    :param runs: runs of Dags that the user may see, triggered by its asset events
    :param hidden_tasks: number of tasks that the user may not see
    :param hidden_runs: number of runs that the user may not see
    :param announced: whether Airflow still has an asset event of it; without one, it is unknown what it triggered
    :param consumers: Dags that are scheduled on it and that the user may see
    :param silent: whether it has no end, and no report for hours
    :param long: whether it goes on for longer than usual
    :param late: the rhythm of its meter, if it is the meter's newest session and the next one is late
    """

    session: ListedSession
    tasks: tuple[Wait, ...] = ()
    runs: tuple[StartedRun, ...] = ()
    hidden_tasks: int = 0
    hidden_runs: int = 0
    announced: bool = False
    consumers: tuple[Consumer, ...] = ()
    silent: bool
    long: bool = False
    late: Rhythm | None = None

    @property
    def missed(self) -> tuple[str, ...]:
        """The Dags that should have been triggered, and were not."""
        return tuple(each.dag_id for each in self.consumers if each.missed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """Some sessions with their tasks and the Dag runs that they triggered, before permissions are applied."""

    sessions: tuple[ListedSession, ...]
    tasks: Mapping[SessionKey, Sequence[Wait]]
    started: Mapping[SessionKey, Started]
    scheduled: Mapping[tuple[str, str], Sequence[Scheduled]]
    tempos: Mapping[RunsOfMeter, Tempo]


@router.get("/")
def start_page(request: Request) -> Response:
    """Lead to the list."""
    return RedirectResponse(Urls(request).page("/sessions"))


@router.get("/sessions")
def sessions(request: Request, reader: ReaderDep, search: SearchDep, before: Text = "", after: Text = "") -> Response:
    """Show the list."""
    found = _list(request, reader, search, before, after)
    return page(
        request,
        "sessions.html",
        search=search,
        **found._asdict(),
        connections=read(known_connections),
        groups=GROUPS,
        properties=PROPERTIES,
        orders=ORDERS,
        sorted_most=SORTED,
        statuses=[str(each) for each in SessionStatus if each is not SessionStatus.NEVER_RUN],
        run_types=[str(each) for each in RunType],
        spans=SPANS,
        paged=bool(before or after),
    )


@router.get("/sessions.json")
def sessions_json(
    request: Request, reader: ReaderDep, search: SearchDep, before: Text = "", after: Text = ""
) -> Response:
    """Return what the list shows as JSON."""
    found = _list(request, reader, search, before, after)
    place, places = Urls(request), {"newer": found.newer, "older": found.older}
    return JSONResponse(
        {
            "sessions": [_as_json(each, place.meter_name(each.session)) for each in found.rows],
            **{name: position and str(position) for name, position in places.items()},
            "complete": not found.further,
            "limited": found.limited,
            "sorted_since": to_json(found.sorted_since),
        }
    )


_TASK_NAMES: Final = ("dag_id", "run_id", "task_id", "map_index", "goes_on", "task_state")


def _as_json(row: Row, meter_name: str | None) -> dict[str, Any]:
    listed = row.session
    instants = ("started_at", "begun_at", "first_observed_at", "last_observed_at")
    ids = {name: getattr(listed, name) for name in ("conn_id", "meter_id", "session_id", "run_type")}
    status = {
        "meter_name": meter_name,
        "status": listed.best_status,
        "evidence": listed.best_evidence,
        "certain": listed.best_certain,
        "marks": listed.best_marks.split(),
        "silent": row.silent,
        "longer_than_usual": row.long,
        "next_late": row.late is not None,
        "ended": listed.best_ended,
        "ended_at": to_json(listed.over_at),
        "tasks": [{name: getattr(each, name) for name in _TASK_NAMES} for each in row.tasks],
        "triggered_runs": [{name: getattr(each, name) for name in ("dag_id", "run_id", "state")} for each in row.runs],
        "missing_runs": list(row.missed),
    }
    return ids | status | {name: to_json(getattr(listed, name)) for name in instants}


class _Found(NamedTuple):
    """A page of the list, as far as the user may see it; the parts are those of a ``Listing``."""

    filters: Filters
    rows: list[Row]
    newer: Keyset | None
    older: Keyset | None
    further: dict[str, Keyset | None]
    scanned: int
    limited: bool
    sorted_since: datetime | None


def _list(request: Request, reader: Reader, search: Search, before: str, after: str) -> _Found:
    now = datetime.now(UTC)
    filters = search.filters(now)
    try:
        places = {"before": Keyset.parse(before) if before else None, "after": Keyset.parse(after) if after else None}
    except ValueError as error:
        raise HTTPException(400, f"{error}: go back to the newest sessions.") from None

    missed = Only.NO_RUN in filters.only
    led = _found(reader, search)
    filters = replace(filters, found=led and led.condition)

    def work(session: Session) -> tuple[Listing, Around]:
        listing = list_sessions(session, filters, limit=MISSED_SCANNED if missed else PAGE, bare=missed, **places)
        return listing, around(session, listing.sessions, request.app.state.tempos)

    try:
        listing, found = read(work)
    except GoneError:
        raise HTTPException(
            410, "The session at which this part of the list begins was deleted: search again."
        ) from None
    rows = rows_of(found, reader, now)
    if missed:
        listing, rows = _missed(listing, rows, back=not after)
        shown = read(lambda session: with_phases(session, [each.session for each in rows]))
        rows = [replace(row, session=each) for row, each in zip(rows, shown, strict=True)]
    return _Found(
        filters=filters,
        rows=rows,
        newer=listing.newer,
        older=listing.older,
        further=_further(listing, after=bool(after)),
        scanned=MISSED_SCANNED if missed else SCANNED,
        limited=bool(led and led.limited),
        sorted_since=listing.sorted_since,
    )


def _found(reader: Reader, search: Search) -> Found | None:
    """Return to which sessions the text of a search leads, by the Dags that the user may see."""
    text = search.q.strip()
    if not text:
        return None
    dags = read(dags_of_sessions)
    seen = Dags(frozenset(reader.sees_tasks(dags.waiting)), frozenset(reader.sees_runs(dags.triggered)), dags.limited)
    return read(lambda session: find(session, text, seen))


def _missed(listing: Listing, rows: list[Row], *, back: bool) -> tuple[Listing, list[Row]]:
    """Return a page of those sessions that some Dag missed, and where the search for more continues."""
    missed = [each for each in rows if each.missed]
    if len(missed) <= PAGE:
        onward = listing.older if back else listing.newer
        return replace(listing, cut=onward is not None), missed
    if back:
        return replace(listing, older=missed[PAGE - 1].session.place), missed[:PAGE]
    return replace(listing, newer=missed[-PAGE].session.place), missed[-PAGE:]


def _further(listing: Listing, *, after: bool) -> dict[str, Keyset | None]:
    """Return where a search continues that did not cover all sessions; empty if it did."""
    if not listing.cut:
        return {}
    return {"after": listing.newer} if after else {"before": listing.older}


@router.get("/sessions/chart")
def sessions_chart(request: Request, reader: ReaderDep, search: SearchDep) -> Response:
    """Show how many sessions started when, by status: in the requested time, else in the last day."""
    led = _found(reader, search)
    filters = replace(search.filters(datetime.now(UTC)), found=led and led.condition)
    begin, end, number = _spans(search, filters)
    chart: Chart | None = None
    cut = False
    if begin < end:
        counts = read(lambda session: count_by_status(session, filters, since=begin, until=end, bars=number))
        chart = bars(counts.spans, since=counts.since, until=end)
        cut = counts.since > begin
    return page(request, "chart.html", chart=chart, counted=COUNTED if cut else None, search=search)


def _spans(search: Search, filters: Filters) -> tuple[datetime, datetime, int]:
    """Return begin and end of a chart, and the number of its bars.

    What the user did not choose as an exact time is a full minute, hour or day, so that bars do not move all the time.
    """
    end = filters.until or filters.now
    begin = filters.since or end - timedelta(days=1)
    step = next((each for each in _STEPS if (end - begin) / each <= _BARS), _STEPS[-1])
    moving = not search.since.strip() or search.since.strip() in SPANS
    if filters.until is None:
        end += -(end - _EPOCH) % step
        if moving:
            begin -= (begin - _EPOCH) % step
            return begin, end, (end - begin) // step
    return begin, end, _BARS


def around(session: Session, listed: tuple[ListedSession, ...], tempos: Tempos) -> Around:
    """Return sessions with their tasks, the Dag runs that they triggered, and what is usual of their meters.

    :param tempos: what is usual of all meters
    """
    # A test is due at no time.
    compared = (each for each in listed if each.run_type == RunType.NORMAL or not each.best_ended)
    assets = triggered_runs.Assets(session, {each.meter for each in listed})
    return Around(
        sessions=listed,
        tasks=triggered_runs.waits_of(session, listed),
        started=triggered_runs.started(session, listed, assets),
        scheduled=triggered_runs.scheduled(session, assets),
        tempos=tempos.of(session, {RunsOfMeter(*each.meter, each.run_type) for each in compared}),
    )


def rows_of(found: Around, reader: Reader, now: datetime) -> list[Row]:
    """Return sessions with their tasks and runs, as far as the user may see them.

    Calls the auth manager, which may query a database or another server: not while a session of the journal is open.
    """
    seen_tasks = reader.sees_tasks({task.dag_id for each in found.tasks.values() for task in each})
    seen_runs = reader.sees_runs(
        seen_tasks
        | {run.dag_id for each in found.started.values() for run in each.runs}
        | {item.dag_id for items in found.scheduled.values() for item in items}
    )

    # What is usual may have been read before a session started that is listed.
    in_order = sorted(found.sessions, key=lambda each: each.begun_at)
    newest = {each.meter: each for each in in_order if each.run_type == RunType.NORMAL}

    def row(each: ListedSession) -> Row:
        its_tasks, its_start = found.tasks.get(each.key, ()), found.started.get(each.key)
        its_runs = its_start.runs if its_start else ()
        tempo = found.tempos.get(RunsOfMeter(*each.meter, each.run_type))
        seen = (
            task if task.dag_id in seen_runs else replace(task, run_state=None)
            for task in its_tasks
            if task.dag_id in seen_tasks
        )
        return Row(
            session=each,
            tasks=tuple(sorted(seen, key=lambda task: not task.goes_on)),
            runs=tuple(run for run in its_runs if run.dag_id in seen_runs),
            hidden_tasks=sum(task.dag_id not in seen_tasks for task in its_tasks),
            hidden_runs=sum(run.dag_id not in seen_runs for run in its_runs),
            announced=bool(its_start and its_start.announced),
            consumers=tuple(
                consumer
                for consumer in triggered_runs.consumers(each, found.scheduled.get(each.meter, ()), its_start, now)
                if consumer.dag_id in seen_runs
            ),
            silent=_is_silent(each, now),
            long=bool(tempo and not each.best_ended and tempo.takes_long(each.begun_at, now)),
            late=tempo.rhythm
            if tempo and each is newest.get(each.meter) and _is_late_after(tempo, each, now)
            else None,
        )

    return [row(each) for each in found.sessions]


def bare_row(listed: ListedSession, now: datetime) -> Row:
    """Return a session without its tasks and the Dag runs that it triggered."""
    return Row(session=listed, silent=_is_silent(listed, now))


def _is_late_after(tempo: Tempo, listed: ListedSession, now: datetime) -> bool:
    newest = next((each.session_id for each in tempo.past), None)
    return newest == listed.session_id and tempo.punctuality(now) is Punctuality.LATE


def _is_silent(listed: ListedSession, now: datetime) -> bool:
    return not listed.best_ended and now - listed.last_observed_at > SILENT
