"""Readings that say nothing new: a wait that receives only the last of them decides as one that receives them all."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitUpdate
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from tests.unit.virtual import Clock

STATUSES = ("NEVER_RUN", "INITIALIZING", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "TEST_COMPLETED", "TESTING")
READINGS = st.tuples(st.just("reading"), st.sampled_from(STATUSES), st.integers(1, 12), st.integers(1, 90))
CALLOUTS = st.tuples(st.just("callout"), st.sampled_from(STATUSES), st.sampled_from(("S-1", "S-2")), st.integers(1, 90))
OTHERS = st.tuples(st.sampled_from(("fault", "tick", "heartbeat")), st.none(), st.none(), st.integers(1, 90))
EVENTS = st.lists(st.one_of(READINGS, READINGS, CALLOUTS, OTHERS), max_size=12)
WAITS = st.fixed_dictionaries(
    {
        "named": st.booleans(),
        "run_types": st.sampled_from((("NORMAL",), ("NORMAL", "DEBUG"))),
        "before": st.sampled_from((None, 60, 600)),
        "baseline": st.sampled_from((None, *STATUSES)),
        "exclusive": st.booleans(),
        "settle": st.sampled_from((0, 30)),
        "callouts": st.sampled_from(list(FeedStatus)),
    }
)


def make(how: dict) -> SessionWait:
    condition = SessionCondition(
        meter_id="m",
        run_types=how["run_types"],
        session_id="S-1" if how["named"] else None,
        since=None if how["named"] else Clock().now(),
        before=None if how["named"] or how["before"] is None else Clock(how["before"]).now(),
    )
    wait = SessionWait(
        condition,
        created_at=Clock().now(),
        baseline=how["baseline"],
        exclusive=how["exclusive"],
        settle=timedelta(seconds=how["settle"]),
    )
    wait.rely_on(FeedStatusChange(how["callouts"], "words", "remedy"))
    return wait


class Skipping:
    """Passes events on as the hub does."""

    def __init__(self, wait: SessionWait) -> None:
        self.wait = wait
        self.kept: tuple[PollReading, tuple[SessionState, ...]] | None = None
        self.skipped = 0

    def observe(self, reading: PollReading, others: tuple[SessionState, ...]) -> WaitUpdate:
        if self.kept is not None and self.kept[0].status == reading.status and self.kept[1] is others:
            self.kept = (reading, others)
            self.skipped += 1
            return WaitUpdate()
        self.catch_up()
        update = self.wait.observe(reading, others)
        self.kept = (reading, others) if update.settled else None
        return update

    def catch_up(self) -> None:
        if self.kept is not None:
            update = self.wait.observe(*self.kept)
            assert not update.lines
            assert update.result is None
        self.kept = None


@given(WAITS, EVENTS)
def test_skipped_readings_change_nothing(how, events):
    every, skipping = make(how), Skipping(make(how))
    seconds, said = 0.0, {}
    others: tuple[SessionState, ...] = ()

    def same(one: WaitUpdate, other: WaitUpdate) -> None:
        assert (one.lines, one.result) == (other.lines, other.result)

    for kind, status, more, pause in events:
        if kind == "reading":
            for _ in range(more):
                seconds += pause
                reading = PollReading(status=status, read_at=Clock(seconds).now())
                same(every.observe(reading, others), skipping.observe(reading, others))
            continue
        seconds += pause
        at = Clock(seconds).now()
        skipping.catch_up()
        if kind == "callout":
            said.setdefault(more, []).append(
                SessionTransition(
                    meter_id="m", session_id=more, status=status, observed_at=at, source=Source.CALLOUT,
                    ended_at=at if status in ("COMPLETED", "FAILED") else None, notification_id=f"{seconds}",
                )
            )  # fmt: skip
            others = tuple(fold(each) for each in said.values())
            same(every.receive(others, at), skipping.wait.receive(others, at))
        elif kind == "fault":
            error = TransientError("no answer")
            same(every.fault(error, at), skipping.wait.fault(error, at))
        elif kind == "tick":
            same(every.tick(at), skipping.wait.tick(at))
        else:
            assert every.heartbeat(at) == skipping.wait.heartbeat(at)
        assert every.to_dict() == skipping.wait.to_dict()
    skipping.catch_up()
    assert every.to_dict() == skipping.wait.to_dict()


def test_readings_of_a_running_session_are_skipped_from_settle_on():
    how = {"named": True, "run_types": ("NORMAL",), "before": None, "baseline": None, "exclusive": False, "settle": 30}
    skipping = Skipping(make({**how, "callouts": FeedStatus.OFF}))
    for second in range(60, 600, 60):
        skipping.observe(PollReading(status="RUNNING", read_at=Clock(second).now()), ())
    assert skipping.skipped == 7
