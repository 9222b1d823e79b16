"""Stopping the meter of a run whose task was ended, but only when a user did that and no other session is hit.

Zuora stops every NORMAL run of a meter version, not one session:
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter
"""

from __future__ import annotations

import time
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.operators.live_sessions import live_sessions
from airflow_mediation_provider.protocol.errors import MediationError, NotRunningError, StopInProgressError
from airflow_mediation_provider.protocol.reading import IDLE
from airflow_mediation_provider.protocol.status import RunType

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.operators.run_state import RunState
    from airflow_mediation_provider.watch.feed_caller import FeedCaller

    _Operator = BaseOperator
else:
    _Operator = object

USERS_STATES: Final = frozenset({"success", "failed", "skipped", "restarting", "removed"})
"""States into which only someone outside puts a running task: marked, or cleared (``restarting``)."""
_ON_KILL_SECONDS: Final = 1.5
"""Airflow kills a process five seconds after it called ``on_kill``; what is left of them must do for the stop."""
_UNTIL_KILLED: Final = 10.0
_FEED_SECONDS: Final = 1.0
_LOOKS: Final = 24
_LOOK_SECONDS: Final = 5.0


class StopOnKillMixin(_Operator):
    """How ``RunMeterOperator`` stops what it started; each refusal is logged with its reason."""

    meter_id: str
    version: str
    run_type: RunType
    stop_meter_on_kill: bool
    # May be read before execute() has begun.
    _context: Context | None
    _state: RunState | None
    _ended_by_user: bool = False

    if TYPE_CHECKING:

        def _make_hook(self, **options: Any) -> MediationHook: ...

        def _feed_caller(self, **options: Any) -> FeedCaller: ...

    def on_kill(self) -> None:
        """Where a user, not Airflow itself, ended the task: stop the meter, if that was asked for, and do nothing more.

        Airflow calls this in a signal handler, and lets the task run on for some seconds after it. In these a task that
        a user ended must not start a session; and where it ended by itself, Airflow would take a Clear for a retry.

        The thread that the signal interrupts may be talking to Airflow at this moment, under a lock that is not given
        up before the handler returns; so another thread asks, and is not waited for as long as it takes.
        """
        if self._context is None:
            return
        work = copy_context().run
        thread = Thread(target=work, args=(self._end_for_user, self._context["ti"]), name="on-kill", daemon=True)
        thread.start()
        thread.join(_ON_KILL_SECONDS)
        if self._ended_by_user:
            time.sleep(_UNTIL_KILLED)

    def _end_for_user(self, ti: RuntimeTaskInstanceProtocol) -> None:
        self._ended_by_user = ended_by_user(ti)
        if not self.stop_meter_on_kill or self._state is None:
            return
        if self._ended_by_user:
            self._stop_meter("a user ended the task", attempts=1)
        else:
            self.log.info("Airflow, not a user, ends this process: meter %s goes on.", self.meter_id)

    def _leave_behind(self, kept: RunState, *, cleared: bool) -> None:
        """Say that an earlier session may go on; where a user cleared its task and wants that, stop it first."""
        name = kept.session_id or "(unknown)"
        if not (cleared and self.stop_meter_on_kill):
            self.log.warning("Session %s of an earlier try may still run.", name)
            return
        self._state = kept
        if not self._stop_meter(f"the task of session {name} was cleared"):
            return
        hook, status = self._make_hook(), "unknown"
        for _ in range(_LOOKS):
            try:
                status = hook.run_status(str(self.meter_id), self.version)
            except MediationError as error:
                status = f"unknown ({error})"
                break
            if status in IDLE:
                return
            time.sleep(_LOOK_SECONDS)
        self.log.warning("Meter %s is still %s: session %s may still run.", self.meter_id, status, name)

    def _stop_meter(self, why: str, *, attempts: int = 5) -> bool:
        """Ask Zuora to stop the meter; trouble is only logged. Return whether a stop is under way."""
        if self.run_type is not RunType.NORMAL:
            self.log.warning("Meter %s is not stopped: Zuora stops NORMAL runs, and this is a test.", self.meter_id)
            return False
        if self._state is None or other_session_lives(self._state):
            self.log.warning("Meter %s is not stopped: another session of it was live when it was run.", self.meter_id)
            return False
        if others := self._newer_sessions(self._state):
            names = ", ".join(others)
            self.log.warning("Meter %s is not stopped: that would stop %s as well, begun since.", self.meter_id, names)
            return False
        try:
            self._make_hook(attempts=attempts).stop_meter(str(self.meter_id), self.version)
        except NotRunningError:
            self.log.info("Meter %s does not run any more.", self.meter_id)
            return False
        except StopInProgressError:
            self.log.info("A stop of meter %s is under way already.", self.meter_id)
        except MediationError as error:
            self.log.warning("Meter %s could not be stopped although %s: %s", self.meter_id, why, error)
            return False
        else:
            self.log.info("Meter %s is being stopped, because %s.", self.meter_id, why)
        return True

    def _newer_sessions(self, state: RunState) -> list[str]:
        """Return the sessions that began after this one was called for; before, the meter's status told of others."""
        caller = self._feed_caller(seconds=_FEED_SECONDS)
        live = live_sessions(caller, str(self.meter_id), since=state.called_at)
        return [session_id for session_id in live if session_id != state.session_id]


def other_session_lives(state: RunState) -> bool:
    """Say whether the meter was busy just before the run's call: a stop would hit that session too."""
    return state.baseline is not None and state.baseline not in IDLE


def ended_by_user(ti: RuntimeTaskInstanceProtocol) -> bool:
    """Ask Airflow whether a user marked or cleared the running task.

    A worker's ``on_kill`` also runs when its pod is evicted or Celery shuts down: the task is then still *running*, or
    waits for its retry. Where Airflow gives no answer, it was no user.
    """
    map_index = -1 if ti.map_index is None else ti.map_index
    try:
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index)
    except Exception:
        return False
    name = ti.task_id if map_index < 0 else f"{ti.task_id}_{map_index}"
    found = states.get(ti.run_id, {})
    # A running task that was cleared and already scheduled anew has no state at all.
    return name in found and str(found[name] or "restarting") in USERS_STATES
