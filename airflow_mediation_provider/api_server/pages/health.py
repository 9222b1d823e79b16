"""One line for each connection: whether callouts arrive, whether triggerers read the feed, and the API usage.

Each statement leads to the list of what it is about, and ends by itself when its cause ends.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from markupsafe import Markup

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.connections import (
    LookupFailedError,
    OtherIdError,
    SeveralTeamsError,
    UnknownConnectionError,
)
from airflow_mediation_provider.api_server.pages.callouts import UNACKNOWLEDGED
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, ago, lasting, page
from airflow_mediation_provider.journal.callout_list import CalloutKind
from airflow_mediation_provider.journal.health import (
    RECENT,
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
from airflow_mediation_provider.journal.triggered_runs import missed_since, never_started
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
    from airflow_mediation_provider.journal.health import ConnectionHealth, HistoryHealth, Unusual
    from airflow_mediation_provider.journal.receipts import Refusals
    from airflow_mediation_provider.journal.triggered_runs import Missed, NeverStarted
    from airflow_mediation_provider.protocol.callouts.setup import ReceivedCallout
    from airflow_mediation_provider.protocol.zuora.api_usage import ApiUsage

    _OfConnection = tuple[ConnectionHealth, ApiUsage, int, list[ReceivedCallout], Unusual]
    _NoRuns = tuple[list[Missed], bool]

router = APIRouter(route_class=PageRoute)

GOOD: Final = "good"
WARN: Final = "warn"
BAD: Final = "bad"
SESSIONS_PAGE: Final = "/sessions"
METER_PAGE: Final = "/meter"
CALLOUTS_PAGE: Final = "/callouts"
CONNECTION_PAGE: Final = "/connection"
MISSING_RUNS_PAGE: Final = "/missing-runs"
_METERS: Final = 5
_COMPARED: Final = 200
"""So many of the newest sessions are compared with the runs that they should have started."""


@dataclass(frozen=True, slots=True)
class HealthItem:
    """One statement about a connection.

    :param level: good, warn or bad
    :param path: of the page that lists what it is about
    :param parameters: of that page
    :param of_airflow: whether it is a page of Airflow itself
    """

    level: str
    text: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    of_airflow: bool = False


_CONNECTIONS: Final = "/connections"
"""Airflow's page of connections."""
_GONE: Final = HealthItem(WARN, "the connection was deleted", _CONNECTIONS, of_airflow=True)
_NO_CALLOUTS: Final = HealthItem(
    WARN, "callouts are not set up: statuses come from polls alone", _CONNECTIONS, of_airflow=True
)
_REFUSALS: Final = {
    401: "perhaps the secrets differ",
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

    def work(session: Session) -> tuple[list[_OfConnection], list[NeverStarted], list[Refusals], _NoRuns, bool]:
        silent, idle, refused = unreported(session, now), never_started(session), refusals(session, now)
        # A connection whose feed no process has ever reached, or whose callouts were never accepted, has no sessions.
        named = {*(each.conn_id for each in idle), *(each.conn_id for each in refused)}
        conn_ids = sorted({*known_connections(session), *silent.tasks, *named} - {NO_CONNECTION})
        of_connections = zip(
            (connection_health(session, each, now) for each in conn_ids),
            budget(session, conn_ids, now),
            (silent.tasks[each] for each in conn_ids),
            (newest_callouts(session, each) for each in conn_ids),
            (unusual(session, each, request.app.state.tempos, now) for each in conn_ids),
            strict=True,
        )
        no_runs = missed_since(session, now - RECENT, now, limit=_COMPARED)
        return list(of_connections), idle, refused, no_runs, silent.more

    of_connections, idle, refused, (missed, more_missed), more_silent = read(work)
    of_missed = {consumer.dag_id for each in missed for consumer in each.consumers}
    visible = reader.sees_runs({each.dag_id for each in idle} | of_missed)
    lines = list(_unknown(refused))
    for seen, calls, silent, callouts, of_meters in of_connections:
        connection, items = _connection(request, reader, seen.conn_id, refused)
        takes_callouts = connection is not None and _NO_CALLOUTS not in items
        if seen.history is not None and _NO_CALLOUTS in items:
            items.remove(_NO_CALLOUTS)
        items += [
            *(_missed(seen) if takes_callouts else ()),
            *_no_runs([each for each in missed if each.key.conn_id == seen.conn_id], visible, more=more_missed),
            *_set_up_wrongly(connection, callouts),
            *_refused(refused, seen.conn_id),
            *(_history(seen.conn_id, seen.history, connection, now) if seen.history is not None else ()),
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
        connection: MediationConnection = request.app.state.connections.get_in_thread(conn_id)
    except OtherIdError as error:
        text = f"not an id of a connection: {error}; `airflow mediation prune` deletes what was received under this id"
        return None, [HealthItem(WARN, text, _CONNECTIONS, of_airflow=True)]
    except UnknownConnectionError:
        return None, [_GONE]
    except SeveralTeamsError as error:
        unnamed = any((each.conn_id, each.status) == (conn_id, _WITHOUT_TEAM) for each in refused)
        text = (
            f"several teams have a connection of this id ({', '.join(error.teams)}), and tasks wait with polls alone: "
            "give each an id of its own, or end the Request URL in Zuora's callout template with ?team= and one's name"
        )
        return None, [HealthItem(BAD if unnamed else WARN, text, _CONNECTIONS, of_airflow=True)]
    except LookupFailedError:
        text = "the connection cannot be looked up now: its callouts are answered 503"
        return None, [HealthItem(BAD, text, _CONNECTIONS, of_airflow=True)]
    try:
        if connection.callouts.enabled:
            return connection, []
        return connection, [_NO_CALLOUTS]
    except MisconfigurationError as error:
        # The message quotes the settings, and a user may have put a secret into the wrong field.
        wrong = error if reader.reads_connection(conn_id) else "its settings are wrong"
        return connection, [HealthItem(BAD, f"callouts cannot be received: {wrong}", _CONNECTIONS, of_airflow=True)]


def _set_up_wrongly(
    connection: MediationConnection | None, callouts: Sequence[ReceivedCallout]
) -> Iterator[HealthItem]:
    """Return what the newest callouts show; settings that are wrong by themselves have an item already."""
    with suppress(MisconfigurationError):
        if connection is not None and connection.callouts.enabled:
            for fault in setup_faults(connection.callouts, callouts):
                accepted = {"conn": connection.conn_id, "kind": CalloutKind.ACCEPTED}
                yield HealthItem(WARN, fault, CALLOUTS_PAGE, accepted)


def _budget(calls: ApiUsage, connection: MediationConnection | None, now: datetime) -> HealthItem:
    center = DataCenter.named(connection.extra.get("data_center")) if connection else None
    stands = standing(calls, center, now)
    level = {UsageLevel.GOOD: GOOD, UsageLevel.TIGHT: WARN, UsageLevel.SPENT: BAD}[stands.level]
    return HealthItem(level, stands.words, CONNECTION_PAGE, {"conn": calls.conn_id})


def _refused(refused: Sequence[Refusals], conn_id: str) -> Iterator[HealthItem]:
    """Return what was refused: not always a problem, as unauthenticated clients can cause it."""
    for each in refused:
        if each.conn_id == conn_id and each.status in _REFUSALS:
            text = f"{_number(each.count, 'callout')} refused since the last accepted one: {_REFUSALS[each.status]}"
            which = {"kind": CalloutKind.REFUSED, "answer": str(each.status), "acknowledged": UNACKNOWLEDGED}
            which |= {"conn": conn_id, "since": each.since.isoformat()}
            yield HealthItem(WARN, text, CALLOUTS_PAGE, which)


def _unknown(refused: Sequence[Refusals]) -> Iterator[HealthLine]:
    """Return a line for callouts to connections that do not exist, if any were received within a day."""
    of_none = (each.count for each in refused if each.conn_id == NO_CONNECTION and each.status in _MISADDRESSED)
    if misaddressed := sum(of_none):
        callouts = _number(misaddressed, "callout")
        text = (
            f"{callouts} in the last 24 h to an address that names no connection: compare the Request URL in Zuora's "
            "callout template with that of `airflow mediation callout-template` (see the API server's log)"
        )
        item = HealthItem(WARN, text, CALLOUTS_PAGE)
        yield HealthLine(conn_id=NO_CONNECTION, last_callout_at=None, items=(item,))


def _received(each: ConnectionHealth, unreported_tasks: int, *, more: bool) -> Iterator[HealthItem]:
    """Return what was received, and from whom nothing was.

    :param more: whether there are more unreported tasks than were counted, of whichever connection
    """
    if each.unparsed:
        which = {"conn": each.conn_id, "kind": "unreadable", "acknowledged": UNACKNOWLEDGED, "since": "24h"}
        text = f"{_number(each.unparsed, 'unreadable callout')} in the last 24 h"
        yield HealthItem(BAD, text, CALLOUTS_PAGE, which)
    if silent := each.unseen + unreported_tasks:
        tasks = ("at least " if more and unreported_tasks else "") + _number(silent, "waiting task")
        yield HealthItem(
            BAD,
            f"no triggerer has reported {tasks} for {humanize(UNSEEN)}: check that a triggerer runs, and that its log "
            "shows no error for this API server",
            CONNECTION_PAGE,
            {"conn": each.conn_id},
        )
    if each.waiting:
        feed = "" if silent or more else ", feed connected"
        text = f"{_number(each.waiting, 'task')} waiting{feed}"
        yield HealthItem(GOOD, text, CONNECTION_PAGE, {"conn": each.conn_id})


def _missed(each: ConnectionHealth) -> Iterator[HealthItem]:
    """Return what callouts should have reported; a connection without callouts is left out, as all of it is missing."""
    if each.without_callouts:
        have = "has" if each.without_callouts == 1 else "have"
        sessions = _number(each.without_callouts, "session")
        text = f"{sessions} started by Airflow {have} had no callout"
        yield HealthItem(BAD, text, CONNECTION_PAGE, {"conn": each.conn_id})
    for meter in each.ends_without_callouts[:_METERS]:
        text = f"polls showed an end without a callout: meter {meter}"
        yield HealthItem(BAD, text, METER_PAGE, {"conn": each.conn_id, "meter": meter})
    if more := len(each.ends_without_callouts[_METERS:]):
        text = f"polls showed an end without a callout: {_number(more, 'more meter')}"
        yield HealthItem(BAD, text, SESSIONS_PAGE, {"conn": each.conn_id})
    if each.silent:
        text = f"{_number(each.silent, 'session')} without an update for more than {humanize(SILENT)}"
        yield HealthItem(WARN, text, SESSIONS_PAGE, {"conn": each.conn_id, "only": "silent"})


def _no_runs(missed: Sequence[Missed], visible: set[str], *, more: bool) -> Iterator[HealthItem]:
    """Return the sessions without a run of a Dag that the user may see; a paused one may be meant to start none."""
    of_sessions = [[consumer for consumer in each.consumers if consumer.dag_id in visible] for each in missed]
    if count := sum(map(bool, of_sessions)):
        unpaused = any(not consumer.paused for consumers in of_sessions for consumer in consumers)
        text = f"{'at least ' if more else ''}{_number(count, 'session')} in the last 24 h started no run"
        which = {"conn": missed[0].key.conn_id, "since": "24h"}
        yield HealthItem(BAD if unpaused else WARN, text, MISSING_RUNS_PAGE, which)


def _of_meters(conn_id: str, found: Unusual) -> Iterator[HealthItem]:
    """Return which meters are late, and which have a session that takes longer than usual."""
    for meters, one, several in (
        (found.late, "is late", "are late"),
        (found.long, "has a session that takes longer than usual", "have sessions that take longer than usual"),
    ):
        if meters:
            path, which = (METER_PAGE, {"meter": meters[0]}) if len(meters) == 1 else (SESSIONS_PAGE, {})
            names = ", ".join(meters[:_NAMED]) + (", ..." if len(meters) > _NAMED else "")
            text = f"{_number(len(meters), 'meter')} {one if len(meters) == 1 else several}: {names}"
            yield HealthItem(WARN, text, path, {"conn": conn_id, **which})


def _idle(never_started: list[NeverStarted], visible: set[str]) -> Iterator[HealthItem]:
    """Return the Dags whose schedules start nothing: the names of those that the user may see."""
    for each in never_started:
        if each.dag_id in visible:
            text = f"sessions never start the Dag {each.dag_id}: {each.because}"
            yield HealthItem(WARN, text, f"/dags/{quote(each.dag_id, safe='')}", of_airflow=True)
    if hidden := len({each.dag_id for each in never_started} - visible):
        text = f"sessions never start {_number(hidden, 'Dag')} that you may not see"
        yield HealthItem(WARN, text, "/dags", of_airflow=True)


def _history(
    conn_id: str, each: HistoryHealth, connection: MediationConnection | None, now: datetime
) -> Iterator[HealthItem]:
    """Return whether the callout history is read, and whether what is read counts."""
    page = (CONNECTION_PAGE, {"conn": conn_id})
    since = "" if each.read_at is None else Markup(" {}").format(lasting(each.read_at))
    if not each.is_read:
        yield HealthItem(
            BAD,
            Markup("the callout history has not been read{}: ").format(since)
            + "check that a Dag with callout_history in its schedule, or "
            "one whose task reads the history, is not paused, and that a triggerer without --queues runs",
            *page,
        )
    if each.trouble:
        yield HealthItem(BAD if each.lasting else WARN, f"callout history: {each.trouble}", *page)
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
                *page,
            )
        elif name not in (None, str(zone)):
            yield HealthItem(WARN, f"callout_timezone is {name}, and the callout history is written in {zone}", *page)
    if each.is_read and not each.trouble:
        last = Markup("read {}").format(ago(each.read_at)) if each.read_at else "is being read"
        records = "" if each.cursor.newest else ", no record yet"
        every = humanize(timedelta(seconds=each.seconds))
        yield HealthItem(GOOD, Markup("callout history {}, every {}{}").format(last, every, records), *page)


def _timezone(connection: MediationConnection) -> str | None:
    try:
        return connection.callouts.chosen_timezone
    except MisconfigurationError:
        return None  # another item names the setting


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _order(level: str) -> int:
    return (BAD, WARN, GOOD).index(level)
