"""The feed's queries of the journal: the right sessions, by an index each."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import settings
from sqlalchemy import event, select

from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.tables import ListedRow, SessionRow, WaitRow
from airflow_mediation_provider.journal.task_reports import record_waits
from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
from airflow_mediation_provider.protocol.sessions.window import Window
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import MeterQuestion, WaitEnded, WaitReport, from_plain
from tests.unit.journal.plans import explained, uses_an_index
from tests.unit.journal.test_migrations import session_values

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
    entry = JournalEntry(
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
            states = queries.known_sessions(session, CONN, {"1": MeterQuestion(**question)})
        return sorted(state.session_id for state in states)

    def test_a_reply_has_named_live_and_later_sessions(self):
        told("R-1", "COMPLETED")
        told("R-2", "RUNNING", start=1)
        told("R-3", "COMPLETED", start=2)
        told("R-4", "FAILED", start=3)
        told("R-5", "RUNNING", start=3, meter="2")
        told("R-6", "RUNNING", start=3, conn="another")
        assert self.ask() == ["R-2"]
        assert self.ask(sessions=frozenset({"R-1"})) == ["R-1", "R-2"]
        assert self.ask(since=frozenset({NOW + timedelta(minutes=2)})) == ["R-2", "R-3", "R-4"]

    def test_a_named_session_that_its_meter_does_not_have_is_returned_for_other_meters(self):
        told("R-1", "COMPLETED", meter="2")
        told("R-2", "COMPLETED", meter="2")
        told("R-2", "COMPLETED")
        told("R-3", "COMPLETED", meter="2", conn="another")
        told("R-4", "COMPLETED", meter="2")
        told("R-4", "COMPLETED", meter="3")
        meters = {
            "1": MeterQuestion(sessions=frozenset({"R-1", "R-2", "R-3", "R-5"})),
            "2": MeterQuestion(sessions=frozenset({"R-4"})),
            "4": MeterQuestion(sessions=frozenset({"R-4"})),
        }
        with settings.NonScopedSession() as session:
            states = queries.known_sessions(session, CONN, meters)
        assert sorted((state.session_id, state.meter_id) for state in states) == [
            ("R-1", "2"),
            ("R-2", "1"),
            ("R-4", "2"),
            ("R-4", "3"),
        ]

    def test_a_known_revision_is_left_out_except_for_another_meter(self):
        told("R-1", "COMPLETED", meter="2")
        told("R-2", "RUNNING")
        known = {"R-1": 1, "R-2": 1}
        meters = {
            "1": MeterQuestion(sessions=frozenset({"R-1", "R-2"}), known=known),
            "2": MeterQuestion(sessions=frozenset({"R-1"}), known=known),
        }
        with settings.NonScopedSession() as session:
            assert [state[:3] for state in queries.known_sessions(session, CONN, meters)] == [("2", "R-1", 1)]
            del meters["1"]
            assert queries.known_sessions(session, CONN, meters) == []
        told("R-1", "FAILED", meter="2", start=1)
        with settings.NonScopedSession() as session:
            [state] = queries.known_sessions(session, CONN, meters)
        assert (state.revision, from_plain(SessionState, json.loads(state.json), "it").status) == (2, "FAILED")

    @pytest.mark.parametrize("meters", [1, 4, 5, 23, 41])
    def test_many_meters_share_a_statement(self, meters: int):
        for number in range(meters):
            told(f"R-{number}", "RUNNING", meter=str(number))
            told(f"S-{number}", "COMPLETED", meter=str(number), start=5)
        since = frozenset({NOW + timedelta(minutes=2)})
        asked = {str(number): MeterQuestion(since=since) for number in range(meters)}
        run: list[str] = []
        assert settings.engine is not None
        event.listen(settings.engine, "before_cursor_execute", lambda *arguments: run.append(arguments[2]))
        with settings.NonScopedSession() as session:
            found = queries.known_sessions(session, CONN, asked)
        expected = {(str(number), f"{kind}-{number}") for number in range(meters) for kind in "RS"}
        assert sorted((state.meter_id, state.session_id) for state in found) == sorted(expected)
        assert len(run) <= 3 * -(-meters // 20) + 1

    @pytest.mark.parametrize(("meters", "pauses"), [(1, False), (20, False), (200, True)])
    def test_only_a_long_question_lets_other_threads_work_in_between(
        self, meters: int, pauses: bool, monkeypatch: pytest.MonkeyPatch
    ):
        paused: list[float] = []
        monkeypatch.setattr(queries.time, "sleep", paused.append)
        asked = {str(number): MeterQuestion(since=frozenset({NOW})) for number in range(meters)}
        with settings.NonScopedSession() as session:
            queries.known_sessions(session, CONN, asked)
        assert bool(paused) == pauses

    def test_a_question_that_takes_too_long_ends(self):
        with settings.NonScopedSession() as session, pytest.raises(JournalUnavailable, match="takes too long"):
            queries.known_sessions(session, CONN, {"1": MeterQuestion()}, deadline=time.monotonic() - 1)

    def test_a_session_that_only_a_task_reported_is_not_returned_for_another_meter(self):
        with settings.NonScopedSession() as session:
            session.add(ListedRow(**session_values(conn_id=CONN, meter_id="2", session_id="R-1")))
            session.flush()
            assert queries.known_sessions(session, CONN, {"1": MeterQuestion(sessions=frozenset({"R-1"}))}) == []

    def test_a_session_that_was_received_after_since_is_returned_though_it_began_before(self):
        """As one does whose start was read in another zone than it was written in."""
        told("R-1", "COMPLETED", start=-7 * 60)
        told("R-2", "COMPLETED", start=-8 * 60)
        with settings.NonScopedSession.begin() as session:
            for row in session.scalars(select(SessionRow)):
                row.first_observed_at = NOW if row.session_id == "R-1" else NOW - timedelta(hours=8)

        assert self.ask(since=frozenset({NOW})) == ["R-1"]
        assert self.ask(since=frozenset({NOW - timedelta(hours=20)})) == ["R-1", "R-2"]
        assert self.ask(since=frozenset({NOW + timedelta(seconds=1)})) == []
        assert self.ask(since=frozenset({datetime.max.replace(tzinfo=UTC)})) == []

    def test_only_the_first_sessions_after_since_are_returned(self):
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

    def test_each_of_many_instants_gets_its_first_sessions_by_few_queries(self):
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

    def test_silent_sessions_are_the_live_ones_without_recent_reports(self):
        told("R-1", "RUNNING")
        told("R-2", "RUNNING", start=60)
        told("R-3", "COMPLETED")
        with settings.NonScopedSession() as session:
            states = queries.silent_sessions(session, CONN, NOW + timedelta(minutes=30))
        assert [state.session_id for state in states] == ["R-1"]

    def test_the_time_of_the_last_callout_is_returned(self):
        before = datetime.now(UTC)
        with settings.NonScopedSession() as session:
            assert queries.last_callout_at(session, CONN, before) is None
        told("R-1", "RUNNING")
        with settings.NonScopedSession() as session:
            assert (queries.last_callout_at(session, CONN, before) or NOW) >= before
            assert queries.last_callout_at(session, CONN, datetime.now(UTC) + timedelta(minutes=1)) is None

    def test_a_window_that_has_passed_is_reported(self):
        def reported(
            since: datetime, before: datetime, now: datetime, meter: str = "1"
        ) -> list[tuple[bool, str | None]]:
            question = MeterQuestion(windows=frozenset({Window(since, before)}))
            with settings.NonScopedSession() as session:
                reports = queries.passed_windows(session, CONN, {meter: question}, now)
            assert all((each.meter_id, each.window) == (meter, (since, before)) for each in reports)
            return [(each.callouts_before, each.received) for each in reports]

        def at(minutes: int) -> datetime:
            return NOW + timedelta(minutes=minutes)

        began = datetime.now(UTC)
        told("R-1", "COMPLETED", start=10)
        told("R-2", "COMPLETED", start=10, meter="2")
        told("R-3", "COMPLETED", start=10, conn="another")
        soon = datetime.now(UTC) + timedelta(minutes=1)
        # A session belongs to the window in which it was first received, at any start that Zuora reports.
        assert reported(at(10), at(11), at(11)) == [(False, "R-1")]
        assert reported(at(0), at(10), at(10)) == [(False, None)]
        assert reported(at(0), at(10), at(9)) == []
        assert reported(at(0), at(60), at(60), meter="3") == [(False, None)]
        # Callouts are counted for the connection, by the time at which they were received.
        assert reported(soon, soon + timedelta(hours=1), soon + timedelta(hours=1), meter="3") == [(True, None)]
        assert reported(began, soon, soon, meter="3") == [(False, None)]
        late = soon + timedelta(days=40)
        assert reported(late, late + timedelta(hours=1), late + timedelta(hours=1)) == [(False, None)]
        always = datetime.min.replace(tzinfo=UTC)
        assert reported(always, soon, soon) == [(False, "R-1")]

    def test_waits_are_stored_as_last_reported(self):
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
        queries.known_sessions(session, CONN, {"1": MeterQuestion(sessions=frozenset({"R-1"}), since=frozenset({NOW}))})
        queries.changed_since(session, NOW, {})
        queries.last_callout_at(session, CONN, NOW)
        queries.transitions(session, CONN, [("1", "R-1")])
        queries.silent_sessions(session, CONN, NOW)
        windows = frozenset({Window(NOW, NOW + timedelta(hours=1))})
        queries.passed_windows(session, CONN, {"1": MeterQuestion(windows=windows)}, NOW + timedelta(hours=1))
    assert len(plans) == 10
    assert [each for each in plans if not uses_an_index(each[1])] == []
    assert [each for each in plans if any("TEMP B-TREE" in step for step in each[1])] == []
    for index, columns in (("received", 2), ("named", 2), ("live", 3), ("first", 3)):
        steps = [step for _, steps in plans for step in steps if f"ix_mediation_session_{index} " in step]
        assert steps, index
        assert all(step.count("=?") >= columns for step in steps)


def test_each_query_of_the_writer_uses_an_index(airflow_on, sqlite_database):
    airflow_on(sqlite_database)
    with explained() as plans:
        told("R-1", "RUNNING")
        told("R-1", "COMPLETED", start=1)
        for minute, status in enumerate(["COMPLETED", "RUNNING", "COMPLETED"]):
            at = NOW + timedelta(minutes=minute)
            seen = SessionTransition(meter_id="1", status=status, observed_at=at, source=Source.POLL)
            entry = JournalEntry(kind=EntryKind.POLL, observed_at=at, source=Source.POLL, transition=seen, drives=True)
            record([entry], conn_id=CONN)
        record_waits(conn_id=CONN, open=[wait()], ended=[WaitEnded(id="w", outcome="met", ended_at=NOW)])
    assert len(plans) >= 12
    assert [each for each in plans if not uses_an_index(each[1])] == []
