"""The owner of a wait: reports of any other process change nothing, in any order."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from sqlalchemy import event, select

from airflow_mediation_provider.journal import task_reports
from airflow_mediation_provider.journal.tables import ReporterRow, WaitRow
from airflow_mediation_provider.journal.task_reports import REPORTER_OF_WAIT, SEEN_AT, record_waits, wait_owners
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.wire import WaitEnded, WaitReport
from tests.unit.journal.old_rows import NOW, keep, wait_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

pytestmark = pytest.mark.usefixtures("airflow_database")
CONN = "zuora"
REPORT = WaitReport(
    id="w",
    meter_id="1",
    version="0.0.1",
    session_id=None,
    condition={"statuses": ["COMPLETED"]},
    dag_id="usage",
    run_id="r",
    task_id="wait",
    map_index=-1,
    try_number=1,
    mode="triggerer",
    created_at=NOW,
)
OURS, THEIRS = replace(REPORT, owner="ours"), replace(REPORT, owner="theirs", session_id="R-9")
MET = WaitEnded(id="w", outcome="MET", ended_at=NOW, owner="ours", status="FAILED", evidence="poll", certain=False)
LEFT = WaitEnded(id="w", outcome="left", ended_at=NOW + timedelta(minutes=5), owner="theirs")


def begin(report: WaitReport) -> None:
    assert record_waits(conn_id=CONN, open=[replace(report, begins=True)]).open


def report(*reports: WaitReport) -> None:
    record_waits(conn_id=CONN, open=reports)


def end(*ends: WaitEnded) -> None:
    record_waits(conn_id=CONN, ended=ends)


def row() -> dict[str, Any]:
    names = ("owner", "session_id", "ended_at", "outcome", "status", "evidence", "certain", "note")
    with settings.NonScopedSession() as session:
        found = session.scalars(select(WaitRow)).one()
        return {name: getattr(found, name) for name in names if getattr(found, name) is not None}


ENDED = {"owner": "ours", "ended_at": NOW, "outcome": "MET", "status": "FAILED", "evidence": "poll", "certain": False}


def test_a_stale_owner_changes_nothing() -> None:
    begin(THEIRS)
    begin(OURS)
    report(THEIRS)
    end(LEFT, replace(MET, owner="theirs"))
    assert row() == {"owner": "ours"}
    end(MET)
    report(THEIRS)
    end(LEFT)
    report(OURS)  # sent before the end was written, and received after it
    assert row() == ENDED


def test_an_end_that_comes_before_the_next_owner_begins_is_overtaken() -> None:
    begin(THEIRS)
    end(LEFT)
    begin(OURS)
    assert row() == {"owner": "ours"}
    end(MET)
    assert row() == ENDED
    begin(replace(THEIRS, try_number=2))
    assert row() == {"owner": "theirs", "session_id": "R-9"}


def test_a_process_that_shuts_down_ends_no_wait() -> None:
    begin(THEIRS)
    end(LEFT)
    assert row() == {"owner": "theirs", "session_id": "R-9", "outcome": "left"}
    report(THEIRS)
    assert row() == {"owner": "theirs", "session_id": "R-9"}


def test_an_end_counts_although_its_triggerer_never_reported_the_wait() -> None:
    begin(replace(THEIRS, mode="worker"))
    end(replace(MET, begins=True))
    assert row() == {**ENDED, "owner": "theirs", "session_id": "R-9"}


def test_an_end_of_an_unreported_triggerer_changes_nothing_if_another_one_waits() -> None:
    begin(replace(THEIRS, mode="triggerer"))
    end(replace(MET, begins=True))
    assert row() == {"owner": "theirs", "session_id": "R-9"}


def test_a_report_of_an_older_version_without_an_owner_is_stored() -> None:
    report(REPORT)
    assert row() == {}
    report(THEIRS)
    report(REPORT)
    assert row() == {}
    begin(OURS)
    end(replace(MET, owner=""))
    assert row() == ENDED
    end(replace(MET, owner="", outcome="TIMED_OUT"))
    assert row() == ENDED  # an end stays


def test_only_the_report_that_does_not_fit_is_left_out() -> None:
    wrong = [replace(OURS, id="long", dag_id="d" * 251), replace(OURS, id="large", try_number=2**31)]
    begins = replace(OURS, begins=True)
    assert not record_waits(conn_id=CONN, open=[replace(wrong[0], begins=True), begins, *wrong]).open
    assert record_waits(conn_id=CONN, open=[*wrong, begins]).open
    end(replace(MET, session_id="\x00"))
    assert row() == {"owner": "ours"}


def test_the_owner_of_each_wait_is_returned() -> None:
    begin(OURS)
    keep(wait_of("old"), wait_of("other", conn_id="elsewhere", owner="theirs"))
    owners = read(lambda session: wait_owners(session, CONN, ["w", "old", "other", "none"]))
    assert owners == {"w": "ours", "old": None, "other": None, "none": None}


def test_a_wait_of_another_connection_is_not_changed() -> None:
    begin(OURS)
    record_waits(conn_id="elsewhere", open=[replace(THEIRS, begins=True)], ended=[replace(MET, owner="")])
    assert row() == {"owner": "ours"}


def seen() -> dict[str, datetime]:
    """Return when each wait was last reported to go on."""
    with settings.NonScopedSession() as session:
        return dict(session.execute(select(WaitRow.id, SEEN_AT).outerjoin(ReporterRow, REPORTER_OF_WAIT)).all())


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the kinds of statements on the journal, such as SELECT."""
    run: list[str] = []

    def add(*arguments: Any) -> None:
        if "mediation" in arguments[2]:
            run.append(arguments[2].split()[0])

    engine = settings.get_engine()
    event.listen(engine, "before_cursor_execute", add)
    yield run
    event.remove(engine, "before_cursor_execute", add)


