from __future__ import annotations

import asyncio
from contextvars import ContextVar

from airflow_mediation_provider.watch.agenda import Agenda
from tests.unit.virtual import run


def test_calls_come_in_order_of_time_by_one_timer():
    async def main():
        loop = asyncio.get_running_loop()
        agenda, calls = Agenda(loop), []
        for when in (30, 10, 20):
            agenda.add(when, lambda when=when: calls.append((when, loop.time())))
        assert sum(not handle.cancelled() for handle in loop._scheduled) == 1
        await asyncio.sleep(40)
        assert calls == [(10, 10), (20, 20), (30, 30)]

    run(main())


def test_a_cancelled_moment_does_not_come_and_is_let_go_of():
    async def main():
        agenda, calls = Agenda(asyncio.get_running_loop()), []
        entries = [agenda.add(86_400 + n, lambda: calls.append(1)) for n in range(1000)]
        for entry in entries[1:]:
            entry.cancel()
            entry.cancel()
        assert len(agenda._heap) < 200
        await asyncio.sleep(100_000)
        assert calls == [1]

    run(main())


def test_a_thousand_calls_at_once_let_others_run_between():
    async def main():
        agenda, calls, passes = Agenda(asyncio.get_running_loop()), [], 0
        for _ in range(1000):
            agenda.add(5, lambda: calls.append(1))
        await asyncio.sleep(5)
        while len(calls) < 1000:
            passes += 1
            await asyncio.sleep(0)
        assert passes >= 40

    run(main())


def test_an_error_in_one_call_does_not_stop_the_others(caplog):
    async def main():
        agenda, calls = Agenda(asyncio.get_running_loop()), []
        agenda.add(1, lambda: 1 / 0)
        agenda.add(2, lambda: calls.append(1))
        await asyncio.sleep(3)
        assert calls == [1]

    run(main())
    assert "division by zero" in caplog.text


def test_calls_run_in_an_empty_context():
    who = ContextVar("who", default="nobody")

    async def main():
        who.set("the first trigger")
        agenda, seen = Agenda(asyncio.get_running_loop()), []
        agenda.add(1, lambda: seen.append(who.get()))
        await asyncio.sleep(2)
        assert seen == ["nobody"]

    run(main())


def test_nothing_comes_after_close():
    async def main():
        agenda, calls = Agenda(asyncio.get_running_loop()), []
        agenda.add(1, lambda: calls.append(1))
        agenda.close()
        await asyncio.sleep(2)
        assert calls == []

    run(main())
