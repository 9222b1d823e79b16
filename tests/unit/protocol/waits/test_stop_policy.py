"""The stop policy: a stop implies each fact that it needs, and each missing fact has its own reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.status import LIVE, RunType, SessionStatus
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.stop_policy import StopCause, StopFacts, why_never, why_not_stop
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.protocol.wire import FeedReply, MeterQuestion
from tests.unit.virtual import EPOCH, through_json

NORMAL_LIVE = LIVE[RunType.NORMAL]
SETTLE = timedelta(seconds=30)


def at(second: float) -> Any:
    return EPOCH + timedelta(seconds=second)


def session(session_id: str, status: str, second: float, *, run_type: str = "NORMAL") -> SessionState:
    return fold(
        [
            SessionTransition(
                meter_id="m",
                session_id=session_id,
                run_type=RunType(run_type),
                status=status,
                observed_at=at(second),
                source=Source.CALLOUT,
                notification_id=f"{session_id}-{second}",
            )
        ]
    )


def facts(**changes: Any) -> StopFacts:
    """Return facts that allow a stop where callouts are read, with some changes."""
    allowed: dict[str, Any] = {
        "cause": StopCause.KILL,
        "meter_id": "m",
        "version": "0.0.1",
        "run_type": "NORMAL",
        "session_id": "S-1",
        "baseline": "COMPLETED",
        "called_at": at(100),
        "exclusive": False,
        "settle": SETTLE,
        "task_state": "failed",
        "wait_id": "w",
        "owner": "this",
        "owner_stored": "this",
        "stalled": False,
        "callouts": True,
        "sessions": (session("S-1", "RUNNING", 120),),
        "status": "RUNNING",
    }
    return StopFacts(**{**allowed, **changes})


TIMEOUT = {"cause": StopCause.TIMEOUT, "task_state": "running", "deadline_passed": True}
CLEAR = {"cause": StopCause.CLEAR, "task_state": "running", "owner": None, "owner_stored": None, "stalled": True}
POLLS = {"callouts": False, "exclusive": True, "sessions": ()}


@pytest.mark.parametrize(
    "changes",
    [
        *({"task_state": state} for state in ("failed", "skipped", "removed")),
        TIMEOUT,
        CLEAR,
        POLLS,
        {**POLLS, **TIMEOUT},
        {**POLLS, "session_id": None},
        {"idle_read_at": at(119)},
        {"doubt": "session S-0 of the same meter ran meanwhile"},
        {"sessions": (session("S-1", "RUNNING", 120), session("S-0", "RUNNING", 60))},
        {"sessions": (session("S-1", "RUNNING", 120), session("S-2", "COMPLETED", 130))},
    ],
    ids=str,
)
def test_with_all_facts_the_meter_may_be_stopped(changes: dict[str, Any]) -> None:
    assert why_not_stop(facts(**changes)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run_type": "DEBUG"}, "Zuora stops NORMAL runs only"),
        ({"run_type": "SOMETHING"}, "this is a SOMETHING run"),
        ({"baseline": "RUNNING"}, "was RUNNING before the run call"),
        ({"callouts": None}, "no API server"),
        ({**TIMEOUT, "callouts": None}, "no API server"),
        ({**CLEAR, "callouts": None}, "no API server"),
        *(
            ({"task_state": state}, f"is {state}")
            for state in ("success", "restarting", "running", "deferred", "up_for_retry", "queued", "scheduled")
        ),
        ({"task_state": None}, "in no state"),
        ({**TIMEOUT, "deadline_passed": False}, "deadline of this try has not passed"),
        ({"owner": None}, "did not begin the wait"),
        ({"owner": "", "owner_stored": ""}, "did not begin the wait"),
        ({"owner_stored": None}, "has no owner of the wait"),
        ({**TIMEOUT, "owner_stored": "another"}, "another process has begun the wait"),
        ({"stalled": True}, "paused between two polls"),
        ({"status": None}, "unknown, so no session is known to run"),
        *(({"status": s}, f"status is {s}") for s in ("COMPLETED", "PAUSED", "NEVER_RUN", "TESTING", "WHAT")),
        ({"newer": True}, "a newer session"),
        ({"session_id": None}, "reply that named the session was lost"),
        ({"sessions": ()}, "has no session S-1"),
        ({"sessions": (session("S-1", "COMPLETED", 120),)}, "S-1 is COMPLETED"),
        ({"sessions": (session("S-1", "PAUSED", 120),)}, "S-1 is PAUSED"),
        ({"sessions": (session("S-1", "RUNNING", 120), session("S-2", "RUNNING", 130))}, "stop S-2 as well"),
        ({"sessions": (session("S-1", "RUNNING", 120), session("S-0", "RUNNING", 80))}, "stop S-0 as well"),
        *(
            ({**unknown, "sessions": (session("S-1", "RUNNING", 120), session("S-0", "RUNNING", 60))}, "stop S-0")
            for unknown in ({"baseline": None}, {"baseline": "TESTING_PASSED"}, {"called_at": None})
        ),
        (
            {"sessions": (session("S-1", "RUNNING", 120), session("S-2", "TESTING", 130, run_type="DEBUG"))},
            "stop S-2 as well",
        ),
        ({"idle_read_at": at(120)}, "was idle after session S-1 was last reported"),
        ({**CLEAR, "callouts": False, "exclusive": True}, "takes no callouts"),
        ({**POLLS, "exclusive": False}, "exclusive=True"),
        ({**POLLS, "baseline": None}, "was not read before"),
        ({**POLLS, "baseline": "TESTING_PASSED"}, "not certainly idle"),
        ({**POLLS, "idle_read_at": at(110)}, "was idle after this run had begun"),
        ({**POLLS, "doubt": "a newer session of the meter was seen"}, "a newer session"),
        ({**POLLS, "sessions": (session("S-2", "RUNNING", 130),)}, "stop S-2 as well"),
    ],
    ids=str,
)
def test_each_missing_fact_has_its_own_reason(changes: dict[str, Any], words: str) -> None:
    reason = why_not_stop(facts(**changes))
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize(
    ("changes", "never"),
    [
        ({}, False),
        (POLLS, False),
        # Facts that exist only at the time of the stop do not count.
        ({"task_state": None, "owner": None, "stalled": True, "status": None, "sessions": ()}, False),
        ({"run_type": "DEBUG"}, True),
        ({"callouts": None}, True),
        ({**POLLS, "exclusive": False}, True),
        ({"baseline": "USAGE_PUSHING"}, True),
        ({"session_id": None}, True),
    ],
    ids=str,
)
def test_a_stop_that_is_never_possible_is_refused_when_the_wait_begins(changes: dict[str, Any], never: bool) -> None:
    assert (why_never(facts(**changes)) is not None) == never


STATUSES = [*SessionStatus, "WHAT"]
MOMENTS = st.integers(0, 200).map(at)


@st.composite
def sessions(draw: st.DrawFn) -> tuple[SessionState, ...]:
    ids = draw(st.lists(st.sampled_from(["S-1", "S-2"]), unique=True))
    return tuple(
        session(
            session_id,
            draw(st.sampled_from(STATUSES)),
            draw(st.integers(0, 200)),
            run_type=draw(st.sampled_from(["NORMAL", "NORMAL", "DEBUG"])),
        )
        for session_id in ids
    )


ANY_FACT: dict[str, st.SearchStrategy[Any]] = {
    "cause": st.sampled_from(StopCause),
    "meter_id": st.just("m"),
    "version": st.just("0.0.1"),
    "run_type": st.sampled_from(["NORMAL", "NORMAL", "NORMAL", "DEBUG", "WHAT"]),
    "session_id": st.sampled_from(["S-1", "S-1", None]),
    "baseline": st.sampled_from([None, "COMPLETED", "COMPLETED", *STATUSES]),
    "called_at": st.none() | MOMENTS,
    "exclusive": st.booleans(),
    "settle": st.just(SETTLE),
    "idle_read_at": st.none() | MOMENTS,
    "newer": st.booleans(),
    "doubt": st.sampled_from(["", "", "a reason"]),
    "task_state": st.sampled_from(
        ["failed", "skipped", "removed", "success", "restarting", "running", "deferred", None]
    ),
    "deadline_passed": st.booleans(),
    "wait_id": st.just("w"),
    "owner": st.sampled_from(["this", "this", "other", "", None]),
    "owner_stored": st.sampled_from(["this", "this", "other", "", None]),
    "stalled": st.booleans(),
    "callouts": st.sampled_from([True, False, None]),
    "sessions": sessions(),
    "status": st.none() | st.sampled_from(["RUNNING", "RUNNING", *STATUSES]),
}
ALLOWED = st.sampled_from([facts(), facts(**TIMEOUT), facts(**CLEAR), facts(**POLLS), facts(**POLLS, **TIMEOUT)])


@st.composite
def nearly_allowed(draw: st.DrawFn) -> StopFacts:
    """Return facts that allow a stop, with some replaced by arbitrary ones: arbitrary facts alone rarely allow one."""
    names = draw(st.lists(st.sampled_from(StopFacts.__slots__), max_size=3, unique=True))
    return replace(draw(ALLOWED), **{name: draw(ANY_FACT[name]) for name in names})


@settings(max_examples=20 * settings.default.max_examples)
@given(nearly_allowed())
def test_a_stop_implies_each_fact_that_it_needs(known: StopFacts) -> None:
    assume(why_not_stop(known) is None)
    assert known.run_type == "NORMAL"
    assert known.status in NORMAL_LIVE
    assert not known.newer
    assert known.baseline is None or known.baseline not in NORMAL_LIVE
    assert known.callouts is not None
    if known.cause is not StopCause.CLEAR:
        assert known.owner
        assert known.owner == known.owner_stored
        assert not known.stalled
    if known.cause is StopCause.KILL:
        assert known.task_state in {"failed", "skipped", "removed"}
    if known.cause is StopCause.TIMEOUT:
        assert known.deadline_passed
    if known.callouts:
        (own,) = [state for state in known.sessions if state.session_id == known.session_id]
        assert own.status in NORMAL_LIVE
        assert known.idle_read_at is None or known.idle_read_at < own.last_observed_at
    else:
        assert known.cause is not StopCause.CLEAR
        assert known.exclusive
        assert known.baseline in {"NEVER_RUN", "COMPLETED", "FAILED", "CANCELED"}
        assert known.idle_read_at is None
        assert not known.doubt
    for other in known.sessions:
        if other.session_id != known.session_id and not other.terminal:
            # The run found the meter idle after the last report of that session.
            assert known.baseline in {"NEVER_RUN", "COMPLETED", "FAILED", "CANCELED"}
            assert known.called_at is not None
            assert other.last_observed_at + SETTLE <= known.called_at


# ---- the facts that a wait has -------------------------------------------------------------------------------------


def followed(*readings: tuple[float, str], **options: Any) -> StopFacts:
    """Return the facts of a wait after some readings, as another process loads them."""
    wait = SessionWait(
        SessionCondition(meter_id="m", session_id="S-1"),
        created_at=at(100),
        started_at=at(100),
        called_at=at(99),
        run_status="INITIALIZING",
        **{"baseline": "COMPLETED", **options},
    )
    for second, status in readings:
        wait.observe(PollReading(status, at(second)))
    return StopFacts.of_wait(StopCause.KILL, SessionWait.from_dict(through_json(wait.to_dict())), owner="this")


def test_a_wait_has_the_facts_of_its_run() -> None:
    known = followed((101, "RUNNING"), exclusive=True, settle=timedelta(seconds=7))
    assert (known.run_type, known.session_id, known.baseline, known.called_at) == ("NORMAL", "S-1", "COMPLETED", at(99))
    assert (known.exclusive, known.settle, known.owner) == (True, timedelta(seconds=7), "this")
    assert (known.idle_read_at, known.newer, known.doubt) == (None, False, "")


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "NEVER_RUN", "PAUSED", "TESTING_PASSED"])
def test_a_reading_that_proves_nothing_of_the_session_still_counts_as_idle(status: str) -> None:
    assert followed((101, status), (140, "RUNNING")).idle_read_at == at(101)
    assert followed((101, "RUNNING"), (140, status), (180, "RUNNING")).idle_read_at == at(140)


def test_the_request_asks_for_the_meters_sessions_and_the_owner() -> None:
    asked = facts().question()
    assert (asked.full, asked.owners, dict(asked.meters)) == (True, ("w",), {"m": MeterQuestion(sessions={"S-1"})})
    assert facts(session_id=None, wait_id=None).question().owners == ()
    own, other = session("S-1", "RUNNING", 120), replace(session("S-2", "RUNNING", 130), meter_id="another")
    reply = FeedReply(cursor="c", callouts=True, sessions=(own, other), owners={"w": "that"})
    known = facts(callouts=None, sessions=(), owner_stored=None).answered(reply)
    assert (known.callouts, known.sessions, known.owner_stored) == (True, (own,), "that")


def test_without_an_answer_earlier_facts_do_not_count() -> None:
    known = facts().answered(None)
    assert (known.callouts, known.sessions, known.owner_stored) == (None, (), None)


def test_a_newer_run_that_was_polled_is_stored() -> None:
    """Without it the worker would stop a meter that the trigger refused to stop."""
    known = followed((110, "RUNNING"), (140, "RUNNING"), (200, "INITIALIZING"), (230, "RUNNING"))
    assert known.newer
    known = replace(
        known, task_state="failed", owner_stored="this", stalled=False, status="RUNNING", exclusive=True, callouts=False
    )
    assert why_not_stop(known) == "a newer session of the meter was seen"
