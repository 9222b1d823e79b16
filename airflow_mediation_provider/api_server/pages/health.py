"""One line for each connection: whether callouts arrive, whether triggerers read the feed, and the API usage."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from anyio import from_thread
from fastapi import APIRouter, Request, Response

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.connections import (
    LookupFailedError,
    OtherIdError,
    SeveralTeamsError,
    UnknownConnectionError,
)
from airflow_mediation_provider.api_server.pages.callouts import UNACKNOWLEDGED
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, page
from airflow_mediation_provider.journal.health import (
    SILENT,
    UNSEEN,
    connection_health,
    newest_callouts,
    unreported,
    unusual,
)
from airflow_mediation_provider.journal.receipts import refusals
from airflow_mediation_provider.journal.session_list import known_connections
from airflow_mediation_provider.journal.task_reports import budget
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.triggered_runs import never_started
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION
from airflow_mediation_provider.protocol.callouts.setup import setup_faults
from airflow_mediation_provider.protocol.times import humanize
from airflow_mediation_provider.protocol.zuora.api_usage import UsageLevel, standing
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError
from airflow_mediation_provider.protocol.zuora.requests import DataCenter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.auth import Reader
    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.api_server.http import TtlMap
    from airflow_mediation_provider.journal.health import ConnectionHealth, HistoryHealth, Unusual
    from airflow_mediation_provider.journal.receipts import Refusals
    from airflow_mediation_provider.journal.triggered_runs import NeverStarted
    from airflow_mediation_provider.protocol.callouts.setup import ReceivedCallout
    from airflow_mediation_provider.protocol.zuora.api_usage import ApiUsage

    _OfConnection = tuple[ConnectionHealth, ApiUsage, int, list[ReceivedCallout], Unusual]

router = APIRouter(route_class=PageRoute)

GOOD: Final = "good"
WARN: Final = "warn"
BAD: Final = "bad"


@dataclass(frozen=True, slots=True)
class HealthItem:
    """One statement about a connection.

    :param level: good, warn or bad
    :param path: of the page that lists what it is about
    :param parameters: of that page
    """

    level: str
    text: str
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


_GONE: Final = HealthItem(WARN, "the connection was deleted")
_NO_CALLOUTS: Final = HealthItem(WARN, "callouts are not set up: statuses come from polls alone")
_REFUSALS: Final = {
    401: "perhaps the secrets differ (see the server's log)",
    404: "the connection has no callout authentication",
    405: "choose the method POST in Zuora's callout template",
}
_NAMED: Final = 5
_MISADDRESSED: Final = (404, 405)
# The answer where several teams have the id and the address names none.
_WITHOUT_TEAM: Final = 503


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLine:
    """The health of a connection, the worst item first; without an id, of callouts to connections that do not exist."""

    conn_id: str
    last_callout_at: datetime | None
    items: tuple[HealthItem, ...]

    @property
    def level(self) -> str:
        """The worst level of the items."""
        return self.items[0].level if self.items else GOOD


@router.get("/health")
def health(request: Request, reader: ReaderDep) -> Response:
    """Show the health of callouts, feed and API usage."""
    now = datetime.now(UTC)

    def work(session: Session) -> tuple[list[_OfConnection], list[NeverStarted], list[Refusals], bool]:
        silent, idle, refused = unreported(session, now), never_started(session), refusals(session, now)
        # A connection whose feed no process has ever reached, or whose callouts were never accepted, has no sessions.
        named = {*(each.conn_id for each in idle), *(each.conn_id for each in refused)}
        conn_ids = sorted({*known_connections(session), *silent.tasks, *named} - {NO_CONNECTION})
        of_connections = zip(
            (connection_health(session, each, now) for each in conn_ids),
            budget(session, conn_ids, now),
            (silent.tasks[each] for each in conn_ids),
            (newest_callouts(session, each) for each in conn_ids),
            (_unusual(request, session, each, now) for each in conn_ids),
            strict=True,
        )
        return list(of_connections), idle, refused, silent.more

    of_connections, idle, refused, more_silent = read(work)
    visible = reader.sees_runs({each.dag_id for each in idle})
    lines = list(_unknown(refused))
    for seen, calls, silent, callouts, of_meters in of_connections:
        connection, items = _connection(request, reader, seen.conn_id, refused)
        takes_callouts = connection is not None and _NO_CALLOUTS not in items
        if seen.history is not None and _NO_CALLOUTS in items:
            items.remove(_NO_CALLOUTS)
        items += [
            *(_missed(seen) if takes_callouts else ()),
            *_set_up_wrongly(connection, callouts),
            *_refused(refused, seen.conn_id),
            *(_history(seen.history, connection, now) if seen.history is not None else ()),
            *_received(seen, silent if takes_callouts or seen.history is not None else 0, more=more_silent),
            *_of_meters(seen.conn_id, of_meters),
            *_idle([each for each in idle if each.conn_id == seen.conn_id], visible),
            _budget(calls, connection, now),
        ]
        items.sort(key=lambda item: _order(item.level))
        lines.append(HealthLine(conn_id=seen.conn_id, last_callout_at=seen.last_callout_at, items=tuple(items)))
    return page(request, "health.html", lines=sorted(lines, key=lambda line: (_order(line.level), line.conn_id)))


def _connection(
    request: Request, reader: Reader, conn_id: str, refused: Sequence[Refusals]
) -> tuple[MediationConnection | None, list[HealthItem]]:
    """Return the connection, if there is one, and its problems."""
    try:
        connection: MediationConnection = from_thread.run(request.app.state.connections.get, conn_id)
    except OtherIdError as error:
        return None, [HealthItem(WARN, f"not an id of a connection: {error}; prune deletes what came under this one")]
    except UnknownConnectionError:
        return None, [_GONE]
    except SeveralTeamsError as error:
        unnamed = any((each.conn_id, each.status) == (conn_id, _WITHOUT_TEAM) for each in refused)
        text = (
            f"several teams have a connection of this id ({', '.join(error.teams)}), and tasks wait with polls alone: "
            "give each an id of its own, or end the Request URL in Zuora's callout template with ?team= and one's name"
        )
        return None, [HealthItem(BAD if unnamed else WARN, text)]
    except LookupFailedError:
        return None, [HealthItem(BAD, "the connection cannot be looked up now: its callouts are answered 503")]
    try:
        if connection.callouts.enabled:
            return connection, []
        return connection, [_NO_CALLOUTS]
    except MisconfigurationError as error:
        # The message quotes the settings, and a user may have put a secret into the wrong field.
        wrong = error if reader.reads_connection(conn_id) else "its settings are wrong"
        return connection, [HealthItem(BAD, f"callouts cannot be received: {wrong}")]


def _set_up_wrongly(
    connection: MediationConnection | None, callouts: Sequence[ReceivedCallout]
) -> Iterator[HealthItem]:
    """Return what the newest callouts show; settings that are wrong by themselves have an item already."""
    with suppress(MisconfigurationError):
        if connection is not None and connection.callouts.enabled:
            for fault in setup_faults(connection.callouts, callouts):
                yield HealthItem(WARN, fault)


def _budget(calls: ApiUsage, connection: MediationConnection | None, now: datetime) -> HealthItem:
    center = DataCenter.named(connection.extra.get("data_center")) if connection else None
    stands = standing(calls, center, now)
    return HealthItem(
        {UsageLevel.GOOD: GOOD, UsageLevel.TIGHT: WARN, UsageLevel.SPENT: BAD}[stands.level], stands.words
    )


def _refused(refused: Sequence[Refusals], conn_id: str) -> Iterator[HealthItem]:
    """Return what was refused: no sure sign of a problem, as unauthenticated clients can cause it."""
    for each in refused:
        if each.conn_id == conn_id and each.status in _REFUSALS:
            callouts = _number(each.count, "callout")
            yield HealthItem(WARN, f"{callouts} refused since the last accepted one: {_REFUSALS[each.status]}")


def _unknown(refused: Sequence[Refusals]) -> Iterator[HealthLine]:
    """Return a line for callouts to connections that do not exist, if any were received within a day."""
    of_none = (each.count for each in refused if each.conn_id == NO_CONNECTION and each.status in _MISADDRESSED)
    if misaddressed := sum(of_none):
        callouts = _number(misaddressed, "callout")
        text = (
            f"{callouts} in the last 24 h to an address that names no connection: compare the Request URL in Zuora's "
            "callout template with that of `airflow mediation callout-template` (see the server's log)"
        )
        yield HealthLine(conn_id=NO_CONNECTION, last_callout_at=None, items=(HealthItem(WARN, text),))


def _received(each: ConnectionHealth, unreported_tasks: int, *, more: bool) -> Iterator[HealthItem]:
    """Return what was received, and from whom nothing was.

    :param more: whether there are more unreported tasks than were counted, of whichever connection
    """
    if each.unparsed:
        which = {"conn": each.conn_id, "kind": "unreadable", "acknowledged": UNACKNOWLEDGED, "since": "24h"}
        text = f"{_number(each.unparsed, 'callout')} in the last 24 h could not be parsed"
        yield HealthItem(BAD, text, "/callouts", which)
    if silent := each.unseen + unreported_tasks:
        tasks = ("at least " if more and unreported_tasks else "") + _number(silent, "waiting task")
        yield HealthItem(
            BAD,
            f"no triggerer has reported {tasks} for {humanize(UNSEEN)}: check that a triggerer runs, and that its log "
            "shows no error for this API server",
        )
    if each.waiting:
        feed = "" if silent or more else ", feed connected"
        yield HealthItem(GOOD, f"{_number(each.waiting, 'task')} waiting{feed}")


def _missed(each: ConnectionHealth) -> Iterator[HealthItem]:
    """Return what callouts should have reported; a connection without callouts is left out, as all of it is missing."""
    if each.without_callouts:
        have = "has" if each.without_callouts == 1 else "have"
        sessions = _number(each.without_callouts, "session")
        yield HealthItem(BAD, f"{sessions} started by Airflow {have} had no callout")
    if each.ends_without_callouts:
        meters = ", ".join(each.ends_without_callouts[:5])
        yield HealthItem(BAD, f"polls showed an end without a callout: meter {meters}")
    if each.silent:
        yield HealthItem(WARN, f"{_number(each.silent, 'session')} without an update for more than {humanize(SILENT)}")


def _unusual(request: Request, session: Session, conn_id: str, now: datetime) -> Unusual:
    """Return what is not usual of a connection's meters, as it was within the last minute.

    It changes with hours, and is the question with the most rows.
    """
    kept: TtlMap[Unusual] = request.app.state.unusual
    if (known := kept.get(conn_id)) is not None:
        return known
    found = unusual(session, conn_id, now)
    kept.add(conn_id, found)
    return found


def _of_meters(conn_id: str, found: Unusual) -> Iterator[HealthItem]:
    """Return which meters are late or have a session that takes long."""
    for meters, one, several in (
        (found.late, "is late to start", "are late to start"),
        (found.long, "has a session that takes longer than usual", "have sessions that take longer than usual"),
    ):
        if meters:
            path, which = ("/meter", {"meter": meters[0]}) if len(meters) == 1 else ("/sessions", {})
            names = ", ".join(meters[:_NAMED]) + (", ..." if len(meters) > _NAMED else "")
            text = f"{_number(len(meters), 'meter')} {one if len(meters) == 1 else several}: {names}"
            yield HealthItem(WARN, text, path, {"conn": conn_id, **which})


def _idle(never_started: list[NeverStarted], visible: set[str]) -> Iterator[HealthItem]:
    """Return the Dags whose schedules start nothing: the names of those that the user may see."""
    for each in never_started:
        if each.dag_id in visible:
            yield HealthItem(WARN, f"sessions never start the Dag {each.dag_id}: {each.because}")
    if hidden := len({each.dag_id for each in never_started} - visible):
        yield HealthItem(WARN, f"sessions never start {_number(hidden, 'Dag')} that you may not see")


def _history(each: HistoryHealth, connection: MediationConnection | None, now: datetime) -> Iterator[HealthItem]:
    """Return whether the callout history is read, and whether what is read counts."""
    since = "" if each.read_at is None else f" for {humanize(now - each.read_at)}"
    if not each.is_read:
        yield HealthItem(
            BAD,
            f"the callout history has not been read{since}: check that a Dag with callout_history in its schedule, or "
            "one whose task reads the history, is not paused, and that a triggerer without --queues runs",
        )
    if each.trouble:
        yield HealthItem(BAD if each.lasting else WARN, f"callout history: {each.trouble}")
    if connection is not None and each.cursor.newest is not None:
        name = _timezone(connection)
        zone = each.cursor.zone(name, now)
        if zone is None:
            setting = (
                "if they are rare, set callout_timezone, also to UTC"
                if name is None
                else f"callout_timezone is {name}, which the records contradict"
            )
            yield HealthItem(
                WARN,
                "the zone of the times in the callout history is not known yet, and nothing that is read counts until "
                f"the next callouts show it: {setting}",
            )
        elif name not in (None, str(zone)):
            yield HealthItem(WARN, f"callout_timezone is {name}, and the callout history is written in {zone}")
    if each.is_read and not each.trouble:
        last = f"read {humanize(now - each.read_at)} ago" if each.read_at else "is being read"
        records = "" if each.cursor.newest else ", no record yet"
        yield HealthItem(GOOD, f"callout history {last}, every {humanize(timedelta(seconds=each.seconds))}{records}")


def _timezone(connection: MediationConnection) -> str | None:
    try:
        return connection.callouts.chosen_timezone
    except MisconfigurationError:
        return None  # another item names the setting


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _order(level: str) -> int:
    return (BAD, WARN, GOOD).index(level)
