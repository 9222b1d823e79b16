"""The changes of sessions: none is missed and none sent twice, in any order of commits and with several processes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.api_server.journal import CURSOR_SECONDS, MOST_KEPT, Changes, Cursor
from airflow_mediation_provider.journal import writer as journal
from airflow_mediation_provider.journal.queries import SessionChange
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from tests.unit.virtual import EPOCH, Clock, run

if TYPE_CHECKING:
    from collections.abc import Mapping


def told_of(session: str, status: str = "RUNNING") -> SessionTransition:
    return SessionTransition(
        meter_id="1", session_id=session, status=status, observed_at=datetime.now(UTC), source=Source.RUN
    )


def entry(session: str, status: str = "RUNNING") -> JournalEntry:
    told = told_of(session, status)
    return JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=told.observed_at, source=told.source, transition=told)


class AtOnce(Executor):
    """Threads cannot be used with virtual time."""

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class Database:
    """Rows of sessions: the second at which each was written, and from which on it is visible."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: dict[int, list[tuple[float, float, SessionChange]]] = {}
        self.reads: list[float] = []
        self.down = False

    def write(self, row_id: int, *, visible_after: float = 0.0) -> None:
        versions = self.rows.setdefault(row_id, [])
        change = SessionChange(row_id, len(versions) + 1, "zuora", fold([told_of(f"R-{row_id}")]))
        versions.append((self.clock.seconds, self.clock.seconds + visible_after, change))

    def read(self, since: datetime, known: Mapping[int, int]) -> list[SessionChange]:
        self.reads.append(self.clock.seconds)
        if self.down:
            raise RuntimeError("the database is down")
        found = []
        for versions in self.rows.values():
            seen = [(at, change) for at, visible_at, change in versions if visible_at <= self.clock.seconds]
            if seen and EPOCH + timedelta(seconds=seen[-1][0]) >= since:
                found.append(seen[-1][1])
        return [change for change in found if known.get(change.row_id) != change.revision]

    def changes(self) -> Changes:
        made = Changes(self.read, lambda: self.clock.now().timestamp())
        made._thread = AtOnce()  # type: ignore[assignment]
        return made


@pytest.fixture
def journal_database(clock: Clock) -> Database:
    return Database(clock)


async def names(changes: Changes, cursor: Cursor, seconds: float = 0.0) -> tuple[list[str] | None, Cursor]:
    told = await changes.since(cursor, "zuora", ["1"], seconds=seconds)
    return ([change.state.session_id for change in told[0]], told[1]) if told else (None, cursor)


