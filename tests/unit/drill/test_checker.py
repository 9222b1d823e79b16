"""The checker must be able to fail: each promise is broken on purpose, and the checker must find it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.drill.checker import Bounds, check
from tests.drill.history import AssetEvent, Attempt, Change, Consumer, History, Row, Run, State, Wait

if TYPE_CHECKING:
    from pathlib import Path

Part = list[Any]
SESSIONS = {
    "R-1": ("101", "NORMAL", ["RUNNING", "COMPLETED"]),
    "R-2": ("101", "NORMAL", ["RUNNING", "PAUSED", "RUNNING", "PAUSED"]),
    "R-3": ("102", "NORMAL", ["RUNNING", "FAILED", "RUNNING", "COMPLETED"]),
    "R-4": ("103", "DEBUG", ["TESTING", "TESTING_FAILED"]),
}


def history(*, ids: bool = True) -> History:
    """Return the record of a drill without violations.

    :param ids: whether the changes of the session that pauses are reported with notification ids
    """
    made = History(
        consumers=[
            Consumer("completed", "101", "COMPLETED"),
            Consumer("failed", "102", "FAILED"),
            Consumer("either", "101", "COMPLETED"),
            Consumer("either", "102", "COMPLETED"),
        ]
    )
    seq = 0
    for session, (meter, run_type, statuses) in SESSIONS.items():
        for index, status in enumerate(statuses):
            seq += 1
            previous = statuses[index - 1] if index else None
            made.changes.append(Change(seq, meter, session, run_type, previous, status))
            known = f"n-{seq}" if ids or session != "R-2" else None
            made.attempts.append(Attempt(seq, f"c-{seq}", known, 503, "retried"))
            made.attempts.append(Attempt(seq, f"c-{seq}", known, 200, "delivered"))
            made.rows.append(Row("status_change", known, meter, session, previous, status))
        ended = statuses[-1] != "PAUSED"
        made.states.append(State(meter, session, run_type, statuses[-1], not ids and session == "R-2", False, ended))
    made.events.extend(AssetEvent(*event) for event in [("101", "COMPLETED", "R-1"), ("102", "COMPLETED", "R-3")])
    made.events.append(AssetEvent("102", "FAILED", "R-3"))
    runs = [("completed", "R-1"), ("either", "R-1"), ("either", "R-3"), ("failed", "R-3")]
    made.runs.extend(Run(dag_id, key, "success") for dag_id, key in runs)
    ends = (("COMPLETED",), ("FAILED", "CANCELED"))
    made.waits.extend(
        [
            Wait("w-1", "101", "R-1", *ends, "met", "COMPLETED", True),
            Wait("w-2", "101", "R-2", *ends, "waiting"),
            Wait("w-3", "102", "R-3", *ends, "failed", "FAILED", True),
            Wait("w-4", "101", "R-2", ("RUNNING",), (), "met", "RUNNING", True, ("PAUSED",)),
        ]
    )
    return made


def found(broken: History, bounds: Bounds | None = None) -> list[str]:
    return [str(violation) for result in check(broken, bounds or Bounds()) for violation in result.violations]


def change(part: Part, index: int, **fields: Any) -> None:
    part[index] = replace(part[index], **fields)


@pytest.mark.parametrize("ids", [True, False])
def test_a_right_history_has_no_violations_and_everything_is_counted(ids: bool) -> None:
    results = check(history(ids=ids), Bounds(ambiguous=1))
    assert [violation for result in results for violation in result.violations] == []
    assert [result.count for result in results] == [12, 12, 12, 4, 0 if ids else 1, 3, 3, 4]


def lose_a_row(broken: History) -> None:
    del broken.rows[1]


def store_one_of_two_without_an_id(broken: History) -> None:
    change(broken.attempts, 3, notification_id=None)
    broken.attempts.append(broken.attempts[3])
    change(broken.rows, 1, notification_id=None)


def never_deliver(broken: History) -> None:
    del broken.rows[1]
    change(broken.attempts, 3, code=503, outcome="failed")


def give_up_one_of_two_rounds(broken: History) -> None:
    change(broken.attempts, 11, code=503, outcome="failed")


def store_a_change_that_never_happened(broken: History) -> None:
    broken.rows.append(Row("status_change", "n-99", "101", "R-1", "RUNNING", "FAILED"))


def store_a_row_twice(broken: History) -> None:
    broken.rows.append(broken.rows[0])


def leave_a_row_unparsed(broken: History) -> None:
    broken.rows.append(Row("unparsed", "n-99", None, None, None, None))


def show_an_earlier_status(broken: History) -> None:
    change(broken.states, 0, status="RUNNING", terminal=False)


def show_the_wrong_round(broken: History) -> None:
    change(broken.states, 1, status="RUNNING")


def lose_a_state(broken: History) -> None:
    del broken.states[0]


def flag_a_conflict(broken: History) -> None:
    change(broken.states, 2, conflict=True)


def mistake_the_run_type(broken: History) -> None:
    change(broken.states, 3, run_type="NORMAL")


def miss_the_end(broken: History) -> None:
    change(broken.states, 0, terminal=False)


def flag_as_ambiguous(broken: History) -> None:
    change(broken.states, 0, ambiguous=True)


def invent_a_session(broken: History) -> None:
    broken.states.append(State("101", "R-9", "NORMAL", "RUNNING", False, False, False))


def repeat_an_event(broken: History) -> None:
    broken.events.append(broken.events[0])


def omit_an_event(broken: History) -> None:
    del broken.events[0]


def add_an_event_of_an_unknown_session(broken: History) -> None:
    broken.events.append(AssetEvent("101", "COMPLETED", "R-9"))


def run_twice(broken: History) -> None:
    broken.runs.append(broken.runs[0])


def omit_a_run(broken: History) -> None:
    del broken.runs[1]


def run_without_a_session(broken: History) -> None:
    broken.runs.append(Run("completed", None, "success"))


def leave_a_run_queued(broken: History) -> None:
    change(broken.runs, 0, state="queued")


def go_on_waiting(broken: History) -> None:
    change(broken.waits, 0, outcome="waiting", end_status=None, certain=None)


def fail_by_a_status_never_reached(broken: History) -> None:
    change(broken.waits, 0, outcome="failed", end_status="FAILED")


def meet_by_a_status_never_reached(broken: History) -> None:
    change(broken.waits, 1, outcome="met", end_status="COMPLETED", certain=True)


def ignore_the_previous_status(broken: History) -> None:
    change(broken.waits, 3, previous=("FAILED",))


def end_with_an_error(broken: History) -> None:
    change(broken.waits, 0, outcome="error")


def end_uncertain(broken: History) -> None:
    change(broken.waits, 0, certain=False)


@pytest.mark.parametrize(
    ("spoil", "kind", "expected"),
    [
        (lose_a_row, "lost", "n-2 was answered 200"),
        (store_one_of_two_without_an_id, "lost", "2 without an id were answered 200, 1 are kept"),
        (never_deliver, "missing", "RUNNING -> COMPLETED: Zuora gave up"),
        (give_up_one_of_two_rounds, "missing", "RUNNING -> PAUSED: Zuora gave up"),
        (store_a_change_that_never_happened, "invented", "RUNNING -> FAILED never was"),
        (store_a_row_twice, "doubled", "n-1"),
        (leave_a_row_unparsed, "invented", "unparsed"),
        (show_an_earlier_status, "state", "is RUNNING, in truth COMPLETED"),
        (show_the_wrong_round, "state", "is RUNNING, in truth PAUSED"),
        (lose_a_state, "state", "is not known"),
        (flag_a_conflict, "state", "conflict"),
        (mistake_the_run_type, "state", "is NORMAL, not DEBUG"),
        (miss_the_end, "state", "terminal=False"),
        (flag_as_ambiguous, "ambiguous", "its reports show that it is COMPLETED"),
        (invent_a_session, "invented", "never was"),
        (repeat_an_event, "event", "2 events of COMPLETED, reached 1 times"),
        (omit_an_event, "event", "without an event for it"),
        (add_an_event_of_an_unknown_session, "event", "reached 0 times"),
        (run_twice, "run", "ran 2 times for R-1"),
        (omit_a_run, "run", "did not run for R-1"),
        (run_without_a_session, "run", "ran 1 times for None"),
        (leave_a_run_queued, "run", "is queued for R-1"),
        (go_on_waiting, "wait", "still waits, though the session is COMPLETED"),
        (fail_by_a_status_never_reached, "wait", "failed by FAILED"),
        (meet_by_a_status_never_reached, "wait", "was met by COMPLETED"),
        (ignore_the_previous_status, "wait", "was met by RUNNING"),
        (end_with_an_error, "wait", "ended with error"),
        (end_uncertain, "wait", "not certain, though nothing was lost"),
    ],
)
def test_each_broken_promise_is_found(spoil: Any, kind: str, expected: str) -> None:
    broken = history()
    spoil(broken)
    violations = found(broken, Bounds(ambiguous=1))
    assert any(each.startswith(f"{kind}: ") and expected in each for each in violations), violations


def test_a_wait_for_a_session_that_ended_twice_may_be_uncertain() -> None:
    unsure = history()
    change(unsure.waits, 2, certain=False)
    assert found(unsure) == []


def test_the_first_session_of_a_meter_is_the_first_one_reported_in_time() -> None:
    mistaken = history()
    change(mistaken.waits, 0, named="R-2", ended_at=1000.0)
    (violation,) = found(mistaken)
    assert "took R-2 for the first session of the meter" in violation
    unlucky = history()
    change(unlucky.waits, 0, named="R-2", ended_at=1000.0)
    for index in (1, 3):
        change(unlucky.attempts, index, at=999.5)
    assert found(unlucky) == []


def test_too_many_ambiguous_sessions_are_a_violation() -> None:
    assert found(history(ids=False)) == ["ambiguous: all: 1 sessions are flagged, 0 are allowed"]


def test_with_losses_only_callouts_that_arrived_count() -> None:
    lossy = history()
    never_deliver(lossy)
    change(lossy.states, 0, status="RUNNING", terminal=False)
    del lossy.events[0]
    del lossy.runs[:2]
    change(lossy.waits, 0, certain=False)
    assert found(lossy, Bounds(lossy=True)) == []


def test_with_losses_only_an_uncertain_wait_beside_another_session_may_be_wrong() -> None:
    lossy = history()
    change(lossy.waits, 0, outcome="failed", end_status="FAILED", certain=False, alone=False)
    assert found(lossy, Bounds(lossy=True)) == []
    change(lossy.waits, 0, alone=True)
    assert len(found(lossy, Bounds(lossy=True))) == 1
    change(lossy.waits, 0, alone=False, certain=True)
    assert len(found(lossy, Bounds(lossy=True))) == 1


def test_with_losses_only_a_wait_beside_another_session_may_go_on() -> None:
    lossy = history()
    show_an_earlier_status(lossy)
    go_on_waiting(lossy)
    assert len(found(lossy, Bounds(lossy=True))) == 2  # the state, too
    change(lossy.waits, 0, alone=False)
    assert [each for each in found(lossy, Bounds(lossy=True)) if each.startswith("wait")] == []


def test_an_undetermined_loop_under_several_ids_is_no_violation() -> None:
    doubled = history()
    index = next(i for i, a in enumerate(doubled.attempts) if doubled.changes[a.change - 1].session_id == "R-2") + 4
    again = replace(doubled.attempts[index], notification_id="n-again", code=200)
    doubled.attempts.append(again)
    doubled.rows.append(replace(doubled.rows[again.change - 1], notification_id="n-again"))
    show_the_wrong_round(doubled)
    assert found(doubled) == []


def test_a_history_is_saved_and_read(tmp_path: Path) -> None:
    recorded = history()
    recorded.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == recorded
