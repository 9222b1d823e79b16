"""The changes that the journal lacks: all that were lost, none that were received, cycles included."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callouts.history import read_history
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import (
    ReconcileReply,
    ReconcileRequest,
    Reconciliation,
    missing,
    repaired_line,
    stuck_line,
)
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry

EPOCH = datetime(2026, 3, 31, tzinfo=UTC)
NOW = EPOCH + timedelta(days=2)
SETTINGS = callout_settings("zuora", {})


def at(second: float) -> datetime:
    return EPOCH + timedelta(seconds=second)


def report(second: float, before: str | None, status: str, notification_id: str | None = "", **changes: Any) -> Any:
    """Return the report that was received of a change."""
    return SessionTransition(
        **{
            "meter_id": "2470", "session_id": "R-1", "status": status, "previous_status": before,
            "observed_at": at(second), "source": Source.CALLOUT,
            "notification_id": f"n-{second}" if notification_id == "" else notification_id, **changes,
        }
    )  # fmt: skip


def in_history(
    *changes: tuple[float, str | None, str], attempts: tuple[float, ...] = (0,), **fields: str
) -> list[JournalEntry]:
    """Return the history's entries of changes (seconds, status before, status), with further attempts after seconds."""
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


def edges(entries: list[JournalEntry]) -> list[tuple[float, str | None, str]]:
    return [
        ((entry.observed_at - EPOCH).total_seconds(), entry.transition.previous_status, entry.transition.status)
        for entry in entries
        if entry.transition
    ]


START, RUN, DONE = (0, None, "INITIALIZING"), (60, "INITIALIZING", "RUNNING"), (600, "RUNNING", "COMPLETED")


def test_a_received_change_is_not_missing() -> None:
    known = [
        report(1, None, "INITIALIZING"),
        report(3700, "INITIALIZING", "RUNNING"),
        report(601, "RUNNING", "COMPLETED"),
    ]

    assert missing(in_history(START, RUN, DONE), known) == []


def test_a_change_that_was_not_received_is_missing() -> None:
    assert edges(missing(in_history(START, RUN, DONE), [report(61, "INITIALIZING", "RUNNING")])) == [START, DONE]
    assert edges(missing(in_history(DONE, RUN), [])) == [RUN, DONE]


@pytest.mark.parametrize("known", ["RUNNING", None])
@pytest.mark.parametrize("before", ["RUNNING", None, "NEVER_RUN"])
def test_a_report_without_a_previous_status_matches_any(known: str | None, before: str | None) -> None:
    if known == "RUNNING" and before == "NEVER_RUN":
        known = None
    assert missing(in_history((600, before, "COMPLETED")), [report(601, known, "COMPLETED")]) == []


def test_another_session_and_another_meter_do_not_count() -> None:
    known = [report(601, "RUNNING", "COMPLETED", session_id="R-2"), report(601, "RUNNING", "COMPLETED", meter_id="9")]

    assert edges(missing(in_history(DONE), known)) == [DONE]


def test_without_a_cycle_a_missing_change_is_returned_once() -> None:
    twice = in_history(DONE, (660, "RUNNING", "COMPLETED"))

    assert len(twice) == 2
    assert edges(missing(twice, [])) == [DONE]
    assert missing(twice, [report(601, "RUNNING", "COMPLETED")]) == []


PAUSES = [(100.0, "RUNNING", "PAUSED"), (200.0, "PAUSED", "RUNNING"), (300.0, "RUNNING", "PAUSED")]


def test_on_a_cycle_each_occurrence_counts() -> None:
    came = [report(101, "RUNNING", "PAUSED"), report(201, "PAUSED", "RUNNING")]
    assert edges(missing(in_history(*PAUSES), came)) == [PAUSES[2]]

    came = [report(201, "PAUSED", "RUNNING"), report(301, "RUNNING", "PAUSED")]
    assert edges(missing(in_history(*PAUSES), came)) == [PAUSES[0]]


def test_two_reports_of_one_occurrence_do_not_match_another_one() -> None:
    """The user has two notifications for the same event."""
    came = [report(100.5, "RUNNING", "PAUSED"), report(101, "RUNNING", "PAUSED"), report(201, "PAUSED", "RUNNING")]

    assert edges(missing(in_history(*PAUSES), came)) == [PAUSES[2]]


def test_a_callout_received_at_a_later_attempt_is_not_missing() -> None:
    came = [report(1901, "RUNNING", "PAUSED"), report(201, "PAUSED", "RUNNING"), report(301, "RUNNING", "PAUSED")]

    assert missing(in_history(*PAUSES, attempts=(0, 1800)), came) == []


def test_a_change_inserted_before_is_not_missing() -> None:
    first = missing(in_history(*PAUSES), [])
    assert edges(first) == PAUSES

    put_in = [entry.transition for entry in first if entry.transition]
    assert missing(in_history(*PAUSES), put_in) == []
    assert missing(in_history(*PAUSES[1:]), put_in) == []


def test_with_a_wrong_time_zone_only_the_number_of_occurrences_counts() -> None:
    hours = 7 * 3600
    came = [report(hours + 101, "RUNNING", "PAUSED"), report(hours + 201, "PAUSED", "RUNNING")]

    assert len(missing(in_history(*PAUSES), came)) == 1


def test_a_report_days_apart_is_another_occurrence() -> None:
    later = [(second + 86400, before, status) for second, before, status in PAUSES]
    came = [report(second + 1, before, status) for second, before, status in PAUSES]

    assert edges(missing(in_history(*later), came)) == later


