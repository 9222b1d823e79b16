"""The records that simulated sessions put out and reject: invented, but always the same and shaped like usage."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from airflow_mediation_provider.protocol.status import SessionStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_mediation_provider.simulator.sessions import Session

Kind = Literal["SAMPLE", "ERROR"]


@dataclass(frozen=True, slots=True)
class Operator:
    """A step of a meter's pipeline, with its name in the audit trail."""

    id: str
    type: str
    name: str


SOURCE: Final = Operator("101", "SOURCE", "Usage events")
RATER: Final = Operator("102", "TRANSFORM", "Aggregate per hour")
SINK: Final = Operator("103", "SINK", "Usage records")
# Which operator rejects a record with which code and message.
ERRORS: Final = (
    (SOURCE, "70000000", "Streaming API validation failed: field 'eventTime' is not a date-time"),
    (RATER, "1000002", "Billing usage has invalid fields: Quantity must be greater than zero"),
    (SINK, "1000003", "Billing usage sink is unknown for account {account}"),
)
_UNITS: Final = ("API_CALL", "GB", "MESSAGE", "COMPUTE_HOUR")


def visible(session: Session) -> tuple[int, int]:
    """Return how many output and error records can be seen: none while it is prepared, half while it runs, then all."""
    plan = session.plan
    if session.status in (SessionStatus.INITIALIZING, SessionStatus.NEVER_RUN):
        return 0, 0
    return (plan.records // 2, plan.errors // 2) if session.live else (plan.records, plan.errors)


def rejected(errors: int) -> list[tuple[Operator, str, int, int]]:
    """Return how many records each operator rejected with each code: operator, code, 0, count."""
    kinds = len(ERRORS)
    return [
        (operator, code, 0, (errors + kinds - 1 - index) // kinds) for index, (operator, code, _) in enumerate(ERRORS)
    ]


def entries(session: Session, kind: Kind, limit: int, now: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield a session's audit trail entries with their times, oldest first.

    :param kind: SAMPLE for records put out, ERROR for rejected ones
    :param limit: at most so many of either kind
    :param now: the present instant, up to which the records of a live session are spread
    """
    output, errors = visible(session)
    count = min(errors if kind == "ERROR" else output, limit)
    span = max(0.0, (now if session.ended_at is None else session.ended_at) - session.started_at)
    for index in range(count):
        at = session.started_at + span * (index + 1) / (count + 1)
        yield at, _entry(session, kind, index, at)


def _entry(session: Session, kind: Kind, index: int, at: float) -> dict[str, Any]:
    account = f"A-{10000 + _pick(session, index, 'account') % 40:08d}"
    operator, code, message = ERRORS[index % len(ERRORS)] if kind == "ERROR" else (SINK, "", "")
    hour = datetime.fromtimestamp(session.started_at // 3600 * 3600 - 3600, UTC)
    quantity = 1 + _pick(session, index, "quantity") % 5000
    trace = f"{zlib.crc32(f'{session.session_id}/{kind}/{index}'.encode()):08x}"
    return {
        # Of a SAMPLE too, whose error code is empty: so in Zuora's example.
        "errorTime": str(int(at * 1000)),
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "errorCode": code,
        "errorMessage": message.format(account=account),
        "payload": {
            "AccountNumber": account,
            "SubscriptionNumber": f"A-S{20000 + _pick(session, index, 'subscription') % 90:08d}",
            "ChargeNumber": f"C-{30000 + _pick(session, index, 'charge') % 90:08d}",
            "UnitOfMeasure": _UNITS[int(session.meter_id) % len(_UNITS)],
            "Quantity": -quantity if code == "1000002" else quantity,
            "StartDateTime": f"{hour:%Y-%m-%dT%H}:00:00Z",
            "EndDateTime": f"{hour:%Y-%m-%dT%H}:59:59Z",
            "UniqueKey": f"{session.session_id}-{kind[0]}{index:07d}",
        },
        "eventId": f"{trace}-{session.run_id}-{index}",
        "traceId": trace * 4,
        "operatorType": operator.type,
        "operatorName": operator.name,
        "operatorId": operator.id,
    }


def _pick(session: Session, index: int, what: str) -> int:
    return zlib.crc32(f"{session.session_id}:{index}:{what}".encode())
