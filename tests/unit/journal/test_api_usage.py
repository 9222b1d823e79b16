"""Calls to Zuora in the journal: added up over all reporting processes, and read as API usage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import settings
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal.tables import Base, CallsRow
from airflow_mediation_provider.journal.task_reports import budget, record_calls
from airflow_mediation_provider.journal.writer import JournalMissing
from airflow_mediation_provider.protocol.zuora.api_usage import ApiUsage, HourlyUsage, RemainingQuota

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

pytestmark = pytest.mark.usefixtures("airflow_database")


def calls(number: int, hour: datetime = NOON, **more: Any) -> HourlyUsage:
    return HourlyUsage(hour=hour, calls=number, **more)


def left(remaining: int | None, told_at: datetime, limits: str | None = "5000, 5000;w=3600") -> RemainingQuota:
    return RemainingQuota(limits=limits, remaining=remaining, reset_at=told_at + HOUR, told_at=told_at)


def rows() -> list[tuple[Any, ...]]:
    with Session(settings.get_engine()) as session:
        found = session.scalars(select(CallsRow).order_by(CallsRow.conn_id, CallsRow.hour))
        return [(row.conn_id, row.hour, row.calls, row.limited) for row in found]


def stands(now: datetime, *conn_ids: str) -> list[ApiUsage]:
    with Session(settings.get_engine()) as session:
        return budget(session, conn_ids or ("zuora",), now)


def test_reported_calls_are_added_up_by_connection_and_hour() -> None:
    record_calls(conn_id="zuora", calls=[calls(3), calls(2, NOON - HOUR)])
    record_calls(conn_id="zuora", calls=[calls(4, limited=1), calls(1, limited=1)])
    record_calls(conn_id="other", calls=[calls(7)])
    record_calls(conn_id="silent", calls=[])

    assert rows() == [("other", NOON, 7, 0), ("zuora", NOON - HOUR, 2, 0), ("zuora", NOON, 8, 2)]


def test_no_concurrent_report_is_lost() -> None:
    def report(_: int) -> None:
        record_calls(conn_id="zuora", calls=[calls(1), calls(2, NOON + HOUR)], deadline_seconds=30)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(report, range(40)))

    assert rows() == [("zuora", NOON, 40, 0), ("zuora", NOON + HOUR, 80, 0)]


def test_the_latest_limits_of_zuora_count_in_any_order_of_reports() -> None:
    late, early = NOON + timedelta(minutes=20), NOON + timedelta(minutes=10)
    record_calls(conn_id="zuora", calls=[calls(1, left=left(90, late))])
    record_calls(conn_id="zuora", calls=[calls(1, left=left(95, early))])
    record_calls(conn_id="zuora", calls=[calls(1)])

    (found,) = stands(NOON + timedelta(minutes=30))

    assert found == ApiUsage(
        conn_id="zuora",
        last_hour=3,
        last_day=3,
        limits="5000, 5000;w=3600",
        remaining=90,
        reset_at=late + HOUR,
        told_at=late,
    )


def test_limits_are_kept_through_an_hour_without_new_ones() -> None:
    told_at = NOON + timedelta(minutes=50)
    record_calls(conn_id="zuora", calls=[calls(1, left=left(90, told_at)), calls(1, NOON + HOUR)])

    (found,) = stands(NOON + HOUR + timedelta(minutes=30))

    assert (found.remaining, found.told_at) == (90, told_at)


def test_a_span_is_counted_from_whole_hours_and_the_share_of_the_one_in_which_it_began() -> None:
    record_calls(conn_id="zuora", calls=[calls(8, NOON - HOUR), calls(3, limited=2)])
    record_calls(conn_id="zuora", calls=[calls(100, NOON - 24 * HOUR, limited=50), calls(1000, NOON - 25 * HOUR)])

    (found,) = stands(NOON + timedelta(minutes=45))

    assert (found.last_hour, found.last_day, found.limited_last_day) == (3 + 2, 3 + 8 + 25, 2 + 13)
    (found,) = stands(NOON)
    assert (found.last_hour, found.last_day) == (11, 111)


def test_usage_is_separate_for_each_connection_also_for_one_without_calls() -> None:
    record_calls(conn_id="zuora", calls=[calls(1)])
    record_calls(conn_id="other", calls=[calls(2)])

    found = stands(NOON, "other", "never", "zuora")

    assert [(each.conn_id, each.last_day) for each in found] == [("other", 2), ("never", 0), ("zuora", 1)]
    assert found[1] == ApiUsage(conn_id="never")


def test_without_tables_the_error_names_the_command() -> None:
    Base.metadata.drop_all(settings.get_engine())

    with pytest.raises(JournalMissing, match="airflow db migrate"):
        record_calls(conn_id="zuora", calls=[calls(1)])
