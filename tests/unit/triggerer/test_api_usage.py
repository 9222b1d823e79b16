"""The calls of a triggerer, end to end: a hub polls the simulator, and the journal stores the API usage."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings

from airflow_mediation_provider import triggerer as watch
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.hooks.api_usage import forget_all
from airflow_mediation_provider.journal.task_reports import budget, record_calls
from airflow_mediation_provider.protocol.zuora.api_usage import UsageLevel, standing
from airflow_mediation_provider.simulator import Simulator, running_simulator
from airflow_mediation_provider.testing.journal import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "simulator-secret"


@pytest.fixture
def sim(services: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A tenant of a hundred calls an hour."""
    tokens.forget_all()
    forget_all()
    with running_simulator(rate_limit=100, rate_limit_window=3600.0) as simulator:
        connection = {"conn_type": "mediation", "host": simulator.url, "login": "simulator-client", "password": SECRET}
        monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps(connection))
        yield simulator


@pytest.fixture
def written(sqlite_database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set once the API server, which the triggerer finds by its setting, has written a count of calls."""
    airflow_on(sqlite_database)
    done = threading.Event()

    def record(**report: Any) -> None:
        record_calls(**report)
        done.set()

    monkeypatch.setattr("airflow_mediation_provider.api_server.internal.record_calls", record)
    # As in a new process, which has sent nothing to Zuora.
    monkeypatch.setattr("airflow_mediation_provider.api_server.internal.reported", lambda _: nullcontext(()))
    connection = MediationConnection("zuora", None, SECRET, {"callout_token": "token"})
    with serve(create_app(Connections({"zuora": connection}.get))) as url:
        monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", url)
        yield done


async def test_the_calls_of_a_hub_are_in_the_journal_when_it_ends(sim: Simulator, written: threading.Event) -> None:
    subscription = watch.subscribe_to_readings("zuora", "1001", "0.0.1", poll_interval=0.1)
    for _ in range(3):
        await subscription.next()
    subscription.close()
    await watch.settled()
    assert written.wait(10)

    now = datetime.now(UTC)
    with settings.NonScopedSession() as session:
        (found,) = budget(session, ["zuora"], now)
    asked = len(sim.log(kind="request", path="/meters/1001/0.0.1/runStatus"))
    assert found.last_day == asked >= 3
    assert (found.limits, found.remaining) == ("100, 100;w=3600", 100 - asked)
    stands = standing(found, None, now)
    assert stands.words.startswith(f"Zuora says: {100 - asked} of 100 left this hour; {asked} calls in 24 h (")
    assert (stands.share, stands.level) == (pytest.approx(asked / 100), UsageLevel.GOOD)


async def test_the_calls_of_a_trigger_without_a_hub_are_in_the_journal_when_it_leaves(
    sim: Simulator, written: threading.Event
) -> None:
    await watch.report_calls("zuora")
    assert not written.is_set()
    async with await watch.open_hook("zuora", attempts=1) as hook:
        await hook.list_export_jobs("1001")
    await watch.report_calls("zuora")
    assert written.wait(10)
    with settings.NonScopedSession() as session:
        (found,) = budget(session, ["zuora"], datetime.now(UTC))
    assert found.last_day == 1