def test_a_reporter_stands_for_all_of_its_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [replace(REPORT, id=f"w{n}", task_id=f"t{n}", owner=f"o{n}", begins=True) for n in range(250)]
    at = {"now": NOW}
    monkeypatch.setattr(task_reports, "datetime", SimpleNamespace(now=lambda _: at["now"]))
    assert record_waits(conn_id=CONN, open=waits, reporter="r") == (True, False)
    assert set(seen().values()) == {NOW}
    with settings.NonScopedSession() as session:
        rows = session.execute(select(WaitRow.id, WaitRow.seen_at)).all()

    at["now"] = later = NOW + timedelta(minutes=1)
    with statements() as run:
        assert record_waits(conn_id=CONN, reporter="r") == (True, True)
    assert run == ["UPDATE"]
    assert set(seen().values()) == {later}
    with settings.NonScopedSession() as session:
        assert session.execute(select(WaitRow.id, WaitRow.seen_at)).all() == rows

    # A wait that its process left is not the reporter's any more, and neither is one that ended.
    at["now"] = last = NOW + timedelta(minutes=2)
    record_waits(conn_id=CONN, ended=[replace(LEFT, id="w7", owner="o7")])
    record_waits(conn_id=CONN, open=[replace(waits[8], owner="worker", mode="worker")])
    record_waits(conn_id=CONN, open=[replace(waits[9], session_id="R-9", begins=False)], reporter="r")
    at["now"] += timedelta(minutes=1)
    assert record_waits(conn_id=CONN, reporter="r") == (True, True)
    assert {id_: when for id_, when in seen().items() if when != at["now"]} == {"w7": last, "w8": last}
    assert record_waits(conn_id="elsewhere", reporter="r").reporter_known is False
    assert set(seen().values()) == {last, at["now"]}


def test_reports_of_an_older_version_that_change_nothing_are_stored_by_few_statements() -> None:
    waits = [replace(REPORT, id=f"w{n:03}", task_id=f"t{n}", owner=f"o{n}", begins=True) for n in range(25)]
    record_waits(conn_id=CONN, open=waits)
    before = seen()
    with statements() as run:
        report(*(replace(each, begins=False) for each in waits))
    assert run == ["SELECT", "UPDATE"]
    assert all(when > before[id_] for id_, when in seen().items())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The transactions, and the pauses between them."""
    found: list[str] = []
    written = task_reports.write

    def write(work: Any, *, deadline_seconds: float) -> Any:
        found.append("write")
        return written(work, deadline_seconds=deadline_seconds)

    monkeypatch.setattr(task_reports, "write", write)
    monkeypatch.setattr(task_reports.time, "sleep", lambda _seconds: found.append("pause"))
    return found


def begun(count: int) -> list[WaitReport]:
    return [replace(REPORT, id=f"w{n:04}", task_id=f"t{n}", owner=f"o{n}", begins=True) for n in range(count)]


def test_a_callout_comes_in_between_the_parts_of_a_long_report(steps: list[str]) -> None:
    ended = [replace(MET, id="w0001", owner="o1")]
    assert record_waits(conn_id=CONN, open=begun(60), ended=ended, reporter="r") == (True, False)
    assert steps == ["write", "pause", "write", "pause", "write", "pause", "write"]


def test_the_waits_that_begin_in_a_second_are_stored_in_one_transaction_with_their_reporter(steps: list[str]) -> None:
    assert record_waits(conn_id=CONN, open=begun(50), reporter="r") == (True, False)
    assert record_waits(conn_id=CONN, open=begun(1), reporter="r") == (True, True)
    assert steps == ["write", "write"]
    steps.clear()
    assert record_waits(conn_id=CONN) == (True, False)
    assert steps == []
