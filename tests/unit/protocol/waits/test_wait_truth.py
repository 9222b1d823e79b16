"""The results of waits are compared with the true statuses of a modelled tenant."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd
from tests.unit.protocol.tenant import (
    SETTLE,
    Meter,
    Run,
    Session,
    Step,
    at,
    condition,
    debug_scripts,
    drive,
    histories,
    scripts,
    second,
    steps,
)


def assert_true(run: Run, session: Session) -> None:
    """The status that ended the wait was the session's own, and was so by then."""
    assert run.result is not None
    assert run.result.session is not None
    assert run.result.session["status"] == session.final
    assert run.moment >= session.end
    met = session.final in ("COMPLETED", "TESTING_PASSED")
    if run.result.end is not WaitEnd.UNCERTAIN:
        assert run.result.end is (WaitEnd.MET if met else WaitEnd.FAILED)


@st.composite
def waits_for_a_known_session(draw: st.DrawFn, session: Session, meter: Meter) -> tuple[SessionWait, int]:
    """Make the wait as an operator does: after its own run call, by a retry long after, or by a sensor."""
    created = session.start + draw(st.sampled_from([0, 1, 5, 29, 31, 200, 4000]))
    skew = draw(st.integers(-300, 300))
    baseline_read = session.start - draw(st.integers(0, 20))
    baseline = meter.status_at(baseline_read - draw(st.integers(1, SETTLE)))
    wait = SessionWait(
        condition(),
        created_at=at(created),
        started_at=draw(st.sampled_from([None, at(session.start + skew)])),
        run_status=draw(st.sampled_from([None, "INITIALIZING"])),
        baseline=draw(st.sampled_from([None, baseline])),
        exclusive=draw(st.booleans()),
        require_certain=draw(st.booleans()),
        max_unreachable=timedelta(days=30),
        settle=timedelta(seconds=SETTLE),
    )
    return wait, created


