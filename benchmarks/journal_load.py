"""Rows as the journal's writer makes them, loaded fast into its tables: without locks, checks and a commit each."""

from __future__ import annotations

import csv
import io
import itertools
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import create_engine, text
from sqlalchemy.event import listen

from airflow_mediation_provider.journal.rows import session_values, transition_values
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.sessions.verdict import best_known
from airflow_mediation_provider.protocol.times import to_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Dialect

    from airflow_mediation_provider.protocol.transition import SessionTransition


def change_row(change: SessionTransition, conn_id: str) -> dict[str, Any]:
    """Return the row of a change that a callout reported."""
    body = {
        "meterId": change.meter_id,
        "sessionId": change.session_id,
        "status": change.status,
        "runType": str(change.run_type),
    }
    entry = JournalEntry(
        kind=EntryKind.STATUS_CHANGE, observed_at=change.observed_at, source=change.source, transition=change, body=body
    )
    return transition_values(entry, conn_id=conn_id, at=entry.observed_at)


def session_row(changes: Sequence[SessionTransition], conn_id: str) -> dict[str, Any]:
    """Return the row of a session.

    :param changes: all reports of it, in order
    """
    state = fold(changes)
    return {
        **session_values(state, best_known(state, ())),
        "conn_id": conn_id,
        "meter_id": state.meter_id,
        "session_id": state.session_id,
        "emitted": {each.status: 1 for each in changes},
        "revision": len(changes),
        "updated_at": changes[-1].observed_at,
    }


class Stencil:
    """The rows of one session, as the journal's writer makes them, and of sessions that differ only in id and time.

    They are as the driver takes them. This takes a hundredth of the time of making each separately.

    :param changes: all reports of the session, in order; its id and its times are in no other session
    :param conn_id: the connection
    :param dialect: of the database
    """

    def __init__(self, changes: Sequence[SessionTransition], conn_id: str, dialect: Dialect) -> None:
        self._session_id = str(changes[0].session_id)
        self._at = to_utc("a time", changes[0].observed_at)
        made = [(change_row(each, conn_id), TransitionRow.__table__) for each in changes]
        made.append((session_row(changes, conn_id), SessionRow.__table__))
        times = {each for row, _ in made for each in row.values() if isinstance(each, datetime)}
        # Plain ones: those of Airflow's own library take many times as long to add to.
        self._instants = sorted(to_utc("a time", each) for each in times)
        self._written = [each.isoformat() for each in self._instants]
        self._store = _processor(TransitionRow.__table__.columns["observed_at"].type, dialect)
        self._models = [self._model(row, _stored(table, [row], dialect)[0]) for row, table in made]
        self.columns: Final = [list(row) for row, _ in made[-2:]]
        """The columns of a change, and of a session."""

    def rows(self, session_id: str, at: datetime) -> tuple[list[list[Any]], list[Any]]:
        """Return the rows of its changes and its own.

        :param session_id: the session
        :param at: when the first change was reported
        """
        by = at - self._at
        moved = [each + by for each in self._instants]
        stored = [self._store(each) for each in moved]
        written = [*zip(self._written, (each.isoformat() for each in moved), strict=True)]
        rows = []
        for model in self._models:
            row = [*model.values]
            for place, number in model.times:
                row[place] = stored[number]
            for place in model.texts:
                row[place] = row[place].replace(self._session_id, session_id)
            for place in model.documents:
                for before, now in written:
                    row[place] = row[place].replace(before, now)
            rows.append(row)
        return rows[:-1], rows[-1]

    def _model(self, row: dict[str, Any], values: Sequence[Any]) -> _Model:
        texts = [place for place, each in enumerate(values) if isinstance(each, str) and self._session_id in each]
        documents = [place for place in texts if any(each in values[place] for each in self._written)]
        numbers = {each: number for number, each in enumerate(self._instants)}
        times = [(place, numbers[each]) for place, each in enumerate(row.values()) if isinstance(each, datetime)]
        return _Model(values, times, texts, documents)


class _Model(NamedTuple):
    """A row that others are made from.

    :param values: its own
    :param times: where its times are, with the number of each instant
    :param texts: where the session's id is
    :param documents: of these, where times are written too
    """

    values: Sequence[Any]
    times: Sequence[tuple[int, int]]
    texts: Sequence[int]
    documents: Sequence[int]


def _processor(of: Any, dialect: Dialect) -> Callable[[Any], Any]:
    return of.dialect_impl(dialect).bind_processor(dialect) or (lambda value: value)


def _stored(table: Any, rows: Sequence[dict[str, Any]], dialect: Dialect) -> list[list[Any]]:
    """Return rows as the driver takes them."""
    process = [_processor(table.columns[name].type, dialect) for name in rows[0]]
    return [[each(value) for each, value in zip(process, row.values(), strict=True)] for row in rows]


def load(connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that all have the same columns in the same order."""
    if rows:
        load_stored(connection, table, list(rows[0]), _stored(table, rows, connection.dialect))


def load_stored(connection: Connection, table: Any, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows as the driver takes them; PostgreSQL's COPY is several times faster.

    :param names: of the columns
    """
    columns = ", ".join(f'"{name}"' for name in names)
    if connection.dialect.name != "postgresql":
        values = ", ".join("?" * len(names))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) VALUES ({values})", [*map(tuple, rows)])
        return
    lines = io.StringIO()
    csv.writer(lines).writerows(rows)
    lines.seek(0)
    # An empty text is none, and no NULL.
    texts = ", ".join(f'"{name}"' for name in names if not table.columns[name].nullable)
    copy = f"COPY {table.name} ({columns}) FROM STDIN WITH (FORMAT csv, FORCE_NOT_NULL ({texts}))"
    connection.connection.cursor().copy_expert(copy, lines)  # type: ignore[attr-defined]


@contextmanager
def without_indexes(connection: Connection, tables: Iterable[Any]) -> Iterator[None]:
    """Remove the indexes of empty tables while these are filled: to make them at once takes a fraction of the time."""
    indexes = [index for table in tables for index in table.indexes]
    for index in indexes:
        index.drop(connection)
    yield
    for index in indexes:
        index.create(connection)


@contextmanager
def loading(address: str) -> Iterator[Connection]:
    """Yield a transaction in which many rows may be written.

    :param address: of the database
    """
    engine = create_engine(address)
    if engine.dialect.name == "sqlite":
        # Indexes are filled in no order: they are kept in memory until then.
        listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA cache_size = -1000000"))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def vacuum(address: str, tables: Iterable[Any]) -> None:
    """Vacuum PostgreSQL's tables, as it would do by itself later, so that it does not happen during a measurement.

    :param address: of the database
    :param tables: those that were filled
    """
    engine = create_engine(address)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in tables:
                connection.execute(text(f"VACUUM ANALYZE {table.name}"))
            connection.execute(text("CHECKPOINT"))
    engine.dispose()


def chunks(numbers: Iterable[int], size: int) -> Iterable[tuple[int, ...]]:
    """Return the numbers in groups."""
    numbers = iter(numbers)
    while chunk := tuple(itertools.islice(numbers, size)):
        yield chunk
