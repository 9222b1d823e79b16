"""What prune deletes, what it must keep, and what a dry run counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import settings
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal import prune as module
from airflow_mediation_provider.journal.prune import old_sessions, oldest_to_keep, prune
from airflow_mediation_provider.journal.tables import Base, CallsRow, ReporterRow, SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.writer import JournalMissing
from airflow_mediation_provider.protocol.maintenance import Pruned
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from tests.unit.journal.old_rows import BEFORE, NEW, NOW, OLD, keep, session_of, told, wait_of


def left() -> tuple[set[str], int, set[str]]:
    """Sessions, reports, and waits."""
    with Session(settings.get_engine()) as session:
        return (
            set(session.scalars(select(SessionRow.session_id))),
            len(session.scalars(select(TransitionRow.id)).all()),
            set(session.scalars(select(WaitRow.id))),
        )


def run(**options: Any) -> Pruned:
    return sum(prune(BEFORE, **options), Pruned())


pytestmark = pytest.mark.usefixtures("airflow_database")


def test_an_ended_session_is_deleted_with_all_its_changes() -> None:
    keep(session_of("R-1"), told("R-1"), told("R-1", status="COMPLETED"))
    keep(session_of("R-2", NEW), told("R-2", NEW), told("R-2", OLD))

    assert run() == Pruned(sessions=1, changes=2)
    assert left() == ({"R-2"}, 2, set())


def test_a_session_without_an_end_stays_at_any_age() -> None:
    keep(session_of("R-1", terminal=False, status="RUNNING"), told("R-1"))

    assert run() == Pruned()
    assert old_sessions(BEFORE) == (0, 1)


def test_the_best_known_status_of_an_end_written_by_an_older_api_server_is_corrected() -> None:
    """It does not write the columns of the best known status, and no later report of the session arrives."""
    for session_id, at in (("R-1", OLD), ("R-2", NEW)):
        ended = session_of(session_id, at)
        ended.best_status, ended.best_evidence, ended.best_ended = "RUNNING", "callout", False
        keep(ended, told(session_id, at), told(session_id, at, status="COMPLETED", previous_status="RUNNING"))
    bare = session_of("R-0", conn_id="other")
    bare.best_ended = False
    keep(bare)

    assert run(dry_run=True) == Pruned()
    assert run() == Pruned(sessions=1, changes=2)
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(SessionRow).filter_by(conn_id="zuora")).one()
    assert (row.session_id, row.best_status, row.best_ended, row.best_ended_at) == ("R-2", "COMPLETED", True, NEW)


def test_a_session_with_a_recent_report_stays_with_all_its_changes() -> None:
    """Zuora may send the callout once more, and it must be a duplicate then."""
    keep(session_of("R-1"), told("R-1"), told("R-1", OLD, created_at=NEW))

    assert run() == Pruned()
    assert left() == ({"R-1"}, 2, set())


def test_an_open_wait_keeps_the_session_that_it_names() -> None:
    keep(session_of("R-1"), session_of("R-2"), wait_of("w", session_id="R-1"))

    assert run() == Pruned(sessions=1, needed=1)
    assert left()[0] == {"R-1"}


def test_an_open_wait_keeps_the_sessions_that_it_may_match() -> None:
    earlier = OLD - timedelta(days=10)
    keep(session_of("R-1", earlier), session_of("R-2"), session_of("R-3", meter_id="1002"))
    keep(session_of("R-4", conn_id="other"))
    for wait_id, since in (("w", OLD), ("later", NEW)):
        keep(wait_of(wait_id, condition=SessionCondition(meter_id="1001", since=since).to_dict()))

    assert run() == Pruned(sessions=3, needed=1)
    assert left()[0] == {"R-2"}


@pytest.mark.parametrize("condition", [{}, {"since": None}, {"since": "once upon a time"}, {"since": 5}])
def test_an_open_wait_without_since_keeps_all_sessions_of_its_meter(condition: dict[str, Any]) -> None:
    keep(session_of("R-1"), session_of("R-2", meter_id="1002"), wait_of("w", condition=condition))

    assert run() == Pruned(sessions=1, needed=1)
    assert left()[0] == {"R-1"}


def test_ended_and_unreported_waits_are_deleted_and_keep_no_session() -> None:
    keep(session_of("R-1"))
    keep(wait_of("ended", seen_at=OLD, ended_at=OLD), wait_of("lost", seen_at=OLD))
    keep(wait_of("ended lately", ended_at=NEW), wait_of("goes on", meter_id="1002"))

    assert run() == Pruned(sessions=1, waits=2)
    assert left()[2] == {"ended lately", "goes on"}


def test_a_wait_that_its_reporter_still_reports_is_open_however_old_its_row_is() -> None:
    keep(ReporterRow(id="live", conn_id="zuora", seen_at=NEW), ReporterRow(id="dead", conn_id="zuora", seen_at=OLD))
    keep(session_of("R-1"), session_of("R-2"))
    keep(wait_of("w", seen_at=OLD, session_id="R-1", reporter="live"))
    keep(wait_of("v", seen_at=OLD, session_id="R-2", reporter="dead", task_id="other"))

    assert run() == Pruned(sessions=1, waits=1, others=1, needed=1)
    assert (left()[0], left()[2]) == ({"R-1"}, {"w"})


def test_other_old_reports_are_deleted() -> None:
    for kind in ("periodic", "event_store_query", "unparsed", "test"):
        keep(told("R-1", kind=kind), told("R-1", NEW, kind=kind))

    assert run() == Pruned(others=4)
    assert left()[1] == 4


def test_the_last_poll_of_each_meter_stays_for_comparison_with_the_next() -> None:
    for meter in ("1001", "1002"):
        for conn_id in ("zuora", "other"):
            place = {"kind": "poll", "meter_id": meter, "conn_id": conn_id}
            keep(told(None, **place), told(None, **place), told(None, **place, status="COMPLETED"))
    keep(told(None, NEW, kind="poll"))

    assert run() == Pruned(others=9)
    with Session(settings.get_engine()) as session:
        rows = session.scalars(select(TransitionRow).order_by(TransitionRow.id)).all()
    assert [(row.meter_id, row.conn_id, row.status) for row in rows] == [
        ("1001", "other", "COMPLETED"),
        ("1002", "zuora", "COMPLETED"),
        ("1002", "other", "COMPLETED"),
        ("1001", "zuora", "RUNNING"),
    ]


def test_polls_that_drive_assets_are_compared_among_themselves() -> None:
    for series in ("drive", "poll"):
        keep(*(told(None, kind="poll", notification_id=f"{series}:1001:{number}") for number in range(2)))

    assert run() == Pruned(others=2)
    with Session(settings.get_engine()) as session:
        assert set(session.scalars(select(TransitionRow.notification_id))) == {"drive:1001:1", "poll:1001:1"}


def test_counts_of_calls_are_deleted_hour_by_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches that end within an hour in which several connections have counts."""
    monkeypatch.setattr(module, "BATCH", 2)
    hours = [BEFORE + timedelta(hours=number) for number in range(-3, 2)]
    keep(*(CallsRow(conn_id=conn_id, hour=hour, calls=1, limited=0) for conn_id in "abc" for hour in hours))

    assert run(conn_id="b", dry_run=True) == Pruned(others=3)
    assert run(conn_id="b") == Pruned(others=3)
    assert run() == Pruned(others=6)
    with Session(settings.get_engine()) as session:
        left = session.execute(select(CallsRow.conn_id, CallsRow.hour)).all()
    assert {tuple(row) for row in left} == {(conn_id, hour) for conn_id in "abc" for hour in hours[3:]}


