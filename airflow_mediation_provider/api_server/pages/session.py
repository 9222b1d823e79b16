"""The page of one session: its reports, the Dag runs that it triggered, its tasks, and on demand Zuora's counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from anyio import from_thread
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import Reader, ReaderDep, same_origin
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.pages.missing_runs import MissingRun, start
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, form, page
from airflow_mediation_provider.api_server.pages.sessions import Row, around, rows_of
from airflow_mediation_provider.hooks.mediation import MediationHook
from airflow_mediation_provider.journal.session_list import SessionKey, find_session, timeline
from airflow_mediation_provider.journal.task_reports import verdicts_of
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.triggered_runs import triggered_by_tasks
from airflow_mediation_provider.protocol.zuora.audit import counts_of, errors_by_code, span_of_session
from airflow_mediation_provider.protocol.zuora.errors import MediationError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.api_server.pages.sessions import Around
    from airflow_mediation_provider.journal.session_list import ListedSession, TimelineEntry
    from airflow_mediation_provider.journal.triggered_runs import TaskTriggered
    from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict
    from airflow_mediation_provider.protocol.zuora.audit import ErrorGroup

router = APIRouter(route_class=PageRoute)

_ERROR_RECORDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """What the journal and Airflow have about a session, as far as the user may see it.

    :param entries: the timeline, the latest first
    :param cut: whether it is not all of it
    :param differing: what tasks that the user may see concluded differently from the best known status
    :param startable: of the Dags that missed it, those of which the user may start runs
    :param triggered: Dag runs that tasks triggered with it
    :param hidden_triggered: how many of these the user may not see
    """

    row: Row
    entries: list[TimelineEntry]
    cut: bool
    differing: list[TaskVerdict]
    startable: set[str]
    triggered: list[TaskTriggered]
    hidden_triggered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Zuora's counts for a session, or why there are none.

    :param records: the first error records
    :param error: one sentence; empty if Zuora returned counts
    """

    output: int = 0
    errors: int = 0
    records: tuple[dict[str, Any], ...] = ()
    error: str = ""

    @property
    def groups(self) -> list[ErrorGroup]:
        """The error records by their code, the most frequent one first."""
        return errors_by_code(self.records)


@router.get("/session")
def session(request: Request, reader: ReaderDep, conn: Text, meter: Text, session: Text) -> Response:
    """Show a session."""
    return _shown(request, reader, SessionKey(conn, meter, session))


@router.post("/session/summary", dependencies=[same_origin])
def session_summary(
    request: Request,
    reader: ReaderDep,
    form: Annotated[dict[str, str], form("conn", "meter", "session")],
) -> Response:
    """Request the counts and the first error records from Zuora: two calls, and customers' data."""
    key = SessionKey(form["conn"], form["meter"], form["session"])
    if not reader.reads_connection(key.conn_id):
        raise HTTPException(403, "Error records are customers' data: you may not read this connection.")
    summary = _summary(request, _view(request, reader, key).row.session)
    # The calls that this process made count as API usage as well.
    from_thread.run_sync(request.app.state.calls.keep, key.conn_id)
    return _shown(request, reader, key, summary=summary)


@router.post("/session/replay", dependencies=[same_origin])
def session_replay(
    request: Request,
    reader: ReaderDep,
    form: Annotated[dict[str, str], form("conn", "meter", "session", "dag_id")],
) -> Response:
    """Start the run that a Dag missed."""
    key, dag_id = SessionKey(form["conn"], form["meter"], form["session"]), form["dag_id"]
    run = MissingRun(dag_id, key, _view(request, reader, key).row.session.status)
    (result,) = start(reader, [run])
    if result.refused:
        return _shown(request, reader, key, notice=f"Nothing was started for {dag_id}: {result.refused}.", failed=True)
    if result.started:
        return _shown(request, reader, key, notice=f"A run of {dag_id} is queued for this session.")
    return _shown(request, reader, key, notice=f"{dag_id} already has a run for this session.")


