"""A StatsD server on 127.0.0.1, and Airflow's own client, set up by Airflow's own settings to send to it."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import pytest

from airflow_mediation_provider import metrics
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

if TYPE_CHECKING:
    from collections.abc import Iterator

END = b"no more"
CLOSE = b"not any more"


class Sent(NamedTuple):
    """One line of StatsD, with InfluxDB's tags."""

    name: str
    tags: dict[str, str]
    value: float
    kind: str


class StatsdServer:
    """Hears what is sent by UDP, in a thread of its own: a socket's buffer holds a few hundred lines alone."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._heard: SimpleQueue[bytes] = SimpleQueue()
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def settings(self) -> dict[str, str]:
        """Return what has Airflow send its metrics here, with InfluxDB's tags, as environment variables."""
        settings = {"on": "True", "host": "127.0.0.1", "port": str(self.port), "influxdb_enabled": "True"}
        return {f"AIRFLOW__METRICS__STATSD_{name.upper()}": value for name, value in settings.items()}

    def close(self) -> None:
        self._send(CLOSE)
        self._thread.join(10)
        self._socket.close()

    def lines(self) -> list[str]:
        """Return all lines that were sent since the last call."""
        self._send(END)
        found = []
        while (datagram := self._heard.get(timeout=10)) != END:
            found += datagram.decode().splitlines()
        return found

    def _hear(self) -> None:
        while (datagram := self._socket.recv(65_535)) != CLOSE:
            self._heard.put(datagram)

    def _send(self, datagram: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(datagram, self._socket.getsockname())

    def ours(self) -> list[Sent]:
        """Return what this package sent since the last call, in its order."""
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
    """Have Airflow send its metrics to a server of our own, by default with InfluxDB's tags.

    :param settings: further ones of Airflow's section ``metrics``
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
    """Do what Airflow does when a process of its own begins, and when a task's does."""
    metrics.set_up()
    stats = import_module("airflow.sdk.observability.stats").Stats
    get_factory = import_module("airflow.sdk.observability.metrics.stats_utils").get_stats_factory
    if AIRFLOW_V_3_3_PLUS:
        stats.initialize(factory=get_factory(), export_legacy_names=True)
    else:
        stats.initialize(factory=get_factory(stats))