def test_each_version_is_sent_once_also_if_it_stays_in_the_overlap(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        cursor = await changes.cursor()
        asyncio.get_running_loop().call_later(1, journal_database.write, 1)
        asyncio.get_running_loop().call_later(2, journal_database.write, 1)
        told = []
        for _ in range(10):
            found, cursor = await names(changes, cursor, 20)
            told.append(found)
        assert told == [["R-1"], ["R-1"], *[[]] * 8]

    run(main(), clock)


def test_a_late_commit_is_sent_when_it_is_visible(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        cursor = await changes.cursor()
        journal_database.write(1, visible_after=30)
        journal_database.write(2)
        found, cursor = await names(changes, cursor, 20)
        assert found == ["R-2"]
        told = []
        while clock.seconds < 35:
            found, cursor = await names(changes, cursor, 20)
            told += found or []
        assert told == ["R-1"]

    run(main(), clock)


@pytest.mark.parametrize("lag", [0.0, 10.0, 25.0])
def test_requests_to_two_processes_in_turn_miss_nothing(clock: Clock, journal_database: Database, lag: float):
    """A load balancer sends each request to another process, and each process reads only while a request waits."""

    async def main() -> None:
        processes = [journal_database.changes(), journal_database.changes()]
        cursor = await processes[0].cursor()
        told: set[str] = set()
        written = 0
        while clock.seconds < 300:
            await asyncio.sleep(3)
            written += 1
            journal_database.write(written, visible_after=lag)
            found, cursor = await names(processes[written % 2], cursor, 7)
            assert found is not None
            told |= set(found)
        await asyncio.sleep(lag)
        for process in processes:
            found, cursor = await names(process, cursor)
            told |= set(found or ())
        assert told == {f"R-{row_id}" for row_id in range(1, written + 1)}

    run(main(), clock)


@pytest.mark.parametrize("pause", [20.0, 31.0, 45.0, 3600.0])
def test_after_a_pause_without_requests_no_change_is_missed(clock: Clock, journal_database: Database, pause: float):
    """Either the changes meanwhile are sent, or a full reply is needed."""

    async def main() -> None:
        changes = journal_database.changes()
        cursor = await changes.cursor()
        await asyncio.sleep(1)
        journal_database.write(1)
        await changes.cursor()  # of another client: the change is numbered, and not sent to this one
        await asyncio.sleep(pause / 2)
        journal_database.write(2)
        await asyncio.sleep(pause / 2)
        found, _ = await names(changes, cursor)
        assert found is None or set(found) == {"R-1", "R-2"}
        assert (found is None) is (pause > 40)

    run(main(), clock)


def test_a_full_reply_may_have_a_cursor_of_a_moment_ago(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        first = await changes.cursor()
        journal_database.write(0)
        await asyncio.sleep(CURSOR_SECONDS)
        assert await changes.cursor() == first
        assert len(journal_database.reads) == 1
        found, after = await names(changes, first)  # sent again, and nothing left out
        assert (found, after.number) == (["R-0"], first.number + 1)
        await asyncio.sleep(CURSOR_SECONDS + 0.1)
        await changes.cursor()
        assert len(journal_database.reads) == 3

    run(main(), clock)


@pytest.mark.full
def test_a_cursor_from_before_the_kept_changes_gets_the_whole_state(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        first = await changes.cursor()
        journal_database.write(0)
        await asyncio.sleep(CURSOR_SECONDS + 1)
        second = await changes.cursor()
        for row_id in range(1, MOST_KEPT + 1):
            journal_database.write(row_id)
        await asyncio.sleep(CURSOR_SECONDS + 1)
        await changes.cursor()
        assert (await names(changes, first))[0] is None
        found, _ = await names(changes, second)
        assert found is not None
        assert len(found) == MOST_KEPT
        assert (await names(changes, Cursor("another", 1, first.at)))[0] is None
        assert (await names(changes, Cursor(second.process, second.number + 10**6, second.at)))[0] is None

    run(main(), clock)


def test_it_reads_only_while_a_request_waits(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        cursor = await changes.cursor()
        await asyncio.gather(*(names(changes, cursor, 10) for _ in range(200)))
        assert 35 < len(journal_database.reads) < 45
        read = len(journal_database.reads)
        await asyncio.sleep(60)
        assert len(journal_database.reads) - read <= 1

    run(main(), clock)


def test_many_requests_share_one_read_and_one_error(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        journal_database.down = True
        errors = await asyncio.gather(*(changes.cursor() for _ in range(200)), return_exceptions=True)
        assert all(isinstance(error, Exception) for error in errors)
        assert len(journal_database.reads) == 1
        journal_database.down = False
        await asyncio.sleep(2)
        await asyncio.gather(*(changes.cursor() for _ in range(200)))
        assert len(journal_database.reads) == 2

    run(main(), clock)


def test_a_waiting_request_outlives_an_outage_of_the_database(
    clock: Clock, journal_database: Database, caplog: pytest.LogCaptureFixture
):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        changes = journal_database.changes()
        cursor = await changes.cursor()
        loop.call_later(1, setattr, journal_database, "down", True)
        loop.call_later(3, journal_database.write, 1)
        loop.call_later(11, setattr, journal_database, "down", False)
        assert (await names(changes, cursor, 20))[0] == ["R-1"]
        assert clock.seconds < 17
        assert len([read for read in journal_database.reads if 1.5 < read < 11]) < 4

    caplog.set_level("INFO")
    run(main(), clock)
    said = [record.getMessage() for record in caplog.records if record.name.endswith("api_server.journal")]
    assert said == [
        "The changes of meter sessions cannot be read; trying again",
        "The changes of meter sessions can be read again",
    ]


def test_own_writes_are_read_at_once(clock: Clock, journal_database: Database):
    async def main() -> None:
        changes = journal_database.changes()
        cursor = await changes.cursor()

        def write() -> None:
            journal_database.write(1)
            changes.nudge()

        asyncio.get_running_loop().call_later(1.05, write)
        assert (await names(changes, cursor, 20))[0] == ["R-1"]
        assert clock.seconds == pytest.approx(1.05)

    run(main(), clock)


async def test_a_transaction_that_commits_after_a_later_started_one_is_sent(
    airflow_on: Any, postgres_database: str, monkeypatch: pytest.MonkeyPatch
):
    airflow_on(postgres_database)
    changes = Changes()
    cursor = await changes.cursor()
    written, commit = threading.Event(), threading.Event()
    emit = journal.emit

    def hold(*arguments: Any, **options: Any) -> Any:
        """Written, but not committed."""
        monkeypatch.setattr(journal, "emit", emit)
        options["session"].flush()
        written.set()
        assert commit.wait(20)
        return emit(*arguments, **options)

    monkeypatch.setattr(journal, "emit", hold)
    slow = asyncio.create_task(asyncio.to_thread(journal.record, [entry("R-slow")], conn_id="zuora"))
    assert await asyncio.to_thread(written.wait, 10)
    await asyncio.to_thread(journal.record, [entry("R-quick")], conn_id="zuora")
    found, cursor = await names(changes, cursor, 5)
    assert found == ["R-quick"]
    commit.set()
    await slow
    assert (await names(changes, cursor, 5))[0] == ["R-slow"]


async def test_each_version_of_a_real_session_is_sent_once(airflow_database: str):
    changes = Changes()
    cursor = await changes.cursor()
    for status in ("RUNNING", "COMPLETED"):
        await asyncio.to_thread(journal.record, [entry("R-1", status)], conn_id="zuora")
        told = await changes.since(cursor, "zuora", ["1"], seconds=5)
        assert told is not None
        states, cursor = told
        assert [change.state.status for change in states] == [status]
