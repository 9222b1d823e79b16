"""Starting the session of a generation: call, and while that cannot work pause, where possible without a worker."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.operators.run_call import RunCall
from airflow_mediation_provider.operators.run_state import Phase, RunMemory, RunState, derived_generation, unique_key
from airflow_mediation_provider.protocol.errors import (
    CapacityError,
    MediationError,
    PermanentError,
    StopInProgressError,
    TransientError,
)
from airflow_mediation_provider.protocol.status import TERMINAL, RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.watch.feed_caller import FeedCaller

    _Operator = BaseOperator
else:
    _Operator = object

_LONGEST_PAUSE: Final = 300.0


class RunStartMixin(_Operator):
    """How ``RunMeterOperator`` gets a generation started.

    A pause in the triggerer is a plain timer that resumes ``start_again`` on a worker: nothing is ever started from a
    trigger, which Airflow may run twice.
    """

    meter_id: str
    version: str
    run_type: RunType
    statuses: tuple[str, ...]
    mediation_conn_id: str
    deferrable: bool
    poke_interval: float
    timeout: float
    settle: float
    max_unreachable: float
    wait_for_capacity: bool
    capacity_timeout: float

    if TYPE_CHECKING:

        def _make_hook(self, **options: Any) -> MediationHook: ...

        def _feed_caller(self, **options: Any) -> FeedCaller: ...

    def _memory(self, context: Context) -> RunMemory:
        return RunMemory.of(context, self.timeout + self.capacity_timeout + self.max_unreachable)

    def _begin(self, context: Context, request: dict[str, Any], *, advanced: int = 0) -> RunState:
        """Return a new generation, not called for yet."""
        ti = context["ti"]
        lasting = self._memory(context).lasting
        generation = (
            str(ti.id)
            if lasting
            else derived_generation(max_tries=ti.max_tries, retries=self.retries or 0, advanced=advanced)
        )
        key = None
        if request["run_type"] == RunType.NORMAL:
            key = unique_key(
                mediation_conn_id=self.mediation_conn_id,
                request=request,
                instance=(ti.dag_id, ti.run_id, ti.task_id, ti.map_index),
                generation=generation,
            )
        return RunState(
            generation=generation,
            max_tries=ti.max_tries,
            retries=self.retries or 0,
            mediation_conn_id=self.mediation_conn_id,
            request=request,
            unique_key=key,
        )

    def _start(self, context: Context, state: RunState, since: dict[str, str]) -> RunState:
        """Call until Zuora's answer is known; pause on the worker, or in the triggerer, between two calls."""
        memory = self._memory(context)
        caller = RunCall(self._make_hook(attempts=1), state, memory, lambda: datetime.now(UTC))
        pauses = 0
        while True:
            try:
                state = caller.once()
            except CapacityError as error:
                since.pop("outage", None)
                retry_after = 0.0
                self._allow_pause(since, "capacity", self.capacity_timeout if self.wait_for_capacity else 0, error)
            except TransientError as error:
                self._allow_pause(since, "outage", self.max_unreachable, error)
                retry_after = error.retry_after or 0.0
                pauses += 1
            except StopInProgressError:
                raise  # it passes: a retry of the task may find it over
            except PermanentError as error:
                from airflow_mediation_provider.exceptions import MediationMisconfigured

                raise MediationMisconfigured(str(error)) from error
            else:
                if state.phase is Phase.UNNAMED and not memory.lasting and self._earlier_run_failed(context):
                    advanced = int(state.generation.rpartition(".")[2]) + 1
                    caller.state = self._begin(context, state.request, advanced=advanced)
                    continue
                return state
            self._pause_before_call(caller.state, memory, since, max(self._spread(pauses), retry_after))

    def _report_run(self, state: RunState) -> None:
        """Tell the journal which session was started, where that is known: before its first callout nobody else does.

        Best effort, and told again by each try: the journal keeps it once.
        """
        if state.session is None or state.session_id is None:
            return
        from airflow_mediation_provider.protocol.entry import Entry, EntryKind

        transition = SessionTransition.from_dict(state.session)
        entry = Entry(
            kind=EntryKind.STATUS_CHANGE,
            observed_at=transition.observed_at,
            source=Source.RUN,
            transition=transition,
            notification_id=f"run:{state.session_id}",
        )
        self._feed_caller().observe([entry])

    def _allow_pause(self, since: dict[str, str], kind: str, limit: float, error: MediationError) -> None:
        """Say once why the call has to wait, and end the try when that lasts too long."""
        now = datetime.now(UTC)
        began = datetime.fromisoformat(since.setdefault(kind, now.isoformat()))
        if (now - began).total_seconds() >= limit:
            if kind == "capacity":
                raise error
            from airflow_mediation_provider.exceptions import MediationUnreachable

            raise MediationUnreachable(
                f"Meter {self.meter_id} could not be started for {limit:g} s: {error}"
            ) from error
        if began == now:
            self.log.warning(
                "Meter %s is not started yet, trying again for up to %g s: %s", self.meter_id, limit, error
            )

    def _spread(self, pauses: int) -> float:
        """Return the seconds to the next call: many tasks may wait for one free place, so they do not call at once."""
        longest = max(_LONGEST_PAUSE, self.poke_interval)
        pause = min(self.poke_interval * float(2 ** min(pauses, 10)), longest)
        return random.uniform(0.75, 1.5) * pause  # noqa: S311

    def _pause_before_call(self, state: RunState, memory: RunMemory, since: dict[str, str], pause: float) -> None:
        if not self.deferrable:
            time.sleep(pause)
            return
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        kept = {} if memory.lasting else {"state": state.to_dict()}
        self._feed_caller().report_calls()
        self.defer(
            trigger=DateTimeTrigger(moment=datetime.now(UTC) + timedelta(seconds=pause)),
            method_name="start_again",
            kwargs={"since": since, **kept},
        )

    def _earlier_run_failed(self, context: Context) -> bool:
        """Say, without a memory, whether the session that an earlier try started is dead, so that this one starts anew.

        Two readings, some time apart: one alone may show the session before that one.
        """
        ti, hook = context["ti"], self._make_hook()
        if ti.try_number <= max(0, ti.max_tries - (self.retries or 0)) + 1:
            return False
        # An end that this task takes for a success is not one to start anew after: it lost only its own result.
        failures = TERMINAL[self.run_type] - set(self.statuses)
        for pause in (0, self.settle):
            time.sleep(pause)
            if hook.run_status(str(self.meter_id), self.version) not in failures:
                return False
        return True
