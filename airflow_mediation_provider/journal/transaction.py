"""Transactions of the journal: each has its own database session, is retried if that can help, and has a deadline.

On SQLite writers queue, over the threads and processes of all API servers that share the file. SQLite lets one
transaction write at a time and makes the others retry until they give up; under load some of them never get their turn.
A queue in front of the database costs less than that. Other databases lock rows, and need no queue.
"""

from __future__ import annotations

import fcntl
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import IO, TYPE_CHECKING, Any, Final

from airflow import settings
from sqlalchemy import insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from airflow_mediation_provider.journal.tables import Base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from sqlalchemy import URL, Executable
    from sqlalchemy.orm import Session, sessionmaker

    T = TypeVar("T")

_PAUSE_SECONDS: Final = 0.0005
_threads, _next_thread = threading.Lock(), threading.Lock()

MIGRATE: Final = "airflow db migrate"
# PostgreSQL: serialization failure, deadlock, lock not available. The connection may also be lost.
_PASSING_CODES: Final = frozenset({"40001", "40P01", "55P03"})


@contextmanager
def writers_turn(url: URL, deadline: float) -> Iterator[None]:
    """Hold the turn to write, in this process and among the processes that share the SQLite file.

    :param url: the database's address
    :param deadline: until when to wait for it, in ``time.monotonic()``
    :raises TimeoutError: the turn did not come
    """
    if url.get_backend_name() != "sqlite":
        yield
        return
    # The next thread holds the second lock: the one that has just written cannot take the turn again before it.
    if not _next_thread.acquire(timeout=max(deadline - time.monotonic(), 0)):
        raise TimeoutError("other threads write to SQLite")
    try:
        if not _threads.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TimeoutError("other threads write to SQLite")
    finally:
        _next_thread.release()
    try:
        if not url.database or url.database == ":memory:":
            yield
            return
        # Separate files: closing a second handle of the database's file would drop SQLite's own locks.
        turn, next_turn = (Path(f"{url.database}-mediation-{name}") for name in ("lock", "next"))
        with turn.open("ab") as held, next_turn.open("ab") as wanted:
            # The next process holds this file: the process that has just written cannot take the turn again before it.
            _lock(wanted, deadline)
            _lock(held, deadline)
            fcntl.flock(wanted, fcntl.LOCK_UN)
            yield
    finally:
        _threads.release()


def _lock(file: IO[bytes], deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError("other processes write to SQLite") from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return


class JournalUnavailable(Exception):  # noqa: N818  # a state, not a fault
    """The journal could not be written or read now; the same may succeed later."""


class UnstorableError(JournalUnavailable):
    """The database or its driver refused a value; the transaction without it may succeed."""


class JournalMissing(JournalUnavailable):
    """The journal's tables do not exist, or are of another version."""


def write(work: Callable[[Session], T], *, deadline_seconds: float) -> T:
    """Run some work in one transaction and return when it is durable: all of it, or with an error none of it.

    May be called from any thread, on SQLite too: there one transaction writes at a time.

    :param work: with the transaction's session; called again after a deadlock, a lock, or a lost connection, so it must
        not mind that it was carried out already
    :param deadline_seconds: how long to try
    :raises JournalMissing: the tables are not there
    :raises UnstorableError: a value was refused
    :raises JournalUnavailable: the database is locked, away or broken, and stays so
    """
    deadline = time.monotonic() + deadline_seconds

    def attempt() -> T:
        sessions = _sessions()
        with writers_turn(sessions.kw["bind"].url, deadline), sessions(expire_on_commit=False) as session:
            if session.get_bind().dialect.name == "postgresql":
                # The database gives up waiting for a lock when the caller does.
                milliseconds = max(int((deadline - time.monotonic()) * 1000), 1)
                # Not as a ``text``, which SQLAlchemy would compile and cache for each number.
                session.connection().exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
            done = work(session)
            session.commit()
            return done

    retrying = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_delay(deadline_seconds),
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
    )
    try:
        with _errors_of_the_journal():
            return retrying(attempt)
    except RetryError as error:
        raise JournalUnavailable(f"the journal could not be written: {said(error.last_attempt.exception())}") from error
    except TimeoutError as error:
        raise JournalUnavailable(f"the journal could not be written: {error}") from error


def read(work: Callable[[Session], T]) -> T:
    """Run some work that only reads; its result must be usable after the database session is closed.

    :raises JournalMissing: the tables are not there
    :raises UnstorableError: a value was refused
    :raises JournalUnavailable: the database is away
    """
    with _errors_of_the_journal(), _sessions()(expire_on_commit=False) as session:
        return work(session)


@contextmanager
def _errors_of_the_journal() -> Iterator[None]:
    """Raise errors of the database and of its driver as those of the journal; errors of the work stay what they are."""
    try:
        yield
    except (DataError, ValueError, OverflowError) as error:
        if not _is_of_driver(error):
            raise
        raise UnstorableError(f"the database refuses a value: {said(error)}") from error
    except (DBAPIError, PoolTimeoutError) as error:
        raise unavailable(error) from error


def _is_of_driver(error: Exception) -> bool:
    """Return whether a statement was refused, by the database or by the driver.

    Drivers check values too: NUL (ValueError), half a character (UnicodeError, a ValueError), a large number
    (OverflowError). SQLAlchemy passes these on as they are, so only where they come from shows whose they are: from
    ``Dialect.do_execute`` or one of its kind, which call the driver.
    """
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, DataError) or any(frame.f_code.co_name.startswith("do_execute") for frame in frames)


def add(session: Session, table: type[Base], values: dict[str, Any]) -> tuple[Any, ...] | None:
    """Insert a row unless one with its key exists, and return its primary key; ``None`` if one existed.

    Waits for another transaction that has just inserted the same.
    """
    result: Any = session.execute(_insert_or_ignore(session.get_bind().dialect.name, table.__tablename__), values)
    return tuple(result.inserted_primary_key) if result.rowcount else None


@cache
def _insert_or_ignore(dialect: str, table: str) -> Executable:
    # Without the ORM, which would double the work for a row that is not used afterwards.
    rows = Base.metadata.tables[table]
    match dialect:
        case "postgresql":
            return postgresql.insert(rows).on_conflict_do_nothing()
        case "sqlite":
            return sqlite.insert(rows).on_conflict_do_nothing()
    return insert(rows).prefix_with("IGNORE")


def unavailable(error: Exception) -> JournalUnavailable:
    """Return the journal's exception for a database error."""
    message = said(error)
    missing = (
        "no such table",
        "no such column",
        "has no column named",
        "does not exist",
        "doesn't exist",
        "unknown column",
    )
    if isinstance(error, (ProgrammingError, OperationalError)) and any(each in message.lower() for each in missing):
        return JournalMissing(f"the journal's tables are missing or old: run `{MIGRATE}` ({message})")
    return JournalUnavailable(f"the journal's database gave an error: {message}")


def said(error: BaseException | None) -> str:
    """Return the database's own message, without the statement and its values: they may come from the sender."""
    lines = str(getattr(error, "orig", error)).splitlines()
    return lines[0] if lines else type(error).__name__


def _is_passing(error: BaseException) -> bool:
    """Return whether the same transaction may succeed when it is retried."""
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
