"""The wait for an export of the audit trail: when its job is polled, and when the wait is over.

Zuora names the statuses RUNNING and FINISHED alone; its UI also shows Completed and Failed. Source:
https://developer.zuora.com/v1-api-reference/api/audit-trail/getaudittrailexportjobs
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.times import from_json, in_words, to_json, to_utc
from airflow_mediation_provider.protocol.waits.wait_result import Outage, WaitEnd
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.protocol.zuora.replies import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.zuora.errors import MediationError

_FINISHED: Final = ("FINISHED", "COMPLETED")
# Zuora documents no status of a job that failed.
_FAILED: Final = ("FAIL", "ERROR", "CANCEL")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The end of a wait for an export; as plain JSON it is the payload of the trigger's event.

    :param end: how it ended: MET, FAILED, TIMED_OUT, UNREACHABLE or MISCONFIGURED
    :param message: one sentence for the user
    :param request_id: the job
    :param status: the job's last status, as Zuora writes it
    :param count: the number of exported records, where the job is finished
    :param files: the keys of the exported files
    """

    end: WaitEnd
    message: str
    request_id: str
    status: str | None = None
    count: int | None = None
    files: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "end": str(self.end),
            "message": self.message,
            "request_id": self.request_id,
            "status": self.status,
            "count": self.count,
            "files": list(self.files),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExportResult:
        """Make a result from ``to_dict()``; unknown keys are left out.

        :raises KeyError: the job's id is missing
        :raises ValueError: ``end`` is missing or unknown
        """
        return cls(
            end=WaitEnd(data.get("end", "")),
            message=str(data.get("message", "")),
            request_id=str(data["request_id"]),
            status=data.get("status"),
            count=data.get("count"),
            files=tuple(data.get("files") or ()),
        )


class ExportWait:
    """The wait for one export job; the same on a worker and in the triggerer.

    Do what :meth:`step` returns, and report what a poll returned with :meth:`answer` or :meth:`fault`::

        while not isinstance(step := wait.step(now()), ExportResult):
            if step > 0:
                sleep(step)
            else:
                poll()

    The last poll is at the deadline, unless Zuora asked for a longer pause; no pause goes beyond ``max_unreachable``. A
    wait that continues after its deadline,
    because no process followed it, polls once: the job may be finished.

    :param meter_id: the meter
    :param export_type: of the job
    :param request_id: the job
    :param until: the deadline
    :param poll_interval: seconds between two polls
    :param max_unreachable: seconds without a good answer after which the wait ends
    :param poll_at: when the job is polled next
    :param status: the job's last status
    :raises ValueError: a time has no zone
    """

    def __init__(
        self,
        *,
        meter_id: str,
        export_type: str,
        request_id: str,
        until: datetime,
        poll_interval: float,
        max_unreachable: float,
        poll_at: datetime,
        status: str | None = None,
    ) -> None:
        self.meter_id = meter_id
        self.export_type = export_type
        self.request_id = request_id
        self._until = to_utc("until", until)
        self._poll_interval = poll_interval
        self._max_unreachable = max_unreachable
        self._poll_at = to_utc("poll_at", poll_at)
        self._status = status
        self._outage = Outage(timedelta(seconds=max_unreachable), answered=status is not None)
        self._result: ExportResult | None = None

    def step(self, at: datetime) -> float | ExportResult:
        """Return what to do: wait for so many seconds, poll the job (0), or end with the result.

        :param at: the time now
        """
        if self._result is not None:
            return self._result
        if self._poll_at <= at:
            return 0.0
        if at >= self._until:
            return self._end_at_deadline()
        return (min(self._poll_at, self._until) - at).total_seconds()

    def answer(self, jobs: Iterable[Mapping[str, Any]], at: datetime) -> tuple[str, ...]:
        """Take the answer of a poll, and return what to log: each status once.

        :param jobs: the meter's export jobs; older tenants ignore the job's id in the request, and return them all
        :param at: the time now
        """
        lines = self._outage.answer(at)
        job = next((job for job in jobs if str(job.get("requestId")) == self.request_id), {})
        before, self._status = self._status, str(job.get("status") or "unknown")
        status = self._status.upper()
        if status in _FINISHED:
            files = tuple(str(name) for name in job.get("fileList") or ())
            count = count_of(job.get("count"))
            message = f"Export {self.request_id} is finished: {count} records in {len(files)} file(s)."
            self._result = self._ended(WaitEnd.MET, message, count=count, files=files)
        elif any(word in status for word in _FAILED):
            message = f"Export {self.request_id} of meter {self.meter_id} ended as {status}."
            self._result = self._ended(WaitEnd.FAILED, message)
        else:
            if self._status != before:
                lines = (*lines, f"its status is {status}")
            self._plan(at)
        return self._named(lines)

    def fault(self, error: MediationError, at: datetime) -> tuple[str, ...]:
        """Take the error of a poll, and return what to log: one line for each outage.

        :param at: the time now
        """
        lines = self._outage.fault(error, at)
        end = self._outage.end(error, at)
        if end is not None:
            self._result = self._ended(*end)
        else:
            self._plan(at, (error.retry_after or 0.0) if isinstance(error, TransientError) else 0.0)
            if self._outage.until is not None:
                self._poll_at = min(self._poll_at, self._outage.until)
        return self._named(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the wait as plain JSON; an outage that continues starts again where the wait does."""
        return {
            "meter_id": self.meter_id,
            "export_type": self.export_type,
            "request_id": self.request_id,
            "until": to_json(self._until),
            "poll_interval": self._poll_interval,
            "max_unreachable": self._max_unreachable,
            "poll_at": to_json(self._poll_at),
            "status": self._status,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExportWait:
        """Make a wait from ``to_dict()``; unknown keys are left out.

        :raises KeyError: a key is missing
        :raises ValueError: a value is not a number or a time
        """
        until = from_json(data["until"])
        poll_at = from_json(data["poll_at"])
        if until is None or poll_at is None:
            raise ValueError("a wait for an export needs its deadline and the time of its next poll")
        return cls(
            meter_id=str(data["meter_id"]),
            export_type=str(data["export_type"]),
            request_id=str(data["request_id"]),
            until=until,
            poll_interval=float(data["poll_interval"]),
            max_unreachable=float(data["max_unreachable"]),
            poll_at=poll_at,
            status=data.get("status"),
        )

    def _plan(self, at: datetime, retry_after: float = 0.0) -> None:
        """Set the time of the next poll, or end the wait at its deadline."""
        if at >= self._until:
            self._end_at_deadline()
            return
        regular = min(at + timedelta(seconds=self._poll_interval), self._until)
        self._poll_at = max(regular, at + timedelta(seconds=retry_after))

    def _end_at_deadline(self) -> ExportResult:
        message = (
            f"Export {self.request_id} of meter {self.meter_id} did not finish by {in_words(self._until)} (last status:"
            f" {(self._status or 'unknown').upper()}): give it a longer timeout, as Zuora processes one export of a"
            " tenant at a time."
        )
        self._result = self._ended(WaitEnd.TIMED_OUT, message)
        return self._result

    def _ended(
        self, end: WaitEnd, message: str, *, count: int | None = None, files: tuple[str, ...] = ()
    ) -> ExportResult:
        return ExportResult(
            end=end, message=message, request_id=self.request_id, status=self._status, count=count, files=files
        )

    def _named(self, lines: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"Export {self.request_id}: {line}" for line in lines)
