"""Reports become rows, states and asset events, once each, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent, AssetModel
from sqlalchemy import func, select

from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
CONN = "mediation_default"


def change(
    before: str | None,
    status: str,
    notification_id: str | None,
    *,
    at: int = 0,
    session: str = "R-1",
    run_type: RunType = RunType.NORMAL,
    ended: int | None = None,
) -> JournalEntry:
    observed_at = NOW + timedelta(seconds=at)
    transition = SessionTransition(
        meter_id="1",
        session_id=session,
        run_type=run_type,
        status=status,
        previous_status=before,
        observed_at=observed_at,
        source=Source.CALLOUT,
        notification_id=notification_id,
        ended_at=None if ended is None else NOW + timedelta(seconds=ended),
    )
    return JournalEntry(
        kind=EntryKind.STATUS_CHANGE, observed_at=observed_at, source=Source.CALLOUT, transition=transition
    )


def poll(status: str, *, at: int, drives: bool = True) -> JournalEntry:
    observed_at = NOW + timedelta(seconds=at)
    transition = SessionTransition(meter_id="1", status=status, observed_at=observed_at, source=Source.POLL)
    return JournalEntry(
        kind=EntryKind.POLL, observed_at=observed_at, source=Source.POLL, transition=transition, drives=drives
    )


def add_asset(status: str) -> None:
    with settings.NonScopedSession() as session:
        uri = asset_uri(CONN, "1", status)
        session.add(AssetModel(name=uri, uri=uri, group="asset"))
        session.commit()


def all_of(column: Any, *where: Any) -> list[Any]:
    with settings.NonScopedSession() as session:
        return list(session.scalars(select(column).where(*where)))


def events() -> list[tuple[str, str, str]]:
    with settings.NonScopedSession() as session:
        rows = session.execute(
            select(AssetModel.uri, AssetEvent.partition_key, AssetEvent.extra)
            .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            .order_by(AssetEvent.id)
        )
        return [(uri.rsplit("/", 1)[1], key, extra["session_id"]) for uri, key, extra in rows]


HISTORY = [(None, "INITIALIZING"), ("INITIALIZING", "RUNNING"), ("RUNNING", "COMPLETED")]


@pytest.mark.usefixtures("airflow_database")
class TestRecord:
    def test_a_change_becomes_a_row_a_state_and_an_event(self):
        add_asset("COMPLETED")
        recorded = record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN)
        assert (recorded.new, recorded.duplicates) == (1, 0)
        assert [state.status for state in recorded.changed] == ["COMPLETED"]
        assert recorded.emitted == ("mediation://mediation_default/meters/1/COMPLETED",)
        assert events() == [("COMPLETED", "R-1", "R-1")]
        (row,) = all_of(SessionRow)
        assert (row.status, row.terminal, row.revision) == ("COMPLETED", True, 1)

    def test_the_same_notification_again_changes_nothing(self):
        add_asset("COMPLETED")
        record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN)
        again = record([change("RUNNING", "COMPLETED", "n-1", at=9)], conn_id=CONN)
        assert (again.new, again.duplicates, again.changed, again.emitted) == (0, 1, (), ())
        assert len(all_of(TransitionRow)) == 1

    def test_an_unparsed_callout_is_replaced_when_it_is_sent_again_and_can_be_parsed(self):
        add_asset("COMPLETED")
        unread = JournalEntry(kind=EntryKind.UNPARSED, observed_at=NOW, source=Source.CALLOUT, notification_id="n-1")
        record([unread], conn_id=CONN)
        assert record([change("RUNNING", "COMPLETED", "n-1", at=9)], conn_id=CONN).new == 1
        assert record([change("RUNNING", "COMPLETED", "n-1", at=10)], conn_id=CONN).duplicates == 1
        assert record([unread], conn_id=CONN).duplicates == 1
        assert all_of(TransitionRow.kind) == ["status_change"]
        assert events() == [("COMPLETED", "R-1", "R-1")]

    @pytest.mark.parametrize("status", ["RUNNING", "CANCELED", "FAILED", "COMPLETED"])
    def test_a_debug_run_starts_no_dag_for_live_runs(self, status: str):
        add_asset(status)
        add_asset("TESTING_PASSED")
        record([change("TESTING", status, "n-1", run_type=RunType.DEBUG)], conn_id=CONN)
        record([change("TESTING", "TESTING_PASSED", "n-2", session="R-2", run_type=RunType.DEBUG)], conn_id=CONN)
        assert all_of(SessionRow.status) == [status, "TESTING_PASSED"]
        assert events() == [("TESTING_PASSED", "R-2", "R-2")]

    def test_a_poll_of_a_canceled_test_starts_no_dag_for_live_runs(self):
        add_asset("CANCELED")
        record([poll("TESTING", at=0)], conn_id=CONN)
        record([poll("CANCELED", at=9)], conn_id=CONN)
        record([poll("RUNNING", at=20)], conn_id=CONN)
        assert events() == []
        record([poll("CANCELED", at=30)], conn_id=CONN)
        assert [status for status, _, _ in events()] == ["CANCELED"]

    def test_an_unknown_run_type_is_stored_and_starts_no_dag(self):
        add_asset("COMPLETED")
        record([change(None, "RUNNING", "n-1", run_type="CANARY"), poll("RUNNING", at=0)], conn_id=CONN)
        record([change("RUNNING", "COMPLETED", "n-2", run_type="CANARY", at=5)], conn_id=CONN)
        assert all_of(SessionRow.run_type) == ["CANARY"]
        assert all_of(TransitionRow.run_type, TransitionRow.kind == "status_change") == ["CANARY", "CANARY"]
        assert events() == []

    def test_a_poll_is_of_no_session_if_it_may_show_a_live_one_of_an_unknown_run_type(self):
        add_asset("COMPLETED")
        record(
            [change(None, "RUNNING", "n-1"), change(None, "RUNNING", "n-2", session="R-2", run_type="CANARY")],
            conn_id=CONN,
        )
        record([poll("RUNNING", at=0)], conn_id=CONN)
        record([poll("COMPLETED", at=9)], conn_id=CONN)
        assert [session_id for _, _, session_id in events()] == [None]

    def test_a_poll_of_a_live_run_is_not_taken_for_one_of_a_debug_run(self):
        add_asset("COMPLETED")
        record([change(None, "RUNNING", "n-1"), poll("RUNNING", at=0)], conn_id=CONN)
        record([change(None, "TESTING", "n-2", session="R-2", run_type=RunType.DEBUG)], conn_id=CONN)
        record([poll("COMPLETED", at=9)], conn_id=CONN)
        assert events() == [("COMPLETED", "R-1", "R-1")]

    def test_another_change_under_a_known_id_is_not_lost(self):
        add_asset("COMPLETED")
        for _ in range(2):
            record([change(None, "RUNNING", "n-1")], conn_id=CONN)
            record([change("RUNNING", "COMPLETED", "n-1", at=9)], conn_id=CONN)
            record([change(None, "RUNNING", "n-1", session="R-2")], conn_id=CONN)
        assert len(all_of(TransitionRow)) == 3
        assert sorted(all_of(SessionRow.status)) == ["COMPLETED", "RUNNING"]
        assert events() == [("COMPLETED", "R-1", "R-1")]

    def test_the_same_change_under_another_id_starts_nothing_again(self):
        add_asset("COMPLETED")
        for number in range(3):
            record([change("RUNNING", "COMPLETED", f"n-{number}", at=number)], conn_id=CONN)
        record([change("RUNNING", "COMPLETED", None, at=9)], conn_id=CONN)
        assert len(all_of(TransitionRow)) == 4
        assert events() == [("COMPLETED", "R-1", "R-1")]

    def test_a_session_that_is_re_opened_and_completes_again_is_announced_again(self):
        add_asset("COMPLETED")
        for number, (before, status) in enumerate(
            [("RUNNING", "COMPLETED"), ("COMPLETED", "RUNNING"), ("RUNNING", "COMPLETED")]
        ):
            record([change(before, status, f"n-{number}", at=number)], conn_id=CONN)
        assert [status for status, _, _ in events()] == ["COMPLETED", "COMPLETED"]

    def test_recorded_callouts_that_come_again_with_invented_ids_start_nothing(self):
        """Those of a session that was re-opened: they could be another round, but for the time of the end."""
        for status in ("COMPLETED", "RUNNING"):
            add_asset(status)
        record([change(None, "RUNNING", "n-0"), change("RUNNING", "COMPLETED", "n-1", at=600, ended=599)], conn_id=CONN)
        back = {"before": "COMPLETED", "status": "RUNNING"}
        end = {"before": "RUNNING", "status": "COMPLETED", "ended": 1799}
        record([change(notification_id="n-2", at=1200, **back)], conn_id=CONN)
        record([change(notification_id="n-3", at=1800, **end)], conn_id=CONN)
        once = [status for status, _, _ in events()]
        for number in range(10):
            for recorded in (back, end):
                again = change(notification_id=f"invented-{number}-{recorded['status']}", at=2000 + number, **recorded)
                record([again], conn_id=CONN)
        assert sorted(status for status, _, _ in events())[:2] == ["COMPLETED"] * 2
        assert len(events()) <= len(once) + 1
        record([change(notification_id="n-4", at=3000, **back)], conn_id=CONN)
        record([change(notification_id="n-5", at=3600, **{**end, "ended": 3599})], conn_id=CONN)
        assert [status for status, _, _ in events()].count("COMPLETED") == 3
        assert all_of(SessionRow.status) == ["COMPLETED"]

    def test_a_session_that_leaves_a_failure_is_announced_as_completed_once(self):
        add_asset("COMPLETED")
        record([change("RUNNING", "COMPLETED", "n-1", at=1)], conn_id=CONN)
        record([change("RUNNING", "FAILED", "n-2", at=2)], conn_id=CONN)
        assert all_of(SessionRow.status) == ["FAILED"]
        record([change("FAILED", "RUNNING", "n-3", at=3)], conn_id=CONN)
        assert all_of(SessionRow.status) == ["COMPLETED"]
        assert [status for status, _, _ in events()] == ["COMPLETED"]

    def test_ids_that_fit_no_column_are_stored_as_unparsed(self):
        record([change("RUNNING", "COMPLETED", "n-1", session="R-" + "9" * 80)], conn_id=CONN)
        (row,) = all_of(TransitionRow)
        assert row.kind == "unparsed"
        assert row.body["entry"]["session_id"] == "R-" + "9" * 80
        assert "session_id" in row.body["error"]
        assert all_of(SessionRow) == []

    def test_concurrent_writers_lose_nothing_and_announce_once(self):
        add_asset("COMPLETED")
        entries = [
            change(before, status, f"{session}-{number}", at=number, session=session)
            for session in ("R-1", "R-2", "R-3")
            for number, (before, status) in enumerate(HISTORY)
        ] * 3
        random.Random(7).shuffle(entries)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda entry: record([entry], conn_id=CONN, deadline_seconds=30), entries))
        assert len(all_of(TransitionRow)) == 9
        assert sorted(all_of(SessionRow.status)) == ["COMPLETED"] * 3
        assert sorted(key for _, key, _ in events()) == ["R-1", "R-2", "R-3"]

    def test_a_poll_is_stored_if_it_shows_a_change_and_changes_no_session(self):
        record([change(None, "INITIALIZING", "n-1")], conn_id=CONN)
        for at, status in enumerate(["RUNNING", "RUNNING", "COMPLETED", "COMPLETED"]):
            record([poll(status, at=at, drives=False)], conn_id=CONN)
        assert all_of(TransitionRow.status, TransitionRow.kind == "poll") == ["RUNNING", "COMPLETED"]
        assert all_of(SessionRow.status) == ["INITIALIZING"]
        assert events() == []

    def test_a_poll_that_drives_announces_the_only_live_session_and_a_callout_does_not_repeat_it(self):
        add_asset("COMPLETED")
        record([change(None, "INITIALIZING", "n-1")], conn_id=CONN)
        record([poll("RUNNING", at=0)], conn_id=CONN)
        before = datetime.now(UTC)
        record([poll("COMPLETED", at=1)], conn_id=CONN)
        assert events() == [("COMPLETED", "R-1", "R-1")]
        # The pages search a session's events around the time of its row.
        assert min(all_of(SessionRow.updated_at)) >= before
        record([change("RUNNING", "COMPLETED", "n-2", at=9)], conn_id=CONN)
        assert len(events()) == 1

    def test_a_poll_that_drives_without_a_session_has_its_own_key_for_each_end(self):
        add_asset("COMPLETED")
        for at, status in enumerate(["COMPLETED", "RUNNING", "COMPLETED", "RUNNING", "COMPLETED"]):
            record([poll(status, at=at)], conn_id=CONN)
        keys = [key for _, key, _ in events()]
        assert len(keys) == len(set(keys)) == 2

    def test_a_status_that_a_waiting_task_polled_first_is_still_announced(self):
        add_asset("COMPLETED")
        record([poll("RUNNING", at=0), poll("RUNNING", at=0, drives=False)], conn_id=CONN)
        record([poll("COMPLETED", at=2, drives=False)], conn_id=CONN)
        assert events() == []
        record([poll("COMPLETED", at=1)], conn_id=CONN)
        assert len(events()) == 1
        record([poll("COMPLETED", at=3), poll("COMPLETED", at=4, drives=False)], conn_id=CONN)
        assert len(events()) == 1

    def test_two_polls_of_the_same_change_announce_it_once(self):
        add_asset("COMPLETED")
        record([poll("RUNNING", at=0)], conn_id=CONN)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda at: record([poll("COMPLETED", at=at)], conn_id=CONN), range(1, 9)))
        with settings.NonScopedSession() as session:
            assert session.scalar(select(func.count()).select_from(AssetEvent)) == 1

    def test_a_poll_does_not_announce_again_what_a_callout_reported(self):
        add_asset("COMPLETED")
        record([change(None, "RUNNING", "n-1")], conn_id=CONN)
        record([poll("RUNNING", at=1)], conn_id=CONN)
        record([change("RUNNING", "COMPLETED", "n-2", at=2)], conn_id=CONN)
        assert record([poll("COMPLETED", at=3)], conn_id=CONN).new == 1
        assert events() == [("COMPLETED", "R-1", "R-1")]

    def test_a_session_whose_end_was_missed_does_not_hide_the_later_ones(self):
        """No poll was made when R-1 ended. R-2 cannot be distinguished from it, but R-3 can."""
        add_asset("COMPLETED")
        record([change(None, "RUNNING", "n-1", session="R-1")], conn_id=CONN)
        record([change(None, "RUNNING", "n-2", at=10, session="R-2"), poll("RUNNING", at=10)], conn_id=CONN)
        record([poll("COMPLETED", at=20)], conn_id=CONN)
        record([change(None, "RUNNING", "n-3", at=30, session="R-3"), poll("RUNNING", at=30)], conn_id=CONN)
        record([poll("COMPLETED", at=40)], conn_id=CONN)
        first, second = (key for _, key, _ in events())
        assert (first.startswith("poll-1-COMPLETED-"), second) == (True, "R-3")
