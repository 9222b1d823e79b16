from __future__ import annotations

import asyncio
from contextvars import ContextVar

from airflow_mediation_provider.triggerer.timers import TimerQueue
from tests.unit.virtual import run


def test_calls_are_made_in_order_of_time_by_one_timer():
    async def main():
        loop = asyncio.get_running_loop()
        timers, calls = TimerQueue(loop), []
        for when in (30, 10, 20):
            timers.add(when, lambda when=when: calls.append((when, loop.time())))
        assert sum(not handle.cancelled() for handle in loop._scheduled) == 1
        await asyncio.sleep(40)
        assert calls == [(10, 10), (20, 20), (30, 30)]

    run(main())


def test_a_cancelled_call_is_not_made_and_is_released():
    async def main():
        timers, calls = TimerQueue(asyncio.get_running_loop()), []
        entries = [timers.add(86_400 + n, lambda: calls.append(1)) for n in range(1000)]
        for entry in entries[1:]:
            entry.cancel()
            entry.cancel()
        assert len(timers._heap) < 200
        await asyncio.sleep(100_000)
        assert calls == [1]

    run(main())


def test_other_tasks_run_between_a_thousand_calls_at_once():
    async def main():
        timers, calls, passes = TimerQueue(asyncio.get_running_loop()), [], 0
        for _ in range(1000):
            timers.add(5, lambda: calls.append(1))
        await asyncio.sleep(5)
        while len(calls) < 1000:
            passes += 1
            await asyncio.sleep(0)
        assert passes >= 40

    run(main())


def test_an_error_in_one_call_does_not_stop_the_others(caplog):
    async def main():
        timers, calls = TimerQueue(asyncio.get_running_loop()), []
        timers.add(1, lambda: 1 / 0)
        timers.add(2, lambda: calls.append(1))
        await asyncio.sleep(3)
        assert calls == [1]

    run(main())
    assert "division by zero" in caplog.text


def test_calls_run_in_an_empty_context():
    who = ContextVar("who", default="nobody")

    async def main():
        who.set("the first trigger")
        timers, seen = TimerQueue(asyncio.get_running_loop()), []
        timers.add(1, lambda: seen.append(who.get()))
        await asyncio.sleep(2)
        assert seen == ["nobody"]

    run(main())


def test_no_call_is_made_after_close():
    async def main():
        timers, calls = TimerQueue(asyncio.get_running_loop()), []
        timers.add(1, lambda: calls.append(1))
        timers.close()
        await asyncio.sleep(2)
        assert calls == []

    run(main())
