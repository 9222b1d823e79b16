"""Links from a task in Airflow's UI to its session at Zuora; there from the first second, not only when the task ends.

Airflow stores a link as an XCom, and by itself only when the task's process ends. So whoever learns the address calls
``push_links`` before it waits; Airflow's own push at the end then finds that XCom and repeats it.
"""

from __future__ import annotations

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
        """The XCom that holds the address: the very one that ``push_links`` writes."""
        return self.key

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the address pushed for this task instance, or an empty text (the UI then greys the button out)."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(ti_key=ti_key, key=self.key) or ""


def push_links(context: Context, url: str | None) -> None:
    """Show the session's address in Airflow's UI from now on.

    :param context: the running task's context
    :param url: the address, as ``MediationHook.session_url`` gives it; ``None`` where the connection has no template
    """
    if url:
        context["ti"].xcom_push(key=MeterSessionLink.key, value=url)


def push_session_link(
    context: Context, hook: MediationHook, meter_id: str, session_id: str | None, run_id: str | None = None
) -> None:
    """Show a session's address in Airflow's UI, where the session is known and the connection has a template for it.

    :param context: the running task's context
    :param hook: knows the connection; trouble with it is left to the calls that matter
    :param meter_id: the meter
    :param session_id: the session
    :param run_id: Zuora's own id of the run, which only the reply of a run call tells
    """
    if session_id is None:
        return
    try:
        url = hook.session_url(meter_id, session_id, run_id)
    except MediationError:
        return
    push_links(context, url)
