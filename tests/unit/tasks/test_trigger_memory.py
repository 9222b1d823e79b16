"""The memory of a deferred wait, compared with a trigger that does nothing."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.triggers.meter_session import MeterSessionTrigger
from tests.unit.virtual import EPOCH, run, through_json
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

pytestmark = pytest.mark.full
WAITS = 100


class Empty(BaseTrigger):
    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "", {}

    async def run(self) -> Any:
        await asyncio.get_running_loop().create_future()
        yield


def deferred(number: int) -> MeterSessionTrigger:
    condition = SessionCondition(meter_id=str(number % 10), session_id=f"S-{number}", until=EPOCH + timedelta(days=7))
    wait = SessionWait(condition, created_at=EPOCH, started_at=EPOCH, run_status="INITIALIZING")
    return MeterSessionTrigger(mediation_conn_id="mediation_default", wait=through_json(wait.to_dict()))


def bytes_each(stage: Stage, make: Any) -> float:
    async def main() -> float:
        async def follow(trigger: BaseTrigger) -> None:
            async for _ in trigger.run():
                pass

        tasks = [asyncio.create_task(follow(make(-1)))]
        await asyncio.sleep(200)
        gc.collect()
        tracemalloc.start()
        tasks += [asyncio.create_task(follow(make(number))) for number in range(WAITS)]
        await asyncio.sleep(2000)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return used / WAITS

    return run(main(), stage.clock)


def test_a_wait_takes_less_than_8_kilobytes_on_top_of_an_empty_trigger(stage: Stage):
    empty = bytes_each(stage, lambda _: Empty())
    ours = bytes_each(stage, deferred)
    assert ours - empty < 8 * 1024


def test_a_wait_with_callouts_of_its_session_takes_less_than_8_kilobytes(stage: Stage):
    journal = stage.journal = Journal(stage.clock)
    for number in range(WAITS):
        journal.session(f"S-{number}", (0, "INITIALIZING"), (5, "RUNNING"), meter=str(number % 10))
    empty = bytes_each(stage, lambda _: Empty())
    stage.clock.seconds = 0
    assert bytes_each(stage, deferred) - empty < 8 * 1024
