"""The one gate into the database: of a batch, only what cannot be stored is left out, and it is named."""

from __future__ import annotations

import json
import logging
import math
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from airflow import settings
from sqlalchemy import BigInteger, String, cast, event, select

from airflow_mediation_provider.journal import rows, task_reports, writer
from airflow_mediation_provider.journal.tables import CallsRow, SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.task_reports import record_calls, record_waits
from airflow_mediation_provider.journal.transaction import UnstorableError, read, write
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.wire import to_plain
from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage
from tests.unit.journal.test_task_reports import MET, REPORT
from tests.unit.journal.test_writer import CONN, NOW, all_of, change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("airflow_database")

NUL, HALF = "a\0b", "a\ud800b"
EARLY, LATE = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
PLACES = [0, 1, 2]


def with_bad(good: list[Any], bad: Any, place: int) -> list[Any]:
    return [*good[:place], bad, *good[place:]]


def entry(**changes: Any) -> JournalEntry:
    """Return the entry of a session that is bad."""
    good = change(None, "RUNNING", "bad", session="R-bad")
    body = changes.pop("body", {})
    transition = replace(good.transition, **changes) if good.transition is not None else None
    observed_at = changes.get("observed_at", good.observed_at)
    return JournalEntry(kind=good.kind, observed_at=observed_at, source=good.source, transition=transition, body=body)


