"""The hub in virtual time: the polls of each meter, the waits that are woken, and what is left when all have gone."""

from __future__ import annotations

import asyncio
import gc
import itertools
from contextvars import ContextVar
from datetime import timedelta

import pytest

from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.triggerer.hub import Hub
from tests.unit.virtual import Clock, Zuora, run


def wait_for(clock: Clock, meter_id: str, session_id: str | None = "S-1", **options) -> SessionWait:
    timeout = options.pop("timeout", 7 * 86_400)
    condition = SessionCondition(
        meter_id=meter_id, session_id=session_id, until=clock.now() + timedelta(seconds=timeout)
    )
    if session_id is not None:
        options.setdefault("started_at", clock.now())
        options.setdefault("run_status", "INITIALIZING")
    return SessionWait(condition, created_at=clock.now(), **options)


class Watcher:
    """Waits as a trigger does, and keeps the lines that it received."""

    def __init__(self, hub: Hub, wait: SessionWait, clock: Clock, interval: float = 60.0) -> None:
        self.waiter = hub.subscribe(wait, poll_interval=interval)
        self.clock = clock
        self.lines: list[tuple[float, str]] = []
        self.wakes = 0
        self.result = None
        self.ended_at = None

    async def follow(self):
        try:
            while self.result is None:
                news = await self.waiter.news()
                self.wakes += 1
                self.lines += [(self.clock.seconds, line) for line in news.lines]
                self.result = news.result
        finally:
            self.waiter.close()
        self.ended_at = self.clock.seconds
        return self.result

    @property
    def said(self) -> list[str]:
        return [line for _, line in self.lines]


def stage(clock: Clock, zuora: Zuora, main, **options):
    """Run ``main(hub, watch)`` in virtual time; ``watch`` adds a watcher and returns it with its task."""
    closing = []

    async def play():
        hub = Hub(zuora.open, on_empty=closing.append, now=clock.now, **options)
        tasks = []

        def watch(wait, interval=60.0):
            watcher = Watcher(hub, wait, clock, interval)
            task = asyncio.create_task(watcher.follow())
            tasks.append(task)
            return watcher, task

        await main(hub, watch)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*closing)

    run(play(), clock)
    return closing


async def until(clock: Clock, seconds: float) -> None:
    await asyncio.sleep(seconds - clock.seconds)


