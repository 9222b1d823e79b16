"""A StatsD server on 127.0.0.1, and Airflow's own client, configured by Airflow's own settings to send to it."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import pytest

from airflow_mediation_provider import metrics
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

if TYPE_CHECKING:
    from collections.abc import Iterator

END = "no more"
# A separate process: a thread would wait for the tests' thread while the socket's buffer of a few hundred overflows.
LISTENER = f"""
import socket, sys
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
received = []
while True:
    received.append(listener.recv(65_535).decode())
    if received[-1] == {END!r}:
        print(*received, sep="\\n", flush=True)
        received = []
"""


class Sent(NamedTuple):
    """One line of StatsD, with InfluxDB's tags."""

    name: str
    tags: dict[str, str]
    value: float
    kind: str


class StatsdServer:
    """Receives what is sent by UDP."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", LISTENER], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._heard = self._process.stdout
        self.port = int(self._heard.readline())

    @property
    def settings(self) -> dict[str, str]:
        """Return the environment variables that make Airflow send its metrics here, with InfluxDB's tags."""
        settings = {"on": "True", "host": "127.0.0.1", "port": str(self.port), "influxdb_enabled": "True"}
        return {f"AIRFLOW__METRICS__STATSD_{name.upper()}": value for name, value in settings.items()}

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def lines(self) -> list[str]:
        """Return all lines that were sent since the last call."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(END.encode(), ("127.0.0.1", self.port))
        assert select.select([self._heard], [], [], 30)[0], "the listener has not received the end"
        return list(iter(lambda: self._heard.readline().removesuffix("\n"), END))

    def ours(self) -> list[Sent]:
        """Return what this package sent since the last call, in order."""
        prefix = "airflow."
        return [_read(line.removeprefix(prefix)) for line in self.lines() if line.startswith(f"{prefix}mediation.")]

    def counted(self) -> dict[str, float]:
        """Return what this package counted since the last call: sums, by name and tags as in ``name,tag=value``."""
        sums: dict[str, float] = {}
        for sent in self.ours():
            if sent.kind == "c":
                key = ",".join([sent.name, *(f"{name}={value}" for name, value in sent.tags.items())])
                sums[key] = sums.get(key, 0) + sent.value
        return sums


def _read(line: str) -> Sent:
    full_name, _, rest = line.partition(":")
    value, _, kind = rest.partition("|")
    name, *tags = full_name.split(",")
    return Sent(name, dict(tag.split("=") for tag in tags), float(value), kind)


@contextmanager
def statsd_server(**settings: str) -> Iterator[StatsdServer]:
    """Make Airflow send its metrics to our own server, by default with InfluxDB's tags.

    :param settings: further settings of Airflow's section ``metrics``
    """
    server = StatsdServer()
    more = {f"AIRFLOW__METRICS__{name.upper()}": value for name, value in settings.items()}
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {**server.settings, **more}.items():
                environment.setenv(name, value)
            _set_up()
            yield server
    finally:
        _set_up()
        server.close()


def _set_up() -> None:
    """Do what Airflow does at the start of a process and of a task."""
    metrics.set_up()
    stats = import_module("airflow.sdk.observability.stats").Stats
    get_factory = import_module("airflow.sdk.observability.metrics.stats_utils").get_stats_factory
    if AIRFLOW_V_3_3_PLUS:
        stats.initialize(factory=get_factory(), export_legacy_names=True)
    else:
        stats.initialize(factory=get_factory(stats))
