"""What is done with each documented refusal: every code and category, every HTTP status, in each place.

Run with ``-rP`` to see the table.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from airflow_mediation_provider.exceptions import MediationMisconfigured, fail_permanently
from airflow_mediation_provider.protocol.waits.wait_result import Outage
from airflow_mediation_provider.protocol.zuora import requests as api
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.flow import Send, exchange
from airflow_mediation_provider.protocol.zuora.refusals import Reply
from tests.unit.protocol.zuora.test_flow import PEER, FakeTokens, token

FINAL, REPEATED, RENEWED = "final", "repeated", "token renewed"
STATUSES: Final = (200, 400, 409, 500)
# What Zuora documents of each code, not what the code under test makes of it.
MEDIATION: Final = {
    "70002001": FINAL,  # entity id missing
    "70002002": FINAL,  # user id missing
    "70002003": FINAL,  # several entities
    "70002004": FINAL,  # Mediation not enabled
    "70002005": REPEATED,  # rate limit
    "70002006": FINAL,  # no permission
    "70002023": FINAL,  # parameter invalid
    "70002103": FINAL,  # no such meter
    "70002104": FINAL,  # no such version
    "70002105": FINAL,  # active already
    "70002106": FINAL,  # invalid meter file
    "70002107": FINAL,  # invalid meter type
    "70002108": FINAL,  # invalid version
    "70002109": FINAL,  # versions differ
    "70002122": FINAL,  # not running
    "70002647": REPEATED,  # event store is being deleted
    "70002648": REPEATED,  # another meter writes
    "70002651": FINAL,  # no such event store
    "70002653": REPEATED,  # event store in use
    "70003043": REPEATED,  # a stop is in progress: a retry of the task may find it over
    "1000002": FINAL,  # invalid record
    "1000003": FINAL,
    "70000000": FINAL,
}
CATEGORIES: Final = {
    "10": FINAL,
    "11": RENEWED,
    "20": FINAL,
    "21": FINAL,
    "22": FINAL,
    "23": FINAL,
    "30": FINAL,
    "40": FINAL,
    "45": FINAL,
    "50": REPEATED,
    "60": REPEATED,
    "61": REPEATED,
    "70": REPEATED,
    "90": FINAL,
}
PLATFORM: Final = {f"{first}31000{category}": kind for first in "569" for category, kind in CATEGORIES.items()}
START: Final = datetime(2026, 1, 1, tzinfo=UTC)


def refuse(call: Any, code: str | int, status: int) -> tuple[MediationError, int]:
    """Send a call that is always refused with this code; return the error, and how many requests were sent."""
    reply = Reply(status, {}, json.dumps({"success": False, "error": {"code": code, "message": "words"}}).encode())
    flow = exchange(call, PEER, FakeTokens(), attempts=1, note=lambda _: None)
    sent, step = 0, next(flow)
    try:
        while True:
            assert isinstance(step, Send)
            if step.request.url.endswith("/oauth/token"):
                step = flow.send(token("token-2"))
            else:
                sent += 1
                step = flow.send(reply)
    except MediationError as error:
        return error, sent


def in_wait(error: MediationError, *, answered: bool) -> str:
    """Return whether a wait polls again after its first failed poll."""
    outage = Outage(timedelta(hours=1), answered=answered)
    outage.fault(error, START)
    return REPEATED if outage.end(error, START) is None else FINAL


def of_run(error: MediationError) -> str:
    """Return whether the refused call of a run is repeated, by this try or by a retry of the task."""
    try:
        with fail_permanently():
            raise error
    except MediationMisconfigured:
        return FINAL
    except MediationError:
        return REPEATED


@pytest.mark.parametrize("code", [*MEDIATION, *PLATFORM, *map(int, PLATFORM)])
def test_each_documented_refusal_is_final_or_repeated_as_documented(code: str | int) -> None:
    expected = {**MEDIATION, **PLATFORM}[str(code)]
    for status in STATUSES:
        read, reads = refuse(api.run_status(5), code, status)
        run, runs = refuse(api.debug_meter(5), code, status)
        row = [in_wait(read, answered=False), in_wait(read, answered=True), of_run(run)]
        print(
            f"{code:>9} HTTP {status}: {type(read).__name__:21} first poll {row[0]:9} mid-wait {row[1]:9} run {row[2]}"
        )
        if code == "70003043":
            # Zuora answers it to a stop alone; for a poll it has no meaning that would pass.
            assert row[2] == REPEATED
            continue
        assert (reads, runs) == ((2, 2) if expected is RENEWED else (1, 1))
        # A single refusal in mid-wait can be the fault of a gateway, whatever its code.
        assert row == [REPEATED] * 3 if expected is REPEATED else row == [FINAL, REPEATED, FINAL]
