"""Triggers that wait for a meter's session in the triggerer; cheap, for one hub does the looking for all of them.

Their arguments are a contract: they lie in the database while a package is upgraded. They are plain JSON, have a
version, and those of every published version still load.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from airflow_mediation_provider.protocol.errors import MediationError
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType
from airflow_mediation_provider.protocol.wait import SessionWait, WaitEnd, WaitResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_mediation_provider.protocol.condition import SessionCondition

ARGUMENTS_VERSION: Final = 2
_ON_KILL_SECONDS: Final = 28.0
"""Airflow gives ``on_kill`` 30 seconds."""
_ENDED_BY_USER: Final = frozenset({None, "failed", "success", "skipped", "removed"})
"""States of a task that a user ended or cleared (``None``); in every other one it is waited for, here or elsewhere."""


class MeterSessionTrigger(BaseTrigger):
    """Waits for a session and fires one event: a ``WaitResult`` as a dict.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param wait: ``SessionWait.to_dict()``: what is waited for, until when, and what is known already
    :param poll_interval: seconds between two looks at the meter, at least
    :param end_from_trigger: end the task here, as a success, when the condition is met
    :param stop_on_kill: stop the meter when a user ends the task meanwhile (Airflow 3.3)
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
        # As text: a triggerer holds thousands of these, and a tree of dicts takes four times as much.
        self._wait = json.dumps(wait)
        self.poll_interval = poll_interval
        self._followed: SessionWait | None = None
        # Sessions of the meter that were seen beside the awaited one, as of the end of the wait.
        self._others: set[str] = set()
        self.end_from_trigger = end_from_trigger
        self.stop_on_kill = stop_on_kill
        self.arguments_version = arguments_version

    @property
    def wait(self) -> dict[str, Any]:
        """What is waited for, as the arguments have it."""
        wait: dict[str, Any] = json.loads(self._wait)
        return wait

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger anew elsewhere."""
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
        """Wait; log each change of the session once, and a sign of life every few minutes."""
        yield await self._follow(SessionWait.from_dict(self.wait))

    async def _follow(self, wait: SessionWait, *, eager: bool = False) -> TriggerEvent:
        from airflow_mediation_provider import watch
        from airflow_mediation_provider.triggers.memory import TriggerMemory
        from airflow_mediation_provider.watch.reports import WaitingTask

        memory = TriggerMemory(self.task_instance)
        self._followed = wait = await memory.recall(wait)
        if eager:
            self.log.info(wait.known.opening(self.mediation_conn_id))
        waiter = watch.subscribe(
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
                for line in news.lines:
                    self.log.info(line)
                if news.result is not None:
                    break
                await memory.keep(wait)
        finally:
            self._others = watch.other_sessions(self.mediation_conn_id, wait)
            waiter.close()
        await memory.forget()
        return await self._event(wait, news.result)

    async def _prepare(self, condition: SessionCondition) -> None:  # noqa: ARG002  # for the class below
        """Do what is to be done once, when the waiting has begun."""
        if self.stop_on_kill and not MeterSessionTrigger._asked_before:
            # The triggerer builds what answers this at the first question, and that can take longer than a kill may.
            MeterSessionTrigger._asked_before = True
            await self._task_state()

    async def _event(self, wait: SessionWait, result: WaitResult) -> TriggerEvent:
        """Return the event; every end but success goes on on a worker, where Airflow does all it does for a task."""
        from airflow_mediation_provider.triggers.memory import push_xcom

        # Pushed here: of the event's own XComs Airflow 3.3 makes a text of JSON, and downstream tasks need the object.
        if (
            result.end is WaitEnd.MET
            and self.end_from_trigger
            and await push_xcom(self.task_instance, "return_value", result.session)
        ):
            self.log.info(result.message)
            return TaskSuccessEvent()
        # The next try takes up the wait of a session that has not ended.
        memory = {"wait": wait.to_dict()} if result.end is WaitEnd.UNREACHABLE else {}
        return TriggerEvent({**result.to_dict(), **memory})

    async def cleanup(self) -> None:
        """Let the hub close its connections if this was its last waiter; nothing is asked of Zuora here."""
        from airflow_mediation_provider import watch

        await watch.settled()

    async def on_kill(self) -> None:
        """Stop the meter, if the operator asked for that and it is certain that a user ended the task.

        Airflow 3.3 also calls this when it hands the trigger to another triggerer, so the task's state decides. Zuora
        stops every NORMAL run of the meter version, not one session, so another live session forbids it.

        https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter
        """
        if not self.stop_on_kill:
            return
        wait = self._followed or SessionWait.from_dict(self.wait)
        condition = wait.condition
        meter = f"meter {condition.meter_id} version {condition.version}"
        try:
            async with asyncio.timeout(_ON_KILL_SECONDS):
                reason = await self._stop(wait)
        except TimeoutError:
            reason = f"it took longer than {_ON_KILL_SECONDS:g} s"
        except MediationError as error:
            reason = str(error)
        if reason is None:
            self.log.info("The task was ended by a user: told Zuora to stop %s.", meter)
        else:
            self.log.warning("Did not stop %s: %s", meter, reason)

    async def _stop(self, wait: SessionWait) -> str | None:
        """Stop the meter, or return why not."""
        from airflow_mediation_provider import watch

        condition = wait.condition
        if wait.known.doubt:
            return wait.known.doubt
        if condition.run_type is not RunType.NORMAL:
            return f"Zuora stops NORMAL runs only, and this is a {condition.run_type} one"
        others = self._others | watch.other_sessions(self.mediation_conn_id, wait)
        if others:
            return f"it would stop {', '.join(sorted(others))} as well, which seem to be live or are waited for"
        async with await watch.open_hook(self.mediation_conn_id, attempts=2) as hook:
            status = await hook.run_status(condition.meter_id, condition.version)
            if status in ANY_TERMINAL:
                return f"it is {status} already"
            # Asked last: a task that was cleared may start anew, and its new session must not be stopped.
            state = await self._task_state()
            if state not in _ENDED_BY_USER:
                return f"the task is {state}: Airflow only moved the wait elsewhere, or has started the task anew"
            await hook.stop_meter(condition.meter_id, condition.version)
        return None

    async def _task_state(self) -> str | None:
        """Return the task's state in Airflow, ``None`` after a Clear, and ``unknown`` where it cannot be told."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti: Any = self.task_instance
        if ti is None:
            return "unknown"
        try:
            states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
                dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
            )
            name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
            state = states[ti.run_id][name]
        except Exception:
            self.log.warning("The task's state could not be asked for.", exc_info=True)
            return "unknown"
        return None if state is None else str(state)


