"""The part of Airflow that the journal uses: Dags scheduled on sessions, the scheduler's turn, the runs' context."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any

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

from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

CONN = "mediation_default"
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
SINCE = NOW - timedelta(days=1)


class Airflow:
    """Stored Dags, and the scheduler's turn."""

    def __init__(self) -> None:
        self._scheduler = SchedulerJobRunner(Job(), executors=[])
        with settings.NonScopedSession() as session:
            session.add(DagBundleModel(name="dags"))
            # Airflow caches nothing of the job, but its runs are those of one job.
            session.add(self._scheduler.job)
            session.commit()

    def know(self, dag_id: str, schedule: Any, *, paused: bool = False, outlets: Sequence[Any] = ()) -> None:
        with DAG(dag_id, schedule=schedule, start_date=SINCE, catchup=False) as dag:
            EmptyOperator(task_id="done", outlets=list(outlets))
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
            self.schedule_in(session)
            session.commit()

    def schedule_in(self, session: Session) -> None:
        """The scheduler's turn in a transaction that goes on."""
        self._scheduler._create_dagruns_for_partitioned_asset_dags(session)

    def runs(self, dag_id: str) -> list[str]:
        self.schedule()
        with settings.NonScopedSession() as session:
            return sorted(session.scalars(select(DagRun.partition_key).where(DagRun.dag_id == dag_id)))

    def run_ids(self, dag_id: str) -> list[str]:
        with settings.NonScopedSession() as session:
            return sorted(session.scalars(select(DagRun.run_id).where(DagRun.dag_id == dag_id)))

    def sessions_of(self, dag_id: str) -> list[Any]:
        """What the tasks of the Dag's runs get from `triggering_session`."""
        with settings.NonScopedSession() as session:
            order = (DagRun.partition_key, DagRun.id)
            runs = session.scalars(select(DagRun).where(DagRun.dag_id == dag_id).order_by(*order))
            in_order = attrgetter("timestamp", "id")
            return [[event.extra for event in sorted(run.consumed_asset_events, key=in_order)] for run in runs]


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
) -> JournalEntry:
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
    return JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=observed_at, source=source, transition=transition)


def poll(status: str, at: int) -> JournalEntry:
    observed_at = datetime.now(UTC) + timedelta(seconds=at)
    transition = SessionTransition(meter_id="1", status=status, observed_at=observed_at, source=Source.POLL)
    return JournalEntry(
        kind=EntryKind.POLL, observed_at=observed_at, source=Source.POLL, transition=transition, drives=True
    )


def tell(*entries: JournalEntry, conn: str = CONN) -> None:
    record(entries, conn_id=conn)
