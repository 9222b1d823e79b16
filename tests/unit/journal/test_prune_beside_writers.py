"""Callouts are stored while prune runs, and their sessions are complete afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from airflow import settings
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal import prune as module
from airflow_mediation_provider.journal.prune import prune
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.maintenance import Pruned
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from tests.unit.journal.old_rows import BEFORE, keep, session_of, told

if TYPE_CHECKING:
    from collections.abc import Callable

SESSIONS = 60


def late(number: int) -> JournalEntry:
    """A report of an old session that is received now."""
    now = datetime.now(UTC)
    named = {"meter_id": "1001", "session_id": f"R-{number}", "run_type": "NORMAL", "source": Source.CALLOUT}
    change = SessionTransition(**named, status="FAILED", previous_status="RUNNING", observed_at=now)
    return JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=now, source=Source.CALLOUT, transition=change)


def test_a_session_that_a_writer_has_locked_is_not_deleted(
    postgres_database: str, airflow_on: Callable[[str], str]
) -> None:
    engine = create_engine(airflow_on(postgres_database))
    keep(session_of("R-1"), session_of("R-2"))
    with Session(engine) as writer:
        writer.scalars(select(SessionRow).where(SessionRow.session_id == "R-1").with_for_update()).one()
        assert sum(prune(BEFORE), Pruned()) == Pruned(sessions=1)
        assert writer.scalars(select(SessionRow.session_id)).all() == ["R-1"]
    engine.dispose()


@pytest.mark.usefixtures("airflow_database")
def test_callouts_of_the_same_sessions_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 7)
    for number in range(SESSIONS):
        keep(session_of(f"R-{number}"), told(f"R-{number}", run_type="NORMAL"))

    with ThreadPoolExecutor(4) as threads:
        pruning = threads.submit(lambda: sum(prune(BEFORE), Pruned()))
        recording = [threads.submit(record, [late(number)], conn_id="zuora") for number in range(SESSIONS)]
        pruned = pruning.result(timeout=60)
        assert sum(each.result(timeout=60).new for each in recording) == SESSIONS

    with Session(settings.get_engine()) as session:
        rows = {row.session_id: row for row in session.scalars(select(SessionRow))}
        changes = session.scalars(select(TransitionRow)).all()
    assert len(rows) == SESSIONS, "each was reported again"
    assert all(row.status == "FAILED" for row in rows.values())
    assert len(changes) == 2 * SESSIONS - pruned.changes
    assert pruned.changes == pruned.sessions, "each with its one change"
