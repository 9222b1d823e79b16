"""Links in Airflow's UI, from the first second of a task: to its session's page in Airflow, and to Zuora's page.

Airflow stores a link as an XCom, and by itself only when the task's process ends. So the code that finds the addresses
calls ``push_session_links`` before it waits; Airflow's own push at the end then finds those XComs and repeats them.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseOperatorLink, conf

from airflow_mediation_provider.protocol.urls import session_page, task_page
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.version_compat import framed

if TYPE_CHECKING:
    from typing import Any

    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

    from airflow_mediation_provider.hooks.mediation import MediationHook

__all__ = ["MeterSessionLink", "MeterSessionPageLink"]

log = logging.getLogger(__name__)


class _PushedLink(BaseOperatorLink):
    """A link whose address was pushed as an XCom."""

    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        """The key of the XCom with the address: the one that was pushed."""
        return self.key

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the address pushed for this task instance, or an empty text (the UI then disables the button)."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(ti_key=ti_key, key=self.key) or ""


class MeterSessionLink(_PushedLink):
    """The button *Zuora session*: the session in Zuora's UI, by the connection's link template."""

    name: ClassVar[str] = "Zuora session"
    key: ClassVar[str] = "mediation_session_link"


class MeterSessionPageLink(_PushedLink):
    """The button *Meter session*: the session's page in Airflow, or what the task waits for while its id is unknown."""

    name: ClassVar[str] = "Meter session"
    key: ClassVar[str] = "mediation_session_page"


SESSION_LINKS = (MeterSessionPageLink(), MeterSessionLink())
"""The links of an operator that has, or waits for, one session."""


def push_session_links(
    context: Context, hook: MediationHook, meter_id: str, session_id: str | None, run_id: str | None = None
) -> None:
    """Show a session's links in Airflow's UI from now on; Zuora's where the connection has a template for it.

    Without a template an empty text is pushed: when the process ends, Airflow reads the link and logs an error if it
    finds nothing at all. No task depends on a link: an error while it is pushed is logged in one line, and the task
    continues.

    :param context: the running task's context
    :param hook: has the connection; errors of the connection are left to the calls that matter
    :param meter_id: the meter
    :param session_id: the session
    :param run_id: Zuora's own id of the run, which only the reply of a run call contains
    """
    ti = context["ti"]
    try:
        url = None
        if session_id is not None:
            with suppress(MediationError):
                url = hook.session_url(meter_id, session_id, run_id)
        ti.xcom_push(key=MeterSessionLink.key, value=url or "")
        page = session_page_in_airflow(ti, hook.mediation_conn_id, meter_id, session_id)
        ti.xcom_push(key=MeterSessionPageLink.key, value=page)
    except Exception as error:
        log.warning("The links to the session could not be pushed (%s: %s).", type(error).__name__, error)


def session_page_in_airflow(ti: Any, conn_id: str, meter_id: str, session_id: str | None) -> str:
    """Return the address of a session's page in Airflow; without a session, of what the task waits for.

    :param ti: the task instance
    :param conn_id: the Airflow connection
    """
    base = (conf.get("api", "base_url", fallback=None) or "").rstrip("/")
    if session_id is not None:
        return framed(base, session_page(base, conn_id, meter_id, session_id))
    map_index = -1 if ti.map_index is None else int(ti.map_index)
    return framed(base, task_page(base, ti.dag_id, ti.run_id, ti.task_id, map_index))
