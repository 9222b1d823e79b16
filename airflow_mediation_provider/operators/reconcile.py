"""Repair the journal on a schedule: what Zuora's callout history has and the journal lacks."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator

from airflow_mediation_provider.operators.arguments import check_flags, check_instant, check_text, instant, seconds
from airflow_mediation_provider.protocol.errors import MisconfigurationError, TransientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.reconcile import ReconcileReply, ReconcileRequest

# One request to the API server may take so long, and a busy one is asked again after so many seconds.
_PATIENCE: Final = 60.0
_PAUSES: Final = (2.0, 5.0, 15.0)


class ReconcileCalloutsOperator(BaseOperator):
    """Read Zuora's callout history, put into the journal what is missing there, and look at sessions that never end.

    It costs one REST call for each 40 callouts of the tenant in the span, and for as many hours around it as the
    tenant's time zone may be off: name that zone in the connection's ``callout_timezone``, and the notification's event
    category here. A retry, or a span that was read before, repairs nothing twice.

    What it puts in starts DAGs as a callout does. A session that seems never to end is only told of: the run status of
    its meter names no session, and so decides nothing.

    :param since: begin of the span, with a zone; ``lookback`` before its end unless given. Templated
    :param until: end of the span, with a zone; now unless given. Templated
    :param lookback: how long a span is without ``since``
    :param event_category: read only callouts of this event, ``{namespace}:{event type}``; the task's log names that of
        your status changes. Templated
    :param open_for: look at sessions that have not ended, and of which nothing came for so long; ``None``: at none
    :param dry_run: only say what is missing
    :param mediation_conn_id: connection of type ``mediation``
    :return: ``{"dry_run", "records", "told", "unreadable", "categories", "repaired": [session, ...], "stuck": [...]}``
    :raises ValueError: when the DAG is parsed: an argument is empty or impossible

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
        event_category: str | None = None,
        open_for: timedelta | float | None = timedelta(hours=6),
        dry_run: bool = False,
        mediation_conn_id: str = "mediation_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.until = until
        self.lookback = seconds("lookback", lookback, least=1)
        self.event_category = event_category
        self.open_for = None if open_for is None else seconds("open_for", open_for, least=1)
        self.only_tell = dry_run
        self.mediation_conn_id = mediation_conn_id
        check_instant("since", since)
        check_instant("until", until)
        check_flags(dry_run=dry_run)
        check_text("mediation_conn_id", mediation_conn_id)
        if event_category is not None:
            check_text("event_category", event_category)

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  # Airflow's signature
        """Carry out one pass."""
        from airflow_mediation_provider.exceptions import MediationMisconfigured
        from airflow_mediation_provider.hooks.mediation import MediationHook
        from airflow_mediation_provider.reconciliation import Task, reconcile

        try:
            until = instant("until", self.until) or datetime.now(UTC)
            task = Task(
                since=instant("since", self.since) or until - timedelta(seconds=self.lookback),
                until=until,
                event_category=self.event_category or None,
                open_for=None if self.open_for is None else timedelta(seconds=self.open_for),
                dry_run=self.only_tell,
            )
            if task.until <= task.since:
                raise ValueError(f"until ({task.until}) must be after since ({task.since})")
            with MediationHook(self.mediation_conn_id) as hook:
                api_server = _ApiServer(hook)
                try:
                    found = reconcile(hook, hook.settings.callouts, api_server, task, self.log.info)
                finally:
                    api_server.close()
        except (ValueError, MisconfigurationError) as error:
            raise MediationMisconfigured(str(error)) from error
        return found.to_dict()


class _ApiServer:
    """The journal, as a worker reaches it."""

    def __init__(self, hook: MediationHook) -> None:
        from airflow_mediation_provider.watch.feed_caller import FeedCaller

        self._caller = FeedCaller(hook, seconds=_PATIENCE)

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        """Ask the API server, several times where it is busy.

        :raises TransientError: it gave no good answer
        """
        from airflow_mediation_provider.protocol.reconcile import RECONCILE_PATH, ReconcileReply
        from airflow_mediation_provider.watch.feed_caller import FeedUnavailableError, forget_address

        body = json.dumps(request.to_dict()).encode()
        for pause in (*_PAUSES, None):
            try:
                return ReconcileReply.from_dict(json.loads(self._caller.call(RECONCILE_PATH, body)))
            except (FeedUnavailableError, ValueError) as error:
                if pause is None:
                    raise TransientError(f"The journal could not be asked: {error}.") from error
                time.sleep(pause)
                forget_address()
        raise AssertionError  # the last pause is none

    def close(self) -> None:
        """Report the calls that the pass took, and close the connections."""
        self._caller.report_calls()
        self._caller.close()
