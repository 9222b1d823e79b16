"""The trigger that waits for an export of the audit trail.

Its arguments are a contract, as those of the other triggers: they stay in the database while a package is upgraded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mediation_provider.protocol.waits.export_wait import ExportResult, ExportWait
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.tasks.state import utcnow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["AuditTrailExportTrigger"]

ARGUMENTS_VERSION: Final = 1


class AuditTrailExportTrigger(BaseTrigger):
    """Polls one export job, and fires one event: an ``ExportResult`` as a dict. It never creates a job.

    Another triggerer continues with the same job and deadline; ``max_unreachable`` starts again there.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param wait: ``ExportWait.to_dict()``: the job, its deadline, and when it is polled next
    :param arguments_version: version of these arguments

    https://developer.zuora.com/v1-api-reference/api/audit-trail/getaudittrailexportjobs
    """

    def __init__(
        self, *, mediation_conn_id: str, wait: dict[str, Any], arguments_version: int = ARGUMENTS_VERSION
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mediation_conn_id = mediation_conn_id
        self.wait = wait
        self.arguments_version = arguments_version

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger again elsewhere."""
        names = ("mediation_conn_id", "wait", "arguments_version")
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in names},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the wait is over; log each status once."""
        from airflow_mediation_provider import triggerer

        wait = ExportWait.from_dict(self.wait)
        async with await triggerer.open_hook(self.mediation_conn_id, attempts=1) as hook:
            while not isinstance(step := wait.step(utcnow()), ExportResult):
                if step > 0:
                    await asyncio.sleep(step)
                    continue
                try:
                    jobs = await hook.list_export_jobs(
                        wait.meter_id, export_type=wait.export_type, request_id=wait.request_id
                    )
                except MediationError as error:
                    lines = wait.fault(error, utcnow())
                else:
                    lines = wait.answer(jobs, utcnow())
                for line in lines:
                    self.log.info(line)
        yield TriggerEvent(step.to_dict())

    async def cleanup(self) -> None:
        """Report the calls to Zuora: no other report of this process may follow."""
        from airflow_mediation_provider import triggerer

        await triggerer.report_calls(self.mediation_conn_id)
