from __future__ import annotations

from typing import Any

from airflow import settings
from sqlalchemy import select

from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from benchmarks.feed_at_scale import questions
from benchmarks.journal_rows import CONN_ID, LIVE, WALK, meter_of, seed, session_of

# Columns with the writer's own numbers and times, and the counts of asset events.
OWN = {"id", "conn_id", "created_at", "updated_at", "emitted", "revision", "body"}


def values(row: Any) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns if column.key not in OWN}


def rows_of(conn_id: str, table: Any) -> list[dict[str, Any]]:
    with settings.NonScopedSession() as session:
        found = session.scalars(select(table).where(table.conn_id == conn_id).order_by(table.id))
        return [values(row) for row in found]


def test_seeded_rows_equal_those_of_the_journals_writer(airflow_database: str):
    sessions = seed(airflow_database, 50)
    assert sessions == 10
    with settings.NonScopedSession() as session:
        stored = queries.transitions(
            session, CONN_ID, [(meter_of(number), session_of(number)) for number in range(sessions)]
        )
    assert len(stored) == (10 - LIVE) * len(WALK) + LIVE * 2
    entries = [
        JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=t.observed_at, source=t.source, transition=t)
        for t in stored
    ]
    record(entries, conn_id="written")
    for table in (SessionRow, TransitionRow):
        seeded, written = rows_of(CONN_ID, table), rows_of("written", table)
        assert sorted(seeded, key=str) == sorted(written, key=str)


def test_the_benchmarks_queries_return_sessions(airflow_database: str):
    sessions = seed(airflow_database, 2500)
    with settings.NonScopedSession() as session:
        found = {what: queries.known_sessions(session, CONN_ID, meters) for what, meters in questions(sessions).items()}
    assert [len(states) > 0 for states in found.values()] == [True, True, True]
