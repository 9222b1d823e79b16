"""A callout that arrives after the callout history had its change: the same change, once, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent, AssetModel
from sqlalchemy import select

from airflow_mediation_provider.journal.queries import compare
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.journal.writer import record, rewrite
from airflow_mediation_provider.protocol.callouts.history import read_history
from airflow_mediation_provider.protocol.callouts.parse import read_callout
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import ReconcileRequest
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri

SETTINGS = callout_settings("zuora", {"callout_token": "t"})
BEGIN = datetime(2026, 3, 31, 9, tzinfo=UTC)
LOOP = ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED"]

pytestmark = pytest.mark.usefixtures("airflow_database")


def fields(number: int) -> dict[str, str]:
    before = LOOP[number - 1] if number else ""
    return {"meterId": "1", "sessionId": "R-1", "status": LOOP[number], "previousStatus": before}


def at(number: int, minutes: float = 0) -> datetime:
    return BEGIN + timedelta(minutes=20 * number + minutes)


def history(*attempts: tuple[int, float, int], code: int = 503) -> None:
    """Store what the history has: for each attempt the change, the minutes after it, and the attempt's number."""
    records: list[dict[str, Any]] = [
        {
            "attemptedNum": attempt,
            "createTime": f"{at(number, minutes):%Y-%m-%dT%H:%M:%S}",
            "eventContext": fields(number),
            "responseCode": code,
        }
        for number, minutes, attempt in attempts
    ]
    now = BEGIN + timedelta(days=3)
    entries = tuple(read_history(SETTINGS, records, now, zone=UTC).entries)
    lost, _ = compare(ReconcileRequest(entries=entries, continuous=True), conn_id="zuora")
    record(lost, conn_id="zuora")


def arrive(number: int, minutes: float = 0, notification: str = "") -> None:
    sent = {"Zuora-Notification-Id": notification or f"n-{number}"}
    record([read_callout(SETTINGS, sent, json.dumps(fields(number)).encode(), at(number, minutes))], conn_id="zuora")


def found() -> tuple[str, bool, list[str]]:
    with settings.NonScopedSession() as session:
        row = session.scalar(select(SessionRow))
        assert row is not None
        changes = session.scalars(select(TransitionRow).order_by(TransitionRow.observed_at))
        return row.status, row.ambiguous, [f"{each.source}:{each.status}" for each in changes]


def rows() -> dict[str, TransitionRow]:
    with settings.NonScopedSession() as session:
        return {str(each.notification_id): each for each in session.scalars(select(TransitionRow))}


def test_it_takes_the_place_of_the_record() -> None:
    history((0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1))
    assert found()[:2] == ("RUNNING", False)

    arrive(2, minutes=180)

    assert found() == (
        "RUNNING",
        False,
        ["history:INITIALIZING", "history:RUNNING", "callout:PAUSED", "history:RUNNING"],
    )
    row = rows()["n-2"]
    assert row.observed_at == at(2)
    assert row.body["calloutHistory"]["attempts"][0]["code"] == 503
    assert row.body["meterId"] == "1"


def test_its_further_attempts_are_the_same_callout() -> None:
    history((0, 0, 1), (1, 0, 1), (2, 0, 1))
    arrive(2, minutes=180)
    arrive(2, minutes=210)
    assert found()[2] == ["history:INITIALIZING", "history:RUNNING", "callout:PAUSED"]


def test_the_history_that_is_read_again_adds_nothing() -> None:
    history((0, 0, 1), (1, 0, 1), (2, 0, 1))
    arrive(2, minutes=180)
    before = found()
    history((0, 0, 1), (1, 0, 1), (2, 0, 1))
    assert found() == before


@pytest.mark.parametrize(
    ("attempts", "minutes", "same"),
    [
        ([(2, 0, 1), (2, 30, 2)], 60, True),  # the third attempt, at the same interval
        ([(2, 0, 1), (2, 30, 2)], 100, False),  # no attempt is due then
        ([(2, 0, 1), (2, 30, 2), (2, 60, 3), (2, 90, 4), (2, 120, 5)], 150, False),  # Zuora makes five at most
        ([(2, 0, 1)], 24 * 60, True),  # the longest interval
        ([(2, 0, 1)], 25 * 60, False),
    ],
)
def test_only_an_attempt_that_may_follow_is_of_the_same_change(
    attempts: list[tuple[int, float, int]], minutes: float, same: bool
) -> None:
    history((0, 0, 1), (1, 0, 1), *attempts)
    arrive(2, minutes=minutes)
    assert found()[2][2:] == (["callout:PAUSED"] if same else ["history:PAUSED", "callout:PAUSED"])


