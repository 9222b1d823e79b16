"""Stop a meter, gracefully or by force, and wait until no run of it is live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Unpack

from airflow.sdk import BaseOperator, conf

from airflow_mediation_provider.protocol.status import ENDS_BY_POLL, RunType, SessionStatus
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import (
    MediationError,
    NotRunningError,
    StopInProgressError,
)
from airflow_mediation_provider.protocol.zuora.requests import DEFAULT_VERSION
from airflow_mediation_provider.tasks.arguments import check_connection, check_flags, check_meter, seconds
from airflow_mediation_provider.worker.run_stop import live_sessions
from airflow_mediation_provider.worker.waiting import SessionWaitMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.tasks.arguments import Id, OperatorArguments

__all__ = ["StopMeterOperator"]

STOPPED: Final = tuple(sorted(ENDS_BY_POLL[RunType.NORMAL] | {SessionStatus.PAUSED}))


class StopMeterOperator(SessionWaitMixin, BaseOperator):
    """Stop every NORMAL run of a meter version; Zuora cannot stop a single session.

    If no run of the meter is live, the task succeeds. A graceful stop of a streaming meter takes a savepoint, ends as
    PAUSED, and can take half an hour; if it cannot be completed, the meter goes back to RUNNING: the task then fails,
    or forces the stop if ``force_after`` is given. ::

        StopMeterOperator(task_id="stop", meter_id="1004", force_after=timedelta(minutes=20), deferrable=True)

    :param meter_id: the meter. Templated
    :param version: the meter's version. Templated
    :param force: stop by force at once, without a savepoint: records in flight can be lost
    :param force_after: seconds after which a graceful stop that did not work is forced; at once when it went back to
        RUNNING
    :param wait_for_stop: ``False``: return as soon as Zuora has accepted the stop
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param poke_interval: seconds between two polls of the status
    :param timeout: seconds after which the task fails
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails, to be retried
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :return: ``{"meter_id", "version", "status", "was_running", "forced"}``
    :raises ValueError: when the Dag is parsed: an argument is empty or impossible

    https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter
    """

    template_fields: Sequence[str] = ("meter_id", "version", "mediation_conn_id")
    ui_color = "#f3dede"

    def __init__(
        self,
        *,
        meter_id: Id,
        version: str = DEFAULT_VERSION,
        force: bool = False,
        force_after: timedelta | float | None = None,
        wait_for_stop: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 30,
        timeout: timedelta | float = timedelta(hours=1),
        max_unreachable: timedelta | float = timedelta(hours=1),
        mediation_conn_id: str = "mediation_default",
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        check_meter(meter_id, version)
        check_connection(mediation_conn_id)
        check_flags(force=force, wait_for_stop=wait_for_stop, deferrable=deferrable)
        self.meter_id = meter_id
        self.version = version
        self.force = force
        self.force_after = None if force_after is None else seconds("force_after", force_after, least=1)
        self.wait_for_stop = wait_for_stop
        self.deferrable = deferrable
        self.poke_interval = seconds("poke_interval", poke_interval, least=0.1)
        self.timeout = seconds("timeout", timeout, least=1)
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        self.mediation_conn_id = mediation_conn_id
        if force and force_after is not None:
            raise ValueError("force and force_after exclude each other: force=True stops by force at once")
        if force_after is not None and not wait_for_stop:
            raise ValueError("force_after needs wait_for_stop=True")
        if self.force_after is not None and self.force_after >= self.timeout:
            raise ValueError(f"force_after must be shorter than timeout ({self.timeout:g} s)")

    def execute(self, context: Context) -> dict[str, Any]:
        """Send the stop, and wait for it."""
        return self._run(context)

    def _run(self, context: Context) -> dict[str, Any]:
        from airflow_mediation_provider.exceptions import fail_permanently

        with fail_permanently():
            self.take_arguments()
            if not self._ask(force=self.force):
                status = self.hook.run_status(str(self.meter_id), self.version)
                self.log.info("No run of meter %s is live: the meter is %s.", self.meter_id, status)
                return self._report(status, was_running=False, forced=False)
            status = self.hook.run_status(str(self.meter_id), self.version)
        if not self.wait_for_stop:
            return self._report(status, was_running=True, forced=self.force)
        return self._wait(context, status, forced=self.force)

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Continue with the trigger's result of a graceful stop."""
        return self._complete(context, event, forced=self.force)

    def force_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Continue with the trigger's result of a forced stop."""
        return self._complete(context, event, forced=True)

    def _complete(self, context: Context, event: Any, *, forced: bool) -> dict[str, Any]:
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event contains no result: polling Zuora.")
            return self._run(context)
        return self._go_on(context, result, forced=forced)

    def _ask(self, *, force: bool) -> bool:
        """Send a stop; return whether a stop is in progress now."""
        kind = "by force" if force else "gracefully"
        live = ", ".join(live_sessions(self._feed_caller(), str(self.meter_id))) or "all its runs"
        try:
            self.hook.stop_meter(str(self.meter_id), self.version, force=force)
        except NotRunningError:
            return False
        except StopInProgressError:
            # Zuora accepts no force while a stop is in progress; the stop in progress ends as well.
            self.log.info("A stop of meter %s is already in progress.", self.meter_id)
        else:
            self.log.info("Zuora accepted the request to stop meter %s %s: %s.", self.meter_id, kind, live)
        return True

    def _wait(self, context: Context, status: str, *, forced: bool) -> dict[str, Any]:
        """Wait for the stop: first for a sign of it, then, after STOPPING, also for a return to RUNNING."""
        if status in STOPPED:
            return self._report(status, was_running=True, forced=forced)
        stopping = status == SessionStatus.STOPPING
        now = datetime.now(UTC)
        condition = SessionCondition(
            meter_id=str(self.meter_id),
            version=self.version,
            statuses=STOPPED if stopping else (*STOPPED, SessionStatus.STOPPING),
            fail_on=(SessionStatus.RUNNING,) if stopping else (),
            since=now,
            until=self._until(context, forced=forced),
        )
        wait = SessionWait(
            condition,
            started_at=None,
            run_status=None,
            baseline=status,
            max_unreachable=timedelta(seconds=self.max_unreachable),
            # The meter was live when the stop was accepted: any other status is new.
            settle=timedelta(),
            created_at=now,
            polls_only=True,
        )
        result = self._await_session(context, wait, "force_complete" if forced else "execute_complete")
        return self._go_on(context, result, forced=forced)

    def _go_on(self, context: Context, result: WaitResult, *, forced: bool) -> dict[str, Any]:
        status = result.session["status"] if result.session else str(result.last_status)
        if result.end is WaitEnd.MET:
            if status == SessionStatus.STOPPING:
                return self._wait(context, status, forced=forced)
            self.log.info("Meter %s has stopped: it is %s.", self.meter_id, status)
            return self._report(status, was_running=True, forced=forced)
        in_time = datetime.now(UTC) < self._until(context, forced=True)
        back = result.end is WaitEnd.FAILED and in_time
        late = result.end is WaitEnd.TIMED_OUT and in_time
        # A stop that Zuora could not force because another one was in progress is forced once that one has ended.
        if (forced and back) or (self.force_after is not None and (back or late)):
            self.log.warning("The stop did not work, forcing it: %s", result.message)
            return self._force(context)
        if result.end is WaitEnd.FAILED:
            raise MediationError(
                f"Meter {self.meter_id} went back to RUNNING: Zuora could not complete the graceful stop. Try again,"
                " or use force_after to stop it without a savepoint."
            )
        self.raise_for(result)
        raise AssertionError(result.end)

    def _force(self, context: Context) -> dict[str, Any]:
        from airflow_mediation_provider.exceptions import fail_permanently

        with fail_permanently():
            forced = self._ask(force=True)
            status = self.hook.run_status(str(self.meter_id), self.version)
        if not forced:
            return self._report(status, was_running=True, forced=False)
        return self._wait(context, status, forced=True)

    def _until(self, context: Context, *, forced: bool) -> datetime:
        """Return the deadline of the wait: the whole timeout, or ``force_after`` if a graceful stop may be forced."""
        whole = self._wait_until(context)
        if forced or self.force_after is None:
            return whole
        return whole - timedelta(seconds=self.timeout - self.force_after)

    def _report(self, status: str, *, was_running: bool, forced: bool) -> dict[str, Any]:
        self._feed_caller().report_calls()
        return {
            "meter_id": str(self.meter_id),
            "version": self.version,
            "status": status,
            "was_running": was_running,
            "forced": forced,
        }
