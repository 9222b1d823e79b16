"""Parsers for the replies of Zuora Mediation's REST API: with an envelope or flat, complete or not.

Zuora considers new fields and longer ids compatible, so parsing is lenient, and an unknown field is no error.

Sources: https://developer.zuora.com/v1-api-reference/api/meters/ and
https://developer.zuora.com/docs/guides/requests-and-responses/
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import RunType, parse_status, run_type_of_report
from airflow_mediation_provider.protocol.zuora.errors import PermanentError
from airflow_mediation_provider.protocol.zuora.refusals import (
    MEANING,
    METER_UNKNOWN,
    NO_PERMISSION,
    NOT_ENABLED,
    meaning_of_message,
)

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.zuora.errors import MediationError


Json = dict[str, Any]

_UNPROVEN = (
    "Not tested, because Zuora has no call for it: the permission to run and stop meters ('Run Meters'), and whether "
    "the meters in your Dags exist."
)


class UnreadableReplyError(ValueError):
    """A reply is JSON, but lacks the requested value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterRun:
    """A session that a run call started: the reply to run and debug.

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


MOST_PAGES: Final = 10_000
"""Of one read: only Zuora's replies limit the number of pages, and some readers keep all of them."""


def check_page_number(what: str, number: int) -> None:
    """Refuse a page beyond the last one that a read may have.

    :raises PermanentError: there are too many
    """
    if number > MOST_PAGES:
        raise PermanentError(f"The {what} has more than {MOST_PAGES:,} pages: ask for a shorter span of time.")


def read_run(reply: Json, meter_id: str, version: str, run_type: RunType) -> MeterRun:
    """Parse the reply of a run or debug call, enveloped or flat; missing fields are taken from the request.

    Never fails on a missing field: otherwise a started session would be lost.
    """
    data = envelope(reply)
    named = text_of(data.get("runType")) or text_of(data.get("runTypeDescription"))
    reported = run_type_of_report(named)
    return MeterRun(
        meter_id=text_of(data.get("meterId")) or meter_id,
        version=text_of(data.get("version")) or version,
        run_type=reported if named and isinstance(reported, RunType) else run_type,
        session_id=text_of(data.get("sessionId")),
        run_id=text_of(data.get("id")),
        job_id=text_of(data.get("jobId")),
        revision=count_of(data.get("revision")),
        status=_status(data),
        started_at=parse_time(data.get("startTime")),
    )


def read_status(reply: Json) -> str:
    """Parse the reply of ``runStatus``.

    :raises UnreadableReplyError: it has no status
    """
    status = _status(envelope(reply))
    if status is None:
        raise UnreadableReplyError("the reply holds no runStatus")
    return status


def parse_time(value: object) -> datetime | None:
    """Parse a time from Zuora: ISO 8601 with up to nine digits of a second, or epoch milliseconds; UTC without a zone.

    :return: UTC, cut to microseconds, or ``None`` where it cannot be parsed
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
    """Return the content of ``data``, or the reply itself where it is flat."""
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
    """Parse one page of audit-trail entries."""
    return Page(objects(reply.get("data")), text_of(reply.get("nextPage")))


def read_request_id(reply: Json) -> str:
    """Parse the id of an export job that was created.

    :raises UnreadableReplyError: it is missing
    """
    request_id = text_of(envelope(reply).get("requestId"))
    if request_id is None:
        raise UnreadableReplyError("the reply holds no requestId")
    return request_id


def read_url(reply: Json) -> str:
    """Parse a download address.

    :raises UnreadableReplyError: it is missing
    """
    url = text_of(reply.get("data"))
    if url is None:
        raise UnreadableReplyError("the reply holds no address")
    return url


def objects(value: object) -> list[Json]:
    """Return the objects of a list; none where it is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_of(value: object) -> str | None:
    """Return a scalar as text; ``None`` for an empty value and Zuora's string ``"null"``."""
    if value is None or isinstance(value, (bool, dict, list)):
        return None
    text = str(value).strip()
    return None if text in ("", "null") else text


def count_of(value: object) -> int | None:
    """Return a count or another whole number of Zuora, also as text; ``None`` where it is none, or too large."""
    text = text_of(value) or ""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def judge_probe(host: str, error: MediationError | None) -> tuple[bool, str]:
    """Return whether the connection works, and a message that names the part that does not.

    :param host: the REST host
    :param error: the refusal of the call for the status of an impossible meter; ``None``: it was not refused
    """
    works = f"{host} accepts the client id and secret, and Mediation answers. {_UNPROVEN}"
    if error is None:
        return True, works
    code, status = error.code, error.status_code
    meaning = MEANING.get(code or "") or meaning_of_message(error.zuora_message)
    if meaning in [MEANING[unknown] for unknown in METER_UNKNOWN] or (status == 404 and code):
        return True, works
    granted = f"{host} gave a token, so the client id and secret are right, but"
    if meaning == MEANING[NOT_ENABLED]:
        return False, f"{granted} Mediation is not enabled in this tenant. {error}"
    if meaning == MEANING[NO_PERMISSION] or status == 403:
        return False, f"{granted} the permission is missing. {error}"
    if status == 404:
        return False, f"{granted} there is no Mediation API at this address: check the host. {error}"
    if status == 400 and code and code.startswith("7000"):
        return True, f"{host} accepts the client id and secret, and Mediation answers unexpectedly: {error} {_UNPROVEN}"
    return False, f"{granted} Mediation could not be tested. {error}"
