"""One line for each connection: whether callouts arrive, whether the feed is read, and how the call budget stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from anyio import from_thread
from fastapi import APIRouter, Request, Response

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.pages.rendering import page
from airflow_mediation_provider.api_server.pages.route import PageRoute
from airflow_mediation_provider.journal.calls import budget
from airflow_mediation_provider.journal.health import SILENT, UNSEEN, signs
from airflow_mediation_provider.journal.listing import known_connections
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.budget import Level, standing
from airflow_mediation_provider.protocol.data_centers import DataCenter
from airflow_mediation_provider.protocol.errors import MisconfigurationError
from airflow_mediation_provider.protocol.times import humanize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.auth import Reader
    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.journal.health import Signs
    from airflow_mediation_provider.protocol.budget import Budget

router = APIRouter(route_class=PageRoute)

GOOD: Final = "good"
WARN: Final = "warn"
BAD: Final = "bad"


@dataclass(frozen=True, slots=True)
class Word:
    """One thing to say of a connection.

    :param level: good, warn or bad
    :param path: of the page that says more, where there is one
    """

    level: str
    text: str
    path: str = ""


_GONE: Final = Word(WARN, "is no connection any more")
_NO_CALLOUTS: Final = Word(WARN, "takes no callouts: what is known of its sessions rests on polls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is to be said of a connection, the worst first."""

    conn_id: str
    last_callout_at: datetime | None
    words: tuple[Word, ...]

    @property
    def level(self) -> str:
        """The worst of what is said."""
        return self.words[0].level if self.words else GOOD


@router.get("/health")
def health(request: Request, reader: ReaderDep) -> Response:
    """Show how callouts, feed and budget stand."""
    now = datetime.now(UTC)

    def work(session: Session) -> list[tuple[Signs, Budget]]:
        conn_ids = known_connections(session)
        return list(zip((signs(session, each, now) for each in conn_ids), budget(session, conn_ids, now), strict=True))

    lines = []
    for seen, calls in read(work):
        connection, words = _connection(request, reader, seen.conn_id)
        unheard = [] if _NO_CALLOUTS in words or _GONE in words else _unheard(seen)
        words += [*unheard, *_refused(request, seen.conn_id), *_words(seen), _budget(calls, connection, now)]
        words.sort(key=lambda word: _order(word.level))
        lines.append(Line(conn_id=seen.conn_id, last_callout_at=seen.last_callout_at, words=tuple(words)))
    return page(request, "health.html", lines=sorted(lines, key=lambda line: (_order(line.level), line.conn_id)))


def _connection(request: Request, reader: Reader, conn_id: str) -> tuple[MediationConnection | None, list[Word]]:
    """Return the connection, where there is one, and what is to be said of it."""
    try:
        connection: MediationConnection = from_thread.run(request.app.state.connections.get, conn_id)
    except UnknownConnectionError:
        return None, [_GONE]
    except LookupFailedError:
        return None, [Word(BAD, "cannot be looked up now: its callouts are answered 503")]
    try:
        if connection.callouts.enabled:
            return connection, []
        return connection, [_NO_CALLOUTS]
    except MisconfigurationError as error:
        # It quotes the settings, among which somebody may have put a secret into the wrong field.
        wrong = error if reader.reads_connection(conn_id) else "its settings are wrong"
        return connection, [Word(BAD, f"cannot take callouts: {wrong}")]


def _budget(calls: Budget, connection: MediationConnection | None, now: datetime) -> Word:
    center = DataCenter.named(connection.extra.get("data_center")) if connection else None
    stands = standing(calls, center, now)
    return Word({Level.GOOD: GOOD, Level.TIGHT: WARN, Level.SPENT: BAD}[stands.level], stands.words)


def _refused(request: Request, conn_id: str) -> Iterator[Word]:
    """Say what this process refused: not a sure sign of trouble, as strangers can do that."""
    if refused := request.app.state.refused[conn_id]:
        callouts = _number(refused, "callout")
        yield Word(WARN, f"{callouts} refused since the last good one: perhaps the secrets differ (the log says more)")


def _words(each: Signs) -> Iterator[Word]:
    if each.unread:
        yield Word(BAD, f"{_number(each.unread, 'callout')} of a day could not be read", "/unread")
    if each.unseen:
        tasks = _number(each.unseen, "waiting task")
        yield Word(BAD, f"no triggerer has asked the feed for {tasks} for {humanize(UNSEEN)}: look at it")
    if each.silent:
        yield Word(WARN, f"{_number(each.silent, 'session')} went silent more than {humanize(SILENT)} ago")
    if each.waiting:
        read = "" if each.unseen else ", the feed is read"
        yield Word(GOOD, f"{_number(each.waiting, 'task')} waiting{read}")


def _unheard(each: Signs) -> Iterator[Word]:
    """Say what no callout told; where a connection takes none, that says nothing."""
    if each.unheard:
        yield Word(BAD, f"no callout came of {_number(each.unheard, 'session')} that Airflow started")
    if each.unheard_ends:
        yield Word(BAD, f"polls saw an end that no callout told, of meter {', '.join(each.unheard_ends[:5])}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _order(level: str) -> int:
    return (BAD, WARN, GOOD).index(level)
