"""A cluster: two of each of Airflow's processes on CeleryExecutor, Redis, PostgreSQL, and nginx as its only address.

Each process has a home of its own; they share the database, the broker, the Dag files and the logs.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import httpx

from testkit.client import AirflowClient
from testkit.postgres import Postgres
from testkit.processes import NotInTimeError, Processes, free_ports, kill_processes_in, wait_until
from testkit.stack import environment
from tests.drill.observe import Database

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.drill.cluster.install import Programs

BASE_PATH = "/af"
SERVERS = ("api-server-1", "api-server-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
TRIGGERERS = ("triggerer-1", "triggerer-2")
WORKERS = ("worker-1", "worker-2")
COMPONENTS = (*SERVERS, *SCHEDULERS, "dag-processor", *TRIGGERERS, *WORKERS)
# Shorter than Airflow's own, so that a round is over in minutes: 300 s, 300 s and 600 s.
SETTINGS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "90",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "AIRFLOW__CORE__PARALLELISM": "64",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "500",
    "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": "500",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
    # All processes share one machine: by default a server that does not answer within 5 s fails the task.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
}
_NGINX = """\
daemon off;
worker_processes 2;
pid {root}/nginx.pid;
{user}
events {{ worker_connections 1024; }}
http {{
  access_log {root}/access.log;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  upstream airflow {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    location {base}/ {{ proxy_pass http://airflow; }}
    location {base}/mediation/callouts/ {{
      proxy_pass http://airflow;
      proxy_read_timeout 15s;
      client_max_body_size 256k;
    }}
  }}
}}
"""


class Cluster(AirflowClient):
    """A context manager that starts a cluster and ends all of its processes.

    A component that ends by itself is started again, as a supervisor does; one that the drill stopped stays down.

    :param root: private directory
    :param dags: directory of the Dag files
    :param programs: Redis and nginx
    :param python: the interpreter of the components
    :param disk: directory of the database's files
    """

    def __init__(self, root: Path, dags: Path, programs: Programs, python: Path, disk: Path) -> None:
        nginx, redis, *api = free_ports(2 + len(SERVERS))
        super().__init__(f"http://127.0.0.1:{nginx}{BASE_PATH}")
        self.root = root
        self.pythons = dict.fromkeys(COMPONENTS, python)
        self.clocks: dict[str, Mapping[str, str]] = {}
        # The changes that were answered 200 must survive the end of the server.
        self.postgres = Postgres(durable=True, parent=disk)
        self.restarts: Counter[str] = Counter()
        self._starts: Counter[str] = Counter()
        self._dags = dags
        self._programs = programs
        self._ports = {"nginx": nginx, "redis": redis, **dict(zip(SERVERS, api, strict=True))}
        self._redis_password = secrets.token_hex(16)
        self._processes: dict[str, Processes] = {}
        self._down: set[str] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _set_up(self) -> None:
        for name in (*COMPONENTS, "redis", "nginx"):
            kill_processes_in(self.root / name)
        self.postgres.start()
        address = self.postgres.create("airflow")
        self.database = Database(address)
        self._env = {
            name: value
            for name, value in environment(self.root, self._dags, self.url, self.url, address).items()
            if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        self._env |= {
            **SETTINGS,
            "AIRFLOW__CELERY__BROKER_URL": f"redis://:{self._redis_password}@127.0.0.1:{self._ports['redis']}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{address}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.root / "logs"),
        }
        self.start("redis")
        self.command("db", "migrate")
        for name in ("nginx", *COMPONENTS):
            self.start(name)
        self.wait_ready()
        self._supervisor.start()

    def close(self) -> None:
        """End all processes."""
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        self.disconnect()
        for processes in self._processes.values():
            processes.close()
        self.postgres.close()

    # ---- one process

    def start(self, name: str) -> None:
        """Start a process: a component, ``nginx`` or ``redis``."""
        with self._lock:
            self._down.discard(name)
            processes = self._of(name)
            if not processes.running(name):
                # A log of its own for each start: it shows whether a worker is ready.
                log = processes.log_file(name)
                if log.exists():
                    log.rename(log.with_suffix(f".{self._starts[name]}.log"))
                self._starts[name] += 1
                processes.start(name, self._command(name))

    def stop(self, name: str, sig: int = signal.SIGTERM) -> None:
        """Stop a process, which stays down; with ``SIGKILL`` it and its children at once."""
        with self._lock:
            self._down.add(name)
        self._of(name).stop(name, sig=sig)

    def pids(self, name: str) -> list[int]:
        """Return a process and its children."""
        return self._of(name).pids(name)

    def command(self, *command: str, python: Path | None = None, timeout: float = 600) -> str:
        """Run a command of Airflow, and return its output.

        :param python: the interpreter; by default that of the first API server
        :raises NotInTimeError: it failed, or took too long
        """
        name = f"command-{'-'.join(command[:2])}"
        processes = self._of(name)
        processes.log_file(name).unlink(missing_ok=True)
        processes.run(name, [str(python or self.pythons[SERVERS[0]]), "-m", "airflow", *command], timeout=timeout)
        return processes.log_file(name).read_text()

    def _of(self, name: str) -> Processes:
        """Return the processes of one directory, which is the home of one component."""
        home = self.root / name
        if name not in self._processes:
            (home / "tmp").mkdir(parents=True, exist_ok=True)
            self._processes[name] = Processes(home, {})
        python = self.pythons.get(name, self.pythons[SERVERS[0]])
        own = {"AIRFLOW_HOME": str(home), "TMPDIR": str(home / "tmp")}
        own["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
        self._processes[name].env = {**self._env, **own, **self.clocks.get(name, {})}
        return self._processes[name]

    def _command(self, name: str) -> list[str]:
        home = self.root / name
        if name == "redis":
            # Written to a file, as every command shows in the list of processes.
            settings = {"port": self._ports["redis"], "bind": "127.0.0.1", "requirepass": self._redis_password}
            settings |= {"appendonly": "yes", "dir": home, "save": '""'}
            (home / "redis.conf").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
            return [self._programs.redis, str(home / "redis.conf")]
        if name == "nginx":
            servers = " ".join(f"server 127.0.0.1:{self._ports[each]} max_fails=0;" for each in SERVERS)
            user = "user root;" if os.geteuid() == 0 else ""
            text = _NGINX.format(root=home, user=user, servers=servers, port=self._ports["nginx"], base=BASE_PATH)
            (home / "nginx.conf").write_text(text)
            return [self._programs.nginx, "-p", str(home), "-c", str(home / "nginx.conf"), "-e", "stderr"]
        airflow = [str(self.pythons[name]), "-m", "airflow"]
        if name in SERVERS:
            return [*airflow, "api-server", "--port", str(self._ports[name])]
        if name in WORKERS:
            return [*airflow, "celery", "worker", "--celery-hostname", f"{name}@%h", "--skip-serve-logs"]
        component = name.removesuffix("-1").removesuffix("-2")
        return [*airflow, component, *(() if component == "dag-processor" else ("--skip-serve-logs",))]

    # ---- all of them

    def wait_ready(self, *, timeout: float = 600) -> None:
        """Wait until every process works.

        :raises NotInTimeError: one ended, or the time is over
        """
        since = datetime.now(UTC)

        def ready() -> bool:
            for name in COMPONENTS:
                if not self._of(name).running(name) and not self._supervisor.is_alive():
                    raise NotInTimeError(f"{name} ended:\n{self._of(name).tail(name)}")
            return not self.missing(since)

        try:
            wait_until(ready, timeout=timeout, what="the cluster", every=1)
        except NotInTimeError as error:
            raise NotInTimeError(f"{error}: {', '.join(self.missing(since))}") from None

    def missing(self, since: datetime) -> list[str]:
        """Return what does not work since an instant."""
        beats = "SELECT job_type, count(*) FROM job WHERE state = 'running' AND latest_heartbeat > :since GROUP BY 1"
        jobs = dict(self.database.read(beats, since=since))
        wanted = {"SchedulerJob": len(SCHEDULERS), "TriggererJob": len(TRIGGERERS), "DagProcessorJob": 1}
        found = [kind for kind, count in wanted.items() if jobs.get(kind, 0) < count]
        found += [name for name in SERVERS if not self.answers(name)]
        return found + [name for name in WORKERS if not self._ready(name)]

    def _ready(self, worker: str) -> bool:
        """Return whether a worker has written since its start that it takes tasks."""
        with suppress(FileNotFoundError), self._of(worker).log_file(worker).open(errors="replace") as log:
            return any(" ready." in line for line in log)
        return False

    def answers(self, server: str) -> bool:
        """Return whether an API server answers by itself."""
        try:
            url = f"http://127.0.0.1:{self._ports[server]}{BASE_PATH}/api/v2/version"
            return httpx.get(url, trust_env=False, timeout=5).is_success
        except httpx.HTTPError:
            return False

    def _supervise(self) -> None:
        while not self._over.wait(2):
            for name in (*COMPONENTS, "nginx", "redis"):
                with self._lock, suppress(subprocess.SubprocessError):
                    down = name in self._down or self._of(name).running(name)
                if not down and not self._over.is_set():
                    self.restarts[name] += 1
                    self.start(name)
