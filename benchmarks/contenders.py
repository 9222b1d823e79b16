"""The triggers that are measured: ours, three of other providers, and one that only waits.

Each is built the way Airflow does it, from a class path and plain JSON arguments, against the server of `api_server`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from airflow.triggers.base import TriggerEvent


class EmptyTrigger(BaseTrigger):
    """Waits without end and sends no requests: the cost of Airflow itself for each trigger."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path; there are no arguments."""
        return "benchmarks.contenders.EmptyTrigger", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until cancelled."""
        await asyncio.Event().wait()
        return
        yield


@dataclass(frozen=True)
class Contender:
    """One kind of trigger.

    :param label: its name in the tables
    :param class_path: of the trigger
    :param arguments: (number of the remote object, poll interval in seconds) -> the trigger's arguments
    :param connection: port -> the Airflow connection it uses, whose id is always `bench`
    :param succeeded: returns whether an event's payload means that the remote object succeeded
    :param shares_objects: whether many waits may be on one remote object; otherwise each wait polls its own
    """

    label: str
    class_path: str
    arguments: Callable[[int, float], dict[str, Any]]
    connection: Callable[[int], dict[str, Any]]
    succeeded: Callable[[Any], bool]
    shares_objects: bool = False

    def build(self, number: int, interval: float) -> BaseTrigger:
        """Return a trigger that waits for remote object `number`, built from arguments that went through JSON."""
        module, _, name = self.class_path.rpartition(".")
        arguments = json.loads(json.dumps(self.arguments(number, interval)))
        trigger: BaseTrigger = getattr(importlib.import_module(module), name)(**arguments)
        return trigger


def _meter_session_arguments(number: int, interval: float) -> dict[str, Any]:
    """A sensor's wait, with its deadline, for a session that started an hour ago.

    No reading within 30 s of a session's start ends a wait, because it may be stale; that is not measured here.
    """
    from airflow_mediation_provider.protocol.waits.condition import SessionCondition
    from airflow_mediation_provider.protocol.waits.wait import SessionWait

    now = datetime.now(UTC)
    condition = SessionCondition(meter_id=str(number), session_id=f"session-{number}", until=now + timedelta(hours=1))
    wait = SessionWait(condition, started_at=now - timedelta(hours=1), run_status="RUNNING", created_at=now)
    return {"mediation_conn_id": "bench", "wait": wait.to_dict(), "poll_interval": interval}


CONTENDERS: dict[str, Contender] = {
    "empty": Contender(
        label="empty trigger",
        class_path="benchmarks.contenders.EmptyTrigger",
        arguments=lambda _number, _interval: {},
        connection=lambda _port: {"conn_type": "generic"},
        succeeded=lambda _payload: False,
    ),
    "mediation": Contender(
        label="MeterSessionTrigger",
        class_path="airflow_mediation_provider.triggers.meter_session.MeterSessionTrigger",
        arguments=_meter_session_arguments,
        connection=lambda port: {
            "conn_type": "mediation",
            "host": f"https://127.0.0.1:{port}",
            "login": "client",
            "password": "secret",
        },
        succeeded=lambda payload: payload["end"] == "MET",
        shares_objects=True,
    ),
    "dbt-cloud": Contender(
        label="DbtCloudRunJobTrigger",
        class_path="airflow.providers.dbt.cloud.triggers.dbt.DbtCloudRunJobTrigger",
        arguments=lambda number, interval: {
            "conn_id": "bench",
            "run_id": number,
            "account_id": 1,
            "end_time": time.time() + 3600,
            "poll_interval": interval,
        },
        connection=lambda port: {"conn_type": "dbt_cloud", "host": f"127.0.0.1:{port}", "login": "1", "password": "t"},
        succeeded=lambda payload: payload["status"] == "success",
    ),
    "databricks": Contender(
        label="DatabricksExecutionTrigger",
        class_path="airflow.providers.databricks.triggers.databricks.DatabricksExecutionTrigger",
        arguments=lambda number, interval: {
            "databricks_conn_id": "bench",
            "run_id": number,
            "polling_period_seconds": interval,
            "retry_limit": 3,  # this and the delay as the operators pass them, not the trigger's own default
            "retry_delay": 1,
        },
        connection=lambda port: {"conn_type": "databricks", "host": "127.0.0.1", "port": port, "password": "t"},
        succeeded=lambda payload: json.loads(payload["run_state"])["result_state"] == "SUCCESS",
    ),
    "http": Contender(
        label="HttpSensorTrigger",
        class_path="airflow.providers.http.triggers.http.HttpSensorTrigger",
        arguments=lambda number, interval: {
            "http_conn_id": "bench",
            "endpoint": f"jobs/{number}",
            "poke_interval": interval,
        },
        connection=lambda port: {"conn_type": "http", "host": f"https://127.0.0.1:{port}"},
        succeeded=lambda payload: payload is True,
    ),
}
