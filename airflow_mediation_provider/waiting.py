"""Waiting for a session, alike in every mode: on the worker, by reschedule, or deferred to the triggerer.

An operator builds a ``SessionWait`` and hands it to ``_await_session``; it gets a ``WaitResult`` back, now or, after a
deferral, in its ``execute_complete(context, event)``. What the wait has learned survives a retry, a reschedule and a
crashed trigger in Airflow's task state store (3.3), so that a baseline is never lost.

Kept light: a DAG file imports this module through the sensors and operators.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError, TaskDeferralTimeout

from airflow_mediation_provider import metrics
from airflow_mediation_provider.end_in_triggerer import may_end_without_worker
from airflow_mediation_provider.operators.arguments import session_id_of
from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.errors import MediationError
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitEnd, WaitResult, WaitUpdate
from airflow_mediation_provider.wait_memory import WaitMemory

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.wait_feed import WaitFeed
    from airflow_mediation_provider.watch.feed_caller import FeedCaller

    _Operator = BaseOperator
else:
    _Operator = object

HEARTBEAT_SECONDS: Final = 300.0
"""A wait in which nothing changes says so this often."""
BACKSTOP: Final = timedelta(seconds=60)
"""Airflow's own timeout of a deferral comes this much after the wait's deadline, which knows the session's status."""
RESCHEDULE_SECONDS: Final = 10.0
"""A rescheduled task stays away this long: a busy scheduler takes one that comes back sooner for one that failed."""
MAX_TRIGGER_CRASHES: Final = 3
"""After so many crashed triggers in one try the wait stays on the worker."""


def utcnow() -> datetime:
    """Return the wall clock's time."""
    return datetime.now(UTC)