def test_a_record_that_zuora_does_not_retry_awaits_no_callout() -> None:
    history((0, 0, 1), (1, 0, 1), (2, 0, 1), code=404)
    arrive(2, minutes=180)
    assert found()[2][2:] == ["history:PAUSED", "callout:PAUSED"]


QUICK = ["RUNNING", "FAILED", "RUNNING", "COMPLETED"]


def quick(*numbers: int) -> None:
    """Store what the history has of some changes of a session that was restarted between two reads."""
    read_once(*((at(number), sent(number)) for number in numbers))


def read_once(*changes: tuple[datetime, dict[str, str]]) -> None:
    records = [
        {"attemptedNum": 1, "createTime": f"{when:%Y-%m-%dT%H:%M:%S}", "eventContext": context, "responseCode": -1}
        for when, context in changes
    ]
    entries = tuple(read_history(SETTINGS, records, BEGIN + timedelta(days=1), zone=UTC).entries)
    lost, _ = compare(ReconcileRequest(entries=entries, continuous=True), conn_id="zuora")
    record(lost, conn_id="zuora")


def sent(number: int) -> dict[str, str]:
    before = QUICK[number - 1] if number else "INITIALIZING"
    return {"meterId": "1", "sessionId": "R-1", "status": QUICK[number], "previousStatus": before}


def call_out(number: int) -> None:
    body = json.dumps(sent(number)).encode()
    record([read_callout(SETTINGS, {"Zuora-Notification-Id": f"n-{number}"}, body, at(number))], conn_id="zuora")


@pytest.fixture
def _assets(airflow_database: object) -> None:
    with settings.NonScopedSession() as session:
        for status in ("RUNNING", "FAILED", "COMPLETED"):
            uri = asset_uri("zuora", "1", status)
            session.add(AssetModel(name=uri, uri=uri, group="asset"))
        session.commit()


def announced() -> list[tuple[str, str, bool]]:
    with settings.NonScopedSession() as session:
        found = [each.extra for each in session.scalars(select(AssetEvent)).all()]
    return sorted((extra["status"], extra["observed_at"][11:16], extra["certain"]) for extra in found)


EACH = [("COMPLETED", "10:00", True), ("FAILED", "09:20", True), ("RUNNING", "09:00", True), ("RUNNING", "09:40", True)]


@pytest.mark.usefixtures("_assets")
class TestArrivalsOfOneRead:
    def test_each_status_that_a_session_left_between_two_reads_is_announced(self) -> None:
        quick(0, 1, 2, 3)
        assert announced() == EACH

    def test_callouts_one_by_one_announce_the_same(self) -> None:
        for number in range(4):
            call_out(number)
        assert announced() == EACH

    def test_the_history_again_and_callouts_that_come_later_announce_nothing_more(self) -> None:
        quick(0, 1, 2, 3)
        quick(0, 1, 2, 3)
        for number in range(4):
            call_out(number)
        assert announced() == EACH

    @pytest.mark.parametrize("first", [(0,), (0, 1), (0, 1, 2)])
    def test_what_callouts_announced_is_not_announced_again(self, first: tuple[int, ...]) -> None:
        for number in first:
            call_out(number)
        quick(0, 1, 2, 3)
        assert announced() == EACH

    def test_lost_callouts_in_the_middle_are_announced_when_the_history_has_them(self) -> None:
        call_out(0)
        call_out(3)
        quick(0, 1, 2, 3)
        assert announced() == EACH

    def test_an_end_that_another_report_contradicts_was_not_left(self) -> None:
        read_once((at(0), sent(0)), (at(1), {**sent(1), "status": "COMPLETED"}), (at(2), sent(1)))
        assert announced() == [("FAILED", "09:40", False), ("RUNNING", "09:00", True)]

    def test_unparsed_callouts_are_announced_each_when_they_are_parsed_again(self) -> None:
        wrong = callout_settings("zuora", {"callout_token": "t", "callout_fields": {"status": "state"}})
        for number in range(4):
            body = json.dumps({**sent(number), "status": ""}).encode()
            record([read_callout(wrong, {}, body, at(number))], conn_id="zuora")
        with settings.NonScopedSession() as session:
            stored = session.scalars(select(TransitionRow).order_by(TransitionRow.observed_at)).all()
            assert [row.kind for row in stored] == ["unparsed"] * 4
        right = {
            row.id: read_callout(SETTINGS, {}, json.dumps(sent(number)).encode(), row.observed_at)
            for number, row in enumerate(stored)
        }
        rewrite(right, conn_id="zuora")
        assert [status for status, _, _ in announced()] == ["COMPLETED", "FAILED", "RUNNING", "RUNNING"]
