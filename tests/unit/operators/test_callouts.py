"""The operators with callouts: runs are reported, callouts end waits, and no stop affects another session."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.exceptions import MeterRunFailed
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator, StopMeterOperator
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import FeedReply, FeedRequest
from airflow_mediation_provider.simulator import Simulator, ends
from airflow_mediation_provider.worker import waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .conftest import TaskInstance

ENDLESS = [["INITIALIZING", 2], ["RUNNING", None]]


class Api:
    """An API server whose journal contains the simulator's log, and all that was reported to it."""

    address = "http://api/mediation"
    trouble = ""

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim
        self.entries: list[JournalEntry] = []
        self.questions: list[FeedRequest] = []
        self.lost: set[str] = set()
        self.owners: dict[str, str | None] = {}

    def ask(self, question: FeedRequest) -> FeedReply:
        self.questions.append(question)
        told: dict[tuple[str, str | None], list[SessionTransition]] = {}
        reported = [entry.transition for entry in self.entries if entry.kind is EntryKind.STATUS_CHANGE]
        for each in [*reported, *map(self._transition, self.sim.log(kind="transition"))]:
            if each is not None and each.meter_id in question.meters and each.status not in self.lost:
                told.setdefault((each.meter_id, each.session_id), []).append(each)
        self.owners |= {each.id: each.owner for each in question.waits.open if each.begins}
        owners = {wait_id: self.owners.get(wait_id) for wait_id in question.owners}
        return FeedReply(cursor="c", callouts=True, sessions=tuple(map(fold, told.values())), owners=owners)

    def _transition(self, entry: dict[str, Any]) -> SessionTransition:
        at = datetime.fromisoformat(entry["time"])
        return SessionTransition(
            meter_id=str(entry["meter_id"]),
            session_id=entry["session_id"],
            status=entry["status"],
            previous_status=entry["previous_status"],
            run_type=entry["run_type"],
            observed_at=at,
            source=Source.CALLOUT,
            notification_id=str(entry["seq"]),
        )

    def observe(self, entries: Sequence[JournalEntry]) -> bool:
        self.entries += entries
        return True

    def report_calls(self) -> None:
        pass


@pytest.fixture
def api(sim: Simulator, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api(sim)
    monkeypatch.setattr(waiting.SessionWaitMixin, "_feed_caller", lambda self, **_: made)
    return made


def run(**arguments: Any) -> RunMeterOperator:
    return RunMeterOperator(**{"task_id": "task", "meter_id": "1001", "poke_interval": 5, **arguments})


def polls(sim: Simulator) -> int:
    return len(sim.log(kind="request", path="/meters/1001/0.0.1/runStatus"))


def test_a_run_is_reported_and_its_end_is_certain(sim: Simulator, ti: TaskInstance, api: Api) -> None:
    sim.set_meter("1001", script=[["INITIALIZING", 30], ["RUNNING", 900], ["COMPLETED", None]])
    session = run(require_certain=True).execute(ti.context)
    assert (session["status"], session["evidence"], session["certain"]) == ("COMPLETED", "callout", True)
    reply = api.entries[0]
    assert (reply.kind, reply.source, reply.session_id) == (EntryKind.STATUS_CHANGE, Source.RUN, session["session_id"])
    assert reply.notification_id == f"run:{session['session_id']}"
    # The status before the call, and the cross-checks.
    assert polls(sim) <= 1 + 930 / 300


def test_a_failed_session_fails_the_task_at_the_next_poke(sim: Simulator, ti: TaskInstance, api: Api) -> None:
    sim.set_meter("1001", runs=[ends("FAILED")])
    with pytest.raises(MeterRunFailed, match=r"is FAILED since .* by callout, and that is certain"):
        run().execute(ti.context)


def test_a_run_works_without_an_api_server(
    sim: Simulator, ti: TaskInstance, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "ask", lambda *_: None)
    monkeypatch.setattr(Api, "observe", lambda *_: False)
    assert run().execute(ti.context)["evidence"] == "poll"


def test_callouts_show_the_session_of_a_lost_reply_and_its_end(sim: Simulator, ti: TaskInstance, api: Api) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    sim.set_meter("1001", script=[["INITIALIZING", 30], ["RUNNING", 200], ["COMPLETED", None]])
    session = run().execute(ti.context)
    assert session["session_id"] == sim.sessions("1001")[-1]["session_id"]
    assert (session["evidence"], session["certain"]) == ("callout", False)


def test_a_branch_waits_for_the_callout(sim: Simulator, ti: TaskInstance, api: Api) -> None:
    session = sim.start_session("1001", script=[["RUNNING", 700], ["FAILED", None]])["session_id"]
    task = MeterSessionBranchOperator(
        task_id="task", meter_id="1001", session_id=session, on_completed="a", on_failed="b", poke_interval=5
    )
    task.do_branch = lambda context, branch: branch  # type: ignore[method-assign]
    assert task.execute(ti.context) == "b"
    assert ti.xcoms["session"]["certain"] is True
    assert ti.clock.passed <= 706


class TestStop:
    def killed(self, ti: TaskInstance, second_session: Simulator | None = None) -> None:
        task, slept = run(stop_meter_on_kill=True), []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2 and second_session is not None:
                second_session.start_session("1001", script=ENDLESS)
            if len(slept) == 4:
                ti.state = "failed"
                task.on_kill()
                raise KeyboardInterrupt
            type(ti.clock).sleep(ti.clock, seconds)

        ti.clock.sleep = sleep  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            task.execute(ti.context)

    def test_a_session_that_started_since_forbids_the_stop(self, sim: Simulator, ti: TaskInstance, api: Api) -> None:
        sim.set_meter("1001", script=ENDLESS)
        self.killed(ti, second_session=sim)
        assert len(sim.sessions("1001")) == 2
        assert sim.log(kind="request", path="/meters/stop/1001/0.0.1") == []

    def test_a_single_session_is_stopped_even_if_the_end_of_an_earlier_one_was_lost(
        self, sim: Simulator, ti: TaskInstance, api: Api
    ) -> None:
        api.lost = {"CANCELED"}
        sim.start_session("1001", script=[["RUNNING", 20], ["CANCELED", None]])
        ti.clock.sleep(40)
        sim.set_meter("1001", script=ENDLESS)
        self.killed(ti)
        assert len(sim.log(kind="request", path="/meters/stop/1001/0.0.1")) == 1

    def test_the_stop_operator_logs_the_sessions_that_it_stops(
        self, sim: Simulator, ti: TaskInstance, api: Api, caplog: pytest.LogCaptureFixture, capsys: Any
    ) -> None:
        caplog.set_level("INFO")
        session = sim.start_session("1001", script=[["RUNNING", None]])["session_id"]
        ti.clock.sleep(10)
        report = StopMeterOperator(task_id="task", meter_id="1001", poke_interval=5).execute(ti.context)
        assert report["was_running"] is True
        assert f"gracefully: {session}." in capsys.readouterr().out + caplog.text
