"""What a trigger learned, kept where the next triggerer finds it: in an XCom of its own task.

A trigger's arguments never change, and it has no other memory. A wait for a session that nobody named needs one: that a
session *began* shows in a change of the meter's status only, and a new triggerer that sees COMPLETED again, as before,
would wait for the next session. So this is written once, when such a session began, and deleted at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.wait import SessionWait
from airflow_mediation_provider.wait_memory import question
from airflow_mediation_provider.watch.polls import utcnow

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

KEY: Final = "mediation_session_wait"
# A trigger runs within seconds after it was made; later it most likely is not its first triggerer.
_FIRST_START: Final = timedelta(seconds=15)
# A wait goes on without its memory rather than hang on Airflow's answer.
_ANSWER_SECONDS: Final = 30.0


class TriggerMemory:
    """The kept state of one trigger's wait; for a wait that needs none it does nothing.

    :param ti: the trigger's task instance, as the triggerer gives it
    """

    def __init__(self, ti: Any) -> None:
        self._ti = ti
        self._kept = False

    async def recall(self, wait: SessionWait) -> SessionWait:
        """Return the wait as an earlier triggerer kept it, else the given one.

        :param wait: the wait as the arguments have it
        """
        now = utcnow()
        if not self._needed(wait) or wait.known.begun or now - wait.created_at < _FIRST_START:
            return wait
        record = await self._call("get_one")
        if not isinstance(record, Mapping) or record.get("ti_id") != str(self._ti.id):
            return wait
        try:
            kept = SessionWait.from_dict(record["wait"])
        except (KeyError, TypeError, ValueError):
            return wait
        if question(kept) != question(wait):
            return wait
        self._kept = True
        return kept

    async def keep(self, wait: SessionWait) -> None:
        """Keep the wait, once, when its session began."""
        if not self._kept and self._needed(wait) and wait.known.begun:
            self._kept = True
            await self._call("set", value={"ti_id": str(self._ti.id), "wait": wait.to_dict()})

    async def forget(self) -> None:
        """Delete what was kept: the wait is over."""
        if self._kept:
            await self._call("delete")

    def _needed(self, wait: SessionWait) -> bool:
        return wait.condition.session_id is None and getattr(self._ti, "id", None) is not None

    async def _call(self, name: str, **arguments: Any) -> Any:
        """Call for the record; without an answer go on without."""
        try:
            return await _xcom(self._ti, name, key=KEY, **arguments)
        except Exception:
            log.warning("The state of the wait could not be kept or read; the wait goes on.", exc_info=True)
            return None


async def push_xcom(ti: Any, key: str, value: Any) -> bool:
    """Push an XCom as a worker would, and return whether that worked; the wait goes on in any case.

    :param ti: the trigger's task instance. Its own ``axcom_push`` does not work for a task that started in the
        triggerer: Airflow 3.3 looks there for an attribute that only a worker's operators have
    """
    try:
        await _xcom(ti, "set", key=key, value=value)
    except Exception:
        log.warning("The XCom %s could not be pushed; the wait goes on.", key, exc_info=True)
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
    """Return what a crashed trigger of this task kept of its wait; on a worker."""
    from airflow.sdk.bases.xcom import BaseXCom

    try:
        record = BaseXCom.get_one(
            key=KEY, dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index
        )
    except Exception:
        log.warning("What the trigger knew of the wait could not be read.", exc_info=True)
        return None
    if not isinstance(record, Mapping) or record.get("ti_id") != str(ti.id) or not isinstance(record["wait"], Mapping):
        return None
    return dict(record["wait"])