BAD_ENTRIES = {
    "long session": entry(session_id="s" * 65),
    "NUL in session": entry(session_id=NUL),
    "half a character in session": entry(session_id=HALF),
    "long meter": entry(meter_id="m" * 65),
    "NUL in meter": entry(meter_id=NUL),
    "long status": entry(status="S" * 65),
    "NUL in status": entry(previous_status=NUL),
    "early": entry(observed_at=EARLY),
    "late": entry(observed_at=LATE),
}
CLEANED_ENTRIES = {
    "long notification id": entry(notification_id="n" * 191),
    "NUL in notification id": entry(notification_id=NUL),
    "half a character in notification id": entry(notification_id=HALF),
    "NUL in name": entry(meter_name=NUL),
    "early start": entry(started_at=EARLY),
    "late end": entry(ended_at=LATE),
    "NaN in body": entry(body={"a": math.nan, "b": [math.inf]}),
    "NUL in body": entry(body={NUL: NUL}),
    "half a character in body": entry(body={HALF: [HALF]}),
    "deep body": entry(body={"a": json.loads("[" * 90 + "]" * 90)}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_a_report_that_cannot_be_stored_is_kept_as_text_and_named(kind: str, place: int) -> None:
    good = [change(None, "RUNNING", "n-1", session="R-1"), change(None, "RUNNING", "n-2", session="R-2")]
    bad = BAD_ENTRIES[kind]
    recorded = record(with_bad(good, bad, place), conn_id=CONN)
    assert sorted(row.session_id for row in all_of(SessionRow)) == ["R-1", "R-2"]
    assert len(recorded.refused) == 1
    assert "too long, too large, or with characters that no database stores" in recorded.refused[0]
    (kept,) = [row for row in all_of(TransitionRow) if row.kind == EntryKind.UNPARSED]
    assert kept.body["entry"] == rows.stored_json(to_plain(replace(bad, body={})))
    again = record(with_bad(good, bad, place), conn_id=CONN)
    assert (again.new, again.duplicates) == (0, 3)


@pytest.mark.parametrize("kind", CLEANED_ENTRIES)
def test_a_report_is_stored_without_the_part_that_cannot_be(kind: str) -> None:
    bad = CLEANED_ENTRIES[kind]
    recorded = record([change(None, "RUNNING", "n-1", session="R-1"), bad], conn_id=CONN)
    assert (recorded.new, recorded.refused) == (2, ())
    assert sorted(row.session_id for row in all_of(SessionRow)) == ["R-1", "R-bad"]
    assert record([bad], conn_id=CONN).new == 0


def test_different_long_notification_ids_are_different() -> None:
    ids = ["n" * 200, "n" * 201, NUL, "a"]
    entries = [entry(notification_id=each, session_id=f"R-{number}") for number, each in enumerate(ids)]
    assert record(entries, conn_id=CONN).new == 4


@contextmanager
def refusing(value: str, error: Exception) -> Iterator[None]:
    """Let the driver refuse a value that passed the gate."""

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
        if value in (parameters.values() if isinstance(parameters, dict) else parameters):
            raise error

    event.listen(settings.engine, "do_execute", do_execute)
    yield
    event.remove(settings.engine, "do_execute", do_execute)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "error", [ValueError("NUL"), OverflowError("too large"), UnicodeEncodeError("u", "", 0, 1, "")]
)
def test_whatever_the_driver_refuses_is_a_refusal_of_that_report(error: Exception, place: int) -> None:
    good = [change(None, "RUNNING", "n-1", session="R-1"), change(None, "RUNNING", "n-2", session="R-2")]
    with refusing("R-bad", error):
        recorded = record(with_bad(good, entry(), place), conn_id=CONN)
    assert sorted(row.session_id for row in all_of(SessionRow)) == ["R-1", "R-2"]
    assert len(recorded.refused) == 1
    assert "the database refuses a value" in recorded.refused[0]
    assert "R-bad" in recorded.refused[0]
    (kept,) = [row for row in all_of(TransitionRow) if row.kind == EntryKind.UNPARSED]
    assert "R-bad" in kept.body["entry"]


BAD_WAITS = {
    "long session": replace(REPORT, id="bad", session_id="s" * 400),
    "NUL in session": replace(REPORT, id="bad", session_id=NUL),
    "half a character in run": replace(REPORT, id="bad", run_id=HALF),
    "NUL in dag": replace(REPORT, id="bad", dag_id=NUL),
    "long mode": replace(REPORT, id="bad", mode="m" * 17),
    "long id": replace(REPORT, id="b" * 65),
    "NUL in id": replace(REPORT, id=NUL),
    "long version": replace(REPORT, id="bad", version="v" * 65),
    "large index": replace(REPORT, id="bad", map_index=2**31),
    "huge try": replace(REPORT, id="bad", try_number=10**30),
    "early": replace(REPORT, id="bad", created_at=EARLY),
    "late": replace(REPORT, id="bad", until=LATE),
    "long owner": replace(REPORT, id="bad", owner="o" * 65),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BAD_WAITS)
def test_a_wait_that_cannot_be_stored_leaves_the_others(
    kind: str, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    good = [replace(REPORT, id="good-1"), replace(REPORT, id="good-2")]
    with caplog.at_level(logging.WARNING):
        record_waits(conn_id=CONN, open=with_bad(good, BAD_WAITS[kind], place))
    assert sorted(row.id for row in all_of(WaitRow)) == ["good-1", "good-2"]
    assert f"A report of wait {BAD_WAITS[kind].id!a:.80} is not stored" in caplog.text


def test_a_condition_is_stored_without_what_no_database_stores() -> None:
    condition = {"statuses": [NUL, HALF], "settle": math.nan}
    record_waits(conn_id=CONN, open=[replace(REPORT, id="good"), replace(REPORT, id="odd", condition=condition)])
    assert sorted(row.id for row in all_of(WaitRow)) == ["good", "odd"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "bad",
    [
        replace(MET, id="w-bad", session_id=NUL),
        replace(MET, id="w-bad", status="s" * 65),
        replace(MET, id="w-bad", outcome=HALF),
        replace(MET, id="w-bad", ended_at=LATE),
    ],
)
def test_an_end_that_cannot_be_stored_leaves_the_others(bad: Any, place: int) -> None:
    record_waits(conn_id=CONN, open=[replace(REPORT, id=each) for each in ("w-1", "w-2", "w-bad")])
    ends = [replace(MET, id="w-1", owner=""), replace(MET, id="w-2", owner="")]
    record_waits(conn_id=CONN, ended=with_bad(ends, replace(bad, owner=""), place))
    assert {row.id: row.outcome for row in all_of(WaitRow)} == {"w-1": "MET", "w-2": "MET", "w-bad": None}


def test_a_wait_that_the_driver_refuses_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    values = task_reports._values

    def refused(message: Any) -> dict[str, Any]:
        # A number that no gate lets pass, in a column that no gate checks now.
        return values(message) | ({"try_number": 10**30} if message.id == "bad" else {})

    monkeypatch.setattr(task_reports, "why_unfit", lambda table, columns: "")
    monkeypatch.setattr(task_reports, "_values", refused)
    waits = [replace(REPORT, id=each, begins=True) for each in ("a", "bad", "c")]
    ends = [replace(MET, id=each, owner="") for each in ("bad", "c")]
    assert record_waits(conn_id=CONN, open=waits, reporter="r") == (False, False)
    assert sorted(row.id for row in all_of(WaitRow)) == ["a", "c"]
    assert record_waits(conn_id=CONN, open=waits, ended=ends, reporter="r") == (False, True)
    assert {row.id: row.outcome for row in all_of(WaitRow)} == {"a": None, "c": "MET"}


def test_calls_of_an_impossible_hour_are_left_out() -> None:
    record_calls(conn_id=CONN, calls=[HourlyUsage(hour=each, calls=1) for each in (EARLY, NOW, LATE)])
    assert [row.hour for row in all_of(CallsRow)] == [NOW]


def test_more_calls_than_a_column_holds_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(22):
        record_calls(conn_id=CONN, calls=[HourlyUsage(hour=NOW, calls=10**8)])
    assert all_of(CallsRow)[0].calls >= 21 * 10**8


@pytest.mark.parametrize("run", [read, partial(write, deadline_seconds=10)], ids=["read", "write"])
@pytest.mark.parametrize(
    ("value", "kind"), [(HALF, String), (2**70, BigInteger)], ids=["half a character", "a large number"]
)
def test_what_the_driver_refuses_is_no_bare_error(run: Callable[..., Any], value: object, kind: Any) -> None:
    """Each driver refuses it in its own way, by an error of its own or one of Python's."""
    with pytest.raises(UnstorableError, match="the database refuses a value: "):
        run(lambda session: session.scalar(select(cast(value, kind))))


@pytest.mark.parametrize("run", [read, partial(write, deadline_seconds=10)], ids=["read", "write"])
@pytest.mark.parametrize("error", [ValueError("a bug"), OverflowError("a bug"), UnicodeEncodeError("u", "", 0, 1, "")])
def test_an_error_of_the_work_is_no_refusal_of_the_database(run: Callable[..., Any], error: Exception) -> None:
    def work(session: Any) -> None:
        session.execute(select(TransitionRow.id)).all()
        raise error

    with pytest.raises(type(error)) as raised:
        run(work)
    assert raised.value is error


def test_reports_are_not_taken_for_refused_after_an_error_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "add", Mock(side_effect=ValueError("a bug")))

    with pytest.raises(ValueError, match="a bug"):
        record([entry()], conn_id=CONN)
    assert all_of(TransitionRow) == []


def test_ids_that_no_row_has_are_not_searched() -> None:
    ids = ["R-1", "ü" * 64, "x" * 65, NUL, HALF]
    assert rows.may_be_stored(SessionRow, "session_id", ids) == {"R-1", "ü" * 64}
    with settings.NonScopedSession() as session:
        found = select(SessionRow).where(SessionRow.session_id.in_(rows.may_be_stored(SessionRow, "session_id", ids)))
        assert session.scalars(found).all() == []
