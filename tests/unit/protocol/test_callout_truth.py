"""What a wait says beside callouts that are lost, late, doubled and disordered is held against what a tenant did."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.grounds import Callouts, Grounds
from airflow_mediation_provider.protocol.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitEnd, WaitResult
from tests.unit.protocol.tenant import SETTLE, Meter, Session, at, condition, debug_scripts, second, stored

OFTEN = settings(max_examples=100, deadline=None)
READ = Grounds(Callouts.READ, "callouts are read")
LOST = Grounds(Callouts.LOST, "the feed does not answer")
CROSS_CHECK = 300

_FINAL = st.sampled_from(["COMPLETED", "COMPLETED", "FAILED", "CANCELED"])
_LASTING = st.sampled_from([5, 40, 150, 290, 400, 1200])
_SOON = st.integers(0, 5)
_LATE = st.sampled_from([0, 1, 5, 25, 60, 400, 1800])


@st.composite
def scripts(draw: st.DrawFn) -> tuple[tuple[str, int], ...]:
    """Sessions as Zuora documents them: they begin with INITIALIZING and RUNNING, and may pause and go on."""
    middle = draw(st.lists(st.tuples(st.sampled_from(["PAUSED", "USAGE_PUSHING"]), _LASTING), max_size=1))
    again = [("RUNNING", draw(_LASTING))] if middle and middle[0][0] == "PAUSED" else []
    head = [("INITIALIZING", draw(_LASTING)), ("RUNNING", draw(_LASTING))]
    return (*head, *middle, *again, (draw(_FINAL), 0))


@dataclass
class Tenant:
    """Sessions R-0, R-1 ... of one meter, and when which of their callouts comes."""

    sessions: list[Session]
    newest_wins: bool = True
    heard: dict[str, list[tuple[int, SessionTransition]]] = field(default_factory=dict)

    def call_out(self, name: str, delays: list[int | None]) -> None:
        """Let each change of a session be called out after a delay, or never."""
        session = self.sessions[int(name[2:])]
        moment, before = session.start, None
        for number, ((status, lasts), delay) in enumerate(zip(session.script, delays, strict=True)):
            if delay is not None:
                change = SessionTransition(
                    meter_id="2470",
                    session_id=name,
                    status=status,
                    previous_status=before,
                    run_type="DEBUG" if status.startswith("TESTING") else "NORMAL",  # type: ignore[arg-type]
                    started_at=at(session.start),
                    ended_at=at(moment) if status in ANY_TERMINAL else None,
                    observed_at=at(moment + delay),
                    source=Source.CALLOUT,
                    notification_id=f"{name}-{number}",
                )
                self.heard.setdefault(name, []).append((moment + delay, change))
            moment, before = moment + lasts, status

    def known(self, moment: float) -> list[SessionState]:
        """Return what a feed tells at a moment."""
        told = ([t for when, t in changes if when <= moment] for changes in self.heard.values())
        return [fold(transitions) for transitions in told if transitions]

    def arrivals(self) -> set[int]:
        return {when for changes in self.heard.values() for when, _ in changes}

    def status_at(self, moment: float) -> str:
        return Meter(tuple(self.sessions), newest_wins=self.newest_wins).status_at(moment)


@st.composite
def called_out(draw: st.DrawFn, sessions: list[Session], delays: st.SearchStrategy[int | None]) -> Tenant:
    tenant = Tenant(sessions, newest_wins=draw(st.booleans()))
    for number, session in enumerate(sessions):
        tenant.call_out(f"R-{number}", [draw(delays) for _ in session.script])
    return tenant


@dataclass
class Drive:
    """A wait that is driven by a tenant's callouts, and by a poll every five minutes."""

    wait: SessionWait
    tenant: Tenant
    lags: st.SearchStrategy[int] = field(default_factory=lambda: st.just(0))
    moves: bool = False

    def run(self, data: st.DataObject, begin: int, end: int) -> tuple[WaitResult | None, float]:
        wait, tenant = self.wait, self.tenant
        wait.rely_on(READ)
        result, moment = wait.learn(tenant.known(begin), at(begin)).result, float(begin)
        polls = begin + data.draw(st.integers(0, CROSS_CHECK))
        events = {(when, "callout") for when in tenant.arrivals() if when > begin}
        events |= {(when, "poll") for when in range(polls, end, CROSS_CHECK)}
        for when, kind in sorted(events):
            while result is None and wait.deadline is not None and second(wait.deadline) <= when:
                moment = second(wait.deadline)
                result = wait.tick(at(moment)).result
            if result is not None:
                break
            moment, known = when, tenant.known(when)
            if self.moves:
                wait = stored(wait)
            if kind == "callout":
                result = wait.learn(known, at(when)).result
            else:
                status = tenant.status_at(when - data.draw(self.lags))
                result = wait.observe(PollReading(status, at(when)), known).result
        if result is None and wait.deadline is not None:
            moment = second(wait.deadline)
            result = wait.tick(at(moment)).result
        return result, moment


def told(result: WaitResult | None) -> tuple[str, bool]:
    assert result is not None
    assert result.session is not None, result.message
    status = result.session["status"]
    assert result.end is (WaitEnd.MET if status == "COMPLETED" else WaitEnd.FAILED)
    return status, result.session["certain"]


def named(session: Session, created: int, *, run: bool, **options: object) -> SessionWait:
    more = {"started_at": at(session.start), "run_status": "INITIALIZING"} if run else {}
    return SessionWait(condition("R-1"), created_at=at(created), settle=timedelta(seconds=SETTLE), **more, **options)  # type: ignore[arg-type]


