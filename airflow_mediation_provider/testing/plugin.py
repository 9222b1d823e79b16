"""The pytest plugin: fixtures to test Dags of this provider without a tenant, a network or a running Airflow.

Pytest imports this module in every project of its environment. So it imports nothing but pytest, each fixture imports
what it needs, and without a fixture nothing changes.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_mediation_provider.simulator import Simulator
    from airflow_mediation_provider.testing.journal import ServedJournal
    from airflow_mediation_provider.testing.runs import RunOfSession

# A session of a demo meter takes a few tenths of a second.
_TIME_SCALE = 0.05


@pytest.fixture
def mediation_settings() -> Mapping[str, Any]:
    """Settings of the simulator, the fields of ``SimulatorConfig``: override this fixture to change them."""
    return {}


@pytest.fixture
def mediation_conn_id() -> str:
    """Id of the connection that the Dags use: override this fixture to change it."""
    return "mediation_default"


@pytest.fixture
def mediation_simulator(mediation_settings: Mapping[str, Any]) -> Iterator[Simulator]:
    """Zuora Mediation, simulated on a free port: the demo meters, twenty times as fast."""
    from airflow_mediation_provider.simulator import SimulatorConfig, running_simulator

    # The journal outlives a test, and no other test may have the same session ids: so they go on from the time.
    settings = {"time_scale": _TIME_SCALE, "first_run_id": time.time_ns() // 1000, **mediation_settings}
    with running_simulator(SimulatorConfig.parse(settings)) as simulator:
        yield simulator


@pytest.fixture
def mediation_connection(
    mediation_simulator: Simulator, mediation_conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Id of a connection to the simulator, which exists during the test, as an environment variable."""
    _connect(monkeypatch, mediation_conn_id, mediation_simulator)
    return mediation_conn_id


@pytest.fixture
def mediation_journal(
    mediation_simulator: Simulator, mediation_connection: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServedJournal]:
    """The journal, served in this process: it receives the simulator's callouts, and the Dag's waits read them."""
    _need_database()
    from airflow_mediation_provider.testing.journal import served_journal

    with served_journal(mediation_simulator, mediation_connection) as journal:
        monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", journal.url)
        _connect(monkeypatch, mediation_connection, mediation_simulator, callout_hmac_secret=journal.secret)
        yield journal


@pytest.fixture
def mediation_run(mediation_conn_id: str) -> RunOfSession:
    """Function that runs a Dag by ``dag.test()``, as if a session had started the run."""
    _need_database()
    from airflow_mediation_provider.testing.runs import RunOfSession

    return RunOfSession(mediation_conn_id)


def _connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, simulator: Simulator, **extra: str) -> None:
    connection = {
        "conn_type": "mediation",
        "host": simulator.url,
        "login": simulator.config.client_id,
        "password": simulator.config.client_secret,
        "extra": extra,
    }
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


def _need_database() -> None:
    from airflow_mediation_provider.testing.database import why_not_ready

    if reason := why_not_ready():
        pytest.fail(reason, pytrace=False)
