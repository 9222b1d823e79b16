"""Stop the meter of a run from a worker: gather the facts and ask the stop policy, for kill, timeout and Clear.

https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter
"""

from __future__ import annotations

import time
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import IDLE, RunType
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus
from airflow_mediation_provider.protocol.waits.stop_policy import KILLED, StopCause, StopFacts, why_never, why_not_stop
from airflow_mediation_provider.protocol.waits.wait import WaitEnd
from airflow_mediation_provider.protocol.zuora.errors import MediationError, NotRunningError, StopInProgressError
from airflow_mediation_provider.tasks.state import NO_ANSWER, state_in, state_query
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from airflow_mediation_provider.feed.worker import WaitFeed, WaitFeedClient
    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.waits.wait import SessionWait
    from airflow_mediation_provider.worker.run_state import RunState
    from airflow_mediation_provider.worker.waiting import SessionWaitMixin

NOT_OURS: Final = frozenset({None, *KILLED, "success", "restarting"})
"""States of a task that this process does not own any more: it was marked, cleared, or reset by a scheduler."""
_ON_KILL_SECONDS: Final = 1.5
"""Airflow kills a process five seconds after it called ``on_kill``; the rest of that time must do for the stop."""
_UNTIL_KILLED: Final = 10.0
_FEED_SECONDS: Final = 1.0
_POLLS: Final = 24
_POLL_SECONDS: Final = 5.0


def live_sessions(caller: WaitFeedClient, meter_id: str) -> list[str]:
    """Return the sessions of a meter that seem to be live, without tests; none without callouts or an answer.

    A session that is known only from the reply to its run call does not count: its end would not be reported.

    :param caller: calls the API server
    """
    from airflow_mediation_provider.protocol.wire import FeedRequest, MeterQuestion

    reply = caller.ask(FeedRequest(meters={meter_id: MeterQuestion()}, full=True))
    if reply is None or not reply.callouts:
        return []
    return [
        state.session_id
        for state in reply.sessions
        if not state.terminal and state.run_type != RunType.DEBUG and state.source is not Source.RUN
    ]