LAGS = st.sampled_from([0, 0, 5, SETTLE - 1])


@OFTEN
@given(st.data())
def test_a_session_that_is_alone_ends_right_whatever_is_lost(data: st.DataObject) -> None:
    """Sessions before it had ended, some without a callout of it; the next one begins after the cross-check."""
    session = Session(data.draw(st.integers(0, 50)), data.draw(scripts()))
    before = Session(0, data.draw(scripts())).ending_at(session.start - data.draw(st.sampled_from([1, 200, 5000])))
    lost = st.one_of(st.none(), _LATE)
    tenant = data.draw(called_out([before, session], lost))
    created = session.start + data.draw(st.sampled_from([0, 1, 100, 3000]))
    wait = named(session, created, run=created - session.start <= 1 and data.draw(st.booleans()))
    result, _ = Drive(wait, tenant, LAGS, moves=data.draw(st.booleans())).run(data, created, 60_000)
    assert told(result)[0] == session.final


@OFTEN
@given(st.data())
def test_a_sensor_of_a_session_that_is_alone_ends_right_whatever_is_lost(data: st.DataObject) -> None:
    begin = data.draw(st.sampled_from([0, 300, 1000]))
    session = Session(begin + data.draw(st.integers(0, 2000)), data.draw(scripts()))
    before = Session(0, data.draw(scripts())).ending_at(
        min(begin, session.start) - data.draw(st.sampled_from([31, 900]))
    )
    tenant = data.draw(called_out([before, session], st.one_of(st.none(), _LATE)))
    wait = SessionWait(condition(None, since=at(begin)), created_at=at(begin), settle=timedelta(seconds=SETTLE))
    result, _ = Drive(wait, tenant, LAGS, moves=data.draw(st.booleans())).run(data, begin, 60_000)
    # One that fits between two polls, and of which no callout ever comes, is never seen.
    if result is not None:
        assert told(result)[0] == session.final
    else:
        assert all(name != "R-1" or changes[-1][1].status not in ANY_TERMINAL for name, changes in tenant.heard.items())


@OFTEN
@given(st.data())
def test_what_is_certain_is_true_whoever_runs_beside_it(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    others = data.draw(
        st.lists(st.builds(Session, st.integers(-3000, 3000), st.one_of(scripts(), debug_scripts())), max_size=3)
    )
    first, *rest = others or [Session(-9000, (("INITIALIZING", 5), ("RUNNING", 5), ("FAILED", 0)))]
    tenant = data.draw(called_out([first, session, *rest], st.one_of(st.none(), _LATE)))
    wait = named(session, 0, run=data.draw(st.booleans()), require_certain=data.draw(st.booleans()))
    result, moment = Drive(wait, tenant, LAGS).run(data, 0, 30_000)
    if result is not None and result.session is not None and result.session["certain"]:
        assert told(result) == (session.final, True)
        assert moment >= session.end


@OFTEN
@given(st.data())
def test_while_callouts_come_no_poll_ends_a_wait_wrongly_whoever_runs_beside_it(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    others = data.draw(st.lists(st.builds(Session, st.integers(-3000, 3000), scripts()), max_size=3))
    first, *rest = others or [Session(-9000, (("INITIALIZING", 5), ("RUNNING", 5), ("FAILED", 0)))]
    tenant = data.draw(called_out([first, session, *rest], _SOON))
    result, _ = Drive(named(session, 0, run=data.draw(st.booleans())), tenant, LAGS).run(data, 0, 30_000)
    assert told(result) == (session.final, True)


@OFTEN
@given(st.data())
def test_a_sensor_finds_the_first_session_while_callouts_come(data: st.DataObject) -> None:
    sessions = data.draw(st.lists(st.builds(Session, st.integers(-3000, 3000), scripts()), min_size=1, max_size=4))
    since = data.draw(st.integers(-2000, 500))
    created = since + data.draw(st.sampled_from([0, 1, 600, 5000]))
    tenant = data.draw(called_out(sessions, _SOON))
    wait = SessionWait(condition(None, since=at(since)), created_at=at(created), settle=timedelta(seconds=SETTLE))
    result, _ = Drive(wait, tenant, LAGS, moves=data.draw(st.booleans())).run(data, created, 30_000)
    eligible = [(each.start, f"R-{n}", each.final) for n, each in enumerate(sessions) if each.start >= since]
    if not eligible:
        assert result is None
        return
    assert told(result) == (min(eligible)[2], True)
    assert result is not None
    assert result.session is not None
    assert result.session["session_id"] == min(eligible)[1]


@OFTEN
@given(st.data())
def test_a_feed_that_comes_and_goes_changes_no_verdict_of_a_session_alone(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    tenant = data.draw(called_out([Session(-9000, data.draw(scripts())), session], st.one_of(st.none(), _SOON)))
    wait = named(session, 0, run=True)
    wait.rely_on(READ)
    result = None
    for when in range(0, 20_000, 60):
        there = data.draw(st.sampled_from([True, True, False])) if when < 2000 else True
        wait.rely_on(READ if there else LOST)
        known = tenant.known(when) if there else []
        result = wait.learn(known, at(when)).result or wait.tick(at(when)).result
        if result is None and (not there or when % CROSS_CHECK == 0):
            status = tenant.status_at(when - data.draw(LAGS))
            result = wait.observe(PollReading(status, at(when)), known).result
        if result is not None:
            break
    assert told(result)[0] == session.final
