"""What a session did: its counts, its first error records, and exports of its audit trail."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from airflow.sdk import BaseOperator

from airflow_mediation_provider.operators.arguments import (
    check_flags,
    check_instant,
    check_meter,
    check_session,
    check_session_id,
    check_text,
    instant,
    run_type_of,
    seconds,
    session_id_of,
    session_of,
    status_names,
)
from airflow_mediation_provider.protocol.api import DEFAULT_VERSION
from airflow_mediation_provider.protocol.arguments import one_of
from airflow_mediation_provider.protocol.audit import (
    EXPORT_COMPRESSIONS,
    EXPORT_FORMATS,
    EXPORT_TYPES,
    counts_of,
    span_of_session,
)
from airflow_mediation_provider.protocol.errors import MediationError, MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.status import RunType, SessionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.watch.feed_caller import FeedCaller

T = TypeVar("T")

_MOST_ERRORS: Final = 1000
_STATE_KEY: Final = "mediation_export"
_REPORT_SECONDS: Final = 2.0


class _AuditOperator(BaseOperator):
    """What the operators that look at a session have in common: which session, and which span of time.

    Either ``session``, or ``meter_id`` with an optional ``session_id``. The span is the session's own unless given;
    without a session it goes from the data interval's start, else the run's ``run_after``, until now.
    """

    template_fields: Sequence[str] = (
        "session",
        "meter_id",
        "session_id",
        "query_from",
        "query_to",
        "mediation_conn_id",
    )

    def __init__(
        self,
        *,
        session: Any = None,
        meter_id: str | None = None,
        session_id: str | Mapping[str, Any] | None = None,
        run_type: RunType | str = RunType.NORMAL,
        query_from: datetime | str | None = None,
        query_to: datetime | str | None = None,
        mediation_conn_id: str = "mediation_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.session = session
        self.meter_id = meter_id
        self.session_id = session_id
        self.run_type = run_type_of(run_type)
        self.query_from = query_from
        self.query_to = query_to
        self.mediation_conn_id = mediation_conn_id
        if (session is None) == (meter_id is None):
            raise ValueError("give either session (the output of a task) or meter_id, and only one")
        if session is not None and session_id is not None:
            raise ValueError("session_id goes with meter_id; a given session has its own")
        if meter_id is None:
            check_session(session)
        else:
            check_meter(meter_id, DEFAULT_VERSION)
        self._named = session_id is not None
        check_session_id(session_id)
        check_text("mediation_conn_id", mediation_conn_id)
        check_instant("query_from", query_from)
        check_instant("query_to", query_to)

    def execute(self, context: Context) -> dict[str, Any]:
        """Carry the task out, and report the calls that it took."""
        try:
            return self._carry_out(context)
        finally:
            self._feed_caller().report_calls()

    def _carry_out(self, context: Context) -> dict[str, Any]:
        raise NotImplementedError

    def _feed_caller(self) -> FeedCaller:
        from airflow_mediation_provider.watch.feed_caller import FeedCaller

        return FeedCaller(self._hook(), seconds=_REPORT_SECONDS)

    def _hook(self, **options: Any) -> MediationHook:
        from airflow_mediation_provider.hooks.mediation import MediationHook

        return MediationHook(self.mediation_conn_id, **options)

    def _subject(self, context: Context) -> dict[str, Any]:
        """Return meter, session, run type and span, rendered and checked."""
        from airflow_mediation_provider.exceptions import MediationMisconfigured

        try:
            now = datetime.now(UTC)
            query_from, query_to = instant("query_from", self.query_from), instant("query_to", self.query_to)
            if self.meter_id is None:
                session = session_of(self.session)
                meter_id, session_id = str(session["meter_id"]), session.get("session_id")
                run_type = run_type_of(session.get("run_type") or RunType.NORMAL)
                begun = instant("session", session.get("started_at") or session.get("observed_at"))
                ended = instant("session", session.get("ended_at"))
            else:
                check_meter(self.meter_id, DEFAULT_VERSION)
                meter_id, run_type = str(self.meter_id), self.run_type
                session_id = session_id_of(self.session_id, given=self._named)
                begun = context.get("data_interval_start") or context["dag_run"].run_after
                ended = None
            span = span_of_session(begun, ended, now=now) if session_id else (begun or now, ended or now)
            query_from, query_to = query_from or span[0], query_to or span[1]
            if query_to <= query_from:
                raise ValueError(
                    f"query_to ({query_to.isoformat()}) must be after query_from ({query_from.isoformat()})"
                )
        except ValueError as error:
            raise MediationMisconfigured(str(error)) from error
        return {
            "meter_id": meter_id,
            "session_id": session_id,
            "run_type": run_type,
            "query_from": query_from,
            "query_to": query_to,
        }


class MeterSummaryOperator(_AuditOperator):
    """Count what a session put out and what it could not process; optionally fetch its first error records.

    A COMPLETED session may hold errors all the same: branch on ``error_count``.

    :param session: the session as JSON, the output of a ``RunMeterOperator`` or ``MeterSessionSensor``. Templated
    :param meter_id: instead of ``session``: the meter. Templated
    :param session_id: with ``meter_id``: the session, by its id or as ``run.output``; every session of the span unless
        given. Templated
    :param run_type: with ``meter_id``: ``NORMAL`` or ``DEBUG``
    :param query_from: start of the span, with a zone; the session's start unless given. Templated
    :param query_to: end of the span, with a zone; the session's end unless given. Templated
    :param group_by: dimensions of ``groups``: ``sessionId``, ``processorId``, ``errorCode``
    :param error_records: how many error records to return, at most 1000
    :param include_payload: return the records' payload as well. It is your customers' usage, and XComs are kept in
        Airflow's database: off by default
    :param mediation_conn_id: connection of type ``mediation``
    :return: ``{"meter_id", "session_id", "run_type", "query_from", "query_to", "output_count", "error_count", "groups",
        "errors"}``
    :raises ValueError: when the DAG is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/meters/retrievemetersummarydata
    """

    ui_color = "#e8efe0"

    def __init__(
        self,
        *,
        group_by: Sequence[str] = ("sessionId",),
        error_records: int = 0,
        include_payload: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.group_by = group_by
        self.error_records = error_records
        self.include_payload = include_payload
        check_flags(include_payload=include_payload)
        if not isinstance(group_by, list | tuple) or not all(isinstance(item, str) and item for item in group_by):
            raise ValueError(f"group_by must be a list of dimensions such as 'sessionId', not {group_by!r}")
        if (
            isinstance(error_records, bool)
            or not isinstance(error_records, int)
            or not 0 <= error_records <= _MOST_ERRORS
        ):
            raise ValueError(f"error_records must be a number from 0 to {_MOST_ERRORS}, not {error_records!r}")

    def _carry_out(self, context: Context) -> dict[str, Any]:
        """Ask for the summary, and for the error records where asked to."""
        subject = self._subject(context)
        hook = self._hook()
        session_id = subject["session_id"]
        span = {key: subject[key] for key in ("run_type", "query_from", "query_to")}
        summary = _fetched(
            lambda: hook.meter_summary(
                subject["meter_id"],
                session_ids=[session_id] if session_id else [],
                group_by=list(self.group_by),
                **span,
            )
        )
        groups = counts_of(summary)
        errors: list[dict[str, Any]] = []
        if self.error_records:
            entries = hook.audit_trail_entries(
                subject["meter_id"],
                export_type="ERROR",
                session_id=session_id,
                page_size=min(self.error_records, 500),
                **span,
            )
            errors = _fetched(lambda: list(islice(entries, self.error_records)))
            if not self.include_payload:
                errors = [{key: value for key, value in entry.items() if key != "payload"} for entry in errors]
        output, failed = sum(group["output"] for group in groups), sum(group["errors"] for group in groups)
        self.log.info(
            "Meter %s, session %s: %d records out, %d errors.",
            subject["meter_id"],
            session_id or "(all)",
            output,
            failed,
        )
        return {
            **{key: value.isoformat() if isinstance(value, datetime) else value for key, value in subject.items()},
            "run_type": str(subject["run_type"]),
            "output_count": output,
            "error_count": failed,
            "groups": groups,
            "errors": errors,
        }


class AuditTrailExportOperator(_AuditOperator):
    """Export audit-trail records to files, and return the files' keys.

    Zuora works on one export of a tenant at a time. On Airflow 3.3 a retry goes on with the job of an earlier
    try.

    :param session: the session as JSON, the output of a ``RunMeterOperator`` or ``MeterSessionSensor``. Templated
    :param meter_id: instead of ``session``: the meter. Templated
    :param session_id: with ``meter_id``: the session, by its id or as ``run.output``; every session of the span unless
        given. Templated
    :param run_type: with ``meter_id``: ``NORMAL`` or ``DEBUG``
    :param query_from: start of the span, with a zone; the session's start unless given. Templated
    :param query_to: end of the span, with a zone; the session's end unless given. Templated
    :param export_type: ``ERROR``, or ``SAMPLE`` for records that passed
    :param run_statuses: only sessions that ended in one of these
    :param file_format: ``csv``, ``parquet`` or ``avro``
    :param compression: ``none``, ``gzip``, ``lz4`` or ``zstd``
    :param download_urls: return addresses as well. They are secrets, good for about an hour, and an XCom is not hidden
        from those who may read the DAG: off by default; ``MediationHook.export_download_url`` makes one from a file key
    :param wait_for_completion: ``False``: return as soon as the job exists
    :param poke_interval: seconds between two looks at the job
    :param timeout: seconds to wait for the job
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails, to be retried
    :param mediation_conn_id: connection of type ``mediation``
    :return: ``{"request_id", "status", "count", "files", "urls"}``
    :raises ValueError: when the DAG is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/audit-trail/createaudittrailexportjob
    """

    ui_color = "#e8efe0"

    def __init__(
        self,
        *,
        export_type: str = "ERROR",
        run_statuses: Sequence[str] | str = (),
        file_format: str = "csv",
        compression: str = "none",
        download_urls: bool = False,
        wait_for_completion: bool = True,
        poke_interval: timedelta | float = 30,
        timeout: timedelta | float = timedelta(hours=2),
        max_unreachable: timedelta | float = timedelta(hours=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.export_type = one_of("export_type", export_type, EXPORT_TYPES)
        check_flags(download_urls=download_urls, wait_for_completion=wait_for_completion)
        named = status_names("run_statuses", run_statuses) or ()
        self.run_statuses = [one_of("run_statuses", status, tuple(map(str, SessionStatus))) for status in named]
        self.file_format = one_of("file_format", file_format, EXPORT_FORMATS)
        self.compression = one_of("compression", compression, EXPORT_COMPRESSIONS)
        self.download_urls = download_urls
        self.wait_for_completion = wait_for_completion
        self.poke_interval = seconds("poke_interval", poke_interval, least=0.1)
        self.timeout = seconds("timeout", timeout, least=1)
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        if download_urls and not wait_for_completion:
            raise ValueError(
                "download_urls needs wait_for_completion=True: there are no files before the job is finished"
            )

    def _carry_out(self, context: Context) -> dict[str, Any]:
        """Create the job, or find that of an earlier try, and wait for its files."""
        subject = self._subject(context)
        request_id = self._job_of_earlier_try(context) or self._create(context, subject)
        if not self.wait_for_completion:
            return {"request_id": request_id, "status": None, "count": None, "files": [], "urls": []}
        job = self._wait(subject["meter_id"], request_id)
        files = [str(name) for name in job.get("fileList") or []]
        self.log.info("Export %s is finished: %s records in %d files.", request_id, job.get("count"), len(files))
        hook = self._hook()
        urls = [_fetched(partial(hook.export_download_url, name)) for name in files] if self.download_urls else []
        return {
            "request_id": request_id,
            "status": str(job.get("status")),
            "count": job.get("count"),
            "files": files,
            "urls": urls,
        }

    def _create(self, context: Context, subject: dict[str, Any]) -> str:
        hook = self._hook()
        request_id = _fetched(
            lambda: hook.create_export_job(
                subject["meter_id"],
                export_type=self.export_type,
                run_type=subject["run_type"],
                query_from=subject["query_from"],
                query_to=subject["query_to"],
                session_ids=[subject["session_id"]] if subject["session_id"] else [],
                run_statuses=self.run_statuses,
                file_format=self.file_format,
                compression=self.compression,
            )
        )
        self.log.info("Export %s of meter %s is created.", request_id, subject["meter_id"])
        store = context.get("task_state_store")
        if store is not None:
            store.set(_STATE_KEY, {"request_id": request_id, "max_tries": context["ti"].max_tries})
        return request_id

    def _job_of_earlier_try(self, context: Context) -> str | None:
        """Return the job that an earlier try created; none after Clear, which changes ``max_tries``."""
        store = context.get("task_state_store")
        kept = store.get(_STATE_KEY) if store is not None else None
        if not isinstance(kept, dict) or kept.get("max_tries") != context["ti"].max_tries:
            return None
        self.log.info("Going on with export %s of an earlier try.", kept["request_id"])
        return str(kept["request_id"])

    def _wait(self, meter_id: str, request_id: str) -> dict[str, Any]:
        from airflow_mediation_provider.exceptions import MediationUnreachable, MeterSessionTimeout

        hook, said = self._hook(attempts=1), None
        until = datetime.now(UTC) + timedelta(seconds=self.timeout)
        answered_at = datetime.now(UTC)
        while True:
            pause = self.poke_interval
            try:
                jobs = _fetched(
                    lambda: hook.list_export_jobs(meter_id, export_type=self.export_type, request_id=request_id)
                )
            except TransientError as error:
                if (datetime.now(UTC) - answered_at).total_seconds() >= self.max_unreachable:
                    raise MediationUnreachable(f"Export {request_id} could not be asked for: {error}") from error
                pause = max(pause, error.retry_after or 0.0)
            else:
                answered_at = datetime.now(UTC)
                # Older tenants do not know the filter by request id.
                job = next((job for job in jobs if str(job.get("requestId")) == request_id), {})
                status = str(job.get("status") or "unknown").upper()
                if status in ("FINISHED", "COMPLETED"):
                    return job
                if any(word in status for word in ("FAIL", "ERROR", "CANCEL")):
                    raise MediationError(f"Export {request_id} of meter {meter_id} ended as {status}.")
                if status != said:
                    self.log.info("Export %s is %s.", request_id, status)
                    said = status
            if datetime.now(UTC) >= until:
                raise MeterSessionTimeout(
                    f"Export {request_id} was still {said or 'unknown'} after {self.timeout:g} s."
                )
            time.sleep(pause)


def _fetched(ask: Callable[[], T]) -> T:
    """Return what a call gives; a misconfiguration ends the task at once, without a retry.

    :raises MediationMisconfigured: credentials, permission, host or meter
    """
    from airflow_mediation_provider.exceptions import MediationMisconfigured

    try:
        return ask()
    except MisconfigurationError as error:
        raise MediationMisconfigured(str(error)) from error