def test_one_connection_can_be_pruned_alone() -> None:
    for conn_id in ("zuora", "other"):
        keep(session_of("R-1", conn_id=conn_id), told("R-1", conn_id=conn_id), told(None, kind="test", conn_id=conn_id))
        keep(wait_of(conn_id, conn_id=conn_id, seen_at=OLD))

    assert run(conn_id="other") == Pruned(sessions=1, changes=1, others=1, waits=1)
    assert left() == ({"R-1"}, 2, {"zuora"})
    assert old_sessions(BEFORE) == (1, 0)
    assert old_sessions(BEFORE, conn_id="other") == (0, 0)


def test_a_dry_run_counts_what_would_be_deleted_and_deletes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches smaller than the rows that stay in between, so that those are passed over."""
    monkeypatch.setattr(module, "BATCH", 3)
    for number in range(20):
        since = NEW if number % 5 in (1, 2, 3, 4) else OLD
        name = f"R-{number}"
        keep(session_of(name), told(name), told(name, created_at=since), told(name, kind="periodic"))
        keep(told(None, kind="poll"), wait_of(f"w{number}", seen_at=OLD))
    keep(wait_of("named", session_id="R-5"))
    expected = Pruned(sessions=3, changes=6, others=39, waits=20, needed=1)
    before = left()

    assert run(dry_run=True) == expected
    assert left() == before
    assert run() == expected
    assert run() == Pruned(needed=1)


def test_each_batch_is_durable_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    keep(*(session_of(f"R-{number}") for number in range(6)))

    for pruned in prune(BEFORE):
        if pruned.sessions:
            break
    assert len(left()[0]) == 4
    assert run() == Pruned(sessions=4)


@pytest.mark.parametrize("days", [0, -1, 13.99, float("nan")])
def test_rows_that_zuora_may_send_again_cannot_be_pruned(days: float) -> None:
    with pytest.raises(ValueError, match="at least 14"):
        oldest_to_keep(days)


def test_the_age_is_given_in_days() -> None:
    assert oldest_to_keep(14, now=NOW) == datetime(2026, 5, 18, tzinfo=UTC)
    assert oldest_to_keep(90, now=NOW) == BEFORE
    assert oldest_to_keep(float("inf"), now=NOW).year == oldest_to_keep(1e9, now=NOW).year == 1


def test_without_tables_the_error_names_the_command() -> None:
    Base.metadata.drop_all(settings.get_engine())
    for ask in (run, lambda: old_sessions(BEFORE)):
        with pytest.raises(JournalMissing, match="airflow db migrate"):
            ask()
