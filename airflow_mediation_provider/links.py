"""Links from a task in Airflow's UI to its session at Zuora; there from the first second, not only when the task ends.

Airflow stores a link as an XCom, and by itself only when the task's process ends. So whoever learns the address calls
``push_session_link`` before it waits; Airflow's own push at the end then finds that XCom and repeats it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseOperatorLink

from airflow_mediation_provider.protocol.errors import MediationError

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

    from airflow_mediation_provider.hooks.mediation import MediationHook


class MeterSessionLink(BaseOperatorLink):
    """The button *Zuora session*: the session in Zuora's UI, by the connection's link template."""

    name: ClassVar[str] = "Zuora session"
    key: ClassVar[str] = "mediation_session_link"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds the address: the very one that ``push_session_link`` writes."""
        return self.key

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the address pushed for this task instance, or an empty text (the UI then greys the button out)."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(ti_key=ti_key, key=self.key) or ""


def push_session_link(
    context: Context, hook: MediationHook, meter_id: str, session_id: str | None, run_id: str | None = None
) -> None:
    """Show a session's address in Airflow's UI from now on, where it is known and the connection has a template for it.

    Where there is none, an empty text says so: Airflow looks for the link when the process ends, and logs an error
    where it finds nothing at all.

    :param context: the running task's context
    :param hook: knows the connection; trouble with it is left to the calls that matter
    :param meter_id: the meter
    :param session_id: the session
    :param run_id: Zuora's own id of the run, which only the reply of a run call tells
    """
    url = None
    if session_id is not None:
        with suppress(MediationError):
            url = hook.session_url(meter_id, session_id, run_id)
    context["ti"].xcom_push(key=MeterSessionLink.key, value=url or "")
