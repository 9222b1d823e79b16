"""The list of all sessions, newest first, by filters that stand in its address; and their numbers over time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.pages.chart import Chart, bars
from airflow_mediation_provider.api_server.pages.rendering import page
from airflow_mediation_provider.api_server.pages.route import PageRoute, Text
from airflow_mediation_provider.journal import consequences
from airflow_mediation_provider.journal.filters import LOOKED_AT, Filters, Place
from airflow_mediation_provider.journal.health import SILENT
from airflow_mediation_provider.journal.listing import (
    COUNTED,
    Listed,
    count_by_status,
    known_connections,
    list_sessions,
)
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.status import RunType, SessionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.auth import Reader
    from airflow_mediation_provider.journal.consequences import Consumer, Scheduled, Started, StartedRun, Wait
    from airflow_mediation_provider.journal.listing import Listing, SessionKey

router = APIRouter(route_class=PageRoute)

PAGE: Final = 50
SPANS: Final = {"1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days", "30d": "last 30 days"}
_UNITS: Final = {"h": "hours", "d": "days"}
_BARS: Final = 24
# What lies outside is a slip of the pen, and some of it no database takes.
_YEARS: Final = range(1970, 9999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What an address asks for, as it stands there.

    :param since: ISO 8601, in the zone ``tz`` where it names none; or one of ``SPANS``
    :param tz: the user's time zone
    """

    conn: str = ""
    meter: str = ""
    status: str = ""
    run_type: str = ""
    since: str = ""
    until: str = ""
    tz: str = ""

    def filters(self, now: datetime) -> Filters:
        """Return the filters.

        :raises HTTPException: a part cannot be read; says which
        """
        return Filters(
            conn_id=self.conn.strip() or None,
            meter_id=self.meter.strip() or None,
            status=self.status.strip().upper() or None,
            run_type=self.run_type.strip().upper() or None,
            since=self._instant("since", now),
            until=self._instant("until", now),
        )

    def parameters(self) -> dict[str, str]:
        """Return what makes the same address again."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def filtered(self) -> bool:
        """Whether anything is left out."""
        return any(value for name, value in self.parameters().items() if name != "tz")

    def _instant(self, name: str, now: datetime) -> datetime | None:
        text = getattr(self, name).strip()
        if not text:
            return None
        if text in SPANS:
            return now - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
        try:
            instant = datetime.fromisoformat(text)
            instant = instant if instant.tzinfo else instant.replace(tzinfo=ZoneInfo(self.tz or "UTC"))
            if instant.year not in _YEARS:
                raise ValueError
            return instant.astimezone(UTC)
        except (ValueError, OverflowError, ZoneInfoNotFoundError, OSError):  # a zone is looked up as a file
            raise HTTPException(
                400, f"{name}={text} is no time: write 2026-03-31T09:00, or one of {', '.join(SPANS)}."
            ) from None


def _search(
    conn: Text = "",
    meter: Text = "",
    status: Text = "",
    run_type: Text = "",
    since: Text = "",
    until: Text = "",
    tz: Text = "",
) -> Search:
    return Search(conn=conn, meter=meter, status=status, run_type=run_type, since=since, until=until, tz=tz)


SearchDep = Annotated[Search, Depends(_search)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the list.

    :param waits: of tasks that the user may see, those that go on first
    :param runs: of DAGs that the user may see
    :param hidden_waits: how many others there are
    :param hidden_runs: how many others there are
    :param consumers: DAGs that are scheduled on it and that the user may see
    :param silent: whether it goes on, and nothing was told of it for hours
    """

    session: Listed
    waits: tuple[Wait, ...] = ()
    runs: tuple[StartedRun, ...] = ()
    hidden_waits: int = 0
    hidden_runs: int = 0
    consumers: tuple[Consumer, ...] = ()
    silent: bool

    @property
    def missed(self) -> tuple[str, ...]:
        """The DAGs that should have been started, and were not."""
        return tuple(each.dag_id for each in self.consumers if each.missed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """Some sessions, what waits for them and what they started, whoever may see that."""

    sessions: tuple[Listed, ...]
    waits: Mapping[SessionKey, Sequence[Wait]]
    started: Mapping[SessionKey, Started]
    scheduled: Mapping[tuple[str, str], Sequence[Scheduled]]


@router.get("/sessions")
def sessions(request: Request, reader: ReaderDep, search: SearchDep, before: Text = "", after: Text = "") -> Response:
    """Show the list."""
    now = datetime.now(UTC)
    filters = search.filters(now)
    try:
        places = {"before": Place.parse(before) if before else None, "after": Place.parse(after) if after else None}
    except ValueError as error:
        raise HTTPException(400, f"{error}: go back to the newest sessions.") from None

    def work(session: Session) -> tuple[Listing, Around, list[str]]:
        listing = list_sessions(session, filters, limit=PAGE, **places)
        return listing, around(session, listing.sessions), known_connections(session)

    listing, found, connections = read(work)
    return page(
        request,
        "sessions.html",
        search=search,
        filters=filters,
        rows=rows_of(found, reader, now),
        connections=connections,
        statuses=[str(each) for each in SessionStatus if each is not SessionStatus.NEVER_RUN],
        run_types=[str(each) for each in RunType],
        spans=SPANS,
        newer=listing.newer,
        older=listing.older,
        further=_further(listing, after=bool(after)),
        looked_at=LOOKED_AT,
        paged=bool(before or after),
    )


def _further(listing: Listing, *, after: bool) -> dict[str, Place | None]:
    """Return where a search goes on that did not look at all sessions; empty where it did."""
    if not listing.cut:
        return {}
    return {"after": listing.newer} if after else {"before": listing.older}


@router.get("/sessions/chart")
def sessions_chart(request: Request, search: SearchDep) -> Response:
    """Show how many sessions began when, by their status: of the time that is asked for, else of the last day."""
    now = datetime.now(UTC)
    filters = search.filters(now)
    end = filters.until or now
    begin = filters.since or end - timedelta(days=1)
    chart: Chart | None = None
    cut = False
    if begin < end:
        counts = read(lambda session: count_by_status(session, filters, since=begin, until=end, bars=_BARS))
        chart = bars(counts.spans, since=counts.since, until=end)
        cut = counts.since > begin
    return page(request, "chart.html", chart=chart, counted=COUNTED if cut else None)


def around(session: Session, listed: tuple[Listed, ...]) -> Around:
    """Return sessions with what waits for them and what they started."""
    assets = consequences.Assets(session, {each.meter for each in listed})
    return Around(
        sessions=listed,
        waits=consequences.waits_of(session, listed),
        started=consequences.started(session, listed, assets),
        scheduled=consequences.scheduled(session, assets),
    )


def rows_of(found: Around, reader: Reader, now: datetime) -> list[Row]:
    """Return what the user may see of sessions and what is around them.

    Asks the auth manager, which may ask a database or another server: not while a session of the journal is open.
    """
    seen_tasks = reader.sees_tasks({wait.dag_id for each in found.waits.values() for wait in each})
    seen_runs = reader.sees_runs(
        {run.dag_id for each in found.started.values() for run in each.runs}
        | {item.dag_id for items in found.scheduled.values() for item in items}
    )

    def row(each: Listed) -> Row:
        its_waits, its_start = found.waits.get(each.key, ()), found.started.get(each.key)
        its_runs = its_start.runs if its_start else ()
        seen_waits = (wait for wait in its_waits if wait.dag_id in seen_tasks)
        return Row(
            session=each,
            waits=tuple(sorted(seen_waits, key=lambda wait: not wait.goes_on)),
            runs=tuple(run for run in its_runs if run.dag_id in seen_runs),
            hidden_waits=sum(wait.dag_id not in seen_tasks for wait in its_waits),
            hidden_runs=sum(run.dag_id not in seen_runs for run in its_runs),
            consumers=tuple(
                consumer
                for consumer in consequences.consumers(each, found.scheduled.get(each.meter, ()), its_start, now)
                if consumer.dag_id in seen_runs
            ),
            silent=_is_silent(each, now),
        )

    return [row(each) for each in found.sessions]


def bare_row(listed: Listed, now: datetime) -> Row:
    """Return a session without what waits for it and what it started."""
    return Row(session=listed, silent=_is_silent(listed, now))


def _is_silent(listed: Listed, now: datetime) -> bool:
    return not listed.terminal and now - listed.last_observed_at > SILENT