def test_a_session_is_followed_to_its_end(clock, zuora):
    zuora.script("m", (0, "INITIALIZING"), (100, "RUNNING"), (824, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"))
        result = await task
        assert result.end is WaitEnd.MET
        assert result.session["status"] == "COMPLETED"
        assert watcher.said[0].startswith("INITIALIZING -> RUNNING after ")
        assert watcher.said[-1].startswith("RUNNING -> COMPLETED after ")
        assert watcher.ended_at - 824 <= 120

    stage(clock, zuora, main)


@pytest.mark.full
def test_a_thousand_waits_on_ten_meters_take_ten_requests_an_interval(clock, zuora):
    async def main(hub, watch):
        watchers = [watch(wait_for(clock, f"m{n % 10}", f"S-{n}"), 60)[0] for n in range(1000)]
        await until(clock, 3600)
        for begins in range(0, 3600, 60):
            assert sum(zuora.counts(begins, begins + 60).values()) <= 10
        assert zuora.most_under_way <= 4
        assert zuora.opened == 1
        assert all(watcher.said[0].startswith("INITIALIZING -> RUNNING") for watcher in watchers)
        # One line for the change, then a heartbeat every five minutes, and no more wakes than lines.
        assert all(watcher.wakes == len(watcher.lines) for watcher in watchers)
        assert all(11 <= watcher.wakes <= 13 for watcher in watchers)
        assert all("still RUNNING" in line for watcher in watchers for line in watcher.said[1:])
        timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]
        assert len(timers) <= 6  # the queue's one, and those of this test and of the polls
        assert len(asyncio.all_tasks()) <= 1001 + 4

    stage(clock, zuora, main)
    assert zuora.closed == 1


def test_the_shortest_interval_applies_while_its_waiter_is_subscribed(clock, zuora):
    async def main(hub, watch):
        watch(wait_for(clock, "m", "S-1"), 100)
        _hasty, task = watch(wait_for(clock, "m", "S-2"), 10)
        await until(clock, 95)
        assert 8 <= len(zuora.asked) <= 11
        task.cancel()
        await until(clock, 400)
        assert min(zuora.gaps("m")[-2:]) >= 100

    stage(clock, zuora, main)


def test_waiters_that_subscribe_one_after_another_cause_no_more_requests(clock, zuora):
    async def main(hub, watch):
        for n in range(100):
            watch(wait_for(clock, "m", f"S-{n}"), 60)
            await asyncio.sleep(1)
        await until(clock, 130)
        assert len(zuora.asked) == 2
        assert min(zuora.gaps("m")) >= 60

    stage(clock, zuora, main)


def test_polls_of_many_meters_are_spread(clock, zuora):
    async def main(hub, watch):
        for n in range(60):
            watch(wait_for(clock, f"m{n}"), 60)
        await until(clock, 1200)
        for second in range(600, 1200):
            assert sum(zuora.counts(second, second + 1).values()) <= 6

    stage(clock, zuora, main)


def test_meters_that_hang_do_not_delay_others(clock, zuora):
    zuora.hanging = {f"hang{n}": 30.0 for n in range(8)}
    for meter in zuora.hanging:
        zuora.script(meter, (0, TransientError("no complete answer within 30 s")))

    async def main(hub, watch):
        for n in range(8):
            watch(wait_for(clock, f"hang{n}"), 20)
            watch(wait_for(clock, f"well{n}"), 20)
        await until(clock, 1800)
        for n in range(8):
            late = [gap for gap, at in zip(zuora.gaps(f"well{n}"), zuora.times(f"well{n}"), strict=False) if at > 120]
            assert max(late) <= 45  # twice the interval and its jitter, as for any session without changes
            assert len(zuora.times(f"hang{n}")) >= 5  # and the meters that hang are polled too
        assert zuora.most_under_way <= 4

    stage(clock, zuora, main)


def test_a_rate_limit_pauses_the_whole_tenant(clock, zuora):
    limited = TransientError("429", retry_after=200, status_code=429)
    zuora.script("m0", (0, "RUNNING"), (300, limited), (301, "RUNNING"))

    async def main(hub, watch):
        for n in range(10):
            watch(wait_for(clock, f"m{n}"), 10)
        await until(clock, 299)
        zuora.script("m0", (0, limited))
        await until(clock, 320)
        hit = zuora.times("m0")[-1]
        zuora.script("m0", (0, "RUNNING"))
        await until(clock, 900)
        under_way = 1.0
        assert [at for at, _ in zuora.asked if hit + under_way < at < hit + 200] == []
        after = [at for at, _ in zuora.asked if at >= hit + 200]
        assert after[0] <= hit + 211
        assert sum(1 for at in after if at < hit + 201) <= 4  # spread, not all at once

    stage(clock, zuora, main)


@pytest.mark.parametrize(
    "error",
    [
        TransientError("503"),
        TransientError("429", retry_after=0, status_code=429),
        RuntimeError("a bug of ours"),
    ],
    ids=["503", "429 without a pause", "bug"],
)
def test_after_any_error_the_next_request_waits(clock, zuora, error):
    zuora.script("m", (0, "RUNNING"), (61, error), (1000, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 10)
        result = await task
        assert result.end is WaitEnd.MET
        assert min(zuora.gaps("m")) >= 10
        outage = [line for line in watcher.said if "cannot be read" in line]
        recovery = [line for line in watcher.said if "reached again" in line]
        assert len(outage) == len(recovery) == 1

    stage(clock, zuora, main)


def test_only_a_long_outage_ends_the_wait_as_unreachable(clock, zuora):
    zuora.script("m", (0, "RUNNING"), (100, TransientError("connection refused")))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m", max_unreachable=timedelta(minutes=20)), 30)
        result = await task
        assert result.end is WaitEnd.UNREACHABLE
        assert "connection refused" in result.message
        assert 1200 <= watcher.ended_at - 100 <= 1200 + 170

    stage(clock, zuora, main)


def test_a_misconfiguration_ends_a_wait_that_never_got_an_answer(clock, zuora):
    zuora.script("m", (0, MisconfigurationError("the client secret is wrong", status_code=401)))

    async def main(hub, watch):
        condition = SessionCondition(meter_id="m")
        _watcher, task = watch(SessionWait(condition, created_at=clock.now()))
        result = await task
        assert result.end is WaitEnd.MISCONFIGURED
        assert "client secret" in result.message
        assert len(zuora.asked) == 1

    stage(clock, zuora, main)


@pytest.mark.full
def test_one_timer_serves_the_deadlines_of_a_thousand_waits_in_time(clock, zuora):
    async def main(hub, watch):
        pairs = [watch(wait_for(clock, "m", f"S-{n}", timeout=1000 + n % 10)) for n in range(1000)]
        for n, (watcher, task) in enumerate(pairs):
            result = await task
            assert result.end is WaitEnd.TIMED_OUT
            assert watcher.ended_at == pytest.approx(1000 + n % 10, abs=0.2)
            assert result.last_status == "RUNNING"

    stage(clock, zuora, main)


def test_an_error_in_one_wait_does_not_end_the_others(clock, zuora):
    zuora.script("m", (0, "RUNNING"), (100, "COMPLETED"))

    class Broken(SessionWait):
        __slots__ = ()

        def observe(self, reading, others=()):
            raise ZeroDivisionError

    async def main(hub, watch):
        _, well = watch(wait_for(clock, "m"))
        condition = SessionCondition(meter_id="m", session_id="S-2")
        _, broken = watch(Broken(condition, created_at=clock.now()))
        with pytest.raises(ZeroDivisionError):
            await broken
        assert (await well).end is WaitEnd.MET

    stage(clock, zuora, main)


def test_the_hub_ends_with_its_last_waiter(clock, zuora):
    zuora.latency = 5

    async def main(hub, watch):
        loop = asyncio.get_running_loop()
        _, first = watch(wait_for(clock, "a"))
        _, last = watch(wait_for(clock, "b"))
        await until(clock, 62)
        assert zuora.under_way == 1
        first.cancel()
        last.cancel()
        await asyncio.gather(first, last, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert zuora.under_way == 0
        assert zuora.closed == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []

    assert len(stage(clock, zuora, main)) == 1


def test_close_is_synchronous_and_idempotent(clock, zuora):
    async def main(hub, watch):
        ours = wait_for(clock, "m", "S-1")
        stays, _ = watch(ours)
        waiter = hub.subscribe(wait_for(clock, "m", "S-2"), poll_interval=60)
        waiter.close()
        waiter.close()
        assert waiter.closed
        assert not stays.waiter.closed

    stage(clock, zuora, main)


def test_a_loop_that_ends_while_the_hub_closes_leaves_no_connection_open(clock, zuora):
    """``dag.test()`` ends its loop with the first event, which cancels each task."""

    class SlowFeed:
        address = "http://airflow.example/mediation"

        async def follow(self, view):
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(3600)  # a last report to a busy API server

    closing = []

    async def leave():
        hub = Hub(zuora.open, on_empty=closing.append, now=clock.now, feed=SlowFeed())
        hub._polls.hold_off(0)
        waiter = hub.subscribe(wait_for(clock, "m"), poll_interval=60)
        await hub.session_url("m", "S-1")
        waiter.close()
        await asyncio.sleep(5)
        assert not closing[0].done()
        closing[0].cancel()
        await asyncio.gather(*closing, return_exceptions=True)

    run(leave(), clock)
    assert (zuora.opened, zuora.closed) == (1, 1)


def test_a_meter_without_waiters_is_not_polled(clock, zuora):
    async def main(hub, watch):
        watch(wait_for(clock, "stays"), 10)
        _, task = watch(wait_for(clock, "left"), 10)
        await until(clock, 100)
        task.cancel()
        await asyncio.sleep(0)
        before = len(zuora.times("left"))
        await until(clock, 500)
        assert len(zuora.times("left")) == before
        assert len(zuora.times("stays")) > 30

    stage(clock, zuora, main)


def test_tasks_of_the_hub_do_not_inherit_a_waiters_context(clock, zuora):
    who = ContextVar("who", default="nobody")
    seen = set()
    answer = zuora.answer
    zuora.answer = lambda meter_id: (seen.add(who.get()), answer(meter_id))[1]

    async def main(hub, watch):
        who.set("the first trigger")
        watch(wait_for(clock, "m"))
        await until(clock, 500)
        assert seen == {"nobody"}

    stage(clock, zuora, main)


@pytest.mark.full
def test_other_tasks_run_while_a_thousand_waiters_are_updated(clock, zuora):
    zuora.script("m", (0, "RUNNING"), (100, "COMPLETED"))

    async def main(hub, watch):
        pairs = [watch(wait_for(clock, "m", f"S-{n}")) for n in range(1000)]
        await asyncio.wait([task for _, task in pairs], return_when=asyncio.FIRST_COMPLETED)
        ended = [sum(task.done() for _, task in pairs)]
        while ended[-1] < 1000:
            await asyncio.sleep(0)
            ended.append(sum(task.done() for _, task in pairs))
        assert max(later - earlier for earlier, later in itertools.pairwise(ended)) <= 40

    stage(clock, zuora, main)


def test_the_hub_keeps_no_reference_to_a_closed_wait(clock, zuora):
    async def main(hub, watch):
        watch(wait_for(clock, "m"))
        waiter = hub.subscribe(wait_for(clock, "m", "S-2"), poll_interval=60)
        waiter.close()
        del waiter
        gc.collect()
        assert len([o for o in gc.get_objects() if type(o) is SessionWait and o.condition.session_id == "S-2"]) == 0

    stage(clock, zuora, main)


def test_a_deadline_follows_the_wall_clock_even_when_it_jumps(clock, zuora):
    jump = timedelta()
    now = clock.now

    async def main(hub, watch):
        nonlocal jump
        watcher, task = watch(wait_for(clock, "m", timeout=86_400), 60)
        await until(clock, 100)
        jump = timedelta(days=2)  # the machine slept: the loop's clock stood still
        assert (await task).end is WaitEnd.TIMED_OUT
        assert watcher.ended_at - 100 <= 31

    clock.now = lambda: now() + jump
    stage(clock, zuora, main)


def test_a_feed_ends_a_wait_with_certainty(clock, zuora, caplog):
    from airflow_mediation_provider.protocol.sessions.lifecycle import fold
    from airflow_mediation_provider.protocol.transition import SessionTransition, Source

    class Feed:
        address = "http://api/mediation"
        called = 0

        async def follow(self, view):
            Feed.called += 1
            if Feed.called < 4:
                raise ConnectionError("the API server restarts")
            transition = SessionTransition(
                meter_id="m",
                session_id="S-1",
                status="COMPLETED",
                previous_status="RUNNING",
                observed_at=clock.now(),
                source=Source.CALLOUT,
                notification_id="n1",
            )
            await view.receive([fold([transition])])
            await asyncio.sleep(3600)

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m"), 600)
        result = await task
        assert result.session["evidence"] == "callout"
        assert result.session["certain"] is True
        assert watcher.ended_at == pytest.approx(90)

    stage(clock, zuora, main, feed=Feed())
    assert caplog.text.count("The feed failed") == 1


def test_a_poll_that_is_cancelled_before_it_starts_releases_its_connection(clock, zuora):
    zuora.script("other", (0, "RUNNING"), (900, "COMPLETED"))

    async def main(hub, watch):
        other, _ = watch(wait_for(clock, "other", timeout=3600), 20)
        for number in range(4):
            late = [watch(wait_for(clock, f"m{number}{i}", timeout=40), 100)[1] for i in range(4)]
            await asyncio.sleep(30)
            # The triggerer is suspended; afterwards a deadline and a poll of the same meter are due at once.
            clock.seconds += 100
            assert {result.end for result in await asyncio.gather(*late)} == {WaitEnd.TIMED_OUT}
        await asyncio.sleep(900)
        assert other.result is not None
        assert other.result.end is WaitEnd.MET

    stage(clock, zuora, main)


def test_a_poll_that_shows_the_same_reaches_no_wait_again(clock, zuora, monkeypatch):
    zuora.script("m", (0, "RUNNING"), (3000, "COMPLETED"))
    observed = []
    observe = SessionWait.observe
    monkeypatch.setattr(SessionWait, "observe", lambda self, *args: (observed.append(self), observe(self, *args))[1])

    async def main(hub, watch):
        watchers = [watch(wait_for(clock, "m", f"S-{n}"), 10)[0] for n in range(100)]
        await until(clock, 120)
        observed.clear()
        polls = len(zuora.asked)
        await until(clock, 299)  # before the first heartbeat
        assert len(zuora.asked) - polls >= 8
        assert not observed
        wait = watchers[0].waiter.wait
        stale = wait.polled_at
        watchers[0].waiter.catch_up()
        assert wait.polled_at > stale
        await until(clock, 3100)
        assert {watcher.result.end for watcher in watchers} == {WaitEnd.MET}

    stage(clock, zuora, main)


def test_the_shortest_interval_is_kept_and_not_searched(clock, zuora):
    async def main(hub, watch):
        watchers = [watch(wait_for(clock, "m", f"S-{n}"), 60 + n % 3) for n in range(30)]
        [meter] = hub._meters.values()
        reader = hub.subscribe_to_readings("m", "0.0.1", poll_interval=7)
        meter.waiters = None  # it would be searched here
        assert meter.interval(None) == 7
        assert meter.interval(300) == 7
        meter.waiters = {watcher.waiter: None for watcher, _ in watchers}
        reader.close()
        assert meter.interval(None) == 60
        assert meter.interval(300) == 300
        for watcher, _ in watchers[::3]:
            watcher.waiter.close()
        assert meter.interval(None) == 61

    stage(clock, zuora, main)
