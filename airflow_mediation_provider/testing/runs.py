"""Run a Dag with ``dag.test()`` as if sessions had started the run: it consumes their asset events, as a real one."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from airflow import settings
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagrun import DagRun
from airflow.sdk import PartitionedAssetTimetable
from sqlalchemy import event, select

from airflow_mediation_provider.journal.asset_events import Event
from airflow_mediation_provider.protocol.ids import id_of
from airflow_mediation_provider.protocol.sessions.session_result import SessionResult, session_result
from airflow_mediation_provider.protocol.status import status_name, usual_run_type
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow.sdk import DAG
    from sqlalchemy.orm import Session

_REQUIRED: Final = ("meter_id", "session_id", "status")


class RunOfSession:
    """Runs Dags that are scheduled by ``on_meter_session()``.

    :param conn_id: the connection of sessions that name none
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id

    def __call__(self, dag: DAG, *sessions: Mapping[str, Any]) -> DagRun:
        """Run a Dag in this process, and return its run when it is over: ``state``, ``get_task_instance()`` and more.

        It has no logical date, like the runs that sessions start. It replaces the last such run of the same Dag.

        :param dag: a Dag of the Dags folder
        :param sessions: the session that starts the run, or several of the same id: ``meter_id``, ``session_id`` and
            ``status``, and any other key of a session, which by default is as if a callout had just reported it
        :raises ValueError: a key is missing, unknown or wrong, or the Dag's schedule starts no run of the session
        """
        events = [_event(dag, session, self._conn_id) for session in sessions]
        if len({each.partition_key for each, _ in events}) != 1:
            raise ValueError("give one session, or several of the same session_id: only these can share a run")
        with _consumed(dag.dag_id, events):
            try:
                return cast("DagRun", dag.test(logical_date=None))
            except Exception as error:
                if DagVersion.get_version(dag.dag_id) is None:
                    raise ValueError(
                        f"Dag {dag.dag_id!r} is not in the Dags folder ([core] dags_folder), from which Airflow reads "
                        "the Dags that dag.test() runs"
                    ) from error
                raise


def _event(dag: DAG, given: Mapping[str, Any], conn_id: str) -> tuple[Event, tuple[str, ...]]:
    """Return the event of a session, and the addresses of the Dag's assets that it is an event of."""
    session = _session(given, conn_id)
    found = Event.of(SessionTransition.from_dict(session), session)
    named = _addresses(dag)
    fitting = tuple(uri for uri in found.uris(str(session["mediation_conn_id"])) if uri in named)
    if not fitting:
        raise ValueError(
            f"the schedule of Dag {dag.dag_id!r} starts no run of the {session['run_type']} session "
            f"{session['session_id']} of meter {session['meter_id']} in {session['status']}, over connection "
            f"{session['mediation_conn_id']}: it is on {', '.join(named)}"
        )
    return found, fitting


def _session(given: Mapping[str, Any], conn_id: str) -> SessionResult:
    """Return a whole session: what is not given is as if a callout had just reported it."""
    if missing := [name for name in _REQUIRED if not given.get(name)]:
        raise ValueError(f"the session has no {', '.join(missing)}: it needs {', '.join(_REQUIRED)}")
    if unknown := given.keys() - SessionResult.__annotations__.keys():
        raise ValueError(
            f"a session has no {', '.join(sorted(unknown))}; its keys are {', '.join(SessionResult.__annotations__)}"
        )
    status = status_name("status", given["status"])
    change = {
        "observed_at": datetime.now(UTC),
        "source": Source.CALLOUT,
        "run_type": usual_run_type(status),
        **given,
        "meter_id": id_of("meter_id", given["meter_id"]),
        "session_id": id_of("session_id", given["session_id"]),
        "status": status,
    }
    transition = SessionTransition.from_dict(change)
    return session_result(
        transition,
        evidence=given.get("evidence") or transition.source,
        certain=given.get("certain", True),
        version=given.get("version"),
        mediation_conn_id=given.get("mediation_conn_id") or conn_id,
    )


def _addresses(dag: DAG) -> list[str]:
    timetable = dag.timetable
    if not isinstance(timetable, PartitionedAssetTimetable):
        raise ValueError(f"Dag {dag.dag_id!r} is not scheduled by on_meter_session(): run it with dag.test()")
    left: list[Any] = [timetable.asset_condition]
    found = []
    while left:
        each = left.pop(0)
        left += getattr(each, "objects", ())
        found += [each.uri] if hasattr(each, "uri") else []
    return found


@contextmanager
def _consumed(dag_id: str, events: Sequence[tuple[Event, tuple[str, ...]]]) -> Iterator[None]:
    """Add asset events to each new run of a Dag, before it is written: ``dag.test()`` has no argument for them."""

    def add(session: Session, *_: object) -> None:
        for run in session.new:
            if not isinstance(run, DagRun) or run.dag_id != dag_id:
                continue
            run.partition_key = events[0][0].partition_key
            first = datetime.now(UTC)
            with session.no_autoflush:
                # In the order of their times, the events of one session together.
                run.consumed_asset_events = [
                    AssetEvent(
                        asset_id=asset_id,
                        extra=dict(each.extra),
                        partition_key=each.partition_key,
                        timestamp=first + timedelta(milliseconds=number),
                    )
                    for number, (each, uris) in enumerate(events)
                    for asset_id in session.scalars(select(AssetModel.id).where(AssetModel.uri.in_(uris)))
                ]

    event.listen(settings.Session, "before_flush", add)
    try:
        yield
    finally:
        event.remove(settings.Session, "before_flush", add)
