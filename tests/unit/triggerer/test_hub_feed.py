"""The hub with a feed, in virtual time: callouts end waits, polls cross-check, and replace the feed when it is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.feed.reports import WaitingTask
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd
from airflow_mediation_provider.protocol.wire import from_plain, to_plain
from tests.timing import at_most
from tests.unit.triggerer.test_hub import stage, until, wait_for
from tests.unit.virtual import Clock, Zuora
from tests.unit.virtual_feed import AsyncFeed, Journal

if TYPE_CHECKING:
    from tests.unit.triggerer.test_hub import Watcher

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


def given(clock: Clock, meter_id: str, session_id: str = "S-1") -> SessionWait:
    """Return the wait of a sensor with a session id."""
    return SessionWait(SessionCondition(meter_id=meter_id, session_id=session_id), created_at=clock.now())


@pytest.mark.parametrize("watched", [False, True])
def test_a_named_session_of_another_meter_ends_the_waits_that_name_it(clock, zuora, journal, watched):
    journal.session("S-1", *RUN, (500, "COMPLETED"), meter="n")
    journal.session("S-2", *RUN, (500, "COMPLETED"))
    journal.session("S-3", (300, "INITIALIZING"), (330, "RUNNING"), meter="n")

    async def main(hub, watch):
        if watched:
            right, _ = watch(given(clock, "n"), 20)
        wrong, also_wrong = watch(given(clock, "m"), 20)[0], watch(given(clock, "o"), 20)[0]
        own, run_here = (
            watch(given(clock, "m", "S-2"), 20)[0],
            watch(wait_for(clock, "m"), 20)[0],
        )
        later, _ = watch(given(clock, "m", "S-3"), 20)
        await until(clock, 250)
        assert wrong.result.message == "Session S-1 is of meter n, not of meter m."
        assert also_wrong.result.message == "Session S-1 is of meter n, not of meter o."
        assert (wrong.result.end, own.result, run_here.result, later.result) == (
            WaitEnd.MISCONFIGURED,
            None,
            None,
            None,
        )
        assert wrong.ended_at <= 1
        kept = {meter.key[0]: {state.session_id for state in meter.sessions} for meter in hub._meters.values()}
        assert kept["m"] == {"S-2"}
        await until(clock, 400)
        assert later.result.message == "Session S-3 is of meter n, not of meter m."
        assert later.ended_at <= 360
        await until(clock, 600)
        assert result(own) == (WaitEnd.MET, "callout", True)
        if watched:
            assert result(right) == (WaitEnd.MET, "callout", True)
        assert run_here.result is None

    play(clock, zuora, journal, main)


def test_the_first_polls_wait_a_short_time_for_the_feed(clock, zuora, journal):
    journal.session("S-1", (0, "INITIALIZING"), (1, "COMPLETED"))
    journal.down = [(10, 5000)]

    async def main(hub, watch):
        hub.subscribe(sensing(clock), poll_interval=20, eager=True)
        await until(clock, 5)
        assert len(zuora.asked) <= 1  # no poll was made for this sensor yet: it checks that the meter exists
        await until(clock, 300)
        hub.subscribe(sensing(clock, "n"), poll_interval=20, eager=True)
        await until(clock, 302)
        assert len(zuora.times("n")) == 1

    play(clock, zuora, journal, main)


def test_without_a_feed_all_meters_are_polled_as_before(clock, zuora, journal):
    journal.found = False
    zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 20)
        await task
        assert result(watcher) == (WaitEnd.MET, "poll", False)
        assert 700 <= watcher.ended_at < 745
        assert max(zuora.gaps("m")) < 45
        assert any(line.startswith("callouts cannot be read (connection refused): polls") for line in watcher.said)

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
            "connection 'zuora' takes no callouts according to http://api/mediation: polls are the only source"
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


def test_polls_return_to_their_pace_only_while_the_feed_is_lost(clock, zuora, journal):
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


def test_a_restart_of_the_api_server_causes_no_poll(clock, zuora, journal):
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


def test_a_wait_for_the_meters_status_keeps_its_own_poll_interval(clock, zuora, journal):
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


def test_a_feed_that_fails_is_tried_again(clock, zuora, journal, caplog):
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
    assert caplog.text.count("The feed failed") == 1


class TestReports:
    TASK = WaitingTask("dag", "run", "wait", -1, 1)

    def test_waits_and_their_ends_are_reported_including_the_last_one(self, clock, zuora, journal):
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

    def test_a_closed_wait_is_reported_unless_it_has_no_task(self, clock, zuora, journal):
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
    def test_each_sensor_of_a_meter_finds_the_first_session_after_its_own_since(self, clock, zuora, journal):
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

    def test_a_session_that_only_its_zone_puts_before_since_is_logged_once(self, clock, zuora, journal):
        started = 40_000 - 7 * 3600
        for second, status, before in ((40_000, "RUNNING", "INITIALIZING"), (40_500, "COMPLETED", "RUNNING")):
            journal.say(second, "S-1", status, before, started=started)

        async def main(hub, watch):
            await until(clock, 39_900)
            watcher, _ = watch(sensing(clock, since=39_900), 20)
            await until(clock, 41_000)
            assert watcher.result is None
            lines = [line for line in watcher.said if "callout_timezone is wrong" in line]
            assert lines[0].startswith("session S-1 began at ")
            assert [line for line in lines if line.endswith("; still waiting")] == lines[:1]
            assert all("so far" in line for line in lines[1:])

        play(clock, zuora, journal, main)


@pytest.mark.full
class TestAThousandWaits:
    @pytest.mark.parametrize("named", [True, False])
    def test_a_message_updates_only_the_waits_that_it_concerns(self, clock, zuora, journal, named, monkeypatch):
        calls = []
        receive = SessionWait.receive
        monkeypatch.setattr(SessionWait, "receive", lambda *args: calls.append(1) or receive(*args))

        async def main(hub, watch):
            for n in range(1000):
                wait = wait_for(clock, "m", f"S-{n}", timeout=1e6) if named else sensing(clock, since=n)
                hub.subscribe(wait, poll_interval=60)
            await until(clock, 30)
            calls.clear()
            for n in range(100):
                journal.session(f"S-{n}", (100 + n, "RUNNING"), (100.5 + n, "COMPLETED"))
            await until(clock, 400)
            # Each possible first session concerns a sensor that waits for it; then the sensor has ended.
            assert len(calls) <= (200 if named else 1000 + 200 * 100)
            assert sum(waiter.ended for meter in hub._meters.values() for waiter in meter.waiters) >= 100

        play(clock, zuora, journal, main)

    def test_a_repeated_state_of_a_thousand_sessions_is_quick(self, clock, zuora, journal):
        for n in range(1000):
            journal.session(f"S-{n}", (0, "INITIALIZING"), (5, "RUNNING"), meter=f"m{n % 10}")

        async def main(hub, watch):
            for n in range(1000):
                hub.subscribe(wait_for(clock, f"m{n % 10}", f"S-{n}", timeout=1e6), poll_interval=60)
            await until(clock, 30)
            questions = hub._feed_reader.questions()
            states = [from_plain(SessionState, to_plain(each), "it") for each in journal.known(questions)]
            assert len(states) == 1000
            with at_most(0.25):  # measured: about 10 ms
                await hub.receive(states)

        play(clock, zuora, journal, main)


TASK = WaitingTask("dag", "run", "task", -1, 1)


def test_the_start_of_a_wait_is_reported_until_it_is_stored(clock, zuora, journal):
    journal.session("S-1", *RUN)
    journal.kept = False
    reports: list[tuple[str, bool]] = []
    keep = journal.keep

    def keep_and_note(open_, ended):
        reports.extend((each.owner, each.begins) for each in open_)
        keep(open_, ended)

    journal.keep = keep_and_note

    async def main(hub, watch):
        waiter = hub.subscribe(wait_for(clock, "m", "S-1"), poll_interval=20, task=TASK)
        await until(clock, 50)
        assert reports
        assert set(reports) == {(waiter.owner, True)}
        journal.kept = True
        await until(clock, 100)
        count = len(reports)
        await until(clock, 300)
        assert len(reports) == count
        assert set(reports) == {(waiter.owner, True)}
        assert list(journal.owners.values()) == [waiter.owner]

    play(clock, zuora, journal, main)


def test_a_suspended_process_does_not_change_the_report_of_the_next_one(clock, zuora, journal):
    journal.session("S-1", *RUN)

    async def main(hub, watch):
        waiter = hub.subscribe(wait_for(clock, "m", "S-1"), poll_interval=20, task=TASK)
        await until(clock, 50)
        assert not waiter.stalled
        (wait_id,) = journal.owners
        journal.owners[wait_id] = "another"
        clock.seconds += 300
        await until(clock, 500)
        assert waiter.stalled
        waiter.close()

    play(clock, zuora, journal, main)
    assert set(journal.owners.values()) == {"another"}
    assert journal.ended == {}
