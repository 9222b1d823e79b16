"""The trigger that reads the callout history, in virtual time: moved, doubled, and through failures."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider import triggerer as watch
from airflow_mediation_provider.feed.flow import FeedUnavailableError
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.tasks import state
from airflow_mediation_provider.triggers.meter_watch import CalloutHistoryTrigger
from tests.unit.virtual import run
from tests.unit.virtual_history import ALONE, LOOP, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from airflow_mediation_provider.protocol.zuora.replies import Page


class Stage(World):
    """The tenant and the API server, as the trigger reaches them.

    :param away: when the API server does not answer
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, away: Sequence[tuple[float, float]] = ()) -> None:
        super().__init__()
        self.away = away
        self.events: list[Any] = []
        self.open = 0
        monkeypatch.setattr(watch, "open_feed", lambda _: self)
        monkeypatch.setattr(watch, "open_hook", self.open_hook)
        monkeypatch.setattr(state, "utcnow", self.clock.now)

    async def open_hook(self, _conn_id: str, *, attempts: int) -> Stage:
        assert attempts == 1
        return self

    async def __aenter__(self) -> Stage:
        self.open += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open -= 1

    async def settings(self) -> Any:
        return SimpleNamespace(callouts=ALONE)

    async def carry_out(self, call: Any) -> Page:
        return self.tenant.page(call)

    async def call(self, path: str, body: bytes) -> bytes:
        if any(begin <= self.clock.seconds < end for begin, end in self.away):
            raise FeedUnavailableError("the API server gave no answer")
        return self.journal.answer(path, body)

    async def close(self) -> None:
        """Nothing to close."""

    def play(self, *triggers: CalloutHistoryTrigger, seconds: float) -> None:
        async def one(trigger: CalloutHistoryTrigger) -> None:
            async for event in trigger.run():
                self.events.append(event)

        async def main() -> None:
            tasks = [asyncio.create_task(one(trigger)) for trigger in triggers]
            await asyncio.sleep(seconds)
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        run(main(), self.clock)


def trigger(**options: Any) -> CalloutHistoryTrigger:
    return CalloutHistoryTrigger(**{"mediation_conn_id": "zuora", "read_interval": 60.0, **options})


def test_each_change_reaches_the_journal_and_the_trigger_fires_nothing(monkeypatch: pytest.MonkeyPatch):
    stage = Stage(monkeypatch)
    stage.tenant.walk("R-1", 100, 120, LOOP)

    stage.play(trigger(), seconds=1200)

    assert stage.journal.changes("R-1") == LOOP
    assert stage.events == []
    assert len(stage.tenant.asked) == 20
    assert stage.open == 0


def test_a_trigger_that_airflow_moves_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch):
    stage = Stage(monkeypatch)
    stage.tenant.walk("R-1", 100, 120, LOOP)
    stage.play(trigger(), seconds=400)
    path, arguments = trigger().serialize()
    assert path == "airflow_mediation_provider.triggers.meter_watch.CalloutHistoryTrigger"

    stage.play(CalloutHistoryTrigger(**json.loads(json.dumps(arguments))), seconds=1200)

    assert stage.journal.changes("R-1") == LOOP


def test_it_reads_on_after_each_kind_of_failure_and_logs_it_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stage = Stage(monkeypatch, away=[(100, 400)])
    stage.tenant.walk("R-1", 100, 300, LOOP)
    stage.play(trigger(), seconds=600)
    stage.tenant.refuses = MisconfigurationError("No permission.")
    stage.play(trigger(), seconds=600)
    stage.tenant.refuses = TransientError("Too many requests.", retry_after=500)
    asked = len(stage.tenant.asked)
    stage.play(trigger(), seconds=600)
    assert len(stage.tenant.asked) - asked == 2
    stage.tenant.refuses = None
    monkeypatch.setattr(stage, "settings", boom := Boom(stage.settings))
    stage.play(trigger(), seconds=1200)

    assert boom.times == 0
    assert stage.journal.changes("R-1") == LOOP
    lines = capsys.readouterr().out.splitlines()
    assert sum("because the API server gave no answer" in line for line in lines) == 1
    assert sum("No permission." in line for line in lines) == 1
    assert sum("failed unexpectedly" in line for line in lines) == 2
    assert any("can be read again" in line for line in lines)


class Boom:
    """Fails twice with an error that nothing expects."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.times = 2

    async def __call__(self) -> Any:
        if self.times:
            self.times -= 1
            raise RuntimeError("boom")
        return await self.settings()
