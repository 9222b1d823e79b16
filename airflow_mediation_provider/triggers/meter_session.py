"""Triggers that wait for a meter's session in the triggerer; cheap, because one hub polls for all of them.

Their arguments are a contract: they stay in the database while a package is upgraded. They are plain JSON with a
version, and those of every published version still load.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from airflow_mediation_provider.protocol.waits.condition import SUBJECT_ARGUMENTS, subject_of
from airflow_mediation_provider.protocol.waits.stop_policy import KILLED, StopCause, StopFacts, why_not_stop
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.tasks.state import NO_ANSWER, state_in, state_query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_mediation_provider.protocol.waits.condition import SessionCondition, Subject
    from airflow_mediation_provider.triggerer.meter import WaitSubscription

__all__ = ["MeterSessionStartTrigger", "MeterSessionTrigger"]

ARGUMENTS_VERSION: Final = 2
_ON_KILL_SECONDS: Final = 28.0
"""Airflow gives ``on_kill`` 30 seconds."""
_TRIGGERER: Final = "airflow_mediation_provider.triggerer"
_GOING_ON: Final = (WaitEnd.UNREACHABLE, WaitEnd.TIMED_OUT)
"""Results whose session has not ended: the event then contains the wait."""


class MeterSessionTrigger(BaseTrigger):
    """Waits for a session and fires one event: a ``WaitResult`` as a dict.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param wait: ``SessionWait.to_dict()``: the condition, its deadline, and what is known already
    :param poll_interval: seconds between two polls of the meter, at least
    :param end_from_trigger: end the task here, as a success, when the condition is met
    :param stop_on_kill: stop the meter when the task is ended from outside during the wait (Airflow 3.3)
    :param arguments_version: version of these arguments
    """

    _asked_before: ClassVar[bool] = False

    def __init__(
        self,
        *,
        mediation_conn_id: str,
        wait: dict[str, Any],
        poll_interval: float = 60.0,
        end_from_trigger: bool = False,
        stop_on_kill: bool = False,
        arguments_version: int = ARGUMENTS_VERSION,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mediation_conn_id = mediation_conn_id
        # As text: a triggerer has thousands of these, and a tree of dicts takes four times as much memory.
        self._wait = json.dumps(wait)
        self.poll_interval = poll_interval
        # Its subscription to the hub, once the wait has started here.
        self._waiter: WaitSubscription | None = None
        self.end_from_trigger = end_from_trigger
        self.stop_on_kill = stop_on_kill
        self.arguments_version = arguments_version

    @property
    def wait(self) -> dict[str, Any]:
        """The wait by the arguments."""
        wait: dict[str, Any] = json.loads(self._wait)
        return wait

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger again elsewhere."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "mediation_conn_id": self.mediation_conn_id,
                "wait": self.wait,
                "poll_interval": self.poll_interval,
                "end_from_trigger": self.end_from_trigger,
                "stop_on_kill": self.stop_on_kill,
                "arguments_version": self.arguments_version,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait; log each change of the session once, and a heartbeat every few minutes."""
        yield await self._follow(SessionWait.from_dict(self.wait))

    async def _follow(self, wait: SessionWait, *, eager: bool = False) -> TriggerEvent:
        if _TRIGGERER not in sys.modules:
            # The first import takes a few hundred milliseconds, which must not block the event loop.
            await asyncio.to_thread(import_module, _TRIGGERER)
        from airflow_mediation_provider import triggerer
        from airflow_mediation_provider.feed.reports import WaitingTask
        from airflow_mediation_provider.tasks.memory import TriggerKeptWait

        memory = TriggerKeptWait(self.task_instance)
        wait = await memory.recall(wait)
        if eager:
            self.log.info(wait.tracker.opening(self.mediation_conn_id))
        self._waiter = waiter = triggerer.subscribe(
            self.mediation_conn_id,
            wait,
            poll_interval=self.poll_interval,
            eager=eager,
            task=WaitingTask.of(self.task_instance),
        )
        try:
            await self._prepare(wait.condition)
            while True:
                news = await waiter.news()
                news.log_lines(self.log)
                if news.result is not None:
                    break
                await memory.keep(wait)
            await memory.forget()
            # Before the waiter leaves the hub, because the hub's feed reports the verdict.
            return await self._event(wait, news.result)
        finally:
            waiter.close()
            if self.task_instance is None:
                # dag.test() runs a trigger in its own loop, which ends with the first event and without cleanup().
                await triggerer.settled()

    async def _prepare(self, condition: SessionCondition) -> None:  # noqa: ARG002  # for the class below
        """Do once what is needed when the wait has started."""
        if self.stop_on_kill and not MeterSessionTrigger._asked_before:
            # The triggerer imports what is needed for this at the first call, and that can take longer than a kill may.
            MeterSessionTrigger._asked_before = True
            await self._task_state()

    async def _event(self, wait: SessionWait, result: WaitResult) -> TriggerEvent:
        """Return the event; a worker continues after every end but success, where Airflow runs all callbacks."""
        from airflow_mediation_provider.tasks.memory import push_xcom

        result = result.over(self.mediation_conn_id)
        # Pushed here: Airflow 3.3 stores the event's own XComs as JSON text, and downstream tasks need the object.
        if (
            result.end is WaitEnd.MET
            and self.end_from_trigger
            and await push_xcom(self.task_instance, "return_value", result.session)
        ):
            if result.warning:
                self.log.warning(result.warning)
            self.log.info(result.message)
            await self._report_verdict(result)
            return TaskSuccessEvent()
        # The next try continues the wait for a session that has not ended.
        more: dict[str, Any] = {"wait": wait.to_dict()} if result.end in _GOING_ON else {}
        if result.end is WaitEnd.TIMED_OUT and self._waiter is not None:
            # State of this process that the worker needs before it stops the meter.
            more |= {"owner": self._waiter.owner, "stalled": self._waiter.stalled}
        return TriggerEvent({**result.to_dict(), **more})

    async def _report_verdict(self, result: WaitResult) -> None:
        """Report the end of the session, where this try concluded it from polls; no worker does."""
        from airflow_mediation_provider import triggerer
        from airflow_mediation_provider.feed.reports import not_shown, verdict
        from airflow_mediation_provider.protocol.sessions.verdict import TRIGGERER

        try:
            found = verdict(self.mediation_conn_id, self.task_instance, result.session, TRIGGERER)
            if found is not None:
                await triggerer.report(self.mediation_conn_id, found)
        except Exception as error:
            self.log.warning(not_shown(error))

    async def cleanup(self) -> None:
        """Let the hub close its connections if this was its last waiter; sends nothing to Zuora."""
        from airflow_mediation_provider import triggerer

        await triggerer.settled()

    async def on_kill(self) -> None:
        """Stop the meter, if the operator is set to stop it and the stop policy allows it.

        Airflow 3.3 also calls this after it has moved the trigger to another triggerer, and cancels the call again each
        second until it ends.
        """
        if not self.stop_on_kill:
            return
        stopping = asyncio.create_task(self._stop_and_log())
        while not stopping.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(stopping)

    async def _stop_and_log(self) -> None:
        condition = SessionWait.from_dict(self.wait).condition
        meter = f"meter {condition.meter_id} version {condition.version}"
        try:
            async with asyncio.timeout(_ON_KILL_SECONDS):
                reason = await self._stop()
        except TimeoutError:
            reason = f"it took longer than {_ON_KILL_SECONDS:g} s"
        except MediationError as error:
            reason = str(error)
        if reason is None:
            self.log.info("The task was ended: Zuora accepted the request to stop %s.", meter)
        else:
            self.log.warning("Did not stop %s: %s", meter, reason)

    async def _stop(self) -> str | None:
        """Collect the facts and stop the meter, or return why not."""
        from airflow_mediation_provider import triggerer
        from airflow_mediation_provider.feed.reports import WaitingTask, wait_id

        waiter, task, state = self._waiter, WaitingTask.of(self.task_instance), await self._task_state()
        if waiter is None:
            return "it did not wait for a session yet"
        waiter.catch_up()
        facts = StopFacts.of_wait(
            StopCause.KILL,
            waiter.wait,
            task_state=state,
            wait_id=None if task is None else wait_id(self.mediation_conn_id, task),
            owner=waiter.owner,
        )
        if state not in KILLED:
            return why_not_stop(facts)
        facts = facts.answered(await triggerer.ask(self.mediation_conn_id, facts.question()))
        async with await triggerer.open_hook(self.mediation_conn_id, attempts=2) as hook:
            status = await hook.run_status(facts.meter_id, facts.version)
            # Read again last: a task that was cleared in the meantime may have a new session by now.
            state = await self._task_state()
            reason = why_not_stop(replace(facts, status=status, task_state=state, stalled=waiter.stalled))
            if reason is None:
                await hook.stop_meter(facts.meter_id, facts.version)
            return reason

    async def _task_state(self) -> str | None:
        """Return the task's present state in Airflow."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti: Any = self.task_instance
        if ti is None:
            return NO_ANSWER
        try:
            states = await sync_to_async(RuntimeTaskInstance.get_task_states)(**state_query(ti))
            return state_in(states, ti)
        except Exception:
            self.log.warning("The task's state could not be read.", exc_info=True)
            return NO_ANSWER


class MeterSessionStartTrigger(MeterSessionTrigger):
    """Waits for a task that was never on a worker: its arguments are the sensor's, rendered by the triggerer.

    The templated arguments have the sensor's names, or Airflow would not render them.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param meter_id: see ``MeterSessionSensor``, as for all arguments up to ``since``
    :param version: version of the meter
    :param session_id: the session
    :param run_type: NORMAL, DEBUG or a list of both
    :param statuses: the statuses that meet the condition
    :param fail_on: the statuses that fail it
    :param since: the earliest start of the session, as ISO 8601
    :param before: its latest start (exclusive), as ISO 8601, or as seconds after ``since``
    :param wait_options: further arguments of the wait, see ``tasks.build.make_wait``
    :param timeout: seconds that the wait may take from the start of the try
    :param backstop: seconds from the start of the try to Airflow's own timeout of the trigger
    :param poll_interval: seconds between two polls of the meter, at least
    :param end_from_trigger: end the task here when the condition is met, unless Airflow would lose something
    :param given: the arguments, up to ``run_type`` and the connection, that the user gave; a session that is an object
        supplies the others. ``None``: all that are set
    :param arguments_version: version of these arguments
    """

    timeout_after: datetime | None
    """The time of Airflow's own timeout of the trigger; Airflow sets it, and it stays when the trigger moves."""

    def __init__(
        self,
        *,
        mediation_conn_id: str,
        session: Any = None,
        meter_id: Any,
        version: str,
        session_id: Any = None,
        run_type: str | list[str],
        statuses: list[str] | str | None = None,
        previous_statuses: list[str] | str | None = None,
        fail_on: list[str] | str | None = None,
        since: str | None = None,
        before: str | float | None = None,
        wait_options: dict[str, Any],
        timeout: float,
        backstop: float,
        poll_interval: float = 60.0,
        end_from_trigger: bool = False,
        given: list[str] | None = None,
        arguments_version: int = ARGUMENTS_VERSION,
    ) -> None:
        super().__init__(
            mediation_conn_id=mediation_conn_id,
            wait={},
            poll_interval=poll_interval,
            end_from_trigger=end_from_trigger,
            arguments_version=arguments_version,
        )
        self.session = session
        self.given = given
        self.meter_id = meter_id
        self.version = version
        self.session_id = session_id
        self.run_type = run_type
        self.statuses = statuses
        self.previous_statuses = previous_statuses
        self.fail_on = fail_on
        self.since = since
        self.before = before
        self.wait_options = wait_options
        self.timeout = timeout
        self.backstop = backstop
        self.timeout_after = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger again elsewhere."""
        names = (
            "mediation_conn_id",
            "meter_id",
            "version",
            "session_id",
            "run_type",
            "statuses",
            "previous_statuses",
            "fail_on",
            "since",
            "wait_options",
            "timeout",
            "backstop",
            "poll_interval",
            "end_from_trigger",
            "arguments_version",
        )
        arguments = {name: getattr(self, name) for name in names}
        # An older triggerer does not take these arguments, so they are stored only if they are given.
        for name in ("session", "given", "before"):
            if getattr(self, name) is not None:
                arguments[name] = getattr(self, name)
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, counted from the start of the try, which is the same wherever this runs."""
        from airflow_mediation_provider.tasks.build import make_wait, may_end_without_worker, note_next_run

        # Airflow stores the time of its own timeout with the task, and nothing else that shows when the try started.
        timeout_after = self.timeout_after or datetime.now(UTC) + timedelta(seconds=self.backstop)
        started_at = timeout_after.astimezone(UTC) - timedelta(seconds=self.backstop)
        try:
            subject = self._subject()
            self.mediation_conn_id = subject.mediation_conn_id
            wait = make_wait(
                subject=subject,
                statuses=self.statuses,
                previous_statuses=self.previous_statuses,
                fail_on=self.fail_on,
                since=self.since,
                before=timedelta(seconds=self.before) if isinstance(self.before, float | int) else self.before,
                until=started_at + timedelta(seconds=self.timeout),
                created_at=started_at,
                poll_interval=self.poll_interval,
                **self.wait_options,
            )
        except ValueError as error:
            yield TriggerEvent(WaitResult(end=WaitEnd.MISCONFIGURED, message=str(error)).to_dict())
            return
        ti: Any = self.task_instance
        note_next_run(wait, lambda: ti.get_template_context())
        task = getattr(self, "task", None)  # Airflow 3.2 gives a trigger no task
        self.end_from_trigger = self.end_from_trigger and task is not None and may_end_without_worker(task)
        yield await self._follow(wait, eager=True)

    def _subject(self) -> Subject:
        """Return the subject of the wait, by the arguments as they were rendered here."""
        given = self.given
        if given is None:
            given = [name for name in SUBJECT_ARGUMENTS if getattr(self, name) is not None]
        return subject_of({name: getattr(self, name) for name in given})

    async def _prepare(self, condition: SessionCondition) -> None:
        """Show the session's links in the UI from now on, as a worker does before it waits."""
        from airflow_mediation_provider import triggerer
        from airflow_mediation_provider.links import MeterSessionLink, MeterSessionPageLink, session_page_in_airflow
        from airflow_mediation_provider.tasks.memory import push_xcom

        ti: Any = self.task_instance
        meter_id, session_id = condition.meter_id, condition.session_id
        # Without a session id the task's tab shows what it waits for; a push for each of many waits would not pay off.
        if session_id is None or getattr(ti, "task", None) is None:
            return
        page = session_page_in_airflow(ti, self.mediation_conn_id, meter_id, session_id)
        await push_xcom(ti, MeterSessionPageLink.key, page)
        url = None
        # No task depends on the link; the first poll reports errors of the connection.
        with suppress(Exception):
            url = await triggerer.session_url(self.mediation_conn_id, meter_id, session_id)
        await push_xcom(ti, MeterSessionLink.key, url or "")