def _shown(
    request: Request,
    reader: Reader,
    key: SessionKey,
    *,
    summary: Summary | None = None,
    notice: str = "",
    failed: bool = False,
) -> Response:
    view = _view(request, reader, key)
    return page(
        request,
        "session.html",
        view=view,
        row=view.row,
        session=view.row.session,
        zuora=_zuora_url(request, key),
        may_summarize=reader.reads_connection(key.conn_id),
        summary=summary,
        notice=notice,
        failed=failed,
    )


def _view(request: Request, reader: Reader, key: SessionKey) -> SessionView:
    """Return what a session's page shows.

    :raises HTTPException: the journal does not have the session
    """

    def work(
        session: Session,
    ) -> tuple[Around, list[TaskTriggered], list[TaskVerdict], list[TimelineEntry], bool] | None:
        listed = find_session(session, key)
        if listed is None:
            return None
        verdicts = verdicts_of(session, *key) if listed.best_differs else []
        found = around(session, (listed,), request.app.state.tempos)
        triggered = triggered_by_tasks(session, key, found.tasks.get(key, ()))
        return found, triggered, verdicts, *timeline(session, listed)

    found = read(work)
    if found is None:
        raise HTTPException(
            404,
            f"The journal has no session {key.session_id} of meter {key.meter_id} over connection {key.conn_id}."
            " It was never received, or it was pruned.",
        )
    surroundings, triggered, verdicts, entries, cut = found
    (row,) = rows_of(surroundings, reader, datetime.now(UTC))
    seen = reader.sees_tasks({each.dag_id for each in verdicts})
    differing = [each for each in verdicts if each.dag_id in seen and each.status != row.session.best_status]
    seen_runs = reader.sees_runs({each.dag_id for each in triggered})
    seen_tasks = reader.sees_tasks({each.by.dag_id for each in triggered})
    shown = [each for each in triggered if each.dag_id in seen_runs and each.by.dag_id in seen_tasks]
    return SessionView(
        row=row,
        entries=entries,
        cut=cut,
        differing=differing,
        startable=reader.starts_runs(set(row.missed)),
        triggered=shown,
        hidden_triggered=len(triggered) - len(shown),
    )


def _summary(request: Request, listed: ListedSession) -> Summary:
    connection = _connection(request, listed.conn_id)
    span = span_of_session(listed.begun_at, listed.over_at, now=datetime.now(UTC))
    options = {"run_type": listed.run_type, "query_from": span[0], "query_to": span[1]}
    try:
        # Without them, the hook would look up the connection without a team.
        settings = connection.settings if connection else None
        with MediationHook(listed.conn_id, attempts=1, settings=settings) as hook:
            counted = counts_of(
                hook.meter_summary(listed.meter_id, session_ids=[listed.session_id], **options)  # type: ignore[arg-type]
            )
            entries = hook.audit_trail_entries(
                listed.meter_id,
                export_type="ERROR",
                session_id=listed.session_id,
                page_size=_ERROR_RECORDS,
                **options,  # type: ignore[arg-type]
            )
            records = tuple(islice(entries, _ERROR_RECORDS)) if any(each["errors"] for each in counted) else ()
    except (MediationError, ValueError) as error:
        return Summary(error=str(error))
    return Summary(
        output=sum(each["output"] for each in counted), errors=sum(each["errors"] for each in counted), records=records
    )


def _zuora_url(request: Request, key: SessionKey) -> str | None:
    """Return the address of the session in Zuora's UI, if the connection has a template for one."""
    connection = _connection(request, key.conn_id)
    settings = connection.settings if connection else None
    url = settings.session_url(key.meter_id, key.session_id, None) if settings else None
    return url if url and urlsplit(url).scheme in ("http", "https") else None


def _connection(request: Request, conn_id: str) -> MediationConnection | None:
    try:
        connection: MediationConnection = request.app.state.connections.get_in_thread(conn_id)
    except (UnknownConnectionError, LookupFailedError):
        return None
    return connection
