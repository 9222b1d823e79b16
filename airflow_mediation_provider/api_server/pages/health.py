"""One line for each connection: whether callouts arrive, whether the feed is read, and how the call budget stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from anyio import from_thread
from fastapi import APIRouter, Request, Response

from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.pages.rendering import page
from airflow_mediation_provider.api_server.pages.route import PageRoute
from airflow_mediation_provider.journal.health import SILENT, UNSEEN, signs
from airflow_mediation_provider.journal.listing import known_connections
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.errors import MisconfigurationError
from airflow_mediation_provider.protocol.times import humanize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.health import Signs

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
def health(request: Request) -> Response:
    """Show how callouts, feed and budget stand."""
    now = datetime.now(UTC)

    def work(session: Session) -> list[Signs]:
        return [signs(session, conn_id, now) for conn_id in known_connections(session)]

    lines = [
        Line(
            conn_id=each.conn_id,
            last_callout_at=each.last_callout_at,
            words=tuple(sorted((*_connection(request, each.conn_id), *_words(each)), key=_gravity)),
        )
        for each in read(work)
    ]
    return page(request, "health.html", lines=sorted(lines, key=lambda line: (_order(line.level), line.conn_id)))


def _connection(request: Request, conn_id: str) -> Iterator[Word]:
    try:
        connection = from_thread.run(request.app.state.connections.get, conn_id)
        if not connection.callouts.enabled:
            yield Word(WARN, "takes no callouts: what is known of its sessions rests on polls")
    except UnknownConnectionError:
        yield Word(WARN, "is no connection any more")
    except LookupFailedError:
        yield Word(BAD, "cannot be looked up now: callouts are answered 503")
    except MisconfigurationError as error:
        yield Word(BAD, f"cannot take callouts: {error}")


def _words(each: Signs) -> Iterator[Word]:
    if each.unread:
        yield Word(BAD, f"{_number(each.unread, 'callout')} of a day could not be read", "/unread")
    if each.unheard:
        yield Word(BAD, f"no callout came of {_number(each.unheard, 'session')} that Airflow started")
    if each.unheard_ends:
        yield Word(BAD, f"polls saw an end that no callout told, of meter {', '.join(each.unheard_ends[:5])}")
    if each.unseen:
        tasks = _number(each.unseen, "waiting task")
        yield Word(BAD, f"nobody has asked the feed for {tasks} for {humanize(UNSEEN)}: look at the triggerer")
    if each.silent:
        yield Word(WARN, f"{_number(each.silent, 'session')} went silent more than {humanize(SILENT)} ago")
    if each.waiting:
        yield Word(GOOD, f"{_number(each.waiting, 'task')} waiting, the feed is read")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _order(level: str) -> int:
    return (BAD, WARN, GOOD).index(level)


def _gravity(word: Word) -> int:
    return _order(word.level)
