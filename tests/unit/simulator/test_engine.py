from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.simulator import Refusal, RunPlan, SessionChange, ends

if TYPE_CHECKING:
    from .conftest import Bench

STEPS = [["INITIALIZING", 1], ["RUNNING", 3], ["COMPLETED", None]]
ENDLESS = [["INITIALIZING", 1], ["RUNNING", None]]


def meter(bench: Bench, **settings: object) -> None:
    bench.tenant.engine.set_meter("7", {"script": STEPS, **settings})


def refused(call: object, *args: object, **kwargs: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value


def test_a_session_follows_its_script_and_changes_at_the_instants_that_were_due(bench: Bench) -> None:
    meter(bench)
    engine, start = bench.tenant.engine, bench.clock.now()
    session = engine.start("7")
    assert (session.status, session.previous_status, session.session_id) == ("INITIALIZING", None, "R-00005468")
    bench.tenant.advance(0.999)
    assert session.status == "INITIALIZING"
    bench.tenant.advance(100)  # both of the other changes fall due within one step of the clock
    changes = bench.tenant.log.read(kind="transition")
    assert [(c["previous_status"], c["status"], c["at"] - start) for c in changes] == [
        (None, "INITIALIZING", 0),
        ("INITIALIZING", "RUNNING", 1),
        ("RUNNING", "COMPLETED", 4),
    ]
    assert session.ended_at == start + 4
    assert not session.live
    assert engine.next_due() is None


@pytest.mark.parametrize("bench", [{"time_scale": 0.1}], indirect=True)
def test_time_scale_is_real_seconds_per_second_of_a_script(bench: Bench) -> None:
    meter(bench, stale_for=2)
    session = bench.tenant.engine.start("7")
    bench.tenant.advance(0.15)
    assert session.status == "RUNNING"
    assert bench.tenant.engine.run_status("7") == "NEVER_RUN"  # 2 s of staleness are 0.2 s as well
    bench.tenant.advance(0.05)
    assert bench.tenant.engine.run_status("7") == "RUNNING"


def test_a_run_follows_the_next_plan_and_the_last_one_repeats(bench: Bench) -> None:
    bench.tenant.engine.set_meter("7", {"runs": [ends("FAILED", 1), [["COMPLETED", None]]]})
    results = []
    for _ in range(3):
        session = bench.tenant.engine.start("7")
        bench.tenant.advance(2)
        results.append(session.status)
    assert results == ["FAILED", "COMPLETED", "COMPLETED"]
    bench.tenant.engine.set_meter("7", {"runs": [[["CANCELED", None]]]})
    assert bench.tenant.engine.start("7").status == "CANCELED"


def test_runs_of_one_meter_overlap_and_the_newest_masks_the_older(bench: Bench) -> None:
    meter(bench)
    engine = bench.tenant.engine
    first = engine.start("7")
    bench.tenant.advance(2)
    second = engine.start("7")
    assert first.session_id != second.session_id
    assert (first.status, engine.run_status("7")) == ("RUNNING", "INITIALIZING")
    engine.steer(second.session_id, [["FAILED", None]])
    assert (first.status, engine.run_status("7")) == ("RUNNING", "FAILED")
    engine.set_meter("7", {"status_of": "oldest_live"})
    assert engine.run_status("7") == "RUNNING"
    engine.set_meter("7", {"status_of": "latest_change"})
    assert engine.run_status("7") == "FAILED"
    bench.tenant.advance(2)
    assert engine.run_status("7") == "COMPLETED"


def test_a_meter_may_refuse_to_overlap(bench: Bench) -> None:
    meter(bench, overlap=False)
    bench.tenant.engine.start("7")
    assert "already running" in refused(bench.tenant.engine.start, "7", unique_key="k").message
    assert bench.tenant.log.read(kind="refused")[0]["reason"] == "already_running"
    bench.tenant.engine.start("7", run_type=RunType.DEBUG)
    bench.tenant.advance(4)
    assert bench.tenant.engine.start("7", unique_key="k").unique_key == "k"  # a refused start does not use a key up


def test_the_run_status_is_stale_for_a_while_after_a_start(bench: Bench) -> None:
    bench.tenant.engine.set_meter("7", {"stale_for": 5, "runs": [ends("FAILED", 2), ends("COMPLETED", 2)]})
    engine = bench.tenant.engine
    engine.start("7")
    assert engine.run_status("7") == "NEVER_RUN"
    bench.tenant.advance(6)
    assert engine.run_status("7") == "FAILED"
    engine.start("7")
    bench.tenant.advance(4.9)
    assert engine.run_status("7") == "FAILED"  # though the new session is COMPLETED by now
    bench.tenant.advance(0.1)
    assert engine.run_status("7") == "COMPLETED"


@pytest.mark.parametrize(("visible", "shown"), [(True, "TESTING"), (False, "INITIALIZING")])
def test_a_setting_decides_if_a_debug_run_changes_the_run_status(bench: Bench, visible: bool, shown: str) -> None:
    meter(bench, debug_visible=visible)
    bench.tenant.engine.start("7")
    debug = bench.tenant.engine.start("7", run_type=RunType.DEBUG)
    assert bench.tenant.engine.run_status("7") == shown
    bench.tenant.advance(4)
    assert debug.status == "TESTING_PASSED"


def test_a_unique_key_starts_one_run_of_its_meter(bench: Bench) -> None:
    engine = bench.tenant.engine
    session = engine.start("1001", unique_key="k")
    bench.tenant.advance(1000)
    refusal = refused(engine.start, "1001", unique_key="k")
    assert (refusal.status, refusal.code) == (400, None)
    assert session.session_id not in refusal.message
    assert engine.start("1002", unique_key="k").meter_id == "1002"
    assert [e["unique_key"] for e in bench.tenant.log.read(kind="start", meter_id="1001")] == ["k"]


def test_a_sixth_running_meter_is_refused_until_one_ends(bench: Bench) -> None:
    engine = bench.tenant.engine
    sessions = [engine.start(str(meter_id)) for meter_id in range(1005, 1010)]
    assert refused(engine.start, "1001", unique_key="k").message == "maximum running meter count exceeded"
    engine.start("1005")  # a meter that runs already does not count again
    engine.start("1001", run_type=RunType.DEBUG)
    engine.steer(sessions[1].session_id, [["PAUSED", None]])
    assert engine.start("1001", unique_key="k").status == "INITIALIZING"


def test_stop_cancels_every_batch_run_of_the_version_at_once(bench: Bench) -> None:
    meter(bench, script=ENDLESS)
    engine = bench.tenant.engine
    runs = [engine.start("7"), engine.start("7")]
    debug = engine.start("7", run_type=RunType.DEBUG)
    stopped = engine.stop("7")
    assert [session.status for session in stopped] == ["CANCELED", "CANCELED"]
    assert stopped == runs
    assert debug.status == "TESTING"
    assert refused(engine.stop, "7").code == "70002122"
    first, second = bench.tenant.log.read(kind="stop")
    assert (first["sessions"], first["refused"]) == (["R-00005468", "R-00005469"], None)
    assert (second["sessions"], second["refused"]) == ([], "70002122")


def test_stop_cancels_debug_runs_too_if_the_meter_is_configured_so(bench: Bench) -> None:
    meter(bench, stop_cancels_debug=True)
    debug = bench.tenant.engine.start("7", run_type=RunType.DEBUG)
    bench.tenant.engine.stop("7")
    assert debug.status == "CANCELED"


def test_a_streaming_run_stops_gracefully(bench: Bench) -> None:
    meter(bench, script=ENDLESS, streaming=True, stopping_for=30)
    engine = bench.tenant.engine
    session = engine.start("7")
    bench.tenant.advance(5)
    engine.stop("7")
    assert session.status == "STOPPING"
    assert refused(engine.stop, "7").code == "70003043"
    assert refused(engine.stop, "7", force=True).code == "70003043"
    bench.tenant.advance(30)
    assert (session.status, session.ended_at) == ("PAUSED", None)
    assert refused(engine.stop, "7").code == "70002122"


def test_a_session_goes_on_after_a_graceful_stop_that_failed(bench: Bench) -> None:
    script = [["RUNNING", 10], ["COMPLETED", None]]
    meter(bench, script=script, streaming=True, stopping_for=3, stop_results=["RUNNING", "PAUSED"])
    engine = bench.tenant.engine
    session = engine.start("7")
    bench.tenant.advance(4)
    engine.stop("7")
    bench.tenant.advance(3)
    assert session.status == "RUNNING"
    bench.tenant.advance(5.9)
    assert session.status == "RUNNING"
    bench.tenant.advance(0.1)
    assert session.status == "COMPLETED"
    again = engine.start("7")
    engine.stop("7")
    bench.tenant.advance(3)
    assert again.status == "PAUSED"


def test_a_forced_stop_ends_a_streaming_run_at_once(bench: Bench) -> None:
    meter(bench, script=ENDLESS, streaming=True)
    session = bench.tenant.engine.start("7")
    bench.tenant.engine.stop("7", force=True)
    assert session.status == "CANCELED"


@pytest.mark.parametrize(("resume", "same"), [("new", False), ("same", True)])
def test_running_a_paused_meter_resumes_or_starts_a_session(bench: Bench, resume: str, same: bool) -> None:
    meter(bench, script=ENDLESS, streaming=True, stopping_for=0, resume=resume)
    engine = bench.tenant.engine
    paused = engine.start("7", unique_key="1")
    engine.stop("7")
    bench.tenant.advance(0)
    assert paused.status == "PAUSED"
    resumed = engine.start("7", unique_key="2")
    assert (resumed is paused) is same
    assert [entry["resumed"] for entry in bench.tenant.log.read(kind="start")] == [False, same]
    assert engine.run_status("7") == "INITIALIZING"
    assert len(engine.sessions("7")) == (1 if same else 2)
    if same:
        assert bench.history(paused.session_id) == ["INITIALIZING", "STOPPING", "PAUSED", "INITIALIZING"]


def test_a_session_can_get_a_new_script_and_even_be_reopened(bench: Bench) -> None:
    meter(bench)
    engine = bench.tenant.engine
    session = engine.start("7")
    engine.steer(session.session_id, [["FAILED", 2], ["RUNNING", 2], ["COMPLETED", None]])
    bench.tenant.advance(10)
    assert bench.history(session.session_id) == ["INITIALIZING", "FAILED", "RUNNING", "COMPLETED"]
    with pytest.raises(KeyError):
        engine.steer("R-99999999", [["FAILED", None]])


def test_the_old_script_of_a_session_does_not_continue(bench: Bench) -> None:
    meter(bench)
    session = bench.tenant.engine.start("7")
    bench.tenant.engine.steer(session.session_id, [["RUNNING", None]])
    bench.tenant.advance(100)
    assert bench.history(session.session_id) == ["INITIALIZING", "RUNNING"]


def test_sessions_of_several_meters_change_in_order_of_time(bench: Bench) -> None:
    engine = bench.tenant.engine
    for meter_id, seconds in (("21", 3), ("22", 1), ("23", 2)):
        engine.set_meter(meter_id, {"script": [["RUNNING", seconds], ["COMPLETED", None]]})
        engine.start(meter_id)
    bench.tenant.advance(10)
    done = bench.tenant.log.read(kind="transition", status="COMPLETED")
    assert [entry["meter_id"] for entry in done] == ["22", "23", "21"]


def test_unknown_meters_and_versions_are_refused(bench: Bench) -> None:
    engine = bench.tenant.engine
    assert (refused(engine.start, "9").code, refused(engine.start, "9").status) == ("70002103", 400)
    assert refused(engine.run_status, "9").status == 404
    assert refused(engine.start, "1001", "0.0.2").code == "70002104"
    assert refused(engine.stop, "1001", "0.0.2").code == "70002104"


def test_observers_get_each_change_and_their_errors_have_no_effect(bench: Bench) -> None:
    meter(bench)
    seen: list[SessionChange] = []
    bench.tenant.engine.observers += [seen.append, lambda change: 1 / 0]
    session = bench.tenant.engine.start("7")
    bench.tenant.advance(10)
    assert [(c.previous, c.status) for c in seen] == [
        (None, "INITIALIZING"),
        ("INITIALIZING", "RUNNING"),
        ("RUNNING", "COMPLETED"),
    ]
    assert seen[-1].session is session
    assert len(bench.tenant.log.read(kind="observer_failed")) == 3


def test_reset_deletes_sessions_and_keys_but_no_id_is_reused(bench: Bench) -> None:
    engine = bench.tenant.engine
    meter(bench)
    before = engine.start("1001", unique_key="k")
    bench.tenant.reset()
    assert engine.sessions() == []
    assert bench.tenant.log.read(kind="start") == []
    after = engine.start("1001", unique_key="k")
    assert after.session_id != before.session_id
    assert refused(engine.start, "7").code == "70002103"  # a meter that was added is gone too


def test_a_plan_for_one_run_does_not_advance_the_sequence(bench: Bench) -> None:
    session = bench.tenant.start_session("1002", records=3)
    assert (session.foreign, session.plan.records, session.plan.errors) == (True, 3, 12)
    odd = bench.tenant.start_session("1002", script=[["COMPLETED", None]])
    assert odd.status == "COMPLETED"
    assert bench.tenant.engine.start("1002", plan=RunPlan.parse([["CANCELED", None]])).status == "CANCELED"
    assert bench.tenant.engine.meter("1002").started[RunType.NORMAL] == 0
