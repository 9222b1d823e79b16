"""The stage of a drill: a simulated Zuora, a real Airflow with two API servers behind a balancer, and many waits."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from airflow_mediation_provider.simulator import Simulator, SimulatorConfig
from testkit.postgres import Postgres
from testkit.processes import wait_until
from testkit.stack import AirflowStack
from tests.drill.balancer import Balancer
from tests.drill.dags import write_dags
from tests.drill.observe import Database
from tests.drill.tenant import CONN_ID, SECRET
from tests.drill.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.drill.history import Consumer, History, Wait

SERVERS = ("api-server", "api-server-2")


class Stage:
    """A context manager.

    :param root: directory of its files
    :param config: the simulated tenant
    :param consumers: the Dags
    :param database: postgresql or sqlite
    :param settings: of Airflow, as environment variables
    :param history: for each reader of the callout history, the seconds between two reads: Zuora cannot reach this
        Airflow, so the connection takes no callouts, and a triggerer runs
    :param zone: of the tenant's times, where the connection names it
    """

    def __init__(
        self,
        root: Path,
        config: SimulatorConfig,
        consumers: list[Consumer],
        database: str = "postgresql",
        settings: Mapping[str, str] | None = None,
        history: Sequence[float] = (),
        zone: str = "",
    ) -> None:
        self._root = root
        self._consumers = consumers
        self._kind = database
        self._settings = dict(settings or {})
        self._history = history
        self._zone = zone
        self._open = ExitStack()
        self.sim = Simulator(config)

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def _set_up(self) -> None:
        write_dags(self._root / "dags", self._consumers, self._history or (None,))
        self._open.enter_context(self.sim)
        address = None
        if self._kind == "postgresql":
            address = self._open.enter_context(Postgres()).create("drill")
        self.airflow = AirflowStack(
            self._root,
            self._root / "dags",
            {f"AIRFLOW_CONN_{CONN_ID.upper()}": self._connection(), **self._settings},
            database=address,
            components=("api-server", "scheduler", "dag-processor", *(("triggerer",) if self._history else ())),
            api_servers=len(SERVERS),
        )
        self._open.enter_context(self.airflow)
        self.airflow.wait_dags({consumer.dag_id for consumer in self._consumers})
        self.database = Database(address or f"sqlite:///{self.airflow.home / 'airflow.db'}?timeout=60")
        self.balancer = self._open.enter_context(Balancer([urlsplit(u).port or 0 for u in self.airflow.api_urls]))
        # Like a triggerer that reaches the API servers behind the balancer.
        env = {**self.airflow.processes.env, "AIRFLOW__MEDIATION__FEED_URL": f"{self.balancer.url}/mediation"}
        self.waits = self._open.enter_context(Waits(self._root, env, CONN_ID))

    def _connection(self) -> str:
        config = self.sim.config
        return json.dumps(
            {
                "conn_type": "mediation",
                "host": self.sim.url,
                "login": config.client_id,
                "password": config.client_secret,
                "extra": {
                    **({} if self._history else {"callout_hmac_secret": SECRET}),
                    **({"callout_timezone": self._zone} if self._zone else {}),
                },
            }
        )

    @property
    def callouts_url(self) -> str:
        """Return the address of the callouts."""
        return f"{self.balancer.url}/mediation/callouts/{CONN_ID}"

    def wait_changes(self, count: int) -> None:
        """Wait until so many changes were made."""

        def made() -> bool:
            return int(self.sim.health()["log"].get("transition", 0)) >= count

        wait_until(made, timeout=900, what="all changes", every=2)

    def wait_runs(self) -> None:
        """Wait until no Dag run starts or ends any more."""
        seen: list[tuple[float, set[tuple[str, str | None, str]]]] = []

        def quiet() -> bool:
            runs = {(run.dag_id, run.key, run.state) for run in self.database.runs()}
            if not seen or seen[-1][1] != runs:
                seen.append((time.monotonic(), runs))
            open_runs = any(state not in ("success", "failed") for _, _, state in runs)
            return time.monotonic() - seen[-1][0] > (60 if open_runs else 15)

        wait_until(quiet, timeout=900, what="the scheduler to be done", every=2)

    def history(self, waits: list[Wait]) -> History:
        """Return everything that was recorded."""
        return self.database.history(self.sim.log(("transition", "callout")), self._consumers, waits)