class RunStopper:
    """Stops the meter of one task's session, where the user asked for it and the policy allows it.

    Each refusal is logged with its reason.

    :param task: the operator that ran the meter
    :param on_kill: whether the user asked for a stop when the task is ended from outside, or cleared
    :param on_timeout: whether the user asked for a stop when the timeout has passed
    """

    def __init__(self, task: SessionWaitMixin, *, on_kill: bool, on_timeout: bool) -> None:
        self._task = task
        self._log = task.log
        self._on_kill = on_kill
        self._on_timeout = on_timeout
        self._taken_away = False

    def kill(self, context: Context) -> None:
        """Stop the meter of a task that was ended from outside, if that was asked for, and do nothing more.

        Airflow calls this in a signal handler, and lets the task run on for some seconds after it. In these a task that
        this process does not own any more must not start a session; and if it ended by itself, Airflow would take a
        Clear for a retry.

        The thread that the signal interrupts may be in a call to Airflow, holding a lock that it releases only after
        the handler returns. So another thread asks Airflow, and this one waits for it for a limited time.
        """
        work = copy_context().run
        thread = Thread(target=work, args=(self._end_from_outside, context["ti"]), name="on-kill", daemon=True)
        thread.start()
        thread.join(_ON_KILL_SECONDS)
        if self._taken_away:
            time.sleep(_UNTIL_KILLED)

    def _end_from_outside(self, ti: RuntimeTaskInstanceProtocol) -> None:
        state = _task_state(ti)
        self._taken_away = state in NOT_OURS
        if not self._on_kill:
            return
        if self._task._followed is None:
            self._log.info("Meter %s is not stopped: the task did not wait for a session yet.", self._task.meter_id)
            return
        wait, feed = self._task._followed
        facts = StopFacts.of_wait(StopCause.KILL, wait, task_state=state, wait_id=feed.wait_id, owner=feed.owner)
        if state in KILLED:
            facts = self._poll_before(facts, self._task._make_hook(attempts=1), seconds=_FEED_SECONDS)
            # Asked again at last: a task that was cleared meanwhile may have a new session by now.
            facts = replace(facts, task_state=_task_state(ti), stalled=feed.stalled)
        self._stop_meter(facts, attempts=1)

    def at_deadline(self, context: Context, event: Mapping[str, Any]) -> None:
        """Stop the meter of a wait whose deadline has passed, where the policy allows it.

        :param event: of the trigger, where the task was deferred: only the triggerer has the facts of its own wait
        """
        from airflow_mediation_provider.feed.reports import WaitingTask, wait_id

        wait, feed = self._task._followed or (self._task._wait_memory(context).last(), None)
        if wait is None:
            self._log.warning("Meter %s is not stopped: no wait of this task is stored.", self._task.meter_id)
            return
        task = WaitingTask.of(context["ti"])
        facts = StopFacts.of_wait(
            StopCause.TIMEOUT,
            wait,
            deadline_passed=wait.result is not None and wait.result.end is WaitEnd.TIMED_OUT,
            wait_id=None if task is None else wait_id(self._task.mediation_conn_id, task),
            owner=event.get("owner") if feed is None else feed.owner,
        )
        facts = self._poll_before(facts, self._task._make_hook())
        # An event without the key comes from Airflow's own timeout, and not from the trigger.
        stalled = event.get("stalled") is not False if feed is None else feed.stalled
        self._stop_meter(replace(facts, stalled=stalled))

    def leave_behind(self, kept: RunState, *, cleared: bool) -> None:
        """Log that an earlier session may go on; stop it first where a user cleared its task and asked for a stop."""
        name = kept.session_id or "(unknown)"
        same = kept.mediation_conn_id == self._task.mediation_conn_id
        if not (cleared and self._on_kill and same):
            self._log.warning("Session %s of an earlier try may still run.", name)
            return
        meter_id, version = str(kept.request["meter_id"]), str(kept.request["version"])
        facts = StopFacts(
            cause=StopCause.CLEAR,
            meter_id=meter_id,
            version=version,
            run_type=str(kept.request["run_type"]),
            session_id=kept.session_id,
            baseline=kept.baseline,
            called_at=kept.called_at,
            exclusive=self._task.exclusive,
            settle=timedelta(seconds=self._task.settle),
        )
        hook = self._task._make_hook()
        if not self._stop_meter(self._poll_before(facts, hook)):
            self._log.warning("Session %s of an earlier try may still run.", name)
            return
        status = "unknown"
        for _ in range(_POLLS):
            try:
                status = hook.run_status(meter_id, version)
            except MediationError as error:
                status = f"unknown ({error})"
                break
            if status in IDLE:
                return
            time.sleep(_POLL_SECONDS)
        self._log.warning("Meter %s is still %s: session %s may still run.", meter_id, status, name)

    def _poll_before(self, facts: StopFacts, hook: MediationHook, **options: Any) -> StopFacts:
        """Return the facts with answers of the API server and of Zuora, read just now.

        :param options: of the feed's caller
        """
        facts = facts.answered(self._task._feed_caller(**options).ask(facts.question()))
        try:
            status = hook.run_status(facts.meter_id, facts.version)
        except MediationError as error:
            self._log.warning("The status of meter %s could not be read: %s", facts.meter_id, error)
        else:
            facts = replace(facts, status=status)
        return facts

    def _stop_meter(self, facts: StopFacts, *, attempts: int = 5) -> bool:
        """Ask Zuora to stop the meter where the policy allows it, and return whether a stop is under way."""
        reason = why_not_stop(facts)
        if reason is not None:
            self._log.warning("Meter %s is not stopped: %s.", facts.meter_id, reason)
            return False
        why = {
            StopCause.KILL: f"the task is {facts.task_state} in Airflow",
            StopCause.TIMEOUT: "the timeout passed",
            StopCause.CLEAR: f"the task of session {facts.session_id} was cleared",
        }[facts.cause]
        try:
            self._task._make_hook(attempts=attempts).stop_meter(facts.meter_id, facts.version)
        except NotRunningError:
            self._log.info("Meter %s does not run any more.", facts.meter_id)
            return False
        except StopInProgressError:
            self._log.info("A stop of meter %s is under way already.", facts.meter_id)
        except MediationError as error:
            self._log.warning("Meter %s could not be stopped although %s: %s", facts.meter_id, why, error)
            return False
        else:
            self._log.info("Meter %s is being stopped, because %s.", facts.meter_id, why)
        return True

    def warn_if_never(self, wait: SessionWait, feed: WaitFeed) -> None:
        """Warn once, when the wait begins, where a stop that was asked for can never be made."""
        causes = [StopCause.KILL, StopCause.CLEAR] * self._on_kill
        causes += [StopCause.TIMEOUT] * self._on_timeout
        # The history is late: a stop needs more recent facts.
        callouts = None if feed.callouts in (None, FeedStatus.UNFOUND) else feed.callouts is not FeedStatus.OFF
        callouts = callouts and not feed.by_history
        never: dict[str, list[str]] = {}
        for cause in causes:
            reason = why_never(StopFacts.of_wait(cause, wait, callouts=callouts))
            if cause is StopCause.KILL and self._task.deferrable and not AIRFLOW_V_3_3_PLUS:
                reason = reason or "Airflow 3.2 does not notify a deferred task that is ended"
            if reason is not None:
                never.setdefault(reason, []).append(str(cause))
        for reason, names in never.items():
            self._log.warning(
                "Meter %s will not be stopped on %s: %s.", self._task.meter_id, " or ".join(names), reason
            )


def _task_state(ti: RuntimeTaskInstanceProtocol) -> str | None:
    """Return the task's state in Airflow, read just now.

    A worker's ``on_kill`` also runs when its pod is evicted or Celery shuts down: the task is then still *running*, or
    waits for its retry. A scheduler that resets the task of another one, and a Clear, leave no state at all.
    """
    try:
        return state_in(ti.get_task_states(**state_query(ti)), ti)
    except Exception:
        return NO_ANSWER
