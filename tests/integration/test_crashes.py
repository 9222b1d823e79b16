"""Workers that are killed, replies that are lost: one start per generation, and the wait is on the right session."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.scenario import Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testkit.stage import Stage
    from tests.integration.scenario import Act

# Until the scenario ends it.
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]


def ends_well(act: Act, *, tries: int, session_id: str | None, certain: bool) -> None:
    """Assert that the task succeeded after one start, and that its session has an id unless it cannot be found."""
    ti = act.end()
    assert ti["state"] == "success"
    assert ti["try_number"] == tries
    assert len(act.starts()) == 1
    result = act.xcom()
    assert result["meter_id"] == act.meter_id
    assert result["status"] == "COMPLETED"
    assert (result["session_id"], result["certain"]) == (session_id, certain)
    assert act.stops() == []


def killed_before_the_call(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    hang = act.fault("hang", path="/runStatus$", count=1)
    yield
    act.wait_request("/runStatus")  # the baseline, read before the call
    act.kill()
    act.lift(hang)
    session = act.started()[0]["session_id"]
    act.wait_polled()
    act.finish()
    ends_well(act, tries=2, session_id=session, certain=True)


def killed_with_the_call_on_its_way(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    act.fault("delay_before", path="/run/", count=1, delay=2)
    yield
    act.wait_request("/run/")
    act.kill()
    act.started()
    # The repetition is refused as a duplicate, and the refusal does not name the session.
    act.logged("refused", reason="duplicate_key")
    act.wait_polled()
    act.finish()
    ends_well(act, tries=2, session_id=act.starts()[0], certain=False)


def killed_and_overtaken_its_call(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    # Longer than a busy machine takes to start the next try.
    act.fault("delay_before", path="/run/", count=1, delay=45)
    yield
    first = act.wait_request("/run/")
    act.kill()
    start = act.started()[0]
    assert start["request"] != first["seq"]
    # Zuora carries the first call out although its client has gone.
    assert act.logged("refused", reason="duplicate_key")[0]["request"] == first["seq"]
    act.finish()
    ends_well(act, tries=2, session_id=start["session_id"], certain=True)


def killed_before_the_reply(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    act.fault("latency", path="/run/", count=1, delay=25)
    yield
    act.started()
    act.kill()
    act.logged("refused", reason="duplicate_key")
    act.wait_polled()
    act.finish()
    ends_well(act, tries=2, session_id=act.starts()[0], certain=False)


def reply_lost(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    act.fault("lost_reply", path="/run/", count=1)
    yield
    act.logged("refused", reason="duplicate_key")
    first, *again = [each for each in act.log("request") if "/run/" in each["path"]]
    assert [each["body"] for each in again] == [first["body"]]
    act.wait_deferred()
    act.wait_polled()
    act.finish()
    ends_well(act, tries=1, session_id=act.starts()[0], certain=False)


def reply_lost_and_a_foreign_session(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    act.fault("lost_reply", path="/run/", count=1)
    yield
    own = act.started()[0]["session_id"]
    foreign = act.stage.simulator.start_session(act.meter_id)["session_id"]
    act.logged("refused", reason="duplicate_key")
    act.wait_deferred()
    act.wait_polled()
    act.finish(own)
    act.finish(foreign)
    # Both have records by now: which one is ours cannot be distinguished.
    ends_well(act, tries=1, session_id=None, certain=False)


def killed_and_a_foreign_session(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    act.fault("latency", path="/run/", count=1, delay=25)
    yield
    own = act.started()[0]["session_id"]
    act.kill()
    foreign = act.stage.simulator.start_session(act.meter_id)["session_id"]
    act.logged("refused", reason="duplicate_key")
    act.wait_deferred(try_number=2)
    act.wait_polled()
    act.finish(own)
    act.finish(foreign)
    ends_well(act, tries=2, session_id=None, certain=False)


def killed_in_poke(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    session = act.started()[0]["session_id"]
    act.wait_polled(3)
    act.kill()
    act.wait("running", try_number=2)
    act.wait_polled()
    act.finish()
    ends_well(act, tries=2, session_id=session, certain=True)


def whole_worker_lost(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    session = act.started()[0]["session_id"]
    act.wait_polled(2)
    task = act.process()
    supervisor = task.parent()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    os.kill(task.pid, signal.SIGKILL)
    # No process is left to report to Airflow: it detects the missing heartbeats.
    act.wait("running", try_number=2)
    act.wait_polled()
    act.finish()
    ends_well(act, tries=2, session_id=session, certain=True)


def killed_after_defer(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    session = act.started()[0]["session_id"]
    act.wait_deferred()
    act.wait_polled()
    act.finish()
    act.wait("running")
    act.kill()
    ends_well(act, tries=2, session_id=session, certain=True)


def killed_when_done(act: Act) -> Iterator[None]:
    act.meter([["INITIALIZING", 0.5], ["RUNNING", 4], ["COMPLETED", None]])
    yield
    session = act.started()[0]["session_id"]
    act.wait_logged("Done, and slow.")
    act.kill()
    # The session was ours and is COMPLETED: running the meter again would bill its usage twice.
    ends_well(act, tries=2, session_id=session, certain=True)


def killed_when_done_and_not_waited(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    session = act.started()[0]["session_id"]
    act.wait_logged("Done, and slow.")
    act.kill()
    assert act.end()["state"] == "success"
    assert act.starts() == [session]
    assert act.xcom()["session_id"] == session


SCENARIOS = {
    each.__name__: each
    for each in (
        killed_before_the_call,
        killed_with_the_call_on_its_way,
        killed_and_overtaken_its_call,
        killed_before_the_reply,
        reply_lost,
        reply_lost_and_a_foreign_session,
        killed_and_a_foreign_session,
        killed_in_poke,
        whole_worker_lost,
        killed_after_defer,
        killed_when_done,
        killed_when_done_and_not_waited,
    )
}


@pytest.fixture(scope="module")
def crashes(stage: Stage) -> Iterator[Play]:
    with Play(stage, "crashes", SCENARIOS).playing() as play:
        yield play


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_crash_loses_no_session_and_starts_no_second_one(crashes: Play, scenario: str) -> None:
    crashes.outcome(scenario)
