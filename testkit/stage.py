"""Everything that the example Dags need, in a private directory: simulator, Airflow, usage database, mail server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from airflow_mediation_provider.protocol.wire import derive_key
from airflow_mediation_provider.simulator.tokens import MARK
from testkit.mail import MailServer
from testkit.processes import NotInTimeError, Processes, free_ports, kill_processes_in, wait_until
from testkit.simulator import SimulatorControl
from testkit.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

PROJECT = Path(__file__).resolve().parent.parent
CONN_ID = "mediation_default"
CLIENT_ID, CLIENT_SECRET = "simulator-client", "simulator-secret"


class StageInUseError(Exception):
    """Another process uses the same directory."""


class Stage:
    """A context manager: starts the simulator and Airflow, and removes both and the directory at the end.

    :param root: private directory; its content is removed at start and end
    :param dags: directory of the Dag files
    :param time_scale: how many seconds a second of the meters' scripts takes
    :param calling_out: meters for whose sessions the simulator sends callouts; all by default
    :param env: further environment variables of Airflow's components
    :param login: name and password of a user with all permissions; without one, no login is needed
    :param migrated: file of a migrated SQLite database, which Airflow starts with a copy of
    """

    def __init__(
        self,
        root: Path,
        dags: Path = PROJECT / "dags",
        *,
        time_scale: float = 1.0,
        calling_out: Collection[str] = (),
        env: Mapping[str, str] | None = None,
        login: tuple[str, str] | None = None,
        migrated: Path | None = None,
    ) -> None:
        (port,) = free_ports(1)
        self.root = root.resolve()
        self.dags = dags
        self.time_scale = time_scale
        self.simulator = SimulatorControl(f"http://127.0.0.1:{port}")
        self.usage_db = self.root / "usage.db"
        self.mail = MailServer()
        self._calling_out = calling_out
        self._callout_secret = secrets.token_hex(16)
        connections = {
            "AIRFLOW_CONN_MEDIATION_DEFAULT": connection(self.simulator.url, callout_secret=self._callout_secret),
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(self.mail.connection),
            "AIRFLOW_CONN_USAGE_DB": json.dumps({"conn_type": "sqlite", "host": str(self.usage_db)}),
        }
        env = {**connections, **(env or {})}
        self.airflow = AirflowStack(self.root / "stack", dags, env, login=login, migrated=migrated)
        self._processes = Processes(self.root / "simulator", self.airflow.processes.env)
        self._owner = self.root / "owner"
        self._owned = False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the simulator and Airflow.

        :raises NotInTimeError: one of them did not get healthy; the message contains the tail of its log
        :raises StageInUseError: another process uses the directory
        """
        if self._owner.exists() and psutil.pid_exists(owner := int(self._owner.read_text())):
            raise StageInUseError(f"process {owner} uses {self.root} already")
        self._owned = True
        self._remove()
        self._processes.root.mkdir(parents=True)
        self._owner.write_text(str(os.getpid()))
        port = self.simulator.url.rpartition(":")[2]
        command = ["airflow_mediation_provider.simulator", "--port", port, "--time-scale", str(self.time_scale)]
        self._processes.start("simulator", [sys.executable, "-m", *command])
        self.airflow.start()
        try:
            wait_until(self.simulator.healthy, timeout=20, what="the simulator to answer")
        except NotInTimeError as error:
            raise NotInTimeError(f"{error}\n{self._processes.tail('simulator')}") from None
        self.call_out()

    @property
    def secrets(self) -> dict[str, bytes]:
        """The secrets of the connection by their names, in each form in which one is sent or written."""
        known = {"client secret": CLIENT_SECRET.encode(), "secret of callouts": self._callout_secret.encode()}
        key = derive_key(CLIENT_SECRET)
        return {
            **known,
            **{f"{name}, base64": base64.b64encode(secret).rstrip(b"=") for name, secret in known.items()},
            "credentials, base64": base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).rstrip(b"="),
            "derived key": key,
            "derived key, hex": key.hex().encode(),
            "token": MARK.encode(),
        }

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Query the usage database, which the Dags load; an empty list until something is loaded."""
        if not self.usage_db.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{self.usage_db}?mode=ro", uri=True)) as database:
            return database.execute(query, parameters).fetchall()

    def call_out(self, *others: Mapping[str, Any]) -> None:
        """Make the simulator send callouts to Airflow, with seconds between repetitions instead of half an hour.

        :param others: further callouts, in the form of the simulator's ``callouts`` setting
        """
        callout = {
            "url": f"{self.airflow.url}/mediation/callouts/{CONN_ID}",
            "hmac_secret": self._callout_secret,
            "meters": sorted(self._calling_out),
        }
        self.simulator.call("POST", "/config", json={"callouts": [callout, *others]})
        self.simulator.call("POST", "/delivery", json={"interval": 3 / self.time_scale})

    def close(self) -> None:
        """Stop everything and remove the directory."""
        self.simulator.disconnect()
        self.mail.close()
        try:
            self.airflow.close()
        finally:
            self._processes.close()
            if self._owned:
                self._remove()

    def _remove(self) -> None:
        for directory in (self.airflow.root, self._processes.root):
            kill_processes_in(directory)
        shutil.rmtree(self.root, ignore_errors=True)


def connection(url: str, *, callout_secret: str | None = None, **fields: Any) -> str:
    """Return the connection to a simulator as the value of an ``AIRFLOW_CONN_...`` variable.

    :param url: the simulator's address
    :param callout_secret: its callouts are signed with it; without one, the connection accepts none
    :param fields: other fields of the connection (``password``, ``extra`` ...)
    """
    extra = {"ui_link_template": f"{url}/meters/{{meter_id}}/sessions/{{session_id}}"}
    if callout_secret is not None:
        extra["callout_hmac_secret"] = callout_secret
    return json.dumps(
        {
            "conn_type": "mediation",
            "host": url,
            "login": CLIENT_ID,
            "password": CLIENT_SECRET,
            "extra": extra,
            **fields,
        }
    )
