"""The last known name of each meter, and what is usual of its sessions, on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from airflow import settings
from sqlalchemy import event, update

from airflow_mediation_provider.journal import meters
from airflow_mediation_provider.journal.meters import RunsOfMeter, Tempos, meter_names, meters_of, tempos
from airflow_mediation_provider.journal.prune import prune
from airflow_mediation_provider.journal.session_list import SessionKey, find_session
from airflow_mediation_provider.journal.tables import ListedRow, MeterRow
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.triggered_runs import waiting_for
from airflow_mediation_provider.journal.writer import record, rewrite
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import Source
from tests.unit.journal.old_rows import NEW, OLD, concluded, keep, meter_of, session_of
from tests.unit.journal.plans import explained, uses_an_index, worked
from tests.unit.journal.test_writer import CONN, NOW, all_of, change

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.sessions.usual import Tempo

pytestmark = pytest.mark.usefixtures("airflow_database")


def named(
    name: str | None, at: int, *, session: str = "R-1", status: str = "RUNNING", source: Source = Source.CALLOUT
) -> JournalEntry:
    """A report of a session of the meter 1, which has a name."""
    told = change(None, status, f"{name}-{at}-{session}", at=at, session=session)
    assert told.transition is not None
    return replace(told, source=source, transition=replace(told.transition, source=source, meter_name=name))


def name() -> str | None:
    return read(lambda session: meter_names(session, {(CONN, "1"), (CONN, "2"), ("other", "1")})).get((CONN, "1"))


def test_a_meter_without_a_name_has_none() -> None:
    record([named(None, 0)], conn_id=CONN)
    assert name() is None
    assert read(lambda session: meter_names(session, ())) == {}


@pytest.mark.parametrize("source", [Source.CALLOUT, Source.HISTORY, Source.RUN])
def test_the_name_of_any_report_is_kept_and_one_without_a_name_erases_none(source: Source) -> None:
    record([named("Storage", 0, source=source)], conn_id=CONN)
    record([named(None, 9, session="R-2"), named(None, 10, status="COMPLETED")], conn_id=CONN)
    assert name() == "Storage"
    for session_id in ("R-1", "R-2"):
        listed = read(partial(find_session, key=SessionKey(CONN, "1", session_id)))
        assert listed is not None
        assert listed.meter_name == "Storage"


def test_a_callout_that_is_no_change_of_a_status_names_the_meter_too() -> None:
    periodic = JournalEntry(
        kind=EntryKind.PERIODIC, observed_at=NOW, source=Source.CALLOUT, notification_id="p", meter_id="1",
        meter_name="Storage",
    )  # fmt: skip
    record([periodic], conn_id=CONN)
    assert name() == "Storage"


def test_a_callout_that_is_parsed_later_names_the_meter() -> None:
    unparsed = JournalEntry(kind=EntryKind.UNPARSED, observed_at=NOW, source=Source.CALLOUT, notification_id="n")
    (row_id,) = record([unparsed], conn_id=CONN).row_ids
    rewrite({row_id: named("Storage", 0)}, conn_id=CONN)
    assert name() == "Storage"


def test_the_latest_report_counts_in_whichever_order_reports_are_stored() -> None:
    record([named("Second", 10)], conn_id=CONN)
    record([named("First", 5, session="R-2")], conn_id=CONN)
    assert name() == "Second"
    record([named("Fourth", 20), named("Third", 15, session="R-3")], conn_id=CONN)
    assert name() == "Fourth"


def test_a_name_that_was_reported_again_is_not_replaced_by_an_older_one() -> None:
    record([named("Storage", 0)], conn_id=CONN)
    record([named("Storage", 10, session="R-2")], conn_id=CONN)
    record([named("Old", 5, session="R-3")], conn_id=CONN)
    assert name() == "Storage"
    record([named("New", 11, session="R-3")], conn_id=CONN)
    assert name() == "New"


def test_nothing_is_written_of_a_name_that_is_known() -> None:
    record([named("Storage", 0)], conn_id=CONN)
    written: list[str] = []

    def watch(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "mediation_meter" in statement and not statement.startswith("SELECT"):
            written.append(statement)

    event.listen(settings.engine, "before_cursor_execute", watch)
    try:
        record([named("Storage", 10, session="R-2"), named(None, 11)], conn_id=CONN)
        assert written == []
        record([named("New", 12)], conn_id=CONN)
        assert len(written) == 1
    finally:
        event.remove(settings.engine, "before_cursor_execute", watch)


@pytest.mark.parametrize("text", ["Ü \U0001f600", "x" * 5000, "a\x00b"])
def test_any_name_can_be_stored(text: str) -> None:
    record([named(text, 0)], conn_id=CONN)
    assert name() == text.replace("\x00", "")


def test_a_name_is_pruned_when_the_meter_has_no_session_any_more() -> None:
    for meter_id, at in (("gone", OLD), ("kept", OLD), ("new", NEW)):
        keep(meter_of(meter_id, "Storage", at))
    keep(session_of("R-1", meter_id="gone"), session_of("R-2", meter_id="kept", terminal=False, status="RUNNING"))
    list(prune(OLD + timedelta(hours=1)))
    assert sorted(all_of(MeterRow.meter_id)) == ["kept", "new"]


def test_the_row_has_when_the_name_was_received() -> None:
    record([named("Storage", 0), named("Storage", 9)], conn_id=CONN)
    assert all_of(MeterRow.received_at) == [NOW + timedelta(seconds=9)]


# ---- what is usual


def past(*minutes: int, meter_id: str = "1001", conn_id: str = "zuora", run_type: str = "NORMAL") -> None:
    """Sessions that took so long, the oldest first, one each hour."""
    for number, lasted in enumerate(minutes):
        begun = OLD + timedelta(hours=number)
        ended = begun + timedelta(minutes=lasted)
        row = session_of(f"R-{number}", begun, meter_id=meter_id, conn_id=conn_id, run_type=run_type)
        row.best_ended_at = row.last_observed_at = ended
        keep(row)


def usual(*runs: RunsOfMeter, **more: int) -> dict[RunsOfMeter, Tempo]:
    return read(lambda session: tempos(session, runs, **more))


def test_what_is_usual_is_of_one_run_type_of_one_meter() -> None:
    past(1, 2, 3, 4, 5, 6)
    past(60, 60, 60, 60, 60, meter_id="other")
    past(70, 70, 70, 70, 70, conn_id="other")
    past(80, 80, 80, 80, 80, run_type="DEBUG", meter_id="1002")
    runs = RunsOfMeter("zuora", "1001", "NORMAL")
    (tempo,) = usual(runs).values()
    assert [each.session_id for each in tempo.past] == ["R-5", "R-4", "R-3", "R-2", "R-1", "R-0"]
    assert tempo.usual == (timedelta(minutes=1), timedelta(minutes=6), 6)
    assert tempo.rhythm is not None
    assert tempo.rhythm.every == timedelta(hours=1)
    (few,) = usual(runs, newest=2).values()
    assert [each.session_id for each in few.past] == ["R-5", "R-4"]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 21, 45])
def test_any_number_of_meters_is_read_at_once(count: int) -> None:
    past(1, 2, 3)
    runs = [RunsOfMeter("zuora", f"none-{number}", "NORMAL") for number in range(count - 1)]
    runs += [RunsOfMeter("zuora", "1001", "NORMAL")] * min(count, 1)
    found = usual(*runs, *runs)
    assert list(found) == runs
    assert [len(each.past) for each in found.values()] == [0] * (count - 1) + [3] * min(count, 1)


def test_a_session_that_goes_on_has_no_end() -> None:
    keep(session_of("R-1", terminal=False, status="RUNNING"), concluded("R-2", OLD + timedelta(hours=1)))
    (tempo,) = usual(RunsOfMeter("zuora", "1001", "NORMAL")).values()
    assert [(each.session_id, each.status, each.ended_at is None) for each in tempo.past] == [
        ("R-2", "FAILED", False),
        ("R-1", "RUNNING", True),
    ]


class TestKept:
    """What a process keeps of what is usual."""

    ONE, OTHER = (RunsOfMeter("zuora", meter_id, "NORMAL") for meter_id in ("1001", "1002"))

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[RunsOfMeter]:
        """The meters that were read."""
        asked: list[RunsOfMeter] = []

        def counted(session: Session, runs: list[RunsOfMeter]) -> dict[RunsOfMeter, Tempo]:
            asked.extend(runs)
            return tempos(session, runs)

        monkeypatch.setattr(meters, "tempos", counted)
        return asked

    def test_a_meter_is_read_again_once_a_session_of_it_changed(self, asked: list[RunsOfMeter]) -> None:
        clock = [NEW]
        kept = Tempos(clock=lambda: clock[0])

        def sessions(of: RunsOfMeter) -> int:
            return len(read(lambda session: kept.of(session, [self.ONE, self.OTHER]))[of].past)

        past(1, 2)
        assert (sessions(self.ONE), sessions(self.OTHER)) == (2, 0)
        assert asked == [self.ONE, self.OTHER]
        clock[0] += timedelta(seconds=20)
        keep(session_of("R-new", updated_at=clock[0]))
        assert sessions(self.ONE) == 3
        assert asked[2:] == [self.ONE]
        # A change that was committed late.
        clock[0] += timedelta(seconds=20)
        keep(session_of("R-late", updated_at=clock[0] - timedelta(seconds=30)))
        assert sessions(self.ONE) == 4
        clock[0] += timedelta(seconds=20)
        assert sessions(self.ONE) == 4
        assert asked[3:] == [self.ONE]

    def test_a_change_counts_after_a_failed_read(self, asked: list[RunsOfMeter]) -> None:
        clock = [NEW]
        kept = Tempos(clock=lambda: clock[0])
        read(lambda session: kept.of(session, [self.ONE]))
        keep(session_of("R-new", updated_at=clock[0]))
        clock[0] += timedelta(minutes=1)

        def failing(session: Session) -> None:
            session.connection().close()
            kept.of(session, [self.ONE])

        with pytest.raises(Exception, match="closed"):
            read(failing)
        clock[0] += timedelta(minutes=1)
        assert len(read(lambda session: kept.of(session, [self.ONE]))[self.ONE].past) == 1
        assert asked == [self.ONE] * 2

    def test_a_meter_is_read_again_in_time_because_of_what_leaves_the_time_of_the_change(
        self, asked: list[RunsOfMeter]
    ) -> None:
        clock = [NEW]
        kept = Tempos(clock=lambda: clock[0])
        runs = [RunsOfMeter("zuora", str(number), "NORMAL") for number in range(25)]
        for _ in range(4):
            read(lambda session: kept.of(session, runs))
            clock[0] += timedelta(seconds=40)
        # Those of one statement at a time.
        assert asked == [*runs, *runs[:20], *runs[20:]]
        clock[0] += timedelta(seconds=61)
        read(lambda session: kept.of(session, runs[-1:]))
        assert asked[50:] == runs[-1:]
        # Nothing was asked for so long that changes would be many.
        clock[0] += timedelta(minutes=11)
        read(lambda session: kept.of(session, runs))
        assert asked[51:] == runs

    def test_the_end_that_a_task_concluded_counts_soon(self) -> None:
        clock = [NEW]
        kept = Tempos(clock=lambda: clock[0])

        def live() -> int:
            return len(read(lambda session: kept.of(session, [self.ONE]))[self.ONE].live)

        keep(session_of("R-1", status="RUNNING", terminal=False))
        assert live() == 1
        with settings.NonScopedSession() as session:
            session.execute(update(ListedRow).values(best_ended=True, best_ended_at=NEW, best_status="FAILED"))
            session.commit()
        clock[0] += timedelta(seconds=61)
        assert live() == 0

    def test_so_many_meters_are_kept_and_the_oldest_are_dropped(self, asked: list[RunsOfMeter]) -> None:
        kept = Tempos(most=2)
        runs = [RunsOfMeter("zuora", str(number), "NORMAL") for number in range(3)]
        assert list(read(lambda session: kept.of(session, runs))) == runs
        read(lambda session: kept.of(session, runs[1:]))
        assert asked == runs
        read(lambda session: kept.of(session, runs[:1]))
        assert asked == [*runs, runs[0]]


def test_the_meters_of_a_connection_are_found_in_order() -> None:
    assert read(lambda session: meters_of(session, "zuora", 5)) == []
    for meter_id in ("b", "a", "c"):
        keep(session_of("R-1", meter_id=meter_id), session_of("R-2", meter_id=meter_id))
    keep(session_of("R-1", meter_id="z", conn_id="other"))
    assert read(lambda session: meters_of(session, "zuora", 5)) == ["a", "b", "c"]
    assert read(lambda session: meters_of(session, "zuora", 2)) == ["a", "b"]


def test_the_queries_use_indexes_and_sort_nothing(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    past(1, 2, 3)
    with explained() as plans:
        usual(RunsOfMeter("zuora", "1001", "NORMAL"), RunsOfMeter("zuora", "1002", "NORMAL"))
        read(lambda session: meters_of(session, "zuora", 5))
        read(lambda session: meter_names(session, {("zuora", "1001")}))
        read(lambda session: waiting_for(session, "zuora", "1001"))
        kept = Tempos()
        for _ in range(2):
            read(lambda session: kept.of(session, [RunsOfMeter("zuora", "1003", "NORMAL")]))
    assert any("ix_mediation_session_updated_at" in step for step in plans.pop()[1])
    assert len(plans) == 5
    assert [each for each in plans if not uses_an_index(each[1])] == []
    of_sessions, ids, _, waits, _ = (plan for _, plan in plans)
    assert not any("TEMP B-TREE" in step for step in (*of_sessions, *ids))
    assert sum("ix_mediation_session_first" in step for step in of_sessions) == 5
    assert any("ix_mediation_wait_ended_at" in step for step in waits)


def test_what_is_usual_costs_the_same_beside_any_number_of_sessions(
    airflow_on: Callable[[str], str], sqlite_database: str
) -> None:
    airflow_on(sqlite_database)

    def cost() -> int:
        with worked() as steps:
            usual(RunsOfMeter("zuora", "1001", "NORMAL"))
            read(lambda session: meters_of(session, "zuora", 5))
        return steps[0]

    def add(numbers: range) -> None:
        keep(*(session_of(f"R-{number:04}", OLD + timedelta(minutes=number)) for number in numbers))

    add(range(100))
    at_first = cost()
    add(range(100, 2000))
    assert cost() < 1.2 * at_first
