from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.simulator.clock import ManualClock
from airflow_mediation_provider.simulator.event_log import EventLog

if TYPE_CHECKING:
    from pathlib import Path


def test_entries_are_in_order_and_can_be_filtered() -> None:
    clock = ManualClock()
    log = EventLog(clock)
    log.add("start", meter_id="1")
    clock.advance(1.5)
    log.add("stop", meter_id="1")
    log.add("start", meter_id="2")
    assert [entry["seq"] for entry in log.read()] == [1, 2, 3]
    assert [entry["seq"] for entry in log.read(kind="start")] == [1, 3]
    assert [entry["seq"] for entry in log.read(kind=["start", "stop"], since=1)] == [2, 3]
    assert [entry["seq"] for entry in log.read(meter_id="1", kind="stop")] == [2]
    assert log.read()[1]["time"] == "2026-01-01T00:00:01.500000+00:00"
    assert log.counts() == {"start": 2, "stop": 1}


def test_readers_get_copies() -> None:
    log = EventLog(ManualClock())
    log.add("start")
    log.read()[0]["kind"] = "changed"
    assert log.read()[0]["kind"] == "start"


def test_a_pending_entry_is_readable_at_once_and_completed_later() -> None:
    log = EventLog(ManualClock())
    seq = log.add("request", pending=True, status=None)
    log.add("start")
    assert log.read(kind="request")[0]["status"] is None
    log.close(seq, status=200)
    log.close(seq, status=500)  # it is closed: nothing changes any more
    log.update(seq, status=500)
    assert [entry.get("status") for entry in log.read()] == [200, None]


def test_entries_caused_by_a_request_have_its_number() -> None:
    log = EventLog(ManualClock())
    seq = log.add("request", pending=True)
    with log.during(seq):
        log.add("start")
    log.add("transition")
    assert [entry.get("request") for entry in log.read()] == [None, seq, None]


def test_the_file_has_every_entry_once_and_only_complete(tmp_path: Path) -> None:
    log = EventLog(ManualClock(), tmp_path / "log.jsonl")
    answered = log.add("request", pending=True, status=None)
    hung = log.add("request", pending=True, status=None)
    log.add("start")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    log.close(answered, status=200)
    log.end()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["seq"]: line.get("status") for line in lines} == {answered: 200, hung: None, 3: None}
    assert len(lines) == 3


def test_waiting_ends_with_the_awaited_entry() -> None:
    log = EventLog(ManualClock())
    adder = threading.Thread(target=lambda: [log.add("noise"), log.add("start", meter_id="1")])
    adder.start()
    found = log.wait_for(lambda: log.read(kind="start"), 1, 5)
    adder.join()
    assert found[0]["meter_id"] == "1"
    with pytest.raises(TimeoutError, match="1 of 2"):
        log.wait_for(lambda: log.read(kind="start"), 2, 0.01)


def test_clear_deletes_entries_but_numbers_go_on() -> None:
    log = EventLog(ManualClock())
    pending = log.add("request", pending=True)
    log.clear()
    log.close(pending, status=200)
    assert log.read() == []
    assert log.add("start") == 2
