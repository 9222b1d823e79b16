"""Transactions of the journal: a database session of their own, in turn, again where that helps, and in time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from airflow import settings
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from airflow_mediation_provider.journal.locking import writers_turn

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from sqlalchemy.orm import Session, sessionmaker

    T = TypeVar("T")

MIGRATE: Final = "airflow db migrate"
# PostgreSQL: serialization failure, deadlock, lock not available. The connection may also be lost.
_PASSING_CODES: Final = frozenset({"40001", "40P01", "55P03"})


class JournalUnavailable(Exception):  # noqa: N818  # a state, not a fault
    """The journal could not be written or read now; the same may succeed later."""


class JournalMissing(JournalUnavailable):
    """The journal's tables are not there, or are of another version."""


def write(work: Callable[[Session], T], *, deadline_seconds: float) -> T:
    """Carry out some work in one transaction and return when it is durable; all of it, or with an error none of it.

    May be called from any thread, on SQLite too: there one transaction writes at a time.

    :param work: with the transaction's session; called again after a deadlock, a lock, or a lost connection, so it must
        not mind that it was carried out already
    :param deadline_seconds: how long to try
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is locked, away or broken, and stays so
    """
    deadline = time.monotonic() + deadline_seconds

    def attempt() -> T:
        sessions = _sessions()
        with writers_turn(sessions.kw["bind"].url, deadline), sessions(expire_on_commit=False) as session:
            if session.get_bind().dialect.name == "postgresql":
                # The database gives up a wait for a lock when the caller does.
                milliseconds = max(int((deadline - time.monotonic()) * 1000), 1)
                session.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
            done = work(session)
            session.commit()
            return done

    retrying = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_delay(deadline_seconds),
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
    )
    try:
        return retrying(attempt)
    except RetryError as error:
        raise JournalUnavailable(f"the journal could not be written: {said(error.last_attempt.exception())}") from error
    except TimeoutError as error:
        raise JournalUnavailable(f"the journal could not be written: {error}") from error
    except (DBAPIError, PoolTimeoutError) as error:
        raise unavailable(error) from error


def read(work: Callable[[Session], T]) -> T:
    """Carry out some work that only reads; what it returns is its own after the session's end.

    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is away
    """
    try:
        with _sessions()(expire_on_commit=False) as session:
            return work(session)
    except (DBAPIError, PoolTimeoutError) as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> JournalUnavailable:
    """Return what a database error means for a reader or writer of the journal."""
    words = said(error)
    missing = (
        "no such table",
        "no such column",
        "has no column named",
        "does not exist",
        "doesn't exist",
        "unknown column",
    )
    if isinstance(error, (ProgrammingError, OperationalError)) and any(each in words.lower() for each in missing):
        return JournalMissing(f"the journal's tables are missing or old: run `{MIGRATE}` ({words})")
    return JournalUnavailable(f"the journal's database gave an error: {words}")


def said(error: BaseException | None) -> str:
    """Return the database's own words, without the statement and its values: they may be the sender's."""
    lines = str(getattr(error, "orig", error)).splitlines()
    return lines[0] if lines else type(error).__name__


def _is_passing(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when it is tried again."""
    if isinstance(error, PoolTimeoutError | IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or code in _PASSING_CODES:
        return True
    words = str(error.orig).lower()
    return isinstance(error, OperationalError) and any(
        each in words for each in ("locked", "deadlock", "lock wait timeout", "connection", "terminating")
    )


def _sessions() -> sessionmaker[Session]:
    if settings.engine is None or settings.NonScopedSession is None:
        raise JournalUnavailable("Airflow's database is not set up in this process")
    return settings.NonScopedSession
