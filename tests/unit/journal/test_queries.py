"""What the feed asks of the journal: the right sessions, by an index each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import settings
from sqlalchemy import event

from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.record import record
from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.journal.waits import record_waits
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.feed import MeterQuestion, WaitEnded, WaitReport
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from tests.unit.journal.plans import explained, uses_an_index

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
CONN = "mediation_default"


def told(session_id: str, status: str, *, start: int = 0, meter: str = "1", conn: str = CONN) -> None:
    transition = SessionTransition(
        meter_id=meter,
        session_id=session_id,
        status=status,
        started_at=NOW + timedelta(minutes=start),
        observed_at=NOW + timedelta(minutes=start),
        source=Source.CALLOUT,
    )
    entry = Entry(
        kind=EntryKind.STATUS_CHANGE, observed_at=transition.observed_at, source=Source.CALLOUT, transition=transition
    )
    record([entry], conn_id=conn)


def wait(**changes: Any) -> WaitReport:
    values = {
        "id": "w",
        "meter_id": "1",
        "version": "0.0.1",
        "session_id": "R-1",
        "condition": {"statuses": ["COMPLETED"]},
        "dag_id": "d",
        "run_id": "r",
        "task_id": "t",
        "map_index": -1,
        "try_number": 1,
        "mode": "triggerer",
        "created_at": NOW,
    }
    return WaitReport(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.usefixtures("airflow_database")
class TestQueries:
    def ask(self, **question: Any) -> list[str | None]:
        with settings.NonScopedSession() as session:
            states = queries.answer(session, CONN, {"1": MeterQuestion(**question)})
        return sorted(state.session_id for state in states)

    def test_an_answer_has_named_live_and_later_sessions(self):
        told("R-1", "COMPLETED")
        told("R-2", "RUNNING", start=1)
        told("R-3", "COMPLETED", start=2)
        told("R-4", "FAILED", start=3)
        told("R-5", "RUNNING", start=3, meter="2")
        told("R-6", "RUNNING", start=3, conn="another")
        assert self.ask() == ["R-2"]
        assert self.ask(sessions=frozenset({"R-1"})) == ["R-1", "R-2"]
        assert self.ask(since=frozenset({NOW + timedelta(minutes=2)})) == ["R-2", "R-3", "R-4"]

    def test_only_the_first_sessions_after_since_are_told(self):
        for number in range(60):
            told(f"R-{number:02}", "COMPLETED", start=number)
        later = NOW + timedelta(minutes=55)
        assert self.ask(since=frozenset({later})) == [f"R-{number}" for number in range(55, 60)]
        assert self.ask(since=frozenset({NOW})) == [f"R-{number:02}" for number in range(20)]

    def test_any_number_of_tests_hides_no_live_run(self):
        for number in range(30):
            told(f"R-{number:02}", "TESTING_PASSED", start=number)
        told("R-30", "COMPLETED", start=30)
        answered = self.ask(since=frozenset({NOW}))
        assert answered == [*(f"R-{number:02}" for number in range(20)), "R-30"]

    def test_of_many_instants_each_is_told_its_own_first_sessions_by_few_questions(self):
        begins = [*range(60), *range(200, 210)]
        for number in begins:
            told(f"R-{number:03}", "COMPLETED", start=number)
        instants = [-5.0, *(number / 2 for number in range(140)), 100, 205, 500]
        asked: list[str] = []
        assert settings.engine is not None
        event.listen(settings.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
        answered = self.ask(since=frozenset(NOW + timedelta(minutes=instant) for instant in instants))
        for instant in instants:
            first = [f"R-{number:03}" for number in begins if number >= instant][:20]
            assert set(first) <= set(answered)
        assert sum("begun_at >=" in statement for statement in asked) <= 5

    def test_a_change_is_new_by_its_revision(self):
        told("R-1", "RUNNING")
        since = datetime.now(UTC) - timedelta(minutes=1)
        with settings.NonScopedSession() as session:
            (change,) = queries.changed_since(session, since, {})
            assert (change.state.session_id, change.conn_id) == ("R-1", CONN)
            assert queries.changed_since(session, since, {change.row_id: change.revision}) == []
        told("R-1", "COMPLETED", start=1)
        with settings.NonScopedSession() as session:
            (again,) = queries.changed_since(session, since, {change.row_id: change.revision})
            assert (again.row_id, again.state.status) == (change.row_id, "COMPLETED")
            assert queries.changed_since(session, datetime.now(UTC) + timedelta(minutes=1), {}) == []

    def test_silent_sessions_are_the_live_ones_of_which_nothing_is_heard(self):
        told("R-1", "RUNNING")
        told("R-2", "RUNNING", start=60)
        told("R-3", "COMPLETED")
        with settings.NonScopedSession() as session:
            states = queries.silent_sessions(session, CONN, NOW + timedelta(minutes=30))
        assert [state.session_id for state in states] == ["R-1"]

    def test_the_last_callout_is_known(self):
        before = datetime.now(UTC)
        with settings.NonScopedSession() as session:
            assert queries.last_callout_at(session, CONN, before) is None
        told("R-1", "RUNNING")
        with settings.NonScopedSession() as session:
            assert (queries.last_callout_at(session, CONN, before) or NOW) >= before
            assert queries.last_callout_at(session, CONN, datetime.now(UTC) + timedelta(minutes=1)) is None

    def test_waits_are_kept_as_last_reported(self):
        record_waits(conn_id=CONN, open=[wait(), wait(id="v", task_id="u")])
        record_waits(conn_id=CONN, open=[wait(try_number=2)])
        record_waits(conn_id=CONN, ended=[WaitEnded(id="v", outcome="met", ended_at=NOW, session_id="R-9")])
        record_waits(conn_id="another", ended=[WaitEnded(id="w", outcome="met", ended_at=NOW)])
        with settings.NonScopedSession() as session:
            first, second = session.get(WaitRow, "w"), session.get(WaitRow, "v")
        assert first is not None
        assert second is not None
        assert (first.try_number, first.ended_at, first.outcome) == (2, None, None)
        assert (second.ended_at, second.outcome, second.session_id) == (NOW, "met", "R-9")


def test_each_query_of_the_feed_uses_an_index_and_its_order(airflow_on, sqlite_database):
    airflow_on(sqlite_database)
    with explained() as plans, settings.NonScopedSession() as session:
        queries.answer(session, CONN, {"1": MeterQuestion(sessions=frozenset({"R-1"}), since=frozenset({NOW}))})
        queries.changed_since(session, NOW, {})
        queries.last_callout_at(session, CONN, NOW)
        queries.transitions(session, CONN, [("1", "R-1")])
        queries.silent_sessions(session, CONN, NOW)
    assert len(plans) == 7
    assert [each for each in plans if not uses_an_index(each[1])] == []
    assert [each for each in plans if any("TEMP B-TREE" in step for step in each[1])] == []


def test_each_question_of_the_writer_uses_an_index(airflow_on, sqlite_database):
    airflow_on(sqlite_database)
    with explained() as plans:
        told("R-1", "RUNNING")
        told("R-1", "COMPLETED", start=1)
        for minute, status in enumerate(["COMPLETED", "RUNNING", "COMPLETED"]):
            at = NOW + timedelta(minutes=minute)
            seen = SessionTransition(meter_id="1", status=status, observed_at=at, source=Source.POLL)
            entry = Entry(kind=EntryKind.POLL, observed_at=at, source=Source.POLL, transition=seen, drives=True)
            record([entry], conn_id=CONN)
        record_waits(conn_id=CONN, open=[wait()], ended=[WaitEnded(id="w", outcome="met", ended_at=NOW)])
    assert len(plans) >= 12
    assert [each for each in plans if not uses_an_index(each[1])] == []
