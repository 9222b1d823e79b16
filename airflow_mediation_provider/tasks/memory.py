"""The kept wait: the state of a wait survives retries, reschedules, and crashes of triggers and triggerers.

On a worker it is a record of ``tasks.state``, until a user clears the task. Without a store (Airflow 3.2) nothing is
kept, and a new process starts with a new baseline.

A trigger keeps it in an XCom of its own task, because its arguments never change. A wait for a session without an id
needs it: that the session *started* shows only in a change of the meter's status, and a new triggerer that reads
COMPLETED again, as before, would wait for the next session. So it is written once, when the session started, and
deleted at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import ANY_TERMINAL, usual_run_type
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.tasks.state import TaskState, Tries, utcnow, was_cleared

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context


log = logging.getLogger(__name__)

KEY: Final = "mediation_session_wait"
VERSION: Final = 1

# A trigger runs within seconds after it was made; if it is older, this is most likely not its first triggerer.
_FIRST_START: Final = timedelta(seconds=15)
# A wait continues without its kept state rather than hang on Airflow's answer.
_ANSWER_SECONDS: Final = 30.0


class KeptWait:
    """The kept wait of one task instance.

    :param state: the task's record
    :param tries: of the running try: a deadline belongs to a try, the rest to the tries since the last Clear
    """

    def __init__(self, state: TaskState, tries: Tries) -> None:
        self._state = state
        self.tries = tries
        record = state.get()
        if was_cleared(Tries.kept(record, "generation"), tries, over=record.get("over") is True):
            record = {}
        wait = record.get("wait")
        self._wait: dict[str, Any] | None = dict(wait) if isinstance(wait, Mapping) else None
        self._wait_try: int | None = record.get("wait_try")
        self._over = record.get("over") is True
        self.method_name: str = record.get("method_name", "execute_complete")
        crashed = record.get("crashed", {})
        self.crashes: int = crashed.get("times", 0) if crashed.get("try_number") == tries.number else 0

    @classmethod
    def of(cls, context: Context, retries: int | None, longest: float) -> KeptWait:
        """Return the kept wait of the running task.

        :param retries: the operator's
        :param longest: seconds that the wait may take
        """
        return cls(TaskState.of(context, KEY, longest=longest), Tries.of(context["ti"], retries))

    @property
    def of_this_try(self) -> bool:
        """Whether this try has waited before, in an earlier process."""
        return self._wait_try == self.tries.number

    def recall(self, fresh: SessionWait) -> SessionWait:
        """Return the kept wait if it waits for the same as ``fresh``, else ``fresh``.

        A new try gets its own deadline, counts ``max_unreachable`` from its start, and keeps what is known about the
        session.
        """
        kept = self.last()
        if kept is None or not same_question(kept, fresh):
            return fresh
        if self.of_this_try:
            return kept
        return kept.renewed(until=fresh.condition.until)

    def last(self) -> SessionWait | None:
        """Return the last kept wait, or ``None``, also for a record that this version cannot read."""
        return None if self._wait is None else read_wait(self._wait)

    def keep(self, wait: SessionWait, method_name: str, *, required: bool = False) -> None:
        """Keep the wait for the next process.

        :param method_name: the operator's method that gets the result
        :param required: the next process cannot continue without it, so an error of the store ends this one
        :raises RuntimeError: required, and this Airflow has no task state store
        """
        if required and not self._state.lasting:
            raise RuntimeError("this Airflow has no task state store, which a rescheduled wait needs (Airflow 3.3)")
        self.method_name = method_name
        self._take(wait.to_dict(), required=required)

    def end(self) -> None:
        """Keep that the wait is over, so that a Clear is detected even if ``retries`` was changed since."""
        if self._wait is not None and not self._over:
            self._over = True
            self._write()

    def adopt(self, wait: Mapping[str, Any]) -> None:
        """Take over the state of the trigger of this try, which ended without an end of the session.

        :param wait: ``SessionWait.to_dict()``
        """
        self._take(dict(wait))

    def count_crash(self) -> int:
        """Count a crashed trigger of this try, and return the number so far."""
        self.crashes += 1
        self._write()
        return self.crashes

    def _take(self, wait: dict[str, Any], *, required: bool = False) -> None:
        self._wait, self._wait_try, self._over = wait, self.tries.number, False
        self._write(required=required)

    def _write(self, *, required: bool = False) -> None:
        record = {
            "version": VERSION,
            "generation": self.tries.max_tries,
            "retries": self.tries.retries,
            "wait": self._wait,
            "wait_try": self._wait_try,
            "over": self._over,
            "method_name": self.method_name,
            "crashed": {"try_number": self.tries.number, "times": self.crashes},
        }
        self._state.set({key: value for key, value in record.items() if value is not None}, required=required)


def read_wait(data: Any) -> SessionWait | None:
    """Return a stored wait; ``None`` where this version cannot read it."""
    if not isinstance(data, Mapping):
        return None
    try:
        return SessionWait.from_dict(data)
    except (KeyError, TypeError, ValueError):
        log.warning("The kept state of the wait cannot be read: the wait starts again without it.", exc_info=True)
        return None


def same_question(one: SessionWait, other: SessionWait) -> bool:
    """Return whether two waits wait for the same, regardless of deadlines: then they may share their state.

    An earlier version of this package stored other defaults: it had no final statuses of the other run type, and kept
    the earliest start in fractions of a second.
    """
    return _question(one) == _question(other)


def _question(wait: SessionWait) -> dict[str, Any]:
    condition = wait.condition
    asked = {key: value for key, value in condition.to_dict().items() if key != "until"}
    for name in ("statuses", "fail_on"):
        named: tuple[str, ...] = getattr(condition, name) or ()
        asked[name] = {
            each for each in named if each not in ANY_TERMINAL or usual_run_type(each) in condition.run_types
        }
    asked["since"] = None if condition.since is None else condition.since.replace(microsecond=0)
    return asked


class TriggerKeptWait:
    """The kept state of one trigger's wait; does nothing for a wait that needs none.

    :param ti: the trigger's task instance, as the triggerer passes it
    """

    def __init__(self, ti: Any) -> None:
        self._ti = ti
        self._kept = False

    async def recall(self, wait: SessionWait) -> SessionWait:
        """Return the wait as an earlier triggerer kept it, else the given one.

        :param wait: the wait by the arguments
        """
        now = utcnow()
        if not self._needed(wait) or wait.tracker.begun or now - wait.created_at < _FIRST_START:
            return wait
        kept = read_wait(_wait_of(self._ti, await self._call("get_one")))
        if kept is None or not same_question(kept, wait):
            return wait
        self._kept = True
        return kept

    async def keep(self, wait: SessionWait) -> None:
        """Keep the wait, once, when its session started."""
        if not self._kept and self._needed(wait) and wait.tracker.begun:
            self._kept = True
            await self._call("set", value={"ti_id": str(self._ti.id), "wait": wait.to_dict()})

    async def forget(self) -> None:
        """Delete the kept state: the wait is over."""
        if self._kept:
            await self._call("delete")

    def _needed(self, wait: SessionWait) -> bool:
        return wait.condition.session_id is None and getattr(self._ti, "id", None) is not None

    async def _call(self, name: str, **arguments: Any) -> Any:
        """Make a call for the record; without an answer continue without it."""
        try:
            return await _xcom(self._ti, name, key=KEY, **arguments)
        except Exception:
            log.warning("The state of the wait could not be kept or read; the wait continues.", exc_info=True)
            return None


async def push_xcom(ti: Any, key: str, value: Any) -> bool:
    """Push an XCom as a worker would, and return whether it was stored; the wait continues in any case.

    :param ti: the trigger's task instance; ``None`` in ``dag.test()``, where the worker pushes. Its own ``axcom_push``
        does not work for a task that started in the triggerer: there Airflow 3.3 reads an attribute that only a
        worker's operators have
    """
    if ti is None:
        return False
    try:
        await _xcom(ti, "set", key=key, value=value)
    except Exception as error:
        log.warning("The XCom %s could not be pushed (%s: %s); the wait continues.", key, type(error).__name__, error)
        return False
    return True


async def _xcom(ti: Any, name: str, **arguments: Any) -> Any:
    """Call Airflow's own XCom class, never a backend that may block the loop."""
    from airflow.sdk.bases.xcom import BaseXCom
    from asgiref.sync import sync_to_async

    call: Callable[..., Any] = getattr(BaseXCom, name)
    async with asyncio.timeout(_ANSWER_SECONDS):
        return await sync_to_async(call)(
            dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index, **arguments
        )


def kept_by_trigger(ti: Any) -> dict[str, Any] | None:
    """Return the state that a crashed trigger of this task kept of its wait; on a worker."""
    from airflow.sdk.bases.xcom import BaseXCom

    try:
        record = BaseXCom.get_one(
            key=KEY, dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index
        )
    except Exception:
        log.warning("The trigger's state of the wait could not be read.", exc_info=True)
        return None
    return _wait_of(ti, record)


def _wait_of(ti: Any, record: Any) -> dict[str, Any] | None:
    """Return the wait in a record that a trigger of this try kept; ``None`` without one, or if it is of another try."""
    if (
        not isinstance(record, Mapping)
        or record.get("ti_id") != str(ti.id)
        or not isinstance(record.get("wait"), Mapping)
    ):
        return None
    return dict(record["wait"])
