"""The trigger that polls a meter for scheduled Dags, in virtual time: one poll for all, each change reported."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from airflow_mediation_provider import triggerer as watch
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.feed.flow import FeedUnavailableError
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.triggers.meter_watch import MeterWatchTrigger
from tests.unit.virtual import Clock, Zuora, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry


class Server:
    """The API server as its client sees it; it does not answer for a while."""

    address = None

    def __init__(self, clock: Clock, away: Sequence[tuple[float, float]] = ()) -> None:
        self.clock = clock
        self.away = away
        self.told: list[tuple[float, JournalEntry]] = []
        self.tries = 0
        self.clients = 0

    def open(self, _conn_id: str) -> Server:
        self.clients += 1
        return self

    async def report(self, entries: Sequence[JournalEntry]) -> None:
        self.tries += 1
        if any(begin <= self.clock.seconds < end for begin, end in self.away):
            raise FeedUnavailableError("the API server gave no answer")
        self.told += [(self.clock.seconds, entry) for entry in entries]

    async def follow(self, _view: Any) -> None:
        await asyncio.Event().wait()

    async def observe(self, entries: Sequence[JournalEntry]) -> None:
        """Observations of waiting tasks are not needed here."""

    async def close(self) -> None:
        self.clients -= 1

    def changes(self) -> list[tuple[str | None, str]]:
        return [(e.transition.previous_status, e.transition.status) for _, e in self.told if e.transition]


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, away: Sequence[tuple[float, float]] = ()) -> None:
        self.clock = Clock()
        self.zuora = Zuora(self.clock)
        self.server = Server(self.clock, away)
        self.events: list[Any] = []
        monkeypatch.setattr(watch, "_open_hook", self.zuora.open)
        monkeypatch.setattr(watch, "open_feed", self.server.open)
        monkeypatch.setattr(watch, "cross_check_seconds", lambda: 300.0)

    def play(self, *triggers: MeterWatchTrigger, seconds: float) -> None:
        """Run the triggers as a triggerer does, for so long."""

        async def one(trigger: MeterWatchTrigger) -> None:
            async for event in trigger.run():
                self.events.append(event)

        async def main() -> None:
            tasks = [asyncio.create_task(one(trigger)) for trigger in triggers]
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for trigger in triggers:
                await trigger.cleanup()

        run(main(), self.clock)


def trigger(**options: Any) -> MeterWatchTrigger:
    return MeterWatchTrigger(**{"mediation_conn_id": "zuora", "meter_id": "m", "poll_interval": 10.0, **options})


SESSION = ((0, "COMPLETED"), (30, "RUNNING"), (60, "COMPLETED"))


def test_each_change_is_reported_once_and_starts_runs(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch)
    world.zuora.script("m", *SESSION)

    world.play(trigger(), seconds=120)

    assert world.server.changes() == [(None, "COMPLETED"), ("COMPLETED", "RUNNING"), ("RUNNING", "COMPLETED")]
    assert all(entry.drives for _, entry in world.server.told)
    assert 60 <= world.server.told[-1][0] < 85
    # Events of the trigger itself would have no key: Airflow would merge them with others.
    assert world.events == []


def test_triggers_of_a_meter_share_the_poll_and_the_last_one_closes_the_hub(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch)
    world.zuora.script("m", *SESSION)

    world.play(trigger(), trigger(poll_interval=30.0), trigger(meter_id="n"), seconds=100)

    assert min(world.zuora.gaps("m")) >= 10
    assert len(world.zuora.times("m")) <= 11
    assert (world.zuora.opened, world.zuora.closed) == (1, 1)
    assert world.server.clients == 1  # the hub's own, which this stand-in is not asked to close


def test_failed_reports_are_repeated_later_in_order(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, away=[(20, 300)])
    world.zuora.script("m", *SESSION)

    world.play(trigger(), seconds=400)

    assert world.server.changes() == [(None, "COMPLETED"), ("COMPLETED", "RUNNING"), ("RUNNING", "COMPLETED")]
    assert 300 <= world.server.told[-1][0] < 310


@pytest.mark.parametrize(
    "fault", [TransientError("503"), MisconfigurationError("unknown meter"), RuntimeError("a bug")]
)
def test_errors_do_not_end_the_watch_and_are_logged_once(monkeypatch: pytest.MonkeyPatch, fault: Exception):
    world = World(monkeypatch)
    said: list[str] = []
    log = SimpleNamespace(**dict.fromkeys(("info", "warning"), lambda line, *args: said.append(line % args)))
    monkeypatch.setattr(MeterWatchTrigger, "log", log)
    world.zuora.script("m", (0, "RUNNING"), (30, fault), (200, "COMPLETED"))

    world.play(trigger(), seconds=500)

    assert world.server.changes() == [(None, "RUNNING"), ("RUNNING", "COMPLETED")]
    assert [line.split(":")[0] for line in said] == [
        "Meter m cannot be polled at the moment",
        "Meter m can be polled again.",
    ]


def test_an_unexpected_error_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch)
    world.zuora.script("m", *SESSION)
    report, errors = world.server.report, [RuntimeError("a bug")]

    async def fail_once(entries: Sequence[JournalEntry]) -> None:
        if errors:
            raise errors.pop()
        await report(entries)

    monkeypatch.setattr(world.server, "report", fail_once)

    world.play(trigger(), seconds=120)

    assert world.server.changes() == [(None, "COMPLETED"), ("COMPLETED", "RUNNING"), ("RUNNING", "COMPLETED")]


def test_the_trigger_is_rebuilt_from_its_arguments():
    path, arguments = trigger().serialize()

    assert path == "airflow_mediation_provider.triggers.meter_watch.MeterWatchTrigger"
    assert MeterWatchTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    # Of a published version: these must always load.
    MeterWatchTrigger(mediation_conn_id="zuora", meter_id="m", version="0.0.1", poll_interval=60.0, arguments_version=1)


def stored(schedule: Any) -> Any:
    return DagSerialization.from_dict(DagSerialization.to_dict(DAG("dag", schedule=schedule))).timetable


class TestSchedule:
    def test_a_schedule_with_poll_interval_has_a_watcher(self):
        assets = {
            asset.uri: asset
            for _, asset in stored(
                on_meter_session("1001", "COMPLETED", poll_interval=60)
            ).asset_condition.iter_assets()
        }

        polls = assets.pop("mediation://mediation_default/meters/1001/polls/60")
        [watcher] = polls.watchers
        assert watcher.trigger["classpath"] == trigger().serialize()[0]
        # The status's own asset is shared with all other Dags on it: their files must not add or remove a watcher.
        assert {uri: asset.watchers for uri, asset in assets.items()} == {
            "mediation://mediation_default/meters/1001/COMPLETED": []
        }

    def test_a_schedule_without_poll_interval_has_no_watcher(self):
        timetable = stored(on_meter_session("1001", "COMPLETED"))

        assert [asset.watchers for _, asset in timetable.asset_condition.iter_assets()] == [[]]

    def test_two_statuses_of_a_meter_share_one_watcher(self):
        both = on_meter_session(1, "COMPLETED", poll_interval=60) | on_meter_session(1, "FAILED", poll_interval=60.0)
        assets = {asset.uri: asset for _, asset in stored(both).asset_condition.iter_assets()}

        assert len(assets) == 3
        assert sum(len(asset.watchers) for asset in assets.values()) == 1
