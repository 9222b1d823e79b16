"""What the journal lacks of the callout history: all that was lost, nothing that came, cycles included."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callout_settings import callout_settings
from airflow_mediation_provider.protocol.history import read_history
from airflow_mediation_provider.protocol.lifecycle import fold
from airflow_mediation_provider.protocol.reconcile import (
    ReconcileReply,
    ReconcileRequest,
    Reconciliation,
    missing,
    repaired_line,
    stuck_line,
)
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.entry import Entry

EPOCH = datetime(2026, 3, 31, tzinfo=UTC)
NOW = EPOCH + timedelta(days=2)
SETTINGS = callout_settings("zuora", {})


def at(second: float) -> datetime:
    return EPOCH + timedelta(seconds=second)


def report(second: float, before: str | None, status: str, notification_id: str | None = "", **changes: Any) -> Any:
    """Return what came of a change."""
    return SessionTransition(
        **{
            "meter_id": "2470", "session_id": "R-1", "status": status, "previous_status": before,
            "observed_at": at(second), "source": Source.CALLOUT,
            "notification_id": f"n-{second}" if notification_id == "" else notification_id, **changes,
        }
    )  # fmt: skip


def told(*changes: tuple[float, str | None, str], attempts: tuple[float, ...] = (0,), **fields: str) -> list[Entry]:
    """Return what the history tells of changes: seconds, status before, status; with further attempts after seconds."""
    records = [
        {
            "attemptedNum": number,
            "createTime": f"{at(second + delay):%Y-%m-%dT%H:%M:%S}",
            "eventContext": {
                "meterId": "2470",
                "sessionId": "R-1",
                "status": status,
                "previousStatus": before,
                **fields,
            },
            "responseCode": 503,
        }
        for second, before, status in changes
        for number, delay in enumerate(attempts, 1)
    ]
    return read_history(SETTINGS, records, NOW).entries


def edges(entries: list[Entry]) -> list[tuple[float, str | None, str]]:
    return [
        ((entry.observed_at - EPOCH).total_seconds(), entry.transition.previous_status, entry.transition.status)
        for entry in entries
        if entry.transition
    ]


START, RUN, DONE = (0, None, "INITIALIZING"), (60, "INITIALIZING", "RUNNING"), (600, "RUNNING", "COMPLETED")


def test_what_came_is_not_missing() -> None:
    known = [
        report(1, None, "INITIALIZING"),
        report(3700, "INITIALIZING", "RUNNING"),
        report(601, "RUNNING", "COMPLETED"),
    ]

    assert missing(told(START, RUN, DONE), known) == []


def test_what_did_not_come_is_missing() -> None:
    assert edges(missing(told(START, RUN, DONE), [report(61, "INITIALIZING", "RUNNING")])) == [START, DONE]
    assert edges(missing(told(DONE, RUN), [])) == [RUN, DONE]


@pytest.mark.parametrize("known", ["RUNNING", None])
@pytest.mark.parametrize("before", ["RUNNING", None, "NEVER_RUN"])
def test_a_template_without_the_previous_status(known: str | None, before: str | None) -> None:
    if known == "RUNNING" and before == "NEVER_RUN":
        known = None
    assert missing(told((600, before, "COMPLETED")), [report(601, known, "COMPLETED")]) == []


def test_another_session_and_another_meter_do_not_count() -> None:
    known = [report(601, "RUNNING", "COMPLETED", session_id="R-2"), report(601, "RUNNING", "COMPLETED", meter_id="9")]

    assert edges(missing(told(DONE), known)) == [DONE]


def test_where_nothing_repeats_a_change_is_told_once_however_often_the_history_has_it() -> None:
    twice = told(DONE, (660, "RUNNING", "COMPLETED"))

    assert len(twice) == 2
    assert edges(missing(twice, [])) == [DONE]
    assert missing(twice, [report(601, "RUNNING", "COMPLETED")]) == []


PAUSES = [(100.0, "RUNNING", "PAUSED"), (200.0, "PAUSED", "RUNNING"), (300.0, "RUNNING", "PAUSED")]


def test_on_a_cycle_each_time_counts() -> None:
    came = [report(101, "RUNNING", "PAUSED"), report(201, "PAUSED", "RUNNING")]
    assert edges(missing(told(*PAUSES), came)) == [PAUSES[2]]

    came = [report(201, "PAUSED", "RUNNING"), report(301, "RUNNING", "PAUSED")]
    assert edges(missing(told(*PAUSES), came)) == [PAUSES[0]]


def test_two_reports_of_one_time_do_not_stand_for_another() -> None:
    """Two notifications of the user tell of the same event."""
    came = [report(100.5, "RUNNING", "PAUSED"), report(101, "RUNNING", "PAUSED"), report(201, "PAUSED", "RUNNING")]

    assert edges(missing(told(*PAUSES), came)) == [PAUSES[2]]


def test_a_callout_that_came_at_a_later_attempt() -> None:
    came = [report(1901, "RUNNING", "PAUSED"), report(201, "PAUSED", "RUNNING"), report(301, "RUNNING", "PAUSED")]

    assert missing(told(*PAUSES, attempts=(0, 1800)), came) == []


def test_what_was_put_in_before_is_known() -> None:
    first = missing(told(*PAUSES), [])
    assert edges(first) == PAUSES

    put_in = [entry.transition for entry in first if entry.transition]
    assert missing(told(*PAUSES), put_in) == []
    assert missing(told(*PAUSES[1:]), put_in) == []


def test_with_the_wrong_time_zone_it_counts_how_often() -> None:
    hours = 7 * 3600
    came = [report(hours + 101, "RUNNING", "PAUSED"), report(hours + 201, "PAUSED", "RUNNING")]

    assert len(missing(told(*PAUSES), came)) == 1


def test_what_came_days_ago_is_another_time() -> None:
    later = [(second + 86400, before, status) for second, before, status in PAUSES]
    came = [report(second + 1, before, status) for second, before, status in PAUSES]

    assert edges(missing(told(*later), came)) == later


def test_a_reply_to_a_run_call_is_a_report_too() -> None:
    came = [report(0, None, "INITIALIZING", "run:R-1", source=Source.RUN)]

    assert missing(told(START), came) == []


@st.composite
def walks(draw: st.DrawFn) -> tuple[list[tuple[float, str | None, str]], list[bool], list[int]]:
    """A session that pauses and goes on, which of its callouts came, and how late."""
    loops = draw(st.integers(0, 4))
    statuses = ["INITIALIZING", "RUNNING", *["PAUSED", "RUNNING"] * loops, "COMPLETED"][: draw(st.integers(1, 11))]
    gaps = draw(st.lists(st.integers(30, 4000), min_size=len(statuses), max_size=len(statuses)))
    seconds = [float(sum(gaps[: number + 1])) for number in range(len(statuses))]
    changes = list(zip(seconds, [None, *statuses[:-1]], statuses, strict=True))
    came = draw(st.lists(st.booleans(), min_size=len(changes), max_size=len(changes)))
    late = draw(st.lists(st.integers(0, 10), min_size=len(changes), max_size=len(changes)))
    return changes, came, late


@given(walks())
def test_what_came_and_what_is_put_in_is_the_whole_walk(
    walk: tuple[list[tuple[float, str | None, str]], list[bool], list[int]],
) -> None:
    changes, arrived, late = walk
    came = [
        report(second + delay, before, status, f"n-{number}")
        for number, ((second, before, status), there, delay) in enumerate(zip(changes, arrived, late, strict=True))
        if there
    ]
    history = told(*changes)

    lost = missing(history, came)

    assert edges(lost) == [change for change, there in zip(changes, arrived, strict=True) if not there]
    whole = [*came, *(entry.transition for entry in lost if entry.transition)]
    assert missing(history, whole) == []
    state = fold(whole)
    assert (state.status, state.ambiguous) == (changes[-1][2], False)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[SessionTransition], int]:
    """What the history has of a session that pauses and goes on, what came of it, and how much did not.

    Each callout has up to three attempts, half an hour apart; what failed may have come all the same, as its answer got
    lost; and some are sent again by hand, under their old id or a new one.
    """
    statuses = ["INITIALIZING", "RUNNING", *["PAUSED", "RUNNING"] * draw(st.integers(0, 3)), "COMPLETED"]
    stamped = draw(st.booleans())
    records, came, lost, second = [], {}, 0, 0.0
    for number, (before, status) in enumerate(zip([None, *statuses[:-1]], statuses, strict=True)):
        second += draw(st.integers(120, 5000))
        arrives, answered = draw(st.booleans()), draw(st.booleans())
        tries = draw(st.integers(1, 3))
        delays = [0.0, 1800.0, 3600.0][: tries if arrives and answered else 3]
        if stamped and draw(st.integers(0, 3)) == 0:
            delays.append(delays[-1] + draw(st.integers(200, 9000)))  # sent again
        for attempt, delay in enumerate(delays, 1):
            there = arrives and attempt == min(tries, len(delays))
            fields = {"meterId": "2470", "sessionId": "R-1", "status": status, "previousStatus": before}
            records.append(
                {
                    "attemptedNum": attempt if delay <= 3600 else 1,
                    "createTime": f"{at(second + delay):%Y-%m-%dT%H:%M:%S}",
                    "eventContext": {**fields, "Event.Timestamp": at(second).isoformat() if stamped else ""},
                    "responseCode": 200 if there and answered else 503,
                }
            )
            if there:
                moment = second + delay + draw(st.floats(0, 9))
                came[number] = report(moment, before, status, f"n-{number}")
        lost += not arrives
    return draw(st.permutations(records)), list(came.values()), lost


@given(deliveries())
def test_whatever_was_tried_again_or_sent_again_as_much_is_put_in_as_was_lost(
    delivered: tuple[list[dict[str, Any]], list[SessionTransition], int],
) -> None:
    records, came, lost = delivered
    history = read_history(SETTINGS, records, NOW).entries

    put_in = missing(history, came)

    assert len(put_in) == lost
    whole = [*came, *(entry.transition for entry in put_in if entry.transition)]
    assert missing(history, whole) == []
    state = fold(whole)
    assert (state.status, state.ambiguous) == ("COMPLETED", False)


class TestMessages:
    def test_request_there_and_back(self) -> None:
        request = ReconcileRequest(entries=tuple(told(DONE)), dry_run=True, open_before=EPOCH)

        assert ReconcileRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
        assert ReconcileRequest.from_dict({"protocol": 1, "entries": []}) == ReconcileRequest()

    def test_reply_there_and_back(self) -> None:
        state = fold([report(0, "INITIALIZING", "RUNNING")])
        reply = ReconcileReply(missing=("history:1",), open=(state,))

        assert ReconcileReply.from_dict(json.loads(json.dumps(reply.to_dict()))) == reply

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"protocol": 2, "entries": []},
            {"protocol": 1, "entries": {}},
            {"protocol": 1, "entries": [1]},
            {"protocol": 1, "entries": [{"kind": "periodic", "observed_at": "2026-01-01T00:00:00Z", "source": "poll"}]},
            {"protocol": 1, "entries": [], "open_before": 5},
            {"protocol": 1, "entries": [], "open_before": "2026-01-01T00:00:00"},
        ],
        ids=str,
    )
    def test_no_request(self, data: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"."):
            ReconcileRequest.from_dict(data)

    @pytest.mark.parametrize("data", [{}, {"protocol": 1}, {"protocol": 1, "missing": 1, "open": []}, {"protocol": 0}])
    def test_no_reply(self, data: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="reply"):
            ReconcileReply.from_dict(data)


class TestWords:
    def test_why_it_was_missing(self) -> None:
        [entry] = told(DONE, attempts=(0, 1800, 3600))

        assert repaired_line(entry) == (
            "session R-1 of meter 2470: RUNNING -> COMPLETED at 2026-03-31 00:10:00 UTC; "
            "its callout ended with 503 after 3 attempts"
        )
        assert repaired_line(told(START)[0]).startswith("session R-1 of meter 2470: start -> INITIALIZING at ")

    @pytest.mark.parametrize(
        ("meter_status", "words"),
        [
            (None, "could not be read"),
            ("RUNNING", "is RUNNING too"),
            ("COMPLETED", "is COMPLETED: callouts of it may be lost for good"),
        ],
    )
    def test_a_session_that_does_not_end(self, meter_status: str | None, words: str) -> None:
        line = stuck_line(fold([report(0, "INITIALIZING", "RUNNING")]), meter_status, at(7 * 3600))

        assert line.startswith("session R-1 of meter 2470 is RUNNING, with no news for 7h; ")
        assert words in line

    def test_the_counts_and_the_list(self) -> None:
        state = fold([report(0, "INITIALIZING", "RUNNING")])
        found = Reconciliation(records=5, told=3, unreadable=1, repaired=told(DONE), stuck=[(state, "COMPLETED")])

        assert found.summary() == (
            "The callout history has 3 status changes (5 records read): 1 was missing in the journal and is there now. "
            "1 record is of a session, but does not say what changed. "
            "1 session has not ended, and nothing came of it for long."
        )
        data = json.loads(json.dumps(found.to_dict()))
        assert [each["status"] for each in data["repaired"]] == ["COMPLETED"]
        assert data["stuck"][0]["meter_status"] == "COMPLETED"
        assert Reconciliation(dry_run=True, told=1, records=1).summary() == (
            "The callout history has 1 status change (1 record read): none is missing in the journal."
        )
