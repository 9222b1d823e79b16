"""What the replies of Zuora Mediation's REST API hold: enveloped or flat, complete or not.

Zuora counts new fields and longer ids as compatible, so everything is read leniently and nothing unknown is an error.

Source: https://developer.zuora.com/v1-api-reference/api/meters/ and
https://developer.zuora.com/docs/guides/requests-and-responses/
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_mediation_provider.protocol.status import RunType, parse_status

Json = dict[str, Any]


class UnreadableReplyError(ValueError):
    """A reply is JSON, but lacks what the call is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterRun:
    """A session that a run call started: the reply of run and debug.

    :param run_id: Zuora's internal run-history id
    :param session_id: for example ``R-00005468``; ``None`` only where the reply names none
    :param status: the status when the call answered, by Zuora's name; ``None`` where the reply has none
    :param started_at: Zuora's start time, UTC, cut to microseconds
    """

    meter_id: str
    version: str
    run_type: RunType
    session_id: str | None = None
    run_id: str | None = None
    job_id: str | None = None
    revision: int | None = None
    status: str | None = None
    started_at: datetime | None = None

    def to_dict(self) -> Json:
        """Return the run as plain JSON, the time as ISO 8601 in UTC."""
        return {
            **asdict(self),
            "run_type": str(self.run_type),
            "started_at": self.started_at.isoformat() if self.started_at else None,
        }


@dataclass(frozen=True, slots=True)
class Page:
    """One page of audit-trail entries and the cursor of the next."""

    entries: list[Json]
    next_cursor: str | None


def read_run(reply: Json, meter_id: str, version: str, run_type: RunType) -> MeterRun:
    """Read the reply of a run or debug call, enveloped or flat; what it lacks comes from the request.

    Never fails for a missing field: a session that was started must not get lost over its reply.
    """
    data = envelope(reply)
    kind = {"1": RunType.NORMAL, "2": RunType.DEBUG}.get(text_of(data.get("runType")) or "", run_type)
    revision = text_of(data.get("revision"))
    return MeterRun(
        meter_id=text_of(data.get("meterId")) or meter_id,
        version=text_of(data.get("version")) or version,
        run_type=kind,
        session_id=text_of(data.get("sessionId")),
        run_id=text_of(data.get("id")),
        job_id=text_of(data.get("jobId")),
        revision=int(revision) if revision and revision.isdigit() else None,
        status=_status(data),
        started_at=parse_time(data.get("startTime")),
    )


def read_status(reply: Json) -> str:
    """Read the reply of ``runStatus``.

    :raises UnreadableReplyError: it holds no status
    """
    status = _status(envelope(reply))
    if status is None:
        raise UnreadableReplyError("the reply holds no runStatus")
    return status


def parse_time(value: object) -> datetime | None:
    """Read a time of Zuora's: ISO 8601 with up to nine digits of a second, or epoch milliseconds; UTC where no zone is.

    :return: UTC, cut to microseconds, or ``None`` where it cannot be read
    """
    text = text_of(value)
    if text is None:
        return None
    try:
        if re.fullmatch(r"\d{12,13}", text):
            return datetime.fromtimestamp(int(text) / 1000, tz=UTC)
        time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def envelope(reply: Json) -> Json:
    """Return what ``data`` holds, or the reply itself where it is flat."""
    data = reply.get("data")
    return data if isinstance(data, dict) else reply


def _status(data: Json) -> str | None:
    for field in ("runStatus", "status"):
        try:
            return parse_status(text_of(data.get(field)), text_of(data.get(f"{field}Description")))
        except ValueError:
            continue
    return None


def read_page(reply: Json) -> Page:
    """Read one page of audit-trail entries."""
    return Page(objects(reply.get("data")), text_of(reply.get("nextPage")))


def read_request_id(reply: Json) -> str:
    """Read the id of an export job that was created.

    :raises UnreadableReplyError: it holds none
    """
    request_id = text_of(envelope(reply).get("requestId"))
    if request_id is None:
        raise UnreadableReplyError("the reply holds no requestId")
    return request_id


def read_url(reply: Json) -> str:
    """Read a download address.

    :raises UnreadableReplyError: it holds none
    """
    url = text_of(reply.get("data"))
    if url is None:
        raise UnreadableReplyError("the reply holds no address")
    return url


def objects(value: object) -> list[Json]:
    """Return the objects of a list; nothing where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_of(value: object) -> str | None:
    """Return a scalar as text; nothing, and Zuora's string ``"null"``, as ``None``."""
    if value is None or isinstance(value, (bool, dict, list)):
        return None
    text = str(value).strip()
    return None if text in ("", "null") else text
