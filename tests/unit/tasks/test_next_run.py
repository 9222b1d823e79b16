"""From when on the next scheduled run waits for a session, by Airflow's own timetables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, CronDataIntervalTimetable

from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.tasks.build import note_next_run

NINE = datetime(2026, 3, 31, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


def next_since(schedule: Any, *, due: datetime = NINE, interval: timedelta | None = timedelta(), **more: Any) -> Any:
    dag = DAG(
        "dag",
        schedule=schedule,
        start_date=NINE - timedelta(days=9),
        end_date=more.pop("end_date", None),
        max_active_runs=1,
    )
    start, end = (None, None) if interval is None else (due - interval, due)
    dag_run = SimpleNamespace(data_interval_start=start, data_interval_end=end, run_after=due)
    condition = SessionCondition(meter_id="m", **{"since": start or due, **more})
    wait = SessionWait(condition, created_at=due)
    note_next_run(wait, lambda: {"dag": dag, "dag_run": dag_run})
    return wait.next_since


@pytest.mark.parametrize("schedule", ["@hourly", "0 * * * *", HOUR])
def test_the_next_start_is_that_of_the_run_after_this_one(schedule: Any):
    assert next_since(schedule) == NINE + HOUR
    # For a manual run, with any interval.
    assert next_since(schedule, due=NINE + timedelta(minutes=5), interval=None) >= NINE + HOUR


def test_without_an_interval_the_next_start_is_when_that_run_is_due():
    assert next_since("@hourly", due=NINE + timedelta(minutes=20), interval=None) == NINE + HOUR


def test_an_interval_with_two_ends_counts_by_its_start():
    assert next_since(CronDataIntervalTimetable("@hourly", timezone="UTC"), interval=HOUR) == NINE


def test_another_since_is_shifted_by_the_same_distance():
    assert next_since("@hourly", since=NINE - timedelta(minutes=10)) == NINE + timedelta(minutes=50)


def test_the_next_start_of_consecutive_runs_is_that_of_the_next_interval():
    assert next_since("@continuous", interval=timedelta(microseconds=5)) == NINE


@pytest.mark.parametrize("schedule", [None, "@once", Asset("a")], ids=str)
def test_without_a_scheduled_run_there_is_no_next_start(schedule: Any):
    assert next_since(schedule) is None


def test_after_the_dags_end_date_there_is_no_next_start():
    assert next_since("@hourly", end_date=NINE + timedelta(minutes=30)) is None


def test_a_wait_with_before_or_a_session_id_does_not_read_the_timetable():
    assert next_since("@hourly", before=NINE + HOUR) is None
    wait = SessionWait(SessionCondition(meter_id="m", session_id="R-1"), created_at=NINE)
    note_next_run(wait, lambda: pytest.fail("asked"))
    assert wait.next_since is None


def test_no_task_fails_if_the_next_run_is_unknown():
    wait = SessionWait(SessionCondition(meter_id="m", since=NINE), created_at=NINE)
    note_next_run(wait, dict)
    assert wait.next_since is None