class SessionWaitMixin(_Operator):
    """What every operator that waits for a session shares.

    A class that uses it stands before ``BaseOperator`` in the bases, sets the attributes below in its ``__init__``, and
    has an ``execute_complete(context, event)``.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param poke_interval: seconds between two looks at the meter's status; the triggerer never looks more often
    :param timeout: seconds that one try may wait, from its first start, across reschedules and deferrals
    :param deferrable: wait in the triggerer instead of on a worker
    :param mode: ``poke`` or ``reschedule``; of no meaning when deferrable
    :param max_unreachable: seconds without any good answer from Zuora after which the wait ends, to be retried
    :param require_certain: end as failed where only a poll, which another run may have masked, says how it ended
    :param exclusive: the user's promise that nothing else starts this meter meanwhile: a poll's answer is then certain
    :param settle: seconds for which a status that Zuora reports may be out of date
    """

    mediation_conn_id: str = "mediation_default"
    poke_interval: float = 60.0
    timeout: float = 7 * 24 * 3600.0
    deferrable: bool = False
    mode: str = "poke"
    max_unreachable: float = 3600.0
    require_certain: bool = False
    exclusive: bool = False
    settle: float = 30.0

    @cached_property
    def hook(self) -> MediationHook:
        """The hook for calls of this task: it retries by itself, and names the task to Zuora as ``Zuora-Track-Id``."""
        return self._make_hook()

    def _make_hook(self, **options: Any) -> MediationHook:
        from airflow_mediation_provider.hooks.mediation import MediationHook

        return MediationHook(self.mediation_conn_id, **options)

    def _feed_caller(self, **options: Any) -> FeedCaller:
        from airflow_mediation_provider.watch.feed_caller import FeedCaller

        return FeedCaller(self._make_hook(attempts=1), **options)

    def _wait_feed(self, context: Context) -> WaitFeed:
        from airflow_mediation_provider.wait_feed import WaitFeed
        from airflow_mediation_provider.watch import cross_check_seconds

        return WaitFeed(
            self._feed_caller(),
            self.mediation_conn_id,
            context["ti"],
            cross_check=cross_check_seconds(),
            now=utcnow,
        )

    def _wait_until(self, context: Context) -> datetime:
        """Return the deadline of this try: ``timeout`` after its first start, which a deferral does not move."""
        started = context["ti"].start_date or utcnow()
        return started.astimezone(UTC) + timedelta(seconds=self.timeout)

    def _await_session(
        self,
        context: Context,
        wait: SessionWait,
        method_name: str = "execute_complete",
        *,
        may_end_in_trigger: bool = False,
        stop_on_kill: bool = False,
    ) -> WaitResult:
        """Wait until the session is where it is waited for; look once at once, in every mode.

        :param wait: the wait, with its deadline in ``condition.until`` (see ``_wait_until``)
        :param method_name: method that gets the trigger's event, a ``WaitResult`` as a dict
        :param may_end_in_trigger: the operator does nothing with a met condition but return the session, so that the
            trigger may end the task by itself where Airflow then loses nothing
        :param stop_on_kill: when a user ends the deferred task, the trigger stops the meter (Airflow 3.3)
        :return: how the wait ended; a run reply can have ended it before the first look
        :raises TaskDeferred: when deferrable; the result then comes as the event
        :raises AirflowRescheduleException: in ``reschedule`` mode
        """
        if wait.result is not None:
            return wait.result
        memory = self._wait_memory(context)
        fresh, wait = wait, memory.recall(wait)
        if wait is fresh or not memory.of_this_try:
            self.log.info(wait.known.opening(self.mediation_conn_id))
        poller, feed = self._make_hook(attempts=1), self._wait_feed(context)
        said_at = time.monotonic()
        while True:
            update, retry_after = self._look(wait, poller, feed)
            for line in update.lines:
                self.log.info(line)
            if update.result is not None:
                feed.report_end(wait)
                return self._ended(wait, update.result)
            stays = memory.crashes >= MAX_TRIGGER_CRASHES
            if self.deferrable and not stays:
                memory.keep(wait, method_name)
                feed.report_calls()
                self._defer_wait(wait, method_name, may_end_in_trigger, stop_on_kill)
            pause = self._pause(wait, retry_after)
            if self.mode == "reschedule" and not self.deferrable:
                memory.keep(wait, method_name, required=True)
                feed.report_calls()
                raise AirflowRescheduleException(utcnow() + timedelta(seconds=max(pause, RESCHEDULE_SECONDS)))
            if update.lines:
                memory.keep(wait, method_name)
                said_at = time.monotonic()
            elif time.monotonic() - said_at >= HEARTBEAT_SECONDS:
                self.log.info(wait.heartbeat(utcnow()))
                said_at = time.monotonic()
            time.sleep(pause)

    def _look(
        self, wait: SessionWait, poller: MediationHook, feed: WaitFeed, *, last: bool = False
    ) -> tuple[WaitUpdate, float]:
        """Ask the feed, and Zuora where that is due, and tell the wait.

        :param last: there is no later look: ask Zuora as well
        :return: also the seconds to the next look, at least, that Zuora asked for
        """
        update, retry_after = feed.look(wait), 0.0
        if update.result is None and (last or feed.poll_is_due(wait, self.poke_interval)):
            polled, retry_after = self._poll(wait, poller, feed)
            update = WaitUpdate(lines=(*update.lines, *polled.lines), result=polled.result)
        if update.result is None:
            late = wait.tick(utcnow())
            update = WaitUpdate(lines=(*update.lines, *late.lines), result=late.result)
        return update, 0.0 if feed.read else retry_after

    def _poll(self, wait: SessionWait, poller: MediationHook, feed: WaitFeed) -> tuple[WaitUpdate, float]:
        """Ask Zuora once and tell the wait; also return the seconds that Zuora asked us to keep away."""
        # The answer describes a moment after the question was sent; only this side of it is known for certain.
        asked_at = utcnow()
        try:
            status = poller.run_status(wait.condition.meter_id, wait.condition.version)
        except MediationError as error:
            metrics.polled(self.mediation_conn_id, error)
            retry_after = getattr(error, "retry_after", None) or 0.0
            feed.spare(retry_after)
            return wait.fault(error, utcnow()), retry_after
        metrics.polled(self.mediation_conn_id)
        reading, shown = PollReading(status=status, read_at=asked_at), wait.known.shown
        update = wait.observe(reading, feed.others)
        if status != shown:
            feed.report_poll(wait, reading)
        return update, 0.0

    def _pause(self, wait: SessionWait, retry_after: float) -> float:
        """Return the seconds to the next look: never beyond the instant at which time itself ends the wait."""
        pause = max(self.poke_interval, retry_after)
        if wait.deadline is not None:
            pause = min(pause, (wait.deadline - utcnow()).total_seconds())
        return max(pause, 0.1)

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
        """Go on after a deferral; a trigger that crashed or stayed silent is no answer, so Zuora is asked again."""
        event = (next_kwargs or {}).get("event")
        if isinstance(event, Mapping) and isinstance(event.get("wait"), Mapping):
            self._wait_memory(context).adopt(event["wait"])
        try:
            # Not super(): a sensor's own version turns every error into a skip under soft_fail.
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            memory = self._memory_after_trigger(context)
            result = self._last_look(memory.last() or self._begun_in_triggerer(context), context)
            return getattr(self, memory.method_name)(context, event=result.to_dict())
        except TaskDeferralError as error:
            crashes = self._memory_after_trigger(context).count_crash()
            self.log.warning("The trigger ended without an answer (%s): asking Zuora again and waiting on.", error)
            if crashes == MAX_TRIGGER_CRASHES:
                self.log.warning("It did so %d times in this try: the wait stays on the worker now.", crashes)
            return self.execute(context)

    def _wait_memory(self, context: Context) -> WaitMemory:
        """Return the memory of the running task, one object in one process: it serves without a store as well."""
        kept: WaitMemory | None = self.__dict__.get("_kept_wait")
        if kept is None or not kept.belongs_to(context["ti"]):
            kept = self.__dict__["_kept_wait"] = WaitMemory.of(context)
        return kept

    def _memory_after_trigger(self, context: Context) -> WaitMemory:
        """Return what is known of the wait after its trigger ended without a word."""
        from airflow_mediation_provider.triggers.memory import kept_by_trigger

        memory = self._wait_memory(context)
        kept = kept_by_trigger(context["ti"])
        if kept is not None:
            memory.adopt(kept)
        return memory

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on with the trigger's event; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} needs an execute_complete(context, event)")

    def _begun_in_triggerer(self, context: Context) -> SessionWait | None:
        """Return the wait of a task that never was on a worker before; nobody kept anything of it."""
        if not self.start_from_trigger:
            return None
        with suppress(ValueError):
            return self.new_wait(context)
        return None

    def new_wait(self, context: Context) -> SessionWait:
        """Return the wait as the task's arguments have it; for an operator that may start in the triggerer.

        :raises ValueError: one of them was rendered to nonsense
        """
        raise NotImplementedError

    def _last_look(self, wait: SessionWait | None, context: Context) -> WaitResult:
        """Return the result after Airflow's own timeout, of which the trigger can say nothing any more."""
        result = None
        if wait is not None:
            feed = self._wait_feed(context)
            update, _ = self._look(wait, self._make_hook(attempts=1), feed, last=True)
            for line in update.lines:
                self.log.info(line)
            feed.report_end(wait)
            result = update.result
        return self._ended(
            wait,
            result
            or WaitResult(
                end=WaitEnd.TIMED_OUT,
                message="Airflow's timeout of the deferred task passed before the triggerer reported a result.",
            ),
        )

    def _ended(self, wait: SessionWait | None, result: WaitResult) -> WaitResult:
        """Count a wait that ended on a worker; the trigger counts its own."""
        metrics.wait_ended(self.mediation_conn_id, wait, result)
        return result

    @staticmethod
    def read_event(event: Any) -> WaitResult | None:
        """Return the result in a trigger's event, or ``None`` where it holds none: then ask again, as after a crash."""
        if isinstance(event, Mapping):
            with suppress(KeyError, TypeError, ValueError):
                return WaitResult.from_dict(event)
        return None

    @staticmethod
    def raise_for(result: WaitResult) -> None:
        """Raise what ends the task, for any end but a met condition.

        :raises MeterSessionFailed: the session reached a status of ``fail_on``; not retried
        :raises MeterSessionTimeout: the deadline passed; not retried
        :raises MeterSessionUncertain: ``require_certain``, and nothing certain was learned; not retried
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


def make_wait(
    *,
    meter_id: Any,
    version: Any,
    session_id: Any,
    run_type: Any,
    statuses: Any,
    previous_statuses: Any = None,
    fail_on: Any,
    since: datetime | str | None,
    until: datetime,
    created_at: datetime,
    exclusive: bool,
    require_certain: bool,
    max_unreachable: float,
    settle: float,
) -> SessionWait:
    """Make the wait of a sensor out of its rendered arguments; the same on a worker and in the triggerer.

    :param since: the earliest start of the session; used only where no session is named
    :param until: the deadline
    :param created_at: when the wait began
    :param max_unreachable: seconds
    :param settle: seconds
    :raises ValueError: an argument was rendered to something that makes no sense; the message names it
    """
    session_id = session_id_of(session_id, given=session_id is not None)
    if isinstance(since, str):
        try:
            since = datetime.fromisoformat(since.strip())
        except ValueError:
            raise ValueError(f"since must be an ISO 8601 time, not {since!r}") from None
    return SessionWait(
        SessionCondition(
            meter_id=meter_id,
            version=version,
            session_id=session_id,
            run_type=run_type,
            statuses=statuses,
            previous_statuses=() if previous_statuses is None else previous_statuses,
            fail_on=fail_on,
            # Zuora tells starts in whole seconds: a session of the run's own second is not before it.
            since=since.replace(microsecond=0) if since is not None and session_id is None else None,
            until=until,
        ),
        created_at=created_at,
        exclusive=exclusive,
        require_certain=require_certain,
        max_unreachable=timedelta(seconds=max_unreachable),
        settle=timedelta(seconds=settle),
    )
