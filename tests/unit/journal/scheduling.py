"""Airflow as far as the journal sees it: DAGs that are scheduled on sessions, its scheduler's turn, what it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import settings
from airflow.dag_processing.collection import update_dag_parsing_results_in_db
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from sqlalchemy import select, update

from airflow_mediation_provider.journal.record import record
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

CONN = "mediation_default"
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
SINCE = NOW - timedelta(days=1)


class Airflow:
    """Known DAGs, and the scheduler's turn."""

    def __init__(self) -> None:
        self._scheduler = SchedulerJobRunner(Job(), executors=[])
        with settings.NonScopedSession() as session:
            session.add(DagBundleModel(name="dags"))
            # Airflow caches nothing of the job, but its runs are those of one.
            session.add(self._scheduler.job)
            session.commit()

    def know(self, dag_id: str, schedule: Any, *, paused: bool = False) -> None:
        with DAG(dag_id, schedule=schedule, start_date=SINCE, catchup=False) as dag:
            EmptyOperator(task_id="done")
        dag.fileloc, dag.relative_fileloc = __file__, f"{dag_id}.py"
        with settings.NonScopedSession() as session:
            lazy = LazyDeserializedDAG.from_dag(dag)
            update_dag_parsing_results_in_db("dags", None, [lazy], {}, 0.1, set(), session)
            session.commit()
        self.pause(dag_id, paused=paused)

    def pause(self, dag_id: str, *, paused: bool = True) -> None:
        self.alter(dag_id, is_paused=paused)

    def alter(self, dag_id: str, **fields: Any) -> None:
        with settings.NonScopedSession() as session:
            session.execute(update(DagModel).where(DagModel.dag_id == dag_id).values(**fields))
            session.commit()

    def schedule(self) -> None:
        with settings.NonScopedSession() as session:
            self._scheduler._create_dagruns_for_partitioned_asset_dags(session)
            session.commit()

    def runs(self, dag_id: str) -> list[str]:
        self.schedule()
        with settings.NonScopedSession() as session:
            return sorted(session.scalars(select(DagRun.partition_key).where(DagRun.dag_id == dag_id)))

    def run_ids(self, dag_id: str) -> list[str]:
        with settings.NonScopedSession() as session:
            return sorted(session.scalars(select(DagRun.run_id).where(DagRun.dag_id == dag_id)))

    def sessions_of(self, dag_id: str) -> list[Any]:
        """What the tasks of the DAG's runs are told, as `triggering_session` gives it."""
        with settings.NonScopedSession() as session:
            runs = session.scalars(select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.partition_key))
            return [[event.extra for event in run.consumed_asset_events] for run in runs]


def change(
    session: str,
    status: str,
    before: str | None = "RUNNING",
    *,
    at: float = 0,
    id_: str | None = None,
    debug: bool = False,
    meter: str = "1",
    **told: Any,
) -> Entry:
    observed_at = NOW + timedelta(seconds=at)
    transition = SessionTransition(
        **{
            "meter_id": meter,
            "session_id": session,
            "run_type": RunType.DEBUG if debug else RunType.NORMAL,
            "status": status,
            "previous_status": before,
            "observed_at": observed_at,
            "source": Source.CALLOUT,
            "notification_id": id_ or f"{meter}-{session}-{status}-{at}",
            **told,
        }
    )
    observed_at, source = transition.observed_at, transition.source
    return Entry(kind=EntryKind.STATUS_CHANGE, observed_at=observed_at, source=source, transition=transition)


def poll(status: str, at: int) -> Entry:
    observed_at = datetime.now(UTC) + timedelta(seconds=at)
    transition = SessionTransition(meter_id="1", status=status, observed_at=observed_at, source=Source.POLL)
    return Entry(kind=EntryKind.POLL, observed_at=observed_at, source=Source.POLL, transition=transition, drives=True)


def tell(*entries: Entry, conn: str = CONN) -> None:
    record(entries, conn_id=conn)
