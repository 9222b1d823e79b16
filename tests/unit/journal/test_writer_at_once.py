"""Concurrent writers and interrupted writers: nothing is lost, nothing announced twice, and each write is atomic."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal import writer as module
from airflow_mediation_provider.journal.tables import Base, SessionRow, TransitionRow
from airflow_mediation_provider.journal.transaction import read, writers_turn
from airflow_mediation_provider.journal.writer import JournalMissing, JournalUnavailable, record
from tests.unit.journal.test_writer import CONN, add_asset, all_of, change, events, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry

PATIENT = {"conn_id": CONN, "deadline_seconds": 30.0}


def at_once(entries: list[JournalEntry], threads: int = 8) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda entry: record([entry], **PATIENT), entries))


def count(row: type[Base] | type[AssetEvent]) -> int:
    with settings.NonScopedSession() as session:
        return session.scalar(select(func.count()).select_from(row)) or 0


def wait_until_somebody_waits_for_a_lock() -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    assert settings.engine is not None
    with settings.engine.connect() as connection:
        for _ in range(1000):
            if connection.scalar(text(waiting)):
                return
            connection.rollback()
            threading.Event().wait(0.01)
    raise AssertionError("no transaction waits")


@pytest.mark.usefixtures("airflow_database")
class TestAtOnce:
    @pytest.mark.parametrize("seed", range(3))
    def test_eight_writers_of_shuffled_copies_of_one_session_lose_nothing(self, seed: int):
        """Copies with the same notification id, with another id, and without any."""
        add_asset("COMPLETED")
        path = [None, "INITIALIZING", "RUNNING", "USAGE_PUSHING", "PUSH_COMPLETED", "COMPLETED"]
        steps = list(enumerate(itertools.pairwise(path)))
        ids = ("n-{}", "n-{}", "n-{}", "other-{}", None)
        told = [
            change(before, str(status), id_ and id_.format(number), at=number)
            for number, (before, status) in steps
            for id_ in ids
        ]
        random.Random(seed).shuffle(told)

        at_once(told)

        assert count(TransitionRow) == len(steps) * 3
        assert events() == [("COMPLETED", "R-1", "R-1")]
        (row,) = all_of(SessionRow)
        assert (row.status, row.terminal, row.ambiguous, row.conflict) == ("COMPLETED", True, False, False)
        assert row.revision == len(steps) * 3

    def test_a_looping_session_is_announced_at_most_as_often_as_it_reached_its_end(self):
        add_asset("COMPLETED")
        path = [None, "RUNNING", *("COMPLETED", "RUNNING") * 3, "COMPLETED"]
        told = [
            change(before, str(status), f"{session}-{number}", at=number, session=session)
            for session in ("R-1", "R-2", "R-3")
            for number, (before, status) in enumerate(itertools.pairwise(path))
            for _ in range(2)
        ]
        random.Random(1).shuffle(told)

        at_once(told)

        assert all_of(SessionRow.status) == ["COMPLETED"] * 3
        for session in ("R-1", "R-2", "R-3"):
            assert 1 <= sum(key == session for _, key, _ in events()) <= 4

    def test_batches_that_overlap_in_any_order(self):
        add_asset("COMPLETED")
        told = [
            change(before, status, f"R-{session}-{status}", session=f"R-{session}")
            for session in range(6)
            for before, status in [(None, "RUNNING"), ("RUNNING", "COMPLETED")]
        ]
        batches = [random.Random(seed).sample(told, len(told)) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda batch: record(batch, **PATIENT), batches))
        assert sum(result.new for result in results) == len(told)
        assert sorted(key for _, key, _ in events()) == [f"R-{session}" for session in range(6)]


class TestAtOnceOnPostgres:
    @pytest.fixture(autouse=True)
    def on_postgres(self, postgres_database: str, airflow_on: Callable[[str], str]) -> None:
        airflow_on(postgres_database)

    def test_a_poll_and_a_callout_of_the_same_end(self, monkeypatch: pytest.MonkeyPatch):
        add_asset("COMPLETED")
        record([change(None, "RUNNING", "n-1")], conn_id=CONN)
        record([poll("RUNNING", at=0)], conn_id=CONN)
        with holding_before_the_commit(monkeypatch) as release, ThreadPoolExecutor(2) as pool:
            callout = pool.submit(record, [change("RUNNING", "COMPLETED", "n-2", at=9)], **PATIENT)
            release.reached.wait(10)
            polled = pool.submit(record, [poll("COMPLETED", at=9)], **PATIENT)
            wait_until_somebody_waits_for_a_lock()
            release.set()
            assert (callout.result().emitted != (), polled.result().new) == (True, 1)
        assert events() == [("COMPLETED", "R-1", "R-1")]

    def test_the_same_notification_twice_at_the_same_time(self, monkeypatch: pytest.MonkeyPatch):
        """The 200 for the second delivery must not come before the commit of the first."""
        add_asset("COMPLETED")
        told = [change("RUNNING", "COMPLETED", "n-1")]
        with holding_before_the_commit(monkeypatch) as release, ThreadPoolExecutor(2) as pool:
            first = pool.submit(record, told, **PATIENT)
            release.reached.wait(10)
            second = pool.submit(record, told, **PATIENT)
            wait_until_somebody_waits_for_a_lock()
            assert not second.done()
            release.set()
            assert (first.result().new, second.result().duplicates) == (1, 1)
        assert len(events()) == 1

    def test_a_transaction_that_is_held_open_while_a_later_one_commits_is_seen_when_it_commits(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        start = datetime.now(UTC) - timedelta(seconds=1)
        with holding_before_the_commit(monkeypatch) as release, ThreadPoolExecutor(1) as pool:
            early = pool.submit(record, [change(None, "RUNNING", "n-1", session="R-1")], **PATIENT)
            release.reached.wait(10)
            record([change(None, "RUNNING", "n-2", session="R-2")], conn_id=CONN)
            with settings.NonScopedSession() as session:
                seen = queries.changed_since(session, start, {})
            assert [change.state.session_id for change in seen] == ["R-2"]
            release.set()
            early.result()
        with settings.NonScopedSession() as session:
            later = queries.changed_since(session, start, {change.row_id: change.revision for change in seen})
        assert [change.state.session_id for change in later] == ["R-1"]

    def test_a_locked_session_delays_no_other_and_its_write_fails_in_time(self):
        record([change(None, "RUNNING", "n-1"), change(None, "RUNNING", "n-2", session="R-2")], conn_id=CONN)
        with Session(settings.engine) as other:
            other.execute(select(SessionRow).where(SessionRow.session_id == "R-1").with_for_update())
            assert record([change("RUNNING", "COMPLETED", "n-4", session="R-2")], conn_id=CONN).new == 1
            with pytest.raises(JournalUnavailable):
                record([change("RUNNING", "COMPLETED", "n-3")], conn_id=CONN, deadline_seconds=0.2)
        assert count(TransitionRow) == 3
        assert record([change("RUNNING", "COMPLETED", "n-3")], conn_id=CONN).new == 1


@pytest.mark.usefixtures("airflow_database")
class TestBreakingOff:
    def test_a_writer_that_dies_before_the_commit_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch):
        add_asset("COMPLETED")
        told = [change("RUNNING", "COMPLETED", "n-1")]
        with monkeypatch.context() as dying:
            dying.setattr(Session, "commit", lambda _: _raise(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                record(told, conn_id=CONN)
        assert (count(TransitionRow), count(SessionRow), count(AssetEvent)) == (0, 0, 0)
        assert record(told, conn_id=CONN).new == 1
        assert len(events()) == 1

    def test_a_commit_whose_answer_was_lost_is_not_written_twice(self, monkeypatch: pytest.MonkeyPatch):
        add_asset("COMPLETED")
        commit, lost = Session.commit, []

        def commit_and_lose(session: Session) -> None:
            commit(session)
            if not lost:
                lost.append(True)
                raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

        with monkeypatch.context() as losing:
            losing.setattr(Session, "commit", commit_and_lose)
            recorded = record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN)
        assert (recorded.new, recorded.duplicates) == (0, 1)
        assert len(events()) == 1

    @pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
    @pytest.mark.parametrize("name", ["pgcode", "sqlstate"])
    def test_a_passing_error_is_retried(self, monkeypatch: pytest.MonkeyPatch, code: str, name: str):
        error = type("Error", (Exception,), {name: code})()
        emit, failed = module.emit, []

        def fail_once(*arguments: Any, **options: Any) -> Any:
            if not failed:
                failed.append(True)
                raise OperationalError("SELECT", {}, error)
            return emit(*arguments, **options)

        monkeypatch.setattr(module, "emit", fail_once)
        assert record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN).new == 1
        assert failed

    def test_an_error_that_remains_after_retries_is_raised_without_the_values(self, monkeypatch: pytest.MonkeyPatch):
        locked = OperationalError("INSERT", {"body": "the sender's"}, Exception("database is locked"))
        monkeypatch.setattr(module, "emit", partial(_raise, locked))
        with pytest.raises(JournalUnavailable, match="database is locked") as raised:
            record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN, deadline_seconds=0.1)
        assert "sender" not in str(raised.value)

    def test_a_permanent_error_is_raised_at_once_and_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch):
        broken = OperationalError("SELECT", {}, Exception("the disk is full"))
        with monkeypatch.context() as breaking:
            breaking.setattr(module, "emit", partial(_raise, broken))
            with pytest.raises(JournalUnavailable, match="the disk is full"):
                record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN)
        assert count(TransitionRow) == 0

    def test_without_tables_the_command_is_named(self):
        assert settings.engine is not None
        Base.metadata.drop_all(settings.engine)
        with pytest.raises(JournalMissing, match="airflow db migrate"):
            record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN)

    @pytest.mark.parametrize("column", ["body", "status"])
    def test_with_tables_of_an_older_version_the_command_is_named(self, column: str):
        assert settings.engine is not None
        with settings.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE mediation_transition DROP COLUMN {column}"))
        with pytest.raises(JournalMissing, match="airflow db migrate"):
            record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN)
        with pytest.raises(JournalMissing, match="airflow db migrate"):
            read(lambda session: session.scalars(select(TransitionRow)).all())


class TestSqlite:
    @pytest.fixture(autouse=True)
    def on_sqlite(self, sqlite_database: str, airflow_on: Callable[[str], str]) -> None:
        airflow_on(sqlite_database)

    def test_a_write_waits_for_a_writer_of_airflow_itself(self):
        assert settings.engine is not None
        with ThreadPoolExecutor(1) as pool, settings.engine.connect() as other:
            other.exec_driver_sql("BEGIN IMMEDIATE")
            writing = pool.submit(record, [change("RUNNING", "COMPLETED", "n-1")], **PATIENT)
            assert not writing.done()
            other.rollback()
            assert writing.result().new == 1

    def test_waiting_for_the_turn_to_write_ends_in_time(self):
        assert settings.engine is not None
        with ThreadPoolExecutor(1) as pool, writers_turn(settings.engine.url, 0):
            late = pool.submit(record, [change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN, deadline_seconds=0.05)
            with pytest.raises(JournalUnavailable, match="write to SQLite"):
                late.result()
        assert record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN).new == 1


class _Gate(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()


@contextmanager
def holding_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Gate]:
    """The first transaction stops with all its writes until it is released; the later ones do not."""
    emit, gate, first = module.emit, _Gate(), threading.Lock()

    def hold(*arguments: Any, **options: Any) -> Any:
        result = emit(*arguments, **options)
        if first.acquire(blocking=False):
            gate.reached.set()
            assert gate.wait(10)
        return result

    with monkeypatch.context() as held:
        held.setattr(module, "emit", hold)
        try:
            yield gate
        finally:
            gate.set()


def _raise(error: BaseException | type[BaseException], *_: Any, **__: Any) -> None:
    raise error
