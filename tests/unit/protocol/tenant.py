"""A model of a tenant: sessions that follow scripts, and what a poll of their meter shows, stale or masked.

Times are whole seconds around an epoch, so that hypothesis shrinks what it finds to something that can be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import TransientError

EPOCH = datetime(2026, 3, 31, 9, 0, tzinfo=UTC)
SETTLE = 30


def at(second: float) -> datetime:
    return EPOCH + timedelta(seconds=second)


def second(instant: datetime) -> float:
    return (instant - EPOCH).total_seconds()


@dataclass(frozen=True)
class Session:
    """One session: its statuses with the seconds that each lasts; the last one stays."""

    start: int
    script: tuple[tuple[str, int], ...]

    @property
    def end(self) -> int:
        return self.start + sum(seconds for _, seconds in self.script[:-1])

    @property
    def final(self) -> str:
        return self.script[-1][0]

    def status_at(self, moment: float) -> str:
        passed = moment - self.start
        for status, seconds in self.script[:-1]:
            if passed < seconds:
                return status
            passed -= seconds
        return self.final

    def ending_at(self, moment: int) -> Session:
        return Session(self.start + moment - self.end, self.script)


@dataclass(frozen=True)
class Meter:
    """A meter version, whose status is that of the session started last, unless an older one shows through."""

    sessions: tuple[Session, ...] = ()
    newest_wins: bool = True

    def status_at(self, moment: float) -> str:
        begun = sorted((s for s in self.sessions if s.start <= moment), key=lambda s: s.start)
        if not begun:
            return "NEVER_RUN"
        if not self.newest_wins:
            live = [session for session in begun if moment < session.end]
            begun = live[:1] or begun
        return begun[-1].status_at(moment)


@dataclass(frozen=True)
class Step:
    """An event ``gap`` seconds after the step before: a poll with its lag, or an event of the process."""

    gap: int
    lag: int = 0
    kind: str = "poll"  # poll, again (delivered twice), fault, move (to another process), lose (back to the arguments)


@dataclass
class Run:
    """A wait that was driven through steps."""

    wait: SessionWait
    result: WaitResult | None
    moment: float
    lines: list[str] = field(default_factory=list)
    live_polls: int = 0


def stored(wait: SessionWait) -> SessionWait:
    return SessionWait.from_dict(json.loads(json.dumps(wait.to_dict())))


def drive(wait: SessionWait, meter: Meter, steps: list[Step], begin: float) -> Run:
    """Poll as the steps say, from ``begin`` on, until the wait ends or the steps do."""
    arguments = wait.to_dict()
    run = Run(wait, wait.result, begin)
    for step in steps:
        if run.result is not None:
            break
        run.moment += step.gap
        if step.kind == "lose":
            run.wait = SessionWait.from_dict(arguments)
            continue
        if step.kind == "move":
            run.wait = stored(run.wait)
            continue
        if step.kind == "fault":
            update = run.wait.fault(TransientError("HTTP 503"), at(run.moment))
        else:
            status = meter.status_at(run.moment - step.lag)
            run.live_polls += status in ("INITIALIZING", "RUNNING", "TESTING")
            reading = PollReading(status, at(run.moment))
            update = run.wait.observe(reading)
            if step.kind == "again" and update.result is None:
                update = run.wait.observe(reading)
        run.lines += update.lines
        run.result = update.result
    return run


def condition(session_id: str | None = "R-1", **arguments: object) -> SessionCondition:
    return SessionCondition(meter_id="2470", session_id=session_id, **arguments)  # type: ignore[arg-type]


def transition(
    status: str, previous: str | None = "RUNNING", second: float = 100, **fields: object
) -> SessionTransition:
    """Return a callout of session R-1, which started at second 1."""
    values: dict[str, object] = {
        "meter_id": "2470",
        "session_id": "R-1",
        "status": status,
        "previous_status": previous,
        "observed_at": at(second),
        "started_at": at(1),
        "source": Source.CALLOUT,
        **fields,
    }
    return SessionTransition(**values)  # type: ignore[arg-type]


def state(status: str, previous: str | None = "RUNNING", second: float = 100, **fields: object) -> SessionState:
    """Return the state of the session by this callout alone."""
    return fold([transition(status, previous, second, **fields)])


# Few values, chosen around the settle time: what matters happens when several of them coincide.
_FINAL = st.sampled_from(["COMPLETED", "COMPLETED", "FAILED", "CANCELED"])
_LIVE = st.sampled_from(["RUNNING", "RUNNING", "USAGE_PUSHING", "STOPPING", "PAUSED", "99"])
_LASTING = st.sampled_from([0, 1, 5, 20, 40, 150])


@st.composite
def scripts(draw: st.DrawFn) -> tuple[tuple[str, int], ...]:
    """NORMAL sessions; real ones begin with INITIALIZING, but a wait must not depend on the later statuses."""
    middle = draw(st.lists(st.tuples(_LIVE, _LASTING), max_size=3))
    return (("INITIALIZING", draw(_LASTING)), *middle, (draw(_FINAL), 0))


@st.composite
def debug_scripts(draw: st.DrawFn) -> tuple[tuple[str, int], ...]:
    return (("TESTING", draw(_LASTING)), (draw(st.sampled_from(["TESTING_PASSED", "TESTING_FAILED"])), 0))


@st.composite
def histories(draw: st.DrawFn, before: int) -> tuple[Session, ...]:
    """Successive sessions, DEBUG ones too, that had all ended by ``before``, maybe just then."""
    sessions: list[Session] = []
    for script in draw(st.lists(st.one_of(scripts(), scripts(), debug_scripts()), max_size=3)):
        session = Session(0, script).ending_at(before - draw(st.sampled_from([0, 1, 10, 500])))
        sessions.append(session)
        before = session.start
    return tuple(sessions)


def steps(*, max_lag: int = SETTLE, may_lose: bool = True) -> st.SearchStrategy[list[Step]]:
    """Polls at arbitrary instants, each with its own lag, and events of the process between them."""
    kinds = ["poll"] * 9 + ["again", "fault", "move"] + ["lose"] * may_lose
    gaps = st.sampled_from([1, 5, 10, 15, 29, 30, 31, 60, 90])
    lags = st.sampled_from(sorted({lag for lag in (0, 0, 5, 15, 29, 30, max_lag) if lag <= max_lag}))
    return st.lists(st.builds(Step, gaps, lags, st.sampled_from(kinds)), min_size=1, max_size=20)
