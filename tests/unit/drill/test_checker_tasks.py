"""The checks of tasks must be able to fail: a second start, a foreign stop, a failed task, an event of any meter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.drill.checker import Bounds, check, check_tasks
from tests.drill.history import (
    ANY_METER,
    AssetEvent,
    Change,
    Consumer,
    History,
    Row,
    Run,
    Start,
    State,
    Stop,
    Task,
    Wait,
)

ENDS = (("COMPLETED",), ("FAILED", "CANCELED"))


def history() -> History:
    """Return a record without violations: two runs of a meter, of which a user ended one, and a session of another."""
    sessions = {
        "R-1": ("501", ["RUNNING", "COMPLETED"]),
        "R-2": ("502", ["RUNNING", "CANCELED"]),
        "R-3": ("101", ["RUNNING", "COMPLETED"]),
    }
    made = History(consumers=[Consumer("one", "101", "COMPLETED"), Consumer("any", ANY_METER, "COMPLETED")])
    for session, (meter, statuses) in sessions.items():
        for index, status in enumerate(statuses):
            previous = statuses[index - 1] if index else None
            made.changes.append(Change(len(made.changes) + 1, meter, session, "NORMAL", previous, status))
            made.rows.append(Row("status_change", f"n-{len(made.changes)}", meter, session, previous, status))
        made.states.append(State(meter, session, "NORMAL", statuses[-1], False, False, True))
    made.events.extend(
        AssetEvent(*event)
        for event in [
            (ANY_METER, "COMPLETED", "R-1"),
            (ANY_METER, "COMPLETED", "R-3"),
            ("101", "COMPLETED", "R-3"),
        ]
    )
    runs = [("any", "R-1"), ("any", "R-3"), ("one", "R-3")]
    made.runs.extend(Run(dag_id, key, "success") for dag_id, key in runs)
    made.waits.extend(
        [
            Wait("run", "501", "R-1", *ENDS, "met", "COMPLETED", True, own=True),
            Wait("marked", "502", "R-2", *ENDS, "failed", "CANCELED", None, own=True, killed=True),
            Wait("sensor", "101", "R-3", *ENDS, "met", "COMPLETED", True),
        ]
    )
    made.starts.extend([Start("501", "R-1", "k-1"), Start("502", "R-2", "k-2")])
    made.stops.append(Stop("502", ("R-2",)))
    made.tasks.extend([Task("one", "r", "ask", "success", "R-3", "R-3"), Task("control", "r", "deferred", "success")])
    return made


def found(broken: History, **bounds: bool) -> list[str]:
    results = [*check(broken, Bounds(repaired=True, **bounds)), *check_tasks(broken)]
    return [str(violation) for result in results for violation in result.violations]


def test_a_right_history_has_no_violations_and_everything_is_counted() -> None:
    assert found(history()) == []
    assert [result.count for result in check_tasks(history())] == [2, 1, 2]


def lose_an_event_of_any_meter(broken: History) -> None:
    del broken.events[0]


def lose_a_run_of_any_meter(broken: History) -> None:
    del broken.runs[0]


def double_a_run_of_any_meter(broken: History) -> None:
    broken.runs.append(broken.runs[1])


def start_twice(broken: History) -> None:
    broken.starts.append(Start("501", "R-4", "k-3"))


def start_twice_with_one_key(broken: History) -> None:
    broken.starts[1] = replace(broken.starts[1], unique_key="k-1")


def start_never(broken: History) -> None:
    del broken.starts[0]


def start_what_no_task_asked_for(broken: History) -> None:
    broken.starts.append(Start("101", "R-3", "k-3"))


def stop_another_session(broken: History) -> None:
    broken.stops.append(Stop("101", ("R-3",)))


def refuse_the_stop_of_another_meter(broken: History) -> None:
    broken.stops.append(Stop("101", ()))


def stop_twice(broken: History) -> None:
    broken.stops.append(Stop("502", ()))


def stop_never(broken: History) -> None:
    broken.stops.clear()


def stop_the_next_session(broken: History) -> None:
    broken.stops[0] = Stop("502", ("R-9",))


def fail_another_task(broken: History) -> None:
    broken.tasks[1] = replace(broken.tasks[1], state="failed")


def name_another_session(broken: History) -> None:
    broken.tasks[0] = replace(broken.tasks[0], given="R-1")


def name_no_session(broken: History) -> None:
    broken.tasks[0] = replace(broken.tasks[0], given="")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lose_an_event_of_any_meter, "event: meter 501 session R-1: is COMPLETED, without an event for it"),
        (lose_a_run_of_any_meter, "run: any: did not run for R-1, which is COMPLETED"),
        (double_a_run_of_any_meter, "run: any: ran 2 times for R-3, which reached its status 1 times"),
        (start_twice, "start: run: started 2 sessions of meter 501"),
        (start_twice_with_one_key, "start: k-1: used for 2 starts"),
        (start_never, "start: run: started 0 sessions of meter 501"),
        (start_what_no_task_asked_for, "start: meter 101: started 1 times by no task"),
        (stop_another_session, "stop: meter 101: 1 stop calls, though no user marked a task"),
        (refuse_the_stop_of_another_meter, "stop: meter 101: 1 stop calls, though no user marked a task"),
        (stop_twice, "stop: marked: 2 stop calls, and R-2 was stopped 1 times"),
        (stop_never, "stop: marked: 0 stop calls, and R-2 was stopped 0 times"),
        (stop_the_next_session, "stop: marked: 1 stop calls, and R-2 was stopped 0 times"),
        (fail_another_task, "task: control.deferred r: is failed"),
        (name_another_session, "task: one.ask r: got R-1, and its run is of R-3"),
        (name_no_session, "task: one.ask r: got no session, and its run is of R-3"),
    ],
)
def test_each_broken_promise_is_found(spoil: Any, expected: str) -> None:
    broken = history()
    spoil(broken)
    assert found(broken) == [expected]


def test_a_wait_may_be_uncertain_only_where_the_journal_was_away() -> None:
    unsure = history()
    unsure.waits[2] = replace(unsure.waits[2], certain=False)
    assert found(unsure, blind=True) == []
    assert found(unsure) == ["wait: sensor: is not certain, though nothing was lost (R-3: RUNNING, COMPLETED)"]