def test_a_reply_to_a_run_call_counts_as_a_report() -> None:
    came = [report(0, None, "INITIALIZING", "run:R-1", source=Source.RUN)]

    assert missing(in_history(START), came) == []


@st.composite
def walks(draw: st.DrawFn) -> tuple[list[tuple[float, str | None, str]], list[bool], list[int]]:
    """A session that pauses and resumes, which of its callouts were received, and how late."""
    loops = draw(st.integers(0, 4))
    statuses = ["INITIALIZING", "RUNNING", *["PAUSED", "RUNNING"] * loops, "COMPLETED"][: draw(st.integers(1, 11))]
    gaps = draw(st.lists(st.integers(30, 4000), min_size=len(statuses), max_size=len(statuses)))
    seconds = [float(sum(gaps[: number + 1])) for number in range(len(statuses))]
    changes = list(zip(seconds, [None, *statuses[:-1]], statuses, strict=True))
    came = draw(st.lists(st.booleans(), min_size=len(changes), max_size=len(changes)))
    late = draw(st.lists(st.integers(0, 10), min_size=len(changes), max_size=len(changes)))
    return changes, came, late


@given(walks())
def test_received_and_inserted_changes_are_the_complete_walk(
    walk: tuple[list[tuple[float, str | None, str]], list[bool], list[int]],
) -> None:
    changes, arrived, late = walk
    came = [
        report(second + delay, before, status, f"n-{number}")
        for number, ((second, before, status), there, delay) in enumerate(zip(changes, arrived, late, strict=True))
        if there
    ]
    history = in_history(*changes)

    lost = missing(history, came)

    assert edges(lost) == [change for change, there in zip(changes, arrived, strict=True) if not there]
    whole = [*came, *(entry.transition for entry in lost if entry.transition)]
    assert missing(history, whole) == []
    state = fold(whole)
    assert (state.status, state.ambiguous) == (changes[-1][2], False)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[SessionTransition], int]:
    """The history of a session that pauses and resumes, the received reports, and the number of lost ones.

    Each callout has up to three attempts, half an hour apart; a failed one may have been received, where only its
    answer was lost; and some are sent again by hand, with their old id or a new one.
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
def test_as_many_changes_are_inserted_as_were_lost_regardless_of_retries(
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
    def test_a_request_survives_the_round_trip(self) -> None:
        request = ReconcileRequest(entries=tuple(in_history(DONE)), dry_run=True, open_before=EPOCH)

        assert ReconcileRequest.from_bytes(request.to_bytes()) == request
        assert ReconcileRequest.from_bytes(b'{"protocol": 1, "entries": []}') == ReconcileRequest()

    def test_a_reply_survives_the_round_trip(self) -> None:
        state = fold([report(0, "INITIALIZING", "RUNNING")])
        reply = ReconcileReply(missing=("history:1",), open=(state,))

        assert ReconcileReply.from_bytes(reply.to_bytes()) == reply

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
    def test_an_invalid_request_is_a_value_error(self, data: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"^the reconcile request cannot be read: ."):
            ReconcileRequest.from_bytes(json.dumps(data).encode())

    @pytest.mark.parametrize("data", [{}, {"protocol": 1}, {"protocol": 1, "missing": 1, "open": []}, {"protocol": 0}])
    def test_an_invalid_reply_is_a_value_error(self, data: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="reply"):
            ReconcileReply.from_bytes(json.dumps(data).encode())


class TestWords:
    def test_a_repaired_line_shows_why_the_change_was_missing(self) -> None:
        [entry] = in_history(DONE, attempts=(0, 1800, 3600))

        assert repaired_line(entry) == (
            "session R-1 of meter 2470: RUNNING -> COMPLETED at 2026-03-31 00:10:00 UTC; "
            "its callout ended with 503 after 3 attempts"
        )
        assert repaired_line(in_history(START)[0]).startswith("session R-1 of meter 2470: start -> INITIALIZING at ")

    @pytest.mark.parametrize(
        ("meter_status", "words"),
        [
            (None, "could not be read"),
            ("RUNNING", "is RUNNING too"),
            ("COMPLETED", "is COMPLETED: its callouts may be lost permanently"),
        ],
    )
    def test_a_stuck_line_describes_a_session_that_does_not_end(self, meter_status: str | None, words: str) -> None:
        line = stuck_line(fold([report(0, "INITIALIZING", "RUNNING")]), meter_status, at(7 * 3600))

        assert line.startswith("session R-1 of meter 2470 is RUNNING, without a report for 7h; ")
        assert words in line

    def test_the_summary_has_the_counts(self) -> None:
        state = fold([report(0, "INITIALIZING", "RUNNING")])
        found = Reconciliation(records=5, told=3, unreadable=1, repaired=in_history(DONE), stuck=[(state, "COMPLETED")])

        assert found.summary() == (
            "The callout history has 3 status changes (5 records read): 1 was missing in the journal and is there now. "
            "1 record is of a session, but has no status change. "
            "1 session has not ended and had no report for long."
        )
        data = json.loads(json.dumps(found.to_dict()))
        assert [each["status"] for each in data["repaired"]] == ["COMPLETED"]
        assert data["stuck"][0]["meter_status"] == "COMPLETED"
        assert Reconciliation(dry_run=True, told=1, records=1).summary() == (
            "The callout history has 1 status change (1 record read): none is missing in the journal."
        )
