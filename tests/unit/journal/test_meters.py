"""The last known name of each meter, on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from airflow import settings
from sqlalchemy import event

from airflow_mediation_provider.journal.meters import meter_names
from airflow_mediation_provider.journal.prune import prune
from airflow_mediation_provider.journal.session_list import SessionKey, find_session
from airflow_mediation_provider.journal.tables import MeterRow
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.writer import record, rewrite
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import Source
from tests.unit.journal.old_rows import NEW, OLD, keep, meter_of, session_of
from tests.unit.journal.test_writer import CONN, NOW, all_of, change

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
