from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import settings
from airflow.models.asset import AssetEvent, AssetModel, DagScheduleAssetReference, association_table
from airflow.models.dagrun import DagRun
from sqlalchemy import delete, func, select

from airflow_mediation_provider.journal.session_list import list_sessions
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.triggered_runs import Assets, sessions_of_run, started
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from benchmarks.busy_journal import BUSY, LIVE, LOST, METERS, PROD, SILENT, Plan, seed, seed_burst, session_of
from benchmarks.journal_starts import dag_of, run_of

# Columns with the writer's own numbers and times, and the counts of asset events.
OWN = {"id", "created_at", "updated_at", "emitted", "revision", "body"}
SESSIONS = 100


def values(row: Any) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns if column.key not in OWN}


def changes_and_sessions() -> list[list[dict[str, Any]]]:
    with settings.NonScopedSession() as session:
        return [
            sorted((values(row) for row in session.scalars(query)), key=str)
            for query in (select(SessionRow), select(TransitionRow).where(TransitionRow.kind == "status_change"))
        ]


def record_reports(plan: Plan) -> None:
    for number in plan.numbers:
        entries = [
            JournalEntry(
                kind=EntryKind.STATUS_CHANGE, observed_at=change.observed_at, source=change.source, transition=change
            )
            for change in plan.reports(number)
        ]
        record(entries, conn_id=plan.meter(number)[0])


def test_seeded_rows_equal_those_of_the_journals_writer(airflow_database: str):
    plan = seed(airflow_database, SESSIONS, 100)
    seeded = changes_and_sessions()
    with settings.NonScopedSession() as session:
        # Without an asset, no event is made.
        for table in (SessionRow, TransitionRow, DagScheduleAssetReference, AssetModel):
            session.execute(delete(table))
        session.commit()
    record_reports(plan)
    assert seeded == changes_and_sessions()


def test_triggered_runs_and_waits_of_seeded_sessions_are_found(airflow_database: str):
    plan = seed(airflow_database, SESSIONS, 100)
    with settings.NonScopedSession() as session:
        listed = list_sessions(session, Filters(conn_id=PROD, meter_id=BUSY), limit=50).sessions
        assets = Assets(session, [(PROD, BUSY)])
        runs = {run.run_id for each in started(session, listed, assets).values() for run in each.runs}
        newest = next(each for each in listed if run_of(each.session_id) in runs)
        assert [run.dag_id for run in started(session, [newest], assets)[newest.key].runs] == [dag_of(BUSY)]
        assert sessions_of_run(session, dag_of(BUSY), run_of(newest.session_id)) == [newest.key]
        awaited = [session_of(number) for number in plan.numbers if plan.is_awaited(number)]
        waits = session.scalars(select(WaitRow.session_id).where(WaitRow.session_id.is_not(None)))
        assert sorted(waits) == awaited


def test_a_burst_adds_sessions_of_the_last_day(airflow_database: str):
    plan = seed(airflow_database, SESSIONS, 100)
    burst = seed_burst(airflow_database, plan, 100)
    with settings.NonScopedSession() as session:
        assert session.scalar(select(func.count()).select_from(SessionRow)) == SESSIONS + 100
        (newest,) = list_sessions(session, Filters(), limit=1).sessions
        assert newest.session_id == session_of(burst.last)
        today = Filters(since=burst.now - timedelta(days=1))
        assert len(list_sessions(session, today, limit=500).sessions) == 200
        runs = session.scalar(select(func.count()).select_from(DagRun))
        assert runs == session.scalar(select(func.count()).select_from(association_table))
        assert runs <= session.scalar(select(func.count()).select_from(AssetEvent))


class TestPlan:
    plan = Plan(20_000, 2_000, datetime(2026, 3, 1, tzinfo=UTC))

    def test_sessions_start_in_order_and_the_last_ones_within_a_day(self):
        began = [self.plan.began(number) for number in self.plan.numbers]
        assert began == sorted(set(began))
        day = self.plan.now - timedelta(days=1)
        assert sum(each >= day for each in began) == 2_000

    def test_every_connection_and_status_occurs(self):
        statuses = Counter(self.plan.walk(number)[1][-1] for number in self.plan.numbers)
        assert statuses.most_common(1)[0][0] == "COMPLETED"
        assert set(statuses) >= {"FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED", "RUNNING"}
        assert {self.plan.meter(number)[0] for number in self.plan.numbers} == set(METERS)

    def test_live_sessions_are_the_newest_and_some_old_ones(self):
        going_on = [number for number in self.plan.numbers if self.plan.goes_on(number)]
        assert len(going_on) == LOST + LIVE
        assert going_on[0] == 0
        assert going_on[-LIVE:] == list(self.plan.numbers)[-LIVE:]

    def test_the_busiest_meter_was_never_canceled_or_tested(self):
        of_meter = [number for number in self.plan.numbers if self.plan.meter(number) == (PROD, BUSY)]
        assert 0.18 < len(of_meter) / self.plan.sessions < 0.22
        statuses = {self.plan.walk(number)[1][-1] for number in of_meter}
        assert statuses == {"COMPLETED", "FAILED", "RUNNING"}

    def test_one_connection_has_only_old_sessions(self):
        assert self.plan.newest(SILENT) <= self.plan.sessions // 2

    def test_the_newest_session_in_a_status_is_found(self):
        number = self.plan.newest(PROD, BUSY, "FAILED")
        assert self.plan.reports(number)[-1].status == "FAILED"
        assert self.plan.meter(number) == (PROD, BUSY)
        later = range(number + 1, self.plan.sessions)
        assert not any(self.plan.meter(n)[1] == BUSY and self.plan.walk(n)[1][-1] == "FAILED" for n in later)
