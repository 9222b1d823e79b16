"""Results of waits with lost, late, repeated and unordered callouts are compared with the true statuses of a tenant."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitEnd, WaitResult
from tests.unit.protocol.tenant import SETTLE, Meter, Session, at, condition, debug_scripts, second, stored

READ = FeedStatusChange(FeedStatus.READ, "callouts are read")
LOST = FeedStatusChange(FeedStatus.LOST, "the feed does not answer")
CROSS_CHECK = 300

_FINAL = st.sampled_from(["COMPLETED", "COMPLETED", "FAILED", "CANCELED"])
_LASTING = st.sampled_from([5, 40, 150, 290, 400, 1200])
_SOON = st.integers(0, 5)
_LATE = st.sampled_from([0, 1, 5, 25, 60, 400, 1800])


@st.composite
def scripts(draw: st.DrawFn) -> tuple[tuple[str, int], ...]:
    """Sessions as Zuora documents them: they begin with INITIALIZING and RUNNING, and may pause and resume."""
    middle = draw(st.lists(st.tuples(st.sampled_from(["PAUSED", "USAGE_PUSHING"]), _LASTING), max_size=1))
    again = [("RUNNING", draw(_LASTING))] if middle and middle[0][0] == "PAUSED" else []
    head = [("INITIALIZING", draw(_LASTING)), ("RUNNING", draw(_LASTING))]
    return (*head, *middle, *again, (draw(_FINAL), 0))


@dataclass
class Tenant:
    """Sessions R-0, R-1 ... of one meter, and the times at which their callouts are received."""

    sessions: list[Session]
    newest_wins: bool = True
    callouts: dict[str, list[tuple[int, SessionTransition]]] = field(default_factory=dict)

    def call_out(self, name: str, delays: list[int | None]) -> None:
        """Send the callout of each change of a session after a delay, or never."""
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
                self.callouts.setdefault(name, []).append((moment + delay, change))
            moment, before = moment + lasts, status

    def known(self, moment: float) -> list[SessionState]:
        """Return the states that a feed returns at a moment."""
        received = ([t for when, t in changes if when <= moment] for changes in self.callouts.values())
        return [fold(transitions) for transitions in received if transitions]

    def arrivals(self) -> set[int]:
        return {when for changes in self.callouts.values() for when, _ in changes}

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
        result, moment = wait.receive(tenant.known(begin), at(begin)).result, float(begin)
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
                result = wait.receive(known, at(when)).result
            else:
                status = tenant.status_at(when - data.draw(self.lags))
                result = wait.observe(PollReading(status, at(when)), known).result
        if result is None and wait.deadline is not None:
            moment = second(wait.deadline)
            result = wait.tick(at(moment)).result
        return result, moment


def outcome(result: WaitResult | None) -> tuple[str, bool]:
    assert result is not None
    assert result.session is not None, result.message
    status = result.session["status"]
    assert result.end is (WaitEnd.MET if status == "COMPLETED" else WaitEnd.FAILED)
    return status, result.session["certain"]


def named(session: Session, created: int, *, run: bool, **options: object) -> SessionWait:
    more = {"started_at": at(session.start), "run_status": "INITIALIZING"} if run else {}
    return SessionWait(condition("R-1"), created_at=at(created), settle=timedelta(seconds=SETTLE), **more, **options)  # type: ignore[arg-type]


LAGS = st.sampled_from([0, 0, 5, SETTLE - 1])


@given(st.data())
def test_a_wait_for_a_lone_session_ends_correctly_regardless_of_lost_callouts(data: st.DataObject) -> None:
    """Earlier sessions had ended, some without a callout of their end; the next one begins after the cross-check."""
    session = Session(data.draw(st.integers(0, 50)), data.draw(scripts()))
    before = Session(0, data.draw(scripts())).ending_at(session.start - data.draw(st.sampled_from([1, 200, 5000])))
    lost = st.one_of(st.none(), _LATE)
    tenant = data.draw(called_out([before, session], lost))
    created = session.start + data.draw(st.sampled_from([0, 1, 100, 3000]))
    wait = named(session, created, run=created - session.start <= 1 and data.draw(st.booleans()))
    result, _ = Drive(wait, tenant, LAGS, moves=data.draw(st.booleans())).run(data, created, 60_000)
    assert outcome(result)[0] == session.final


@given(st.data())
def test_a_sensor_for_a_lone_session_ends_correctly_regardless_of_lost_callouts(data: st.DataObject) -> None:
    begin = data.draw(st.sampled_from([0, 300, 1000]))
    session = Session(begin + data.draw(st.integers(0, 2000)), data.draw(scripts()))
    before = Session(0, data.draw(scripts())).ending_at(
        min(begin, session.start) - data.draw(st.sampled_from([31, 900]))
    )
    tenant = data.draw(called_out([before, session], st.one_of(st.none(), _LATE)))
    wait = SessionWait(condition(None, since=at(begin)), created_at=at(begin), settle=timedelta(seconds=SETTLE))
    result, _ = Drive(wait, tenant, LAGS, moves=data.draw(st.booleans())).run(data, begin, 60_000)
    # A session between two polls, of which no callout is ever received, is never seen.
    if result is not None:
        assert outcome(result)[0] == session.final
    else:
        assert all(
            name != "R-1" or changes[-1][1].status not in ANY_TERMINAL for name, changes in tenant.callouts.items()
        )


@given(st.data())
def test_a_certain_result_is_true_regardless_of_other_sessions(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    others = data.draw(
        st.lists(st.builds(Session, st.integers(-3000, 3000), st.one_of(scripts(), debug_scripts())), max_size=3)
    )
    first, *rest = others or [Session(-9000, (("INITIALIZING", 5), ("RUNNING", 5), ("FAILED", 0)))]
    tenant = data.draw(called_out([first, session, *rest], st.one_of(st.none(), _LATE)))
    wait = named(session, 0, run=data.draw(st.booleans()), require_certain=data.draw(st.booleans()))
    result, moment = Drive(wait, tenant, LAGS).run(data, 0, 30_000)
    if result is not None and result.session is not None and result.session["certain"]:
        assert outcome(result) == (session.final, True)
        assert moment >= session.end


@given(st.data())
def test_while_callouts_arrive_no_poll_ends_a_wait_wrongly_regardless_of_other_sessions(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    others = data.draw(st.lists(st.builds(Session, st.integers(-3000, 3000), scripts()), max_size=3))
    first, *rest = others or [Session(-9000, (("INITIALIZING", 5), ("RUNNING", 5), ("FAILED", 0)))]
    tenant = data.draw(called_out([first, session, *rest], _SOON))
    result, _ = Drive(named(session, 0, run=data.draw(st.booleans())), tenant, LAGS).run(data, 0, 30_000)
    assert outcome(result) == (session.final, True)


@given(st.data())
def test_a_sensor_finds_the_first_session_while_callouts_arrive(data: st.DataObject) -> None:
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
    assert outcome(result) == (min(eligible)[2], True)
    assert result is not None
    assert result.session is not None
    assert result.session["session_id"] == min(eligible)[1]


@given(st.data())
def test_an_intermittent_feed_changes_no_result_for_a_lone_session(data: st.DataObject) -> None:
    session = Session(0, data.draw(scripts()))
    tenant = data.draw(called_out([Session(-9000, data.draw(scripts())), session], st.one_of(st.none(), _SOON)))
    wait = named(session, 0, run=True)
    wait.rely_on(READ)
    result = None
    for when in range(0, 20_000, 60):
        there = data.draw(st.sampled_from([True, True, False])) if when < 2000 else True
        wait.rely_on(READ if there else LOST)
        known = tenant.known(when) if there else []
        result = wait.receive(known, at(when)).result or wait.tick(at(when)).result
        if result is None and (not there or when % CROSS_CHECK == 0):
            status = tenant.status_at(when - data.draw(LAGS))
            result = wait.observe(PollReading(status, at(when)), known).result
        if result is not None:
            break
    assert outcome(result)[0] == session.final
