"""Zuora's callout history on a schedule: repair the journal by it, or read it from where the last read ended."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Unpack

from airflow.sdk import BaseOperator

from airflow_mediation_provider.protocol.ids import event_category_of
from airflow_mediation_provider.protocol.maintenance import FURTHEST
from airflow_mediation_provider.protocol.zuora.errors import MediationError, TransientError
from airflow_mediation_provider.tasks.arguments import (
    LONGEST,
    StandsForValue,
    check_connection,
    check_flags,
    check_instant,
    check_order,
    instant,
    is_template,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.maintenance import HistoryRequest, ReconcileReply, ReconcileRequest
    from airflow_mediation_provider.tasks.arguments import OperatorArguments
    from airflow_mediation_provider.tasks.maintenance import HistoryReader

__all__ = ["ReadCalloutHistoryOperator", "ReconcileCalloutsOperator"]

# Time limit of one request to the API server, and the pauses before the request is repeated to a busy one.
_CALL_SECONDS: Final = 60.0
_PAUSES: Final = (2.0, 5.0, 15.0)


class ReconcileCalloutsOperator(StandsForValue, BaseOperator):
    """Read Zuora's callout history, add what the journal lacks, and check sessions that never end.

    It takes one REST call for each 40 callouts of the tenant in the span and an hour around it; 15 hours where the
    connection has no ``callout_timezone``. Set that, and the event category of the notification, to save calls. A
    retry, or a span that was read before, repairs nothing twice.

    The changes that it adds start Dags as a callout does. A session that seems never to end is only reported: the run
    status of its meter contains no session id, so it does not prove how the session ended. ::

        ReconcileCalloutsOperator(task_id="repair", lookback=timedelta(hours=6))

    :param since: start of the span, with a zone; ``lookback`` before its end unless given. Templated
    :param until: end of the span, with a zone; now unless given. Templated
    :param lookback: the length of a span without ``since``
    :param event_category: read only callouts of this event, ``{namespace}:{event type}``, or the number of a
        standard event; the task's log shows that of your status changes. The connection's ``callout_event_category``
        unless given. Templated
    :param open_for: check sessions that have not ended and had no update for this long; ``None``: none
    :param dry_run: only report what is missing
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :return: ``{"dry_run", "records", "told", "unreadable", "categories", "repaired": [session, ...], "stuck": [...]}``:
        how many records were read, how many status changes they contain, how many lack one, the event categories with
        their counts, the changes that were added, and the sessions without an end, each with its ``meter_status``
    :raises ValueError: when the Dag is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
    """

    template_fields: Sequence[str] = ("since", "until", "event_category", "mediation_conn_id")
    ui_color = "#dfe7f2"

    def __init__(
        self,
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        lookback: timedelta | float = timedelta(days=1),
        event_category: str | int | None = None,
        open_for: timedelta | float | None = timedelta(hours=6),
        dry_run: bool = False,
        mediation_conn_id: str = "mediation_default",
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.until = until
        self.lookback = seconds("lookback", lookback, least=1, most=LONGEST if dry_run is True else FURTHEST)
        self.event_category = event_category
        self.open_for = None if open_for is None else seconds("open_for", open_for, least=1)
        self.report_only = dry_run
        self.mediation_conn_id = mediation_conn_id
        check_instant("since", since)
        check_instant("until", until)
        check_order(since=since, until=until)
        check_flags(dry_run=dry_run)
        check_connection(mediation_conn_id)
        if not is_template(event_category):
            event_category_of("event_category", event_category)

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  # Airflow's signature
        """Carry out one pass."""
        from airflow_mediation_provider.exceptions import fail_permanently
        from airflow_mediation_provider.hooks.mediation import MediationHook
        from airflow_mediation_provider.tasks.maintenance import Task, reconcile

        with fail_permanently():
            until = instant("until", self.until) or datetime.now(UTC)
            task = Task(
                since=instant("since", self.since) or until - timedelta(seconds=self.lookback),
                until=until,
                event_category=event_category_of("event_category", self.event_category or None),
                open_for=None if self.open_for is None else timedelta(seconds=self.open_for),
                dry_run=self.report_only,
            )
            check_order(since=task.since, until=task.until)
            with MediationHook(self.mediation_conn_id) as hook:
                api_server = _ApiServer(hook)
                try:
                    found = reconcile(hook, hook.settings.callouts, api_server, task, self.log.info)
                finally:
                    api_server.close()
        return found.to_dict()


class ReadCalloutHistoryOperator(StandsForValue, BaseOperator):
    """Read Zuora's callout history from where the last read ended; for sensors, where Zuora cannot reach Airflow.

    Schedule it every ``interval``. All such tasks of a connection, and ``on_meter_session(callout_history=...)``, share
    one history cursor: what one of them has just read is not read again. What it stores starts Dags, and ends waits, as
    a callout does. It takes one REST call, and one more for each 40 further callouts of the last 75 minutes: set the
    connection's ``callout_event_category`` if your tenant sends many others.

    .. code-block:: python

        with DAG("callout_history", schedule=timedelta(minutes=5), catchup=False, max_active_runs=1):
            ReadCalloutHistoryOperator(task_id="read", interval=timedelta(minutes=5))

    :param interval: the time between two of its runs: sensors receive a change that much later, and the health line is
        red when no run has read the history for longer
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :return: ``{"read", "added": [session, ...]}``; ``read`` is ``False`` if another reader has just read the history
    :raises ValueError: when the Dag is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
    """

    template_fields: Sequence[str] = ("mediation_conn_id",)
    ui_color = "#dfe7f2"

    def __init__(
        self,
        *,
        interval: timedelta | float = timedelta(minutes=5),
        mediation_conn_id: str = "mediation_default",
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.interval = seconds("interval", interval, least=1)
        self.mediation_conn_id = mediation_conn_id
        check_connection(mediation_conn_id)

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  # Airflow's signature
        """Take one turn."""
        from airflow_mediation_provider.exceptions import fail_permanently
        from airflow_mediation_provider.hooks.mediation import MediationHook
        from airflow_mediation_provider.tasks.maintenance import HistoryReader
        from airflow_mediation_provider.tasks.state import utcnow

        reader = HistoryReader(self.interval, now=utcnow, tell=self.log.info)
        with fail_permanently(), MediationHook(self.mediation_conn_id) as hook:
            api_server = _ApiServer(hook)
            try:
                read = api_server.read(reader)
            finally:
                api_server.close()
        if not read:
            self.log.info("The callout history was read a moment ago, or is being read: nothing is left to do.")
        return {"read": read, "added": [entry.transition.to_dict() for entry in reader.added if entry.transition]}


class _ApiServer:
    """The journal, for a worker."""

    def __init__(self, hook: MediationHook) -> None:
        from airflow_mediation_provider.feed.worker import WorkerFeedClient

        self._hook = hook
        self._caller = WorkerFeedClient(hook, seconds=_CALL_SECONDS)

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        """Send the request to the API server, several times if it is busy.

        :raises TransientError: it gave no good answer
        """
        from airflow_mediation_provider.protocol.maintenance import RECONCILE_PATH, ReconcileReply

        try:
            return ReconcileReply.from_bytes(self._ask(RECONCILE_PATH, request))
        except ValueError as error:
            raise TransientError(f"The journal could not be queried: {error}.") from error

    def read(self, reader: HistoryReader) -> bool:
        """Carry out one turn of a reader, and return whether it was its turn.

        :raises MediationError: Zuora or the API server gave no good answer
        """
        from airflow_mediation_provider.tasks.maintenance import AskJournal

        steps, read = reader.read(self._hook.settings.callouts), False
        try:
            step = next(steps)
            while True:
                if isinstance(step, AskJournal):
                    step = steps.send(self._ask(step.path, step.message))
                    continue
                read = True
                try:
                    page = self._hook.carry_out(step)
                except MediationError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(page)
        except StopIteration:
            return read
        except ValueError as error:
            raise TransientError(f"The journal could not be queried: {error}.") from error

    def _ask(self, path: str, message: HistoryRequest | ReconcileRequest) -> bytes:
        from airflow_mediation_provider.feed.flow import FeedUnavailableError
        from airflow_mediation_provider.feed.worker import forget_address

        body = message.to_bytes()
        for pause in (*_PAUSES, None):
            try:
                return self._caller.call(path, body)
            except FeedUnavailableError as error:
                if pause is None:
                    raise TransientError(f"The journal could not be queried: {error}.") from error
                time.sleep(pause)
                forget_address()
        raise AssertionError  # the last pause is None

    def close(self) -> None:
        """Report the calls of the pass, and close the connections."""
        self._caller.report_calls()
        self._caller.close()