class MeterSessionStartTrigger(MeterSessionTrigger):
    """Waits for a task that never was on a worker: its arguments are the sensor's, rendered by the triggerer.

    The names of the templated ones are the sensor's, or Airflow would not render them.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param meter_id: see ``MeterSessionSensor``, as for all arguments up to ``since``
    :param version: version of the meter
    :param session_id: the session
    :param run_type: NORMAL or DEBUG
    :param statuses: the statuses that meet the condition
    :param fail_on: the statuses that fail it
    :param since: the earliest start of the session, as ISO 8601
    :param wait_options: further arguments of the wait, see ``waiting.make_wait``
    :param timeout: seconds that the wait may take from the start of the try
    :param backstop: seconds from the start of the try to Airflow's own timeout of the trigger
    :param poll_interval: seconds between two looks at the meter, at least
    :param end_from_trigger: end the task here when the condition is met, unless Airflow would lose something by that
    :param arguments_version: version of these arguments
    """

    timeout_after: datetime | None
    """When Airflow's own timeout ends the trigger; Airflow sets it, and it stays when the trigger moves."""

    def __init__(
        self,
        *,
        mediation_conn_id: str,
        meter_id: str,
        version: str,
        session_id: str | None = None,
        run_type: str,
        statuses: list[str] | str | None = None,
        previous_statuses: list[str] | str | None = None,
        fail_on: list[str] | str | None = None,
        since: str | None = None,
        wait_options: dict[str, Any],
        timeout: float,
        backstop: float,
        poll_interval: float = 60.0,
        end_from_trigger: bool = False,
        arguments_version: int = ARGUMENTS_VERSION,
    ) -> None:
        super().__init__(
            mediation_conn_id=mediation_conn_id,
            wait={},
            poll_interval=poll_interval,
            end_from_trigger=end_from_trigger,
            arguments_version=arguments_version,
        )
        self.meter_id = meter_id
        self.version = version
        self.session_id = session_id
        self.run_type = run_type
        self.statuses = statuses
        self.previous_statuses = previous_statuses
        self.fail_on = fail_on
        self.since = since
        self.wait_options = wait_options
        self.timeout = timeout
        self.backstop = backstop
        self.timeout_after = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger anew elsewhere."""
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
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in names},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, from the start of the try on, which is the same wherever this runs."""
        from airflow_mediation_provider.end_in_triggerer import may_end_without_worker
        from airflow_mediation_provider.waiting import make_wait

        # Airflow keeps the instant of its own timeout with the task, and nothing else that tells when the try began.
        timeout_after = self.timeout_after or datetime.now(UTC) + timedelta(seconds=self.backstop)
        started_at = timeout_after.astimezone(UTC) - timedelta(seconds=self.backstop)
        try:
            wait = make_wait(
                meter_id=self.meter_id,
                version=self.version,
                session_id=self.session_id,
                run_type=self.run_type,
                statuses=self.statuses,
                previous_statuses=self.previous_statuses,
                fail_on=self.fail_on,
                since=self.since,
                until=started_at + timedelta(seconds=self.timeout),
                created_at=started_at,
                **self.wait_options,
            )
        except ValueError as error:
            yield TriggerEvent(WaitResult(end=WaitEnd.MISCONFIGURED, message=str(error)).to_dict())
            return
        task = getattr(self, "task", None)  # Airflow 3.2 gives a trigger no task
        self.end_from_trigger = self.end_from_trigger and task is not None and may_end_without_worker(task)
        yield await self._follow(wait, eager=True)

    async def _prepare(self, condition: SessionCondition) -> None:
        """Show the session's addresses in the UI from now on, as a worker does before it waits."""
        from airflow_mediation_provider import watch
        from airflow_mediation_provider.links import MeterSessionLink, MeterSessionPageLink, session_page_in_airflow
        from airflow_mediation_provider.triggers.memory import push_xcom

        ti: Any = self.task_instance
        meter_id, session_id = condition.meter_id, condition.session_id
        # Without a session id the tab of the task shows what it waits for; a push for each of many waits would not pay.
        if session_id is None or getattr(ti, "task", None) is None:
            return
        page = session_page_in_airflow(ti, self.mediation_conn_id, meter_id, session_id)
        await push_xcom(ti, MeterSessionPageLink.key, page)
        url = None
        # What is wrong with the connection, the first look says.
        with suppress(MediationError):
            url = await watch.session_url(self.mediation_conn_id, meter_id, session_id)
        if url:
            await push_xcom(ti, MeterSessionLink.key, url)
