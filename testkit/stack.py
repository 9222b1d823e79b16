"""A private, real Airflow: each component a process of its own, on free ports of 127.0.0.1, in one directory."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import httpx

from testkit.client import AirflowClient
from testkit.processes import NotInTimeError, Processes, free_ports, kill_processes_in, wait_until

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from testkit.authority import Authority

COMPONENTS = ("api-server", "execution-api", "scheduler", "dag-processor", "triggerer")
# The components in Airflow's health report; a server is healthy if it answers.
REPORTED = {"scheduler", "dag-processor", "triggerer"}


class AirflowStack(AirflowClient):
    """A private Airflow; a context manager that starts it and leaves neither process nor file behind.

    :param root: private directory, made by :meth:`start`; Airflow's home, database, logs and temporary files are in it
    :param dags: directory of the Dag files
    :param env: further environment variables of all components: connections (``AIRFLOW_CONN_...``), settings
        (``AIRFLOW__SECTION__KEY``); they override the settings made here
    :param database: address of an empty or migrated database, e.g. of :class:`testkit.postgres.Postgres`; without one,
        Airflow runs on SQLite in ``root``
    :param migrated: file of a migrated SQLite database, which Airflow starts with a copy of
    :param components: those to run, by the names of :meth:`start`; all by default
    :param api_servers: how many of the user's API servers run; the second one is ``api-server-2``
    :param base_path: path below which Airflow is served, as behind a proxy, starting with a slash
    :param login: name and password of a user with all permissions; without one, no login is needed
    :param authority: issues the certificate of the API servers, which have TLS then; the components trust it by
        Airflow's own setting
    """

    def __init__(
        self,
        root: Path,
        dags: Path,
        env: Mapping[str, str] | None = None,
        *,
        database: str | None = None,
        migrated: Path | None = None,
        components: Collection[str] = COMPONENTS,
        api_servers: int = 1,
        base_path: str = "",
        login: tuple[str, str] | None = None,
        authority: Authority | None = None,
    ) -> None:
        execution_port, port, *others = free_ports(1 + api_servers)
        host = f"{'https' if authority else 'http'}://127.0.0.1"
        super().__init__(f"{host}:{port}{base_path}", login, authority.file if authority else None)
        self.root = root.resolve()
        self._execution_url = f"{host}:{execution_port}{base_path}"
        # The user's API writes its audit log on its event loop, and the tasks' API holds SQLite's only write lock until
        # its event loop goes on: in one process they block each other. So each is a server of its own.
        commands = {
            "api-server": ["api-server", "--apps", "core"],
            "execution-api": ["api-server", "--apps", "execution", "--port", str(execution_port)],
            # All components share the log directory, so logs need not be served over the network.
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "dag-processor": ["dag-processor"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
        }
        self._commands = {name: command for name, command in commands.items() if name in components}
        for number, other in enumerate(others, start=2):
            self._commands[f"api-server-{number}"] = ["api-server", "--apps", "core", "--port", str(other)]
        self.api_urls = [f"{host}:{each}{base_path}" for each in (port, *others)]
        # Airflow's health report is about one server of each kind.
        self._probes = {f"api-server-{n}": f"{url}/api/v2/version" for n, url in enumerate(self.api_urls[1:], 2)}
        if "execution-api" in components:
            self._probes["execution-api"] = f"{self._execution_url}/execution/health"
        self.home = self.root / "airflow"
        self._migrated = migrated
        # SQLite allows one write at a time, and on a busy machine a write can wait longer than the default timeout of
        # five seconds: Airflow's triggerer would end.
        database = database or f"sqlite:///{self.home / 'airflow.db'}?timeout=60"
        settings = environment(self.root, dags.resolve(), self.url, self._execution_url, database)
        settings["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = str(login is None)
        if authority is not None:
            cert, key = authority.issue("api-server")
            settings |= {
                "AIRFLOW__API__SSL_CERT": cert,
                "AIRFLOW__API__SSL_KEY": key,
                "AIRFLOW__API__SSL_CA_FILE": authority.file,
            }
        self.processes = Processes(self.root, {**settings, **(env or {})})

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, component: str | None = None, *, timeout: float = 120) -> None:
        """Start one component, or all of them.

        Components: ``api-server``, ``execution-api`` (the tasks' API), ``scheduler``, ``dag-processor`` and
        ``triggerer``.
        All: creates the database first, and returns when every component reports that it is healthy.

        :param timeout: seconds that all may take
        :raises NotInTimeError: a component ended or did not get healthy; the message contains the tail of its log
        """
        if component is not None:
            self.processes.start(component, [sys.executable, "-m", "airflow", *self._commands[component]])
            return
        kill_processes_in(self.root)
        for directory in (self.home, self.root / "tmp"):
            directory.mkdir(parents=True, exist_ok=True)
        if self._migrated:
            shutil.copy(self._migrated, self.home / "airflow.db")
        else:
            self.processes.run("migrate", [sys.executable, "-m", "airflow", "db", "migrate"], timeout=timeout)
        for each in self._commands:
            self.start(each)
        self.wait_healthy(timeout=timeout)

    def wait_healthy(self, *, timeout: float = 120) -> None:
        """Wait until every component reports that it is healthy.

        :raises NotInTimeError: a component ended, or the time is over; the message contains the tail of its log
        """

        def healthy() -> bool:
            for each in self._commands:
                if not self.processes.running(each):
                    raise NotInTimeError(f"{each} ended; the end of its log:\n{self.processes.tail(each)}")
            health = self.health()
            names = {"metadatabase", *(REPORTED & set(self._commands)), *self._probes}
            return all(health.get(each) == "healthy" for each in names)

        try:
            wait_until(healthy, timeout=timeout, what="Airflow to be healthy")
        except NotInTimeError as error:
            health = self.health()
            ill = [each for each in self._commands if health.get(each) != "healthy"]
            tails = "\n".join(f"--- {each}\n{self.processes.tail(each)}" for each in ill)
            raise NotInTimeError(f"{error}\nhealth: {health}\n{tails}") from None

    def health(self) -> dict[str, str]:
        """Return the health of each component by name; empty as long as the API server does not answer."""
        health = {name.replace("_", "-"): status for name, status in super().health().items()}
        return {**health, **{name: self._answer(url) for name, url in self._probes.items()}} if health else {}

    def stop(self, component: str, *, sig: int = signal.SIGTERM) -> None:
        """Stop a component; with ``SIGKILL`` it and all its children at once, as if its machine failed."""
        self.processes.stop(component, sig=sig)

    def pids(self, component: str) -> list[int]:
        """Return the processes of a component, its main process first."""
        return self.processes.pids(component)

    def _answer(self, url: str) -> str:
        try:
            reply = httpx.get(url, trust_env=False, timeout=5, verify=self._tls)
        except httpx.HTTPError as error:
            return str(error)
        return "healthy" if reply.is_success else reply.text

    def close(self) -> None:
        """Stop everything. Files stay until the root directory is removed."""
        self.disconnect()
        self.processes.close()


def environment(root: Path, dags: Path, url: str, execution_url: str, database: str) -> dict[str, str]:
    """Return the environment of all components: the user's without any Airflow setting, plus the private ones."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        # PYTHONDONTWRITEBYTECODE doubles the time each process takes to start.
        if not name.startswith(("AIRFLOW", "_AIRFLOW", "PYTHONDONTWRITEBYTECODE"))
    }
    settings: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": dags,
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": 5,
            "dags_are_paused_at_creation": False,
            "execution_api_server_url": f"{execution_url}/execution/",
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            # The default asks the name server, for which a machine without network waits.
            "hostname_callable": "socket.gethostname",
            "test_connection": "Enabled",
        },
        "database": {"sql_alchemy_conn": database},
        "api": {
            "host": "127.0.0.1",
            "port": urlsplit(url).port,
            "base_url": url,
            "secret_key": secrets.token_hex(16),
        },
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "scheduler": {
            "scheduler_idle_sleep_time": 0.5,
            "job_heartbeat_sec": 2,
            "scheduler_heartbeat_sec": 2,
            "trigger_timeout_check_interval": 2,
            "task_instance_heartbeat_timeout": 60,
        },
        "triggerer": {"job_heartbeat_sec": 2},
        "dag_processor": {
            "refresh_interval": 2,
            "bundle_refresh_check_interval": 2,
            # A changed file is parsed at once; this setting is for the unchanged ones.
            "min_file_process_interval": 3600,
            "stale_dag_threshold": 7200,
        },
    }
    return {
        **inherited,
        **{f"AIRFLOW__{s.upper()}__{k.upper()}": str(v) for s, keys in settings.items() for k, v in keys.items()},
        "AIRFLOW_HOME": str(root / "airflow"),
        "TMPDIR": str(root / "tmp"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # Airflow's own addresses must not go through a proxy.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }
