"""Results of a session: its counts, its first error records, and exports of its audit trail."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn, Unpack

from airflow.sdk import BaseOperator, conf
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout

from airflow_mediation_provider.feed.reports import report_note
from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.protocol.status import RunType, SessionStatus, run_type_of
from airflow_mediation_provider.protocol.times import from_json, in_words
from airflow_mediation_provider.protocol.waits.export_wait import ExportResult, ExportWait
from airflow_mediation_provider.protocol.waits.wait_result import WaitEnd
from airflow_mediation_provider.protocol.zuora.audit import (
    EXPORT_COMPRESSIONS,
    EXPORT_FORMATS,
    EXPORT_TYPES,
    SUMMARY_GROUPS,
    counts_of,
    span_of_session,
)
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.requests import one_of
from airflow_mediation_provider.tasks.arguments import (
    SessionArguments,
    check_flags,
    check_instant,
    check_order,
    has_template,
    instant,
    seconds,
    status_names,
)
from airflow_mediation_provider.tasks.state import TaskState, Tries, deadline_of_try, utcnow, was_cleared
from airflow_mediation_provider.worker.waiting import BACKSTOP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.feed.worker import WorkerFeedClient
    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.tasks.arguments import Id, Instant, OperatorArguments, Session, Statuses

__all__ = ["AuditTrailExportOperator", "MeterSummaryOperator"]


_MOST_ERRORS: Final = 1000
_STATE_KEY: Final = "mediation_export"
_REPORT_SECONDS: Final = 2.0


class _AuditOperator(SessionArguments, BaseOperator):
    """The common part of the operators that read about a session: the session, and the span of time.

    The span is the session's own unless given; without a session it is from the data interval's start, else the run's
    ``run_after``, until now.
    """

    _kind: ClassVar[str]
    """The kind of its note, as in ``TaskNote``."""
    operator_extra_links = SESSION_LINKS
    template_fields: Sequence[str] = (
        "session",
        "meter_id",
        "session_id",
        "run_type",
        "query_from",
        "query_to",
        "mediation_conn_id",
    )

    def __init__(
        self,
        *,
        session: Session | None,
        meter_id: Id | None,
        session_id: Id | None,
        run_type: RunType | str | None,
        query_from: Instant | None,
        query_to: Instant | None,
        mediation_conn_id: str | None,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.take_given(
            session=session,
            session_id=session_id,
            meter_id=meter_id,
            run_type=run_type,
            mediation_conn_id=mediation_conn_id,
        )
        if not has_template(self.run_type):
            run_type_of(self.run_type)  # a question to Zuora is about one
        self.query_from = query_from
        self.query_to = query_to
        check_instant("query_from", query_from)
        check_instant("query_to", query_to)
        check_order(query_from=query_from, query_to=query_to)

    def execute(self, context: Context) -> dict[str, Any]:
        """Carry the task out, and report its result and its calls."""
        return self._reported(context, self._carry_out)

    def _reported(
        self, context: Context, work: Callable[[Context, dict[str, Any]], tuple[dict[str, Any], str]]
    ) -> dict[str, Any]:
        """Return the result of the work, and report it and the calls; a deferral has no result yet."""
        from airflow_mediation_provider.exceptions import fail_permanently

        try:
            with fail_permanently():
                subject = self._subject(context)
        except MediationError:
            # Airflow reads the links of each task, and would log an error.
            push_session_links(context, self._hook(), str(self.meter_id), None)
            raise
        push_session_links(context, self._hook(), subject["meter_id"], subject["session_id"])
        message = ""
        try:
            with fail_permanently():
                result, message = work(context, subject)
            return result
        except MediationError as error:
            message = str(error)
            raise
        finally:
            caller = self._feed_caller()
            if message:
                self._report_note(context, subject, message, caller)
            caller.report_calls()

    def _report_note(self, context: Context, subject: dict[str, Any], message: str, caller: WorkerFeedClient) -> None:
        report_note(caller, self.mediation_conn_id, context["ti"], self._kind, subject, message)

    def _carry_out(self, context: Context, subject: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the task's result, and a sentence for its note."""
        raise NotImplementedError

    def _feed_caller(self) -> WorkerFeedClient:
        from airflow_mediation_provider.feed.worker import WorkerFeedClient

        return WorkerFeedClient(self._hook(), seconds=_REPORT_SECONDS)

    def _hook(self, **options: Any) -> MediationHook:
        from airflow_mediation_provider.hooks.mediation import MediationHook

        return MediationHook(self.mediation_conn_id, **options)

    def _subject(self, context: Context) -> dict[str, Any]:
        """Return meter, session, run type and span, rendered and checked.

        :raises ValueError: an argument is wrong
        """
        now = datetime.now(UTC)
        query_from, query_to = instant("query_from", self.query_from), instant("query_to", self.query_to)
        subject = self.take_arguments()
        begun, ended = subject.begun_at, from_json(subject.session.get("ended_at"))
        if not subject.session:
            begun = context.get("data_interval_start") or context["dag_run"].run_after
        span = span_of_session(begun, ended, now=now) if subject.session_id else (begun or now, ended or now)
        query_from, query_to = query_from or span[0], query_to or span[1]
        check_order(query_from=query_from, query_to=query_to)
        return {
            "meter_id": subject.meter_id,
            "session_id": subject.session_id,
            "run_type": run_type_of(self.run_type),
            "query_from": query_from,
            "query_to": query_to,
        }


class MeterSummaryOperator(_AuditOperator):
    """Count the output and errors of a session; optionally fetch its first error records.

    A COMPLETED session may have errors too: check ``error_count``. ::

        MeterSummaryOperator(task_id="count", session=run.output, group_by=["errorCode"], error_records=5)

    :param session: the session as an object, or as its JSON: ``run.output``. It contains its meter, run type and
        connection: if one of them is given as well and differs, the task fails at once. Templated
    :param meter_id: without ``session``: the meter. Templated
    :param session_id: with ``meter_id``: the session by its id alone; every session of the span unless given. Templated
    :param run_type: ``NORMAL`` or ``DEBUG``; the session's, else ``NORMAL``. Templated
    :param query_from: start of the span, with a zone; unless given, the start of the session, or without a session that
        of the data interval. Templated
    :param query_to: end of the span, with a zone; unless given, the end of the session, or now. Templated
    :param group_by: dimensions of ``groups``: ``sessionId``, ``processorId``, ``errorCode``
    :param error_records: how many error records to return, at most 1000
    :param include_payload: return the records' payload as well. It is your customers' usage, and XComs are stored in
        Airflow's database: off by default
    :param mediation_conn_id: connection of type ``mediation``; the session's, else ``mediation_default``. Templated
    :return: ``{"meter_id", "session_id", "run_type", "query_from", "query_to", "output_count", "error_count", "groups",
        "errors"}``
    :raises ValueError: when the Dag is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/meters/retrievemetersummarydata
    """

    ui_color = "#e8efe0"
    _kind = "summary"

    def __init__(
        self,
        *,
        session: Session | None = None,
        meter_id: Id | None = None,
        session_id: Id | None = None,
        run_type: RunType | str | None = None,
        query_from: Instant | None = None,
        query_to: Instant | None = None,
        group_by: Sequence[str] = ("sessionId",),
        error_records: int = 0,
        include_payload: bool = False,
        mediation_conn_id: str | None = None,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(
            session=session,
            meter_id=meter_id,
            session_id=session_id,
            run_type=run_type,
            query_from=query_from,
            query_to=query_to,
            mediation_conn_id=mediation_conn_id,
            **kwargs,
        )
        self.group_by = group_by
        self.error_records = error_records
        self.include_payload = include_payload
        check_flags(include_payload=include_payload)
        if not isinstance(group_by, list | tuple) or not set(map(str, group_by)) <= set(SUMMARY_GROUPS):
            raise ValueError(f"group_by must be a list of {', '.join(SUMMARY_GROUPS)}, not {group_by!r}")
        if (
            isinstance(error_records, bool)
            or not isinstance(error_records, int)
            or not 0 <= error_records <= _MOST_ERRORS
        ):
            raise ValueError(f"error_records must be a number from 0 to {_MOST_ERRORS}, not {error_records!r}")

    def _carry_out(self, context: Context, subject: dict[str, Any]) -> tuple[dict[str, Any], str]:  # noqa: ARG002
        """Request the summary, and the error records if they are wanted."""
        hook = self._hook()
        session_id = subject["session_id"]
        span = {key: subject[key] for key in ("run_type", "query_from", "query_to")}
        summary = hook.meter_summary(
            subject["meter_id"],
            session_ids=[session_id] if session_id else [],
            group_by=list(self.group_by),
            **span,
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
            errors = list(islice(entries, self.error_records))
            if not self.include_payload:
                errors = [{key: value for key, value in entry.items() if key != "payload"} for entry in errors]
        output, failed = sum(group["output"] for group in groups), sum(group["errors"] for group in groups)
        counted = f"{output} records out, {failed} errors."
        self.log.info("Meter %s, session %s: %s", subject["meter_id"], session_id or "(all)", counted)
        summed = {
            **{key: value.isoformat() if isinstance(value, datetime) else value for key, value in subject.items()},
            "run_type": str(subject["run_type"]),
            "output_count": output,
            "error_count": failed,
            "groups": groups,
            "errors": errors,
        }
        return summed, counted


class AuditTrailExportOperator(_AuditOperator):
    """Export audit-trail records to files, and return the files' keys.

    Zuora processes one export of a tenant at a time, so the wait may be long: in the triggerer it takes no worker. ::

        AuditTrailExportOperator(task_id="export", session=run.output, deferrable=True, timeout=timedelta(hours=6))

    There is one job at Zuora for all tries, and triggerers, until the task is cleared or the job fails:

    ===================================  ===================================================
    what happened                        the task
    ===================================  ===================================================
    the job is finished                  succeeds
    the job failed                       fails, and is retried with a new job
    ``timeout`` passed                   fails, no retry; the job goes on
    no good answer for a long time       fails, is retried, and then waits for the same job
    wrong connection, meter, permission  fails, no retry
    trigger, triggerer or worker died    polls and waits for the same job
    ===================================  ===================================================

    Only a call that creates the job and gets no answer, or whose worker dies, may leave a job that no try finds.

    Airflow 3.2 keeps nothing of a task between its processes: there a retry creates another job, and so the task fails
    where its trigger crashed or no triggerer ran until ``timeout``. A triggerer that dies loses no job there either.

    :param session: the session as an object, or as its JSON: ``run.output``. It contains its meter, run type and
        connection: if one of them is given as well and differs, the task fails at once. Templated
    :param meter_id: without ``session``: the meter. Templated
    :param session_id: with ``meter_id``: the session by its id alone; every session of the span unless given. Templated
    :param run_type: ``NORMAL`` or ``DEBUG``; the session's, else ``NORMAL``. Templated
    :param query_from: start of the span, with a zone; unless given, the start of the session, or without a session that
        of the data interval. Templated
    :param query_to: end of the span, with a zone; unless given, the end of the session, or now. Templated
    :param export_type: ``ERROR``, or ``SAMPLE`` for records that passed
    :param run_statuses: only sessions that ended in one of these
    :param file_format: ``csv``, ``parquet`` or ``avro``
    :param compression: ``none``, ``gzip``, ``lz4`` or ``zstd``
    :param download_urls: return URLs as well. They are secrets, valid for about an hour, and an XCom is not hidden from
        users who may read the Dag: off by default; ``MediationHook.export_download_url`` makes one from a file key
    :param wait_for_completion: ``False``: return as soon as the job exists
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param poke_interval: seconds between two polls of the job; longer where Zuora asks for it
    :param timeout: seconds from the first start of a try, across deferrals
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails, to be retried
    :param mediation_conn_id: connection of type ``mediation``; the session's, else ``mediation_default``. Templated
    :return: ``{"request_id", "status", "count", "files", "urls"}``
    :raises ValueError: when the Dag is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/audit-trail/createaudittrailexportjob
    """

    ui_color = "#e8efe0"
    _kind = "export"

    def __init__(
        self,
        *,
        session: Session | None = None,
        meter_id: Id | None = None,
        session_id: Id | None = None,
        run_type: RunType | str | None = None,
        query_from: Instant | None = None,
        query_to: Instant | None = None,
        export_type: Literal["ERROR", "SAMPLE"] = "ERROR",
        run_statuses: Statuses = (),
        file_format: Literal["csv", "parquet", "avro"] = "csv",
        compression: Literal["none", "gzip", "lz4", "zstd"] = "none",
        download_urls: bool = False,
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 30,
        timeout: timedelta | float = timedelta(hours=2),
        max_unreachable: timedelta | float = timedelta(hours=1),
        mediation_conn_id: str | None = None,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(
            session=session,
            meter_id=meter_id,
            session_id=session_id,
            run_type=run_type,
            query_from=query_from,
            query_to=query_to,
            mediation_conn_id=mediation_conn_id,
            **kwargs,
        )
        self.export_type = one_of("export_type", export_type, EXPORT_TYPES)
        check_flags(download_urls=download_urls, wait_for_completion=wait_for_completion, deferrable=deferrable)
        named = status_names("run_statuses", run_statuses) or ()
        self.run_statuses = [one_of("run_statuses", status, tuple(map(str, SessionStatus))) for status in named]
        self.file_format = one_of("file_format", file_format, EXPORT_FORMATS)
        self.compression = one_of("compression", compression, EXPORT_COMPRESSIONS)
        self.download_urls = download_urls
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poke_interval = seconds("poke_interval", poke_interval, least=0.1)
        self.timeout = seconds("timeout", timeout, least=1)
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        if download_urls and not wait_for_completion:
            raise ValueError(
                "download_urls needs wait_for_completion=True: there are no files before the job is finished"
            )

    def _carry_out(self, context: Context, subject: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Create the job, or find the job of an earlier try, and wait for its files."""
        request_id = self._job_of_earlier_try(context) or self._create(context, subject)
        if not self.wait_for_completion:
            self._keep(context, request_id, over=True)
            started: dict[str, Any] = {"request_id": request_id, "status": None, "count": None, "files": [], "urls": []}
            return started, f"Export {request_id} was started."
        return self._finish(context, self._wait(context, subject, request_id))

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Continue with the trigger's event."""
        try:
            result = ExportResult.from_dict(event)
        except (AttributeError, KeyError, TypeError, ValueError):
            return self._wait_here(context, "its event contains no result")
        return self._reported(context, lambda context, _: self._finish(context, result))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after a deferral, also where the trigger crashed or stayed silent."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralError, TaskDeferralTimeout) as error:
            return self._wait_here(context, str(error))

    def _wait_here(self, context: Context, reason: str) -> dict[str, Any]:
        """Wait for the kept job on this worker, for the rest of this try.

        :param reason: why the trigger gave no result
        :raises MediationError: this Airflow has kept no job, and a second one must not be created
        """
        if "request_id" not in self._state(context).get():
            raise MediationError(
                f"The trigger of the export gave no result ({reason}), and Airflow has not kept the id of the export"
                " (before 3.3 it keeps none): find its files in Zuora's Download Center, or retry the task, which"
                " starts a new export."
            )
        self.log.warning("The trigger gave no result (%s): continuing to poll on this worker.", reason)
        self.deferrable = False
        return self.execute(context)

    def _finish(self, context: Context, result: ExportResult) -> tuple[dict[str, Any], str]:
        """Return the task's result, or end the task."""
        from airflow_mediation_provider import exceptions

        if result.end is WaitEnd.FAILED:
            # The next try needs a new job.
            self._state(context).set({}, required=False)
        if result.end is not WaitEnd.MET:
            raise {
                WaitEnd.FAILED: exceptions.AuditExportFailed,
                WaitEnd.TIMED_OUT: exceptions.AuditExportTimeout,
                WaitEnd.UNREACHABLE: exceptions.MediationUnreachable,
                WaitEnd.MISCONFIGURED: exceptions.MediationMisconfigured,
            }[result.end](result.message)
        self.log.info(result.message)
        files, hook = list(result.files), self._hook()
        # Made here, not in the trigger: they are secrets, and Airflow stores and logs an event.
        urls = [hook.export_download_url(name) for name in files] if self.download_urls else []
        self._keep(context, result.request_id, over=True)
        exported = {
            "request_id": result.request_id,
            "status": result.status,
            "count": result.count,
            "files": files,
            "urls": urls,
        }
        return exported, result.message

    def _create(self, context: Context, subject: dict[str, Any]) -> str:
        hook = self._hook(patience=self.timeout)
        request_id = hook.create_export_job(
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
        self.log.info("Export %s of meter %s was created.", request_id, subject["meter_id"])
        self._keep(context, request_id, over=False)
        return request_id

    def _keep(self, context: Context, request_id: str, *, over: bool) -> None:
        """Keep the job for the next try.

        :param over: the task has its result
        """
        tries = Tries.of(context["ti"], self.retries)
        record = {"request_id": request_id, "max_tries": tries.max_tries, "retries": tries.retries, "over": over}
        self._state(context).set(record, required=False)

    def _state(self, context: Context) -> TaskState:
        return TaskState.of(context, _STATE_KEY, longest=self.timeout + self.max_unreachable)

    def _job_of_earlier_try(self, context: Context) -> str | None:
        """Return the job of an earlier try; none after a Clear, and none that failed."""
        kept, now = self._state(context).get(), Tries.of(context["ti"], self.retries)
        if "request_id" not in kept or was_cleared(Tries.kept(kept), now, over=kept.get("over") is True):
            return None
        self.log.info("Continuing with export %s of an earlier try.", kept["request_id"])
        return str(kept["request_id"])

    def _wait(self, context: Context, subject: dict[str, Any], request_id: str) -> ExportResult:
        """Poll the job once, then wait for it here or in the triggerer.

        :raises TaskDeferred: when deferrable; the result then comes as the event
        """
        until = deadline_of_try(context, self.timeout)
        wait = ExportWait(
            meter_id=subject["meter_id"],
            export_type=self.export_type,
            request_id=request_id,
            until=until,
            poll_interval=self.poke_interval,
            max_unreachable=self.max_unreachable,
            poll_at=utcnow(),
        )
        hook = self._hook(attempts=1)
        while not isinstance(step := wait.step(utcnow()), ExportResult):
            if step <= 0:
                self._poll(hook, wait)
            elif self.deferrable:
                message = f"Export {request_id} is under way; the task waits for it until {in_words(until)}."
                self._report_note(context, subject, message, self._feed_caller())
                self._defer_wait(wait, until)
            else:
                time.sleep(step)
        return step

    def _poll(self, hook: MediationHook, wait: ExportWait) -> None:
        try:
            jobs = hook.list_export_jobs(wait.meter_id, export_type=wait.export_type, request_id=wait.request_id)
        except MediationError as error:
            lines = wait.fault(error, utcnow())
        else:
            lines = wait.answer(jobs, utcnow())
        for line in lines:
            self.log.info(line)

    def _defer_wait(self, wait: ExportWait, until: datetime) -> NoReturn:
        from airflow_mediation_provider.triggers.audit import AuditTrailExportTrigger

        self.defer(
            trigger=AuditTrailExportTrigger(mediation_conn_id=self.mediation_conn_id, wait=wait.to_dict()),
            method_name="execute_complete",
            timeout=max(until - utcnow(), timedelta()) + BACKSTOP,
        )