@given(st.data())
def test_a_wait_for_a_lone_session_ends_only_by_the_sessions_own_status(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    meter = Meter((*data.draw(histories(before=0)), session))
    wait, created = data.draw(waits_for_a_known_session(session, meter))
    run = drive(wait, meter, data.draw(steps()), created)
    if run.result is not None:
        assert_true(run, session)


@given(st.data())
def test_a_certain_result_of_a_sensor_is_true(data: st.DataObject) -> None:
    since = data.draw(st.one_of(st.none(), st.integers(-300, 100)))
    begin = min(since or 0, 0) if since is None or since <= 0 else since
    session = Session(begin + data.draw(st.integers(0, 300)), data.draw(scripts()))
    meter = Meter((*data.draw(histories(before=begin)), session))
    baseline = meter.status_at(-data.draw(st.integers(0, SETTLE)))
    wait = SessionWait(
        condition(None, since=None if since is None else at(since)),
        created_at=at(0),
        baseline=data.draw(st.sampled_from([None, baseline])),
        exclusive=True,
        max_unreachable=timedelta(days=30),
        settle=timedelta(seconds=SETTLE),
    )
    run = drive(wait, meter, data.draw(steps()), 0)
    if run.result is not None and run.result.session is not None and run.result.session["certain"]:
        assert_true(run, session)


@given(st.data())
def test_a_certain_result_of_a_sensor_on_both_run_types_is_true(data: st.DataObject) -> None:
    canceled = st.builds(lambda seconds: (("TESTING", seconds), ("CANCELED", 0)), st.sampled_from([0, 5, 40, 150]))
    script = data.draw(st.one_of(scripts(), debug_scripts(), canceled))
    session = Session(data.draw(st.integers(0, 300)), script)
    meter = Meter((*data.draw(histories(before=0)), session))
    baseline = meter.status_at(-data.draw(st.integers(0, SETTLE)))
    wait = SessionWait(
        condition(None, run_types=tuple(RunType)),
        created_at=at(0),
        baseline=data.draw(st.sampled_from([None, baseline])),
        exclusive=True,
        max_unreachable=timedelta(days=30),
        settle=timedelta(seconds=SETTLE),
    )
    run = drive(wait, meter, data.draw(steps()), 0)
    if run.result is not None and run.result.session is not None and run.result.session["certain"]:
        assert_true(run, session)
        assert run.result.session["run_type"] == ("DEBUG" if script[0][0] == "TESTING" else "NORMAL")


@given(st.data())
def test_a_sensor_without_stale_readings_ends_only_by_a_true_status(data: st.DataObject) -> None:
    session = Session(data.draw(st.integers(1, 300)), data.draw(scripts()))
    meter = Meter((*data.draw(histories(before=0)), session))
    wait = SessionWait(condition(None), created_at=at(0), exclusive=data.draw(st.booleans()))
    run = drive(wait, meter, data.draw(steps(max_lag=0, may_lose=False)), 0)
    if run.result is not None:
        assert_true(run, session)


@given(st.data())
def test_without_the_promise_nothing_is_certain(data: st.DataObject) -> None:
    """With newer, older and DEBUG runs, any of which may hide the others."""
    others = data.draw(
        st.lists(st.builds(Session, st.integers(-200, 400), st.one_of(scripts(), debug_scripts())), max_size=4)
    )
    meter = Meter((Session(0, data.draw(scripts())), *others), newest_wins=data.draw(st.booleans()))
    wait = SessionWait(
        condition(data.draw(st.sampled_from([None, "R-1"]))),
        created_at=at(0),
        baseline=data.draw(st.sampled_from([None, meter.status_at(-1)])),
        require_certain=data.draw(st.booleans()),
        max_unreachable=timedelta(days=30),
    )
    run = drive(wait, meter, data.draw(steps(max_lag=120)), 0)
    if run.result is not None:
        assert run.result.session is not None
        assert run.result.session["certain"] is False
        assert (run.result.end is WaitEnd.UNCERTAIN) == run.wait.to_dict()["require_certain"]


@given(st.data())
def test_a_debug_run_is_never_taken_for_a_normal_session(data: st.DataObject) -> None:
    session = Session(0, (("INITIALIZING", 5), ("RUNNING", data.draw(st.integers(60, 600))), ("FAILED", 0)))
    debug = Session(data.draw(st.integers(SETTLE, session.end)), data.draw(debug_scripts()))
    meter = Meter((session, debug))
    wait = SessionWait(condition(), created_at=at(0), started_at=at(0), baseline="COMPLETED", exclusive=True)
    polls = [Step(data.draw(st.integers(7, 20))) for _ in range(100)]
    run = drive(wait, meter, polls, 0)
    # The session's own end was hidden: only to continue waiting is correct.
    assert run.result is None
    assert "hides the status of the session" in run.wait.heartbeat(at(run.moment))


@given(st.data())
def test_a_lone_session_that_ends_is_recognised(data: st.DataObject) -> None:
    """Regardless of earlier crashes of the process, and of the meter's earlier statuses."""
    session = Session(0, data.draw(scripts()))
    meter = Meter((*data.draw(histories(before=0)), session))
    wait, created = data.draw(waits_for_a_known_session(session, meter))
    hard = data.draw(steps())
    pace = data.draw(st.integers(1, 90))
    calm = [Step(pace, data.draw(st.integers(0, SETTLE))) for _ in range((session.end + 400) // pace + 8)]
    run = drive(wait, meter, hard + calm, created)
    assert run.result is not None
    assert_true(run, session)
    # After the end, and after the last fault, it takes at most five settle times, and a few polls.
    settled = max(session.end, created + sum(step.gap for step in hard))
    assert run.moment <= settled + 5 * SETTLE + 4 * pace + SETTLE


@given(st.data())
def test_a_sensor_recognises_a_session_that_it_polled_live(data: st.DataObject) -> None:
    script = (("INITIALIZING", 20), ("RUNNING", data.draw(st.integers(100, 500))), data.draw(scripts())[-1])
    session = Session(data.draw(st.integers(1, 300)), script)
    meter = Meter((*data.draw(histories(before=-100)), session))
    wait = SessionWait(condition(None), created_at=at(0), exclusive=True)
    pace = data.draw(st.integers(1, 60))
    polls = [
        Step(pace, data.draw(st.integers(0, SETTLE)), data.draw(st.sampled_from(["poll", "poll", "move"])))
        for _ in range(session.end // pace + 300 // pace + 20)
    ]
    assume(any(step.kind == "poll" for step in polls))
    run = drive(wait, meter, polls, 0)
    if run.live_polls >= 2:
        assert run.result is not None
        assert_true(run, session)


@given(st.data())
def test_moving_to_another_process_changes_nothing(data: st.DataObject) -> None:
    others = data.draw(st.lists(st.builds(Session, st.integers(-99, 300), scripts()), max_size=3))
    meter = Meter((Session(0, data.draw(scripts())), *others))
    wait = SessionWait(
        condition(data.draw(st.sampled_from([None, "R-1"])), until=at(data.draw(st.integers(0, 2000)))),
        created_at=at(0),
        exclusive=data.draw(st.booleans()),
        max_unreachable=timedelta(seconds=data.draw(st.integers(0, 500))),
    )
    plain = [s for s in data.draw(steps(may_lose=False)) if s.kind != "move"]
    moved = [step for one in plain for step in (one, Step(0, 0, "move"))]
    stayed, went = drive(_copy(wait), meter, plain, 0), drive(_copy(wait), meter, moved, 0)
    assert (went.result, went.lines) == (stayed.result, stayed.lines)
    assert went.wait.to_dict() == stayed.wait.to_dict()


def _copy(wait: SessionWait) -> SessionWait:
    return SessionWait.from_dict(wait.to_dict())


def test_the_model_of_a_tenant() -> None:
    first = Session(0, (("RUNNING", 10), ("COMPLETED", 0)))
    second_one = Session(5, (("INITIALIZING", 10), ("FAILED", 0)))
    meter = Meter((first, second_one))
    assert [meter.status_at(t) for t in (-1, 0, 5, 20)] == ["NEVER_RUN", "RUNNING", "INITIALIZING", "FAILED"]
    assert Meter((first, second_one), newest_wins=False).status_at(7) == "RUNNING"
    assert (first.end, first.ending_at(100).start, second(at(3))) == (10, 90, 3)
