"""Waiting for a session in any mode: on the worker, rescheduled, or deferred to the triggerer.

An operator builds a ``SessionWait`` and passes it to ``_await_session``; it gets a ``WaitResult`` back, now or, after a
deferral, in its ``execute_complete(context, event)``. What the wait has received survives a retry, a reschedule and a
crashed trigger in Airflow's task state store (3.3), so that a baseline is never lost.

Kept light: a Dag file imports this module through the sensors and operators.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError, TaskDeferralTimeout

from airflow_mediation_provider import metrics
from airflow_mediation_provider.feed.reports import REPORT_SECONDS, report_verdict
from airflow_mediation_provider.protocol.ids import connection_id_of, id_of
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitEnd, WaitResult, WaitUpdate
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.requests import DEFAULT_VERSION
from airflow_mediation_provider.tasks.arguments import StandsForValue
from airflow_mediation_provider.tasks.build import may_end_without_worker, note_next_run
from airflow_mediation_provider.tasks.memory import KeptWait
from airflow_mediation_provider.tasks.state import Tries, deadline_of_try, utcnow

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mediation_provider.feed.worker import WaitFeed, WorkerFeedClient
    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult

    _Operator = BaseOperator
else:
    _Operator = object

HEARTBEAT_SECONDS: Final = 300.0
"""A wait without changes logs a heartbeat this often."""
BACKSTOP: Final = timedelta(seconds=60)
"""Airflow's own timeout of a deferral comes this much later than the wait's deadline, which can name the status."""
RESCHEDULE_SECONDS: Final = 10.0
"""A task that is rescheduled, or waits for a timer, returns no sooner: a busy scheduler would take it for failed."""
MAX_TRIGGER_CRASHES: Final = 3
"""After so many crashed triggers in one try the wait stays on the worker."""


class SessionWaitMixin(StandsForValue, _Operator):
    """The parts that all operators which wait for a session share.

    In the bases of an operator it stands before ``BaseOperator``. The operator sets the attributes below in its
    ``__init__``, and has an ``execute_complete(context, event)``.

    :param meter_id: the meter
    :param version: the meter's version
    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param poke_interval: seconds between two polls of the meter's status; the triggerer never polls more often
    :param timeout: seconds that one try may wait, from its first start, across reschedules and deferrals
    :param deferrable: wait in the triggerer instead of on a worker
    :param mode: ``poke`` or ``reschedule``; not used when deferrable
    :param max_unreachable: seconds without any good answer from Zuora after which the wait ends, to be retried
    :param require_certain: fail where only a poll, which another run may have masked, shows how the session ended
    :param exclusive: the user's promise that nothing else starts this meter during the wait: a poll's answer is certain
    :param settle: seconds for which a status that Zuora reports may be out of date
    """

    meter_id: Any = None
    version: str = DEFAULT_VERSION
    mediation_conn_id: str = "mediation_default"
    poke_interval: float = 60.0
    timeout: float = 7 * 24 * 3600.0
    deferrable: bool = False
    mode: str = "poke"
    max_unreachable: float = 3600.0
    require_certain: bool = False
    exclusive: bool = False
    settle: float = 30.0
    # The wait of this process, and its feed, once it has started.
    _followed: tuple[SessionWait, WaitFeed] | None = None

    def take_arguments(self) -> Any:
        """Check the rendered arguments that select the meter or session, and store them in their normal form.

        Called by each process of the task before it uses them.

        :raises ValueError: one of them was rendered to an invalid value; one sentence names it
        """
        self.mediation_conn_id = connection_id_of("mediation_conn_id", self.mediation_conn_id)
        self.meter_id = id_of("meter_id", self.meter_id)
        self.version = id_of("version", self.version)

    @cached_property
    def hook(self) -> MediationHook:
        """The hook for calls of this task: it retries by itself, and sends the task's name as ``Zuora-Track-Id``."""
        return self._make_hook()

    def _make_hook(self, **options: Any) -> MediationHook:
        from airflow_mediation_provider.hooks.mediation import MediationHook

        return MediationHook(self.mediation_conn_id, patience=self.timeout, **options)

    def _feed_caller(self, **options: Any) -> WorkerFeedClient:
        from airflow_mediation_provider.feed.worker import WorkerFeedClient

        return WorkerFeedClient(self._make_hook(attempts=1), **options)

    def _report_end(self, context: Context, session: SessionResult | None) -> None:
        """Report the end of the session, where this try concluded it from polls; called before the try ends.

        :param session: on which the wait ended, as this task returns it
        """
        caller = self._feed_caller(seconds=REPORT_SECONDS)
        report_verdict(caller, self.mediation_conn_id, context["ti"], session)

    def _wait_feed(self, context: Context) -> WaitFeed:
        from airflow_mediation_provider.feed.flow import cross_check_seconds
        from airflow_mediation_provider.feed.worker import WaitFeed

        return WaitFeed(
            self._feed_caller(),
            self.mediation_conn_id,
            context["ti"],
            cross_check=cross_check_seconds(),
            now=utcnow,
            monotonic=time.monotonic,
        )

    def _wait_until(self, context: Context) -> datetime:
        return deadline_of_try(context, self.timeout)

    @staticmethod
    def _default_since(context: Context) -> datetime:
        """Return the earliest start of a run's session: its data interval's start, else the time the run was due."""
        dag_run = context["dag_run"]
        since: datetime = dag_run.data_interval_start or dag_run.run_after
        return since

    def _await_session(
        self,
        context: Context,
        wait: SessionWait,
        method_name: str = "execute_complete",
        *,
        may_end_in_trigger: bool = False,
        stop_on_kill: bool = False,
    ) -> WaitResult:
        """Wait until the condition is met; the first poll is immediate, in every mode.

        :param wait: the wait, with its deadline in ``condition.until`` (see ``_wait_until``)
        :param method_name: method that gets the trigger's event, a ``WaitResult`` as a dict
        :param may_end_in_trigger: the operator only returns the session when the condition is met, so the trigger may
            end the task by itself where Airflow then loses nothing
        :param stop_on_kill: when the deferred task is ended from outside, the trigger stops the meter (Airflow 3.3)
        :return: how the wait ended; a run reply can have ended it before the first poll
        :raises TaskDeferred: when deferrable; the result then comes as the event
        :raises AirflowRescheduleException: in ``reschedule`` mode
        """
        if wait.result is not None:
            return wait.result.over(self.mediation_conn_id)
        memory = self._wait_memory(context)
        fresh, wait = wait, memory.recall(wait)
        if wait is fresh or not memory.of_this_try:
            self.log.info(wait.tracker.opening(self.mediation_conn_id))
            note_next_run(wait, lambda: context)
        poller, feed = self._make_hook(attempts=1), self._wait_feed(context)
        self._followed = wait, feed
        begun, last_line_at = False, time.monotonic()
        while True:
            update, retry_after = self._ask_and_poll(wait, poller, feed)
            update.log_lines(self.log)
            if update.result is not None:
                feed.report_end(wait)
                return self._ended(context, wait, update.result)
            if not begun:
                begun = True
                self._begun(wait, feed)
            stays = memory.crashes >= MAX_TRIGGER_CRASHES
            if self.deferrable and not stays:
                memory.keep(wait, method_name)
                feed.report_calls()
                self._defer_wait(wait, method_name, may_end_in_trigger, stop_on_kill)
            pause = self._pause(wait, retry_after)
            feed.plan(pause)
            if self.mode == "reschedule" and not self.deferrable:
                memory.keep(wait, method_name, required=True)
                feed.report_calls()
                raise AirflowRescheduleException(utcnow() + timedelta(seconds=max(pause, RESCHEDULE_SECONDS)))
            if update.lines:
                memory.keep(wait, method_name)
                last_line_at = time.monotonic()
            elif time.monotonic() - last_line_at >= HEARTBEAT_SECONDS:
                self.log.info(wait.heartbeat(utcnow()))
                last_line_at = time.monotonic()
            time.sleep(pause)

    def _begun(self, wait: SessionWait, feed: WaitFeed) -> None:
        """Log what is to be logged once, after the first poll, if the wait continues; to be overridden."""

    def _ask_and_poll(
        self, wait: SessionWait, poller: MediationHook, feed: WaitFeed, *, last: bool = False
    ) -> tuple[WaitUpdate, float]:
        """Query the feed, and Zuora if a poll is due, and update the wait.

        :param last: there is no later poll: poll Zuora as well
        :return: also the least seconds to the next poll, as Zuora asked for them
        """
        update, retry_after = feed.ask(wait), 0.0
        if update.result is None and (last or feed.poll_is_due(wait, self.poke_interval)):
            polled, retry_after = self._poll(wait, poller, feed)
            update = WaitUpdate(lines=(*update.lines, *polled.lines), result=polled.result)
        if update.result is None:
            late = wait.tick(utcnow())
            update = WaitUpdate(lines=(*update.lines, *late.lines), result=late.result)
        return update, 0.0 if feed.read else retry_after

    def _poll(self, wait: SessionWait, poller: MediationHook, feed: WaitFeed) -> tuple[WaitUpdate, float]:
        """Poll Zuora once and update the wait; also return the seconds that Zuora asked to wait."""
        # The answer describes a moment after the request was sent; only the time of sending is certain.
        asked_at = utcnow()
        try:
            status = poller.run_status(wait.condition.meter_id, wait.condition.version)
        except MediationError as error:
            metrics.polled(self.mediation_conn_id, error)
            retry_after = getattr(error, "retry_after", None) or 0.0
            feed.pause_polls(retry_after)
            return wait.fault(error, utcnow()), retry_after
        metrics.polled(self.mediation_conn_id)
        feed.polled()
        reading, shown = PollReading(status=status, read_at=asked_at), wait.tracker.shown
        update = wait.observe(reading, feed.others)
        if status != shown:
            feed.report_poll(wait, reading)
        return update, 0.0

    def _pause(self, wait: SessionWait, retry_after: float) -> float:
        """Return the seconds to the next poll: never beyond the time at which the wait ends without a good answer."""
        pause, now = max(self.poke_interval, retry_after), utcnow()
        ends = [end for end in (wait.deadline, wait.unreachable_at) if end is not None]
        return max(min([pause, *((end - now).total_seconds() for end in ends)]), 0.1)

    def _defer_wait(
        self, wait: SessionWait, method_name: str, may_end_in_trigger: bool, stop_on_kill: bool
    ) -> NoReturn:
        from airflow_mediation_provider.triggers.meter_session import MeterSessionTrigger

        until = wait.condition.until
        self.defer(
            trigger=MeterSessionTrigger(
                mediation_conn_id=self.mediation_conn_id,
                wait=wait.to_dict(),
                poll_interval=self.poke_interval,
                end_from_trigger=may_end_in_trigger and may_end_without_worker(self),
                stop_on_kill=stop_on_kill,
            ),
            method_name=method_name,
            timeout=None if until is None else max(until - utcnow(), timedelta()) + BACKSTOP,
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after a deferral; a trigger that crashed or stayed silent gives no answer, so Zuora is polled."""
        with suppress(ValueError):  # the process before this one has reported the invalid arguments
            self.take_arguments()
        event = (next_kwargs or {}).get("event")
        if isinstance(event, Mapping) and isinstance(event.get("wait"), Mapping):
            self._wait_memory(context).adopt(event["wait"])
        elif self.read_event(event) is not None:
            self._wait_memory(context).end()
        try:
            # Not super(): a sensor's own version turns every error into a skip under soft_fail.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            memory = self._memory_after_trigger(context)
            result = self._last_look(memory.last() or self._begun_in_triggerer(context), context)
            return getattr(self, memory.method_name)(context, event=result.to_dict())
        except TaskDeferralError as error:
            crashes = self._memory_after_trigger(context).count_crash()
            self.log.warning("The trigger ended without an answer (%s): polling Zuora and waiting on.", error)
            if crashes == MAX_TRIGGER_CRASHES:
                self.log.warning("Triggers crashed %d times in this try: the wait stays on the worker.", crashes)
            return self.execute(context)

    def _wait_memory(self, context: Context) -> KeptWait:
        """Return the memory of the running task, one object per process: so it works without a store as well."""
        kept: KeptWait | None = self.__dict__.get("_kept_wait")
        if kept is None or kept.tries != Tries.of(context["ti"], self.retries):
            kept = self.__dict__["_kept_wait"] = KeptWait.of(context, self.retries, self.timeout)
        return kept

    def _memory_after_trigger(self, context: Context) -> KeptWait:
        """Return the stored state of the wait after its trigger ended without a result."""
        from airflow_mediation_provider.tasks.memory import kept_by_trigger

        memory = self._wait_memory(context)
        kept = kept_by_trigger(context["ti"])
        if kept is not None:
            memory.adopt(kept)
        return memory

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Continue with the trigger's event; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} needs an execute_complete(context, event)")

    def _begun_in_triggerer(self, context: Context) -> SessionWait | None:
        """Return the wait of a task that never ran on a worker before; no state of it is stored."""
        if not self.start_from_trigger:
            return None
        with suppress(ValueError):
            return self.new_wait(context)
        return None

    def new_wait(self, context: Context) -> SessionWait:
        """Return the wait by the task's arguments; for an operator that may start in the triggerer.

        :raises ValueError: one of them was rendered to an invalid value
        """
        raise NotImplementedError

    def _last_look(self, wait: SessionWait | None, context: Context) -> WaitResult:
        """Return the result after Airflow's own timeout, when the trigger can no longer report one."""
        result = None
        if wait is not None:
            feed = self._wait_feed(context)
            update, _ = self._ask_and_poll(wait, self._make_hook(attempts=1), feed, last=True)
            update.log_lines(self.log)
            feed.report_end(wait)
            result = update.result
        return self._ended(
            context,
            wait,
            result
            or WaitResult(
                end=WaitEnd.TIMED_OUT,
                message="Airflow's timeout of the deferred task passed before the triggerer reported a result.",
            ),
        )

    def _ended(self, context: Context, wait: SessionWait | None, result: WaitResult) -> WaitResult:
        """Count a wait that ended on a worker; the trigger counts its own."""
        if result.end is not WaitEnd.UNREACHABLE:
            self._wait_memory(context).end()
        metrics.wait_ended(self.mediation_conn_id, wait, result)
        return result.over(self.mediation_conn_id)

    @staticmethod
    def read_event(event: Any) -> WaitResult | None:
        """Return the result in a trigger's event, or ``None`` without one: then poll, as after a crash."""
        if isinstance(event, Mapping):
            with suppress(KeyError, TypeError, ValueError):
                return WaitResult.from_dict(event)
        return None

    @staticmethod
    def raise_for(result: WaitResult) -> None:
        """Raise the exception that ends the task, for any end except a met condition.

        :raises MeterSessionFailed: the session reached a status of ``fail_on``; not retried
        :raises MeterSessionTimeout: the deadline passed; not retried
        :raises MeterSessionUncertain: ``require_certain``, and nothing certain was received; not retried
        :raises MediationMisconfigured: credentials, permission, host or meter; not retried
        :raises MediationUnreachable: Zuora gave no good answer for ``max_unreachable``; retried
        """
        from airflow_mediation_provider import exceptions

        if result.end is WaitEnd.MET:
            return
        if result.end is WaitEnd.UNREACHABLE:
            raise exceptions.MediationUnreachable(result.message)
        if result.end is WaitEnd.MISCONFIGURED:
            raise exceptions.MediationMisconfigured(result.message)
        error = {
            WaitEnd.FAILED: exceptions.MeterSessionFailed,
            WaitEnd.TIMED_OUT: exceptions.MeterSessionTimeout,
            WaitEnd.UNCERTAIN: exceptions.MeterSessionUncertain,
        }[result.end]
        raise error(result.message, session=result.session)
