"""The hub beside a feed, in virtual time: callouts end waits, polls cross-check, and are back when the feed is lost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.lifecycle import SessionState
from airflow_mediation_provider.protocol.wait import SessionWait, WaitEnd
from airflow_mediation_provider.watch.reports import WaitingTask
from tests.unit.virtual import Clock, Zuora
from tests.unit.virtual_feed import AsyncFeed, Journal
from tests.unit.watch.test_hub import stage, until, wait_for

if TYPE_CHECKING:
    from tests.unit.watch.test_hub import Watcher

RUN = [(0, "INITIALIZING"), (30, "RUNNING")]


@pytest.fixture
def journal(clock: Clock) -> Journal:
    return Journal(clock)


def play(clock: Clock, zuora: Zuora, journal: Journal, main, feed=None) -> None:
    async def then_leave(hub, watch):
        try:
            await main(hub, watch)
        finally:
            for waiter in [waiter for meter in hub._meters.values() for waiter in meter.waiters]:
                waiter.close()

    stage(clock, zuora, then_leave, feed=feed or AsyncFeed(journal), conn_id="zuora")


def sensing(clock: Clock, meter_id: str = "m", since: float = 0, **options) -> SessionWait:
    condition = SessionCondition(meter_id=meter_id, since=Clock(since).now(), until=Clock(100_000).now())
    return SessionWait(condition, created_at=clock.now(), **options)


def result(watcher: Watcher) -> tuple[WaitEnd, str, bool]:
    assert watcher.result is not None
    assert watcher.result.session is not None, watcher.result.message
    return watcher.result.end, watcher.result.session["evidence"], watcher.result.session["certain"]


def test_a_callout_ends_a_wait_at_once_and_polls_are_few(clock, zuora, journal):
    journal.session("S-1", *RUN, (5000, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert watcher.ended_at == pytest.approx(5000, abs=1)
        assert result(watcher) == (WaitEnd.MET, "callout", True)
        assert min(zuora.gaps("m")) >= 300
        assert len(zuora.asked) >= 5000 / 330 - 1
        assert watcher.said[0] == (
            "callouts of connection 'zuora' are read at http://api/mediation; polls cross-check them every 5m"
        )
        assert sum("are read" in line for line in watcher.said) == 1

    play(clock, zuora, journal, main)


def test_a_new_waiter_gets_the_present_state_at_once(clock, zuora, journal):
    journal.session("S-1", *RUN, (100, "COMPLETED"))
    journal.session("S-2", *RUN, (100, "FAILED"), meter="n")

    async def main(hub, watch):
        watch(wait_for(clock, "m", "S-9", timeout=1e6), 20)
        await until(clock, 1000)
        named, _ = watch(wait_for(clock, "m", "S-1", run_status=None), 20)
        other, _ = watch(wait_for(clock, "n", "S-2", run_status=None), 20)
        found, _ = watch(sensing(clock), 20)
        await until(clock, 1001)
        assert result(named) == result(found) == (WaitEnd.MET, "callout", True)
        assert result(other) == (WaitEnd.FAILED, "callout", True)
        assert found.result.session["session_id"] == "S-1"

    play(clock, zuora, journal, main)


def test_the_first_polls_wait_for_the_feed_but_not_for_long(clock, zuora, journal):
    journal.session("S-1", (0, "INITIALIZING"), (1, "COMPLETED"))
    journal.down = [(10, 5000)]

    async def main(hub, watch):
        hub.subscribe(sensing(clock), poll_interval=20, eager=True)
        await until(clock, 5)
        assert len(zuora.asked) <= 1  # a sensor that nobody looked for: is its meter known at all?
        await until(clock, 300)
        hub.subscribe(sensing(clock, "n"), poll_interval=20, eager=True)
        await until(clock, 302)
        assert len(zuora.times("n")) == 1

    play(clock, zuora, journal, main)


def test_without_a_feed_everybody_polls_as_before(clock, zuora, journal):
    journal.found = False
    zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert result(watcher) == (WaitEnd.MET, "poll", False)
        assert 700 <= watcher.ended_at < 745
        assert max(zuora.gaps("m")) < 45
        assert any(line.startswith("no API server was found that hands out callouts") for line in watcher.said)

    play(clock, zuora, journal, main)


def test_a_connection_that_takes_no_callouts_is_polled_as_before(clock, zuora, journal):
    journal.callouts = False
    zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert result(watcher) == (WaitEnd.MET, "poll", False)
        assert watcher.ended_at < 745
        assert watcher.said[0] == (
            "connection 'zuora' takes no callouts (as http://api/mediation knows it): polls alone tell of the session"
        )

    play(clock, zuora, journal, main)


def test_an_outage_of_a_feed_that_had_no_callouts_changes_nothing(clock, zuora, journal):
    journal.callouts = False
    journal.down = [(100, 400)]
    zuora.script("m", (0, "RUNNING"), (300, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m", require_certain=True), 20)
        await task
        assert watcher.result.end is WaitEnd.UNCERTAIN  # there is no callout to wait for
        assert not any("cannot be read" in line for line in watcher.said)

    play(clock, zuora, journal, main)


def test_polls_come_back_to_their_pace_when_the_feed_is_lost_and_leave_it_when_it_is_there_again(clock, zuora, journal):
    journal.session("S-1", *RUN)
    journal.down = [(1000, 2000)]

    async def main(hub, watch):
        watchers = [watch(wait_for(clock, f"m{n}", timeout=1e6), 20)[0] for n in range(10)]
        await until(clock, 1000)
        assert sum(zuora.counts(400, 1000).values()) <= 20
        await until(clock, 2100)
        back = [min(at for at in zuora.times(f"m{n}") if at > 1010) for n in range(10)]
        assert max(back) <= 1010 + 20 + 1
        assert all(sum(zuora.counts(1040, 2000)[f"m{n}"] for n in [m]) >= 960 / 40 - 2 for m in range(10))
        await until(clock, 3200)
        assert sum(zuora.counts(2030, 3200).values()) <= 10 * (1170 / 300 + 1)
        assert len(set(back)) > 3  # spread, not all at once
        for watcher in watchers:
            assert sum("cannot be read just now" in line for line in watcher.said) == 1
            assert sum("are read" in line for line in watcher.said) == 2

    play(clock, zuora, journal, main)


def test_a_restart_of_the_api_server_asks_zuora_nothing(clock, zuora, journal):
    journal.session("S-1", *RUN, (1004, "COMPLETED"))
    journal.down = [(1000, 1007)]

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert result(watcher) == (WaitEnd.MET, "callout", True)
        assert 1007 <= watcher.ended_at <= 1012
        assert min(zuora.gaps("m")) >= 300
        assert not any("cannot be read" in line for line in watcher.said)

    play(clock, zuora, journal, main)


def test_an_end_whose_callout_is_lost_is_found_by_the_cross_check(clock, zuora, journal):
    journal.session("S-1", *RUN, (900, "FAILED"), lost=("FAILED",))
    zuora.script("m", (0, "INITIALIZING"), (30, "RUNNING"), (900, "FAILED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert result(watcher) == (WaitEnd.FAILED, "poll", False)
        assert watcher.ended_at <= 900 + 330 + 31

    play(clock, zuora, journal, main)


def test_a_newer_session_whose_end_a_poll_shows_does_not_end_the_older_one(clock, zuora, journal):
    journal.session("S-1", *RUN, (3000, "FAILED"))
    journal.session("S-2", (400, "INITIALIZING"), (430, "RUNNING"), (800, "COMPLETED"))
    zuora.script("m", (0, "RUNNING"), (800, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert watcher.ended_at == pytest.approx(3000, abs=1)
        assert result(watcher) == (WaitEnd.FAILED, "callout", True)

    play(clock, zuora, journal, main)


def test_a_wait_for_the_meters_status_is_polled_for_at_its_own_pace(clock, zuora, journal):
    journal.session("S-1", *RUN)
    condition = SessionCondition(meter_id="m", statuses=("PAUSED",), fail_on=(), since=clock.now())
    zuora.script("m", (0, "STOPPING"), (300, "PAUSED"))

    async def main(hub, watch):
        watch(wait_for(clock, "m"), 20)
        stop = SessionWait(condition, created_at=clock.now(), baseline="STOPPING", polls_only=True)
        watcher, task = watch(stop, 10)
        await task
        assert watcher.ended_at <= 330
        assert max(zuora.gaps("m")) <= 20
        await until(clock, 2000)
        assert sum(zuora.counts(400, 2000).values()) <= 7

    play(clock, zuora, journal, main)


def test_a_feed_that_breaks_down_is_tried_again(clock, zuora, journal, caplog):
    journal.session("S-1", *RUN, (500, "COMPLETED"))

    class Fragile(AsyncFeed):
        broken = 3

        async def follow(self, view):
            if Fragile.broken:
                Fragile.broken -= 1
                raise ZeroDivisionError
            await super().follow(view)

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert result(watcher) == (WaitEnd.MET, "callout", True)

    play(clock, zuora, journal, main, feed=Fragile(journal))
    assert caplog.text.count("The feed beside the poll failed") == 1


class TestReports:
    TASK = WaitingTask("dag", "run", "wait", -1, 1)

    def test_waits_and_their_ends_are_reported_also_of_the_last_one(self, clock, zuora, journal):
        journal.session("S-1", *RUN, (500, "COMPLETED"))

        async def main(hub, watch):
            waiter = hub.subscribe(wait_for(clock, "m"), poll_interval=20, task=self.TASK)
            await until(clock, 10)
            (report,) = journal.open.values()
            assert (report.meter_id, report.session_id, report.mode, report.task_id) == (
                "m",
                "S-1",
                "triggerer",
                "wait",
            )
            while (await waiter.news()).result is None:
                pass
            waiter.close()
            await asyncio.sleep(1)
            assert {(each.outcome, each.session_id) for each in journal.ended.values()} == {("MET", "S-1")}
            assert set(journal.ended) == {report.id}

        play(clock, zuora, journal, main)

    def test_one_that_leaves_says_so_and_one_without_a_task_says_nothing(self, clock, zuora, journal):
        async def main(hub, watch):
            watch(wait_for(clock, "m", "S-2"), 20)
            waiter = hub.subscribe(wait_for(clock, "m"), poll_interval=20, task=self.TASK)
            await until(clock, 10)
            assert len(journal.open) == 1
            waiter.close()
            await until(clock, 100)
            assert [each.outcome for each in journal.ended.values()] == ["left"]

        play(clock, zuora, journal, main)

    def test_polls_that_show_a_change_are_reported(self, clock, zuora, journal):
        journal.callouts = False
        zuora.script("m", (0, "RUNNING"), (700, "PAUSED"))

        async def main(hub, watch):
            watch(wait_for(clock, "m"), 20)
            watch(wait_for(clock, "m", "S-2"), 20)
            await until(clock, 2000)
            assert [each.transition.status for each in journal.entries] == ["RUNNING", "PAUSED"]
            assert {each.session_id for each in journal.entries} == {None}

        play(clock, zuora, journal, main)


class TestWithoutASessionId:
    def test_sensors_of_one_meter_find_the_first_session_each_from_its_own_instant_on(self, clock, zuora, journal):
        for number in range(6):
            begun = 100 * number
            journal.session(f"S-{number}", (begun, "INITIALIZING"), (begun + 10, "RUNNING"), (begun + 50, "COMPLETED"))

        async def main(hub, watch):
            late, _ = watch(sensing(clock, since=1e5), 20)
            watchers = [watch(sensing(clock, since=100 * number - 50), 20)[0] for number in range(1, 6)]
            await until(clock, 700)
            found = [watcher.result.session["session_id"] for watcher in watchers]
            assert found == ["S-1", "S-2", "S-3", "S-4", "S-5"]
            ends = [watcher.ended_at for watcher in watchers]
            assert ends == pytest.approx([150, 250, 350, 450, 550], abs=1)
            assert late.result is None

        play(clock, zuora, journal, main)


class TestAThousandWaits:
    @pytest.mark.parametrize("named", [True, False])
    def test_a_message_costs_no_more_than_the_waits_that_it_concerns(self, clock, zuora, journal, named, monkeypatch):
        calls = []
        learn = SessionWait.learn
        monkeypatch.setattr(SessionWait, "learn", lambda *args: calls.append(1) or learn(*args))

        async def main(hub, watch):
            for n in range(1000):
                wait = wait_for(clock, "m", f"S-{n}", timeout=1e6) if named else sensing(clock, since=n)
                hub.subscribe(wait, poll_interval=60)
            await until(clock, 30)
            calls.clear()
            for n in range(100):
                journal.session(f"S-{n}", (100 + n, "RUNNING"), (100.5 + n, "COMPLETED"))
            await until(clock, 400)
            # A sensor is concerned by whatever may be the first session that it waits for; then it has ended.
            assert len(calls) <= (200 if named else 1000 + 200 * 100)
            assert sum(waiter.ended for meter in hub._meters.values() for waiter in meter.waiters) >= 100

        play(clock, zuora, journal, main)

    def test_the_whole_state_of_a_thousand_sessions_again_is_quick(self, clock, zuora, journal):
        for n in range(1000):
            journal.session(f"S-{n}", (0, "INITIALIZING"), (5, "RUNNING"), meter=f"m{n % 10}")

        async def main(hub, watch):
            for n in range(1000):
                hub.subscribe(wait_for(clock, f"m{n % 10}", f"S-{n}", timeout=1e6), poll_interval=60)
            await until(clock, 30)
            questions = hub._hearing.questions()
            states = [SessionState.from_dict(each.to_dict()) for each in journal.known(questions)]
            assert len(states) == 1000
            began = time.process_time()
            await hub.learn(states)
            assert time.process_time() - began < 0.25  # measured: some 10 ms

        play(clock, zuora, journal, main)
