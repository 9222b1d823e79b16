"""The rounds of the drill: what happens to the cluster while the load runs."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, text

from tests.drill.checker import Bounds
from tests.drill.cluster.install import faketime
from tests.drill.cluster.stack import COMPONENTS, SCHEDULERS, SERVERS, TRIGGERERS, WORKERS
from tests.drill.stops import suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.drill.cluster.stack import Cluster

# Seconds. Suspended ones are longer than Airflow's thresholds of 30; nginx is away for longer than all attempts take.
DEAD, SUSPENDED, NO_DATABASE, NO_BROKER, NO_NGINX, FULL, APART = 20.0, 60.0, 15.0, 5.0, 75.0, 20.0, 90.0
IDLE = 45.0
CLOCKS = {SERVERS[0]: "+4s", SERVERS[1]: "-4s"}
"""Further apart, Airflow's own tokens are not valid: its leeway is ten seconds."""
ATTEMPTS, INTERVAL = 5, 10.0
"""How Zuora delivers callouts here: for 40 seconds."""


@dataclass(frozen=True)
class Scene:
    """What a fault needs.

    :param disk: a file system of its own with the database's files; ``None``: none could be mounted
    :param other: the interpreter of the version to roll to, by a function that installs it
    """

    cluster: Cluster
    disk: Path | None
    other: Callable[[], Path]


@dataclass(frozen=True)
class Round:
    """One round.

    :param name: as on the command line
    :param what: for the table
    :param fault: happens while the load runs
    :param bounds: of the checker
    :param old: whether the cluster begins with the older version, and a database of its own
    :param lost: whether callouts are lost, so that ``airflow mediation reconcile`` has to repair the journal
    :param impossible: returns why the round cannot be played here; empty if it can
    """

    name: str
    what: str
    fault: Callable[[Scene], None]
    bounds: Bounds = field(default_factory=Bounds)
    old: bool = False
    lost: bool = False
    impossible: Callable[[Scene], str] = lambda _: ""


def nothing(_: Scene) -> None:
    """No fault."""


def dead(name: str, seconds: float = DEAD) -> Callable[[Scene], None]:
    """Kill a process and its children without warning; it is back after some seconds."""

    def fault(scene: Scene) -> None:
        scene.cluster.stop(name, sig=signal.SIGKILL)
        time.sleep(seconds)
        scene.cluster.start(name)

    return fault


def stalled(name: str) -> Callable[[Scene], None]:
    """Suspend a process and its children for longer than Airflow waits for it."""

    def fault(scene: Scene) -> None:
        with suspended(scene.cluster.pids(name)):
            time.sleep(SUSPENDED)

    return fault


def database_restarts(scene: Scene) -> None:
    """Restart PostgreSQL at once."""
    scene.cluster.postgres.crash()
    time.sleep(NO_DATABASE)
    scene.cluster.postgres.resume()


def database_fails_over(scene: Scene) -> None:
    """Restart PostgreSQL while a transaction that has written is idle, as a shell that was left open holds one."""
    with idle_transaction(scene.cluster.postgres.dsn("airflow")):
        time.sleep(IDLE)
        database_restarts(scene)


@contextmanager
def idle_transaction(address: str) -> Iterator[None]:
    """Hold a transaction open that has a number of its own; the database may go away meanwhile."""
    engine = create_engine(address, poolclass=NullPool)
    connection = engine.connect()
    connection.execute(text("SELECT txid_current()"))
    try:
        yield
    finally:
        connection.invalidate()
        engine.dispose()


def clocks_apart(scene: Scene) -> None:
    """Run the API servers with clocks that are eight seconds apart, for a while."""
    cluster = scene.cluster
    for clocks in (CLOCKS, {}):
        for name in SERVERS:
            cluster.clocks[name] = {}
            if name in clocks:
                preload = {"LD_PRELOAD": str(faketime()), "FAKETIME": clocks[name]}
                cluster.clocks[name] = {**preload, "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            cluster.stop(name)
            cluster.start(name)
            cluster.wait_ready()
        if clocks:
            time.sleep(APART)


def disk_full(scene: Scene) -> None:
    """Fill the file system of the database, and make room again."""
    assert scene.disk is not None
    assert scene.disk.is_mount(), "else it would fill another file system"
    filler = scene.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            os.fsync(file.fileno())
    try:
        time.sleep(FULL)
    finally:
        filler.unlink()
    scene.cluster.postgres.resume()


def rolled(scene: Scene) -> None:
    """Replace each process by one of the other version, the API servers first; the database is migrated before."""
    cluster, python = scene.cluster, scene.other()
    cluster.command("db", "migrate", python=python)
    for name in COMPONENTS:
        cluster.stop(name)
        cluster.pythons[name] = python
        cluster.start(name)
        cluster.wait_ready()


def rolled_back(scene: Scene) -> None:
    """Replace each process by one of the older version, the API servers last; the database stays as it is."""
    cluster, python = scene.cluster, scene.other()
    for name in reversed(COMPONENTS):
        cluster.stop(name)
        cluster.pythons[name] = python
        cluster.start(name)
        cluster.wait_ready()


BLIND = Bounds(blind=True)
ROUNDS = (
    Round("none", "no fault", nothing),
    Round("worker", f"`kill -9` of a worker, {DEAD:.0f} s", dead(WORKERS[0])),
    Round("triggerer", f"`kill -9` of a triggerer, {DEAD:.0f} s", dead(TRIGGERERS[0])),
    Round("scheduler", f"`kill -9` of a scheduler, {DEAD:.0f} s", dead(SCHEDULERS[0])),
    Round("api-server", f"`kill -9` of an API server, {DEAD:.0f} s", dead(SERVERS[0])),
    Round("dag-processor", f"`kill -9` of the dag-processor, {DEAD:.0f} s", dead("dag-processor")),
    Round("redis", f"`kill -9` of Redis, {NO_BROKER:.0f} s", dead("redis", NO_BROKER)),
    Round("stalled-triggerer", f"a triggerer suspended for {SUSPENDED:.0f} s", stalled(TRIGGERERS[0])),
    Round("stalled-scheduler", f"a scheduler suspended for {SUSPENDED:.0f} s", stalled(SCHEDULERS[0])),
    Round("database", f"PostgreSQL stopped at once, {NO_DATABASE:.0f} s", database_restarts, BLIND),
    Round(
        "failover",
        f"a transaction idle for {IDLE:.0f} s, then PostgreSQL stopped at once, {NO_DATABASE:.0f} s",
        database_fails_over,
        BLIND,
    ),
    Round(
        "disk",
        f"no space for PostgreSQL, {FULL:.0f} s",
        disk_full,
        BLIND,
        impossible=lambda scene: "" if scene.disk else "no file system could be mounted",
    ),
    Round(
        "nginx",
        f"nginx away for {NO_NGINX:.0f} s, callouts lost; then `reconcile`",
        dead("nginx", NO_NGINX),
        Bounds(blind=True, repaired=True),
        lost=True,
    ),
    Round(
        "clocks",
        f"clocks of the API servers eight seconds apart, {APART:.0f} s",
        clocks_apart,
        impossible=lambda _: "" if faketime() else "libfaketime is not installed",
    ),
    Round("upgrade", "each process replaced by one of this version", rolled, BLIND, old=True),
    Round("way-back", "each process replaced by one of the older version", rolled_back, BLIND),
)
