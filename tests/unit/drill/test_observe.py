"""The records that a drill reads from the simulator's log have the form that the checker compares with the database."""

from __future__ import annotations

import pytest

from airflow_mediation_provider.simulator import CalloutConfig, running_simulator
from tests.drill.checker import Bounds, every_change_is_known
from tests.drill.history import AssetEvent, History, Row
from tests.drill.observe import _event, read_log
from tests.unit.simulator.receiver import running_receiver


@pytest.mark.services
def test_changes_and_attempts_are_read_from_the_simulators_log() -> None:
    with running_receiver() as receiver, running_simulator(clock="manual") as sim:
        receiver.answers(503, 200)
        sim.callouts(CalloutConfig(url=receiver.url, copies=2, copy_ids=("other",)))
        sim.start_session("1002", script=[["RUNNING", None]])
        sim.wait_for("callout", outcome="retried")
        sim.advance(1800)
        sim.wait_delivered()
        changes, attempts = read_log(sim.log())
    (change,) = changes
    assert (change.meter_id, change.previous, change.status, change.run_type) == ("1002", None, "RUNNING", "NORMAL")
    assert sorted((attempt.code, attempt.outcome) for attempt in attempts) == [
        (200, "delivered"),
        (200, "delivered"),
        (503, "retried"),
    ]
    assert {attempt.change for attempt in attempts} == {change.seq}
    assert len({attempt.notification_id for attempt in attempts}) == len({a.callout_id for a in attempts}) == 2
    kept = Row("status_change", "n", "1002", change.session_id, None, "RUNNING")
    assert every_change_is_known(History(changes, attempts, [kept]), Bounds()).violations == []
    assert len(every_change_is_known(History(changes, attempts), Bounds()).violations) == 1


def test_meter_and_status_are_read_from_an_assets_address() -> None:
    assert _event("mediation://drill/meters/101/COMPLETED", "R-1") == AssetEvent("101", "COMPLETED", "R-1")
