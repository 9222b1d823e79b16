"""The drill of a cluster: Airflow on CeleryExecutor with two of each process, and a fault in each round.

``python -m tests.drill.cluster``: each round has the load of ``load.py``, one fault of ``faults.py``, and the checks of
``tests/drill/checker.py`` on what was recorded. The result of each round is kept: the next call goes on with the rounds
that have none. ``--rounds worker redis`` plays only these, ``--again`` also those that have a result, ``--table``
prints what is kept. A whole pass takes some hours; ``--sessions 18`` makes a short one.

It installs Airflow with Celery, and the package from its wheel, into a directory of its own; PostgreSQL, Redis and
nginx are the system's. Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.simulator import (
    CalloutConfig,
    DeliverySettings,
    MeterConfig,
    Simulator,
    SimulatorConfig,
)
from testkit.stage import PROJECT
from tests.drill.checker import Result, Violation, check, check_tasks
from tests.drill.cluster.faults import ATTEMPTS, INTERVAL, ROUNDS, Round, Scene
from tests.drill.cluster.install import Environments, Programs
from tests.drill.cluster.load import PER_GROUP, SCHEDULED, Load, write_dags
from tests.drill.cluster.stack import Cluster
from tests.drill.lost import compare, edges
from tests.drill.report import deliveries, show
from tests.drill.tenant import CONN_ID, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.drill.history import History

DISK = "2g"
NAMES = [each.name for each in ROUNDS]
BEFORE = "015edc8648c8cfea36a0ad17f2cf69eb1d456d14"
"""The version from which the drill upgrades: it has fewer migrations of the journal."""


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.cluster", description=__doc__)
    made.add_argument("--rounds", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    made.add_argument("--again", action="store_true", help="also those that have a result")
    made.add_argument("--table", action="store_true", help="print the results that are kept, and play nothing")
    made.add_argument("--sessions", type=int, default=200, help="in each round, at least; half as many waits more")
    made.add_argument("--pace", type=float, default=4, help="seconds from one group of sessions to the next")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--before", default=BEFORE, metavar="COMMIT", help="the version to upgrade from")
    made.add_argument("--root", type=Path, default=PROJECT / ".scratch" / "drill-cluster", help="for all files")
    return made.parse_args(argv)


@dataclass(frozen=True)
class Played:
    """The result of a round as it is kept."""

    name: str
    at: str
    sessions: int
    waits: int
    changes: int
    violations: list[str]
    uncertain: int
    ours: dict[str, float]
    airflows: dict[str, float]
    over: float
    restarted: dict[str, int]


class Results:
    """The results that are kept, each in a file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def of(self, name: str) -> list[Played]:
        """Return the results of a round, the oldest first."""
        return [Played(**json.loads(file.read_text())) for file in sorted(self._root.glob(f"{name}.*.json"))]

    def due(self, names: Sequence[str], *, again: bool) -> list[Round]:
        """Return the rounds to play, of some, in their order: those without a result, or all ``again``."""
        by_name = {each.name: each for each in ROUNDS}
        return [by_name[name] for name in names if again or not self.of(name)]

    def keep(self, played: Played, history: History) -> None:
        """Keep a result, and beside it what was recorded."""
        stem = f"{played.name}.{len(self.of(played.name)) + 1:03}"
        history.save(self._root / f"{stem}.history")
        (self._root / f"{stem}.json").write_text(json.dumps(asdict(played), indent=1))

    def table(self) -> str:
        """Return all results as a table in Markdown."""
        lines = [
            "| fault | rounds | sessions | waits | changes | violations | ended by polls, not certain "
            "| latest task after its session, s (median) | latest task of Airflow's own, s (median) "
            "| all over after, s |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for each in ROUNDS:
            found = self.of(each.name)
            if not found:
                lines.append(f"| {each.what} | not run |" + " |" * 8)
                continue
            cells = [
                each.what,
                str(len(found)),
                *(str(sum(getattr(played, name) for played in found)) for name in ("sessions", "waits", "changes")),
                str(sum(len(played.violations) for played in found)),
                str(sum(played.uncertain for played in found)),
                *(
                    ", ".join(f"{lateness['longest']:.0f} ({lateness['median']:.0f})" for lateness in side)
                    for side in ([played.ours for played in found], [played.airflows for played in found])
                ),
                ", ".join(f"{played.over:.0f}" for played in found),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


class Stage:
    """The cluster and the simulator while rounds are played; a new cluster where a round needs another version.

    :param root: directory of all files
    :param before: the commit of the older version
    """

    def __init__(self, root: Path, before: str) -> None:
        self.root = root
        self._programs = Programs.find()
        self._environments = Environments(root / "environments")
        self._before = before
        self._open = ExitStack()
        self._old: bool | None = None
        self._number = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the cluster and the simulator; the next round starts others."""
        self._open.close()
        self._old = None

    def _python(self, *, old: bool) -> Path:
        return self._environments.package(self._before if old else None)

    def _set_up(self, *, old: bool) -> None:
        """Start a cluster of one version."""
        self.close()
        run = self.root / "run"
        disk = self._open.enter_context(own_disk(self.root / "disk"))
        self._disk = disk if disk.is_mount() else None
        shutil.rmtree(run, ignore_errors=True)
        dags = write_dags(run / "dags")
        config = SimulatorConfig(
            meters=tuple(MeterConfig(id=meter) for meter in SCHEDULED),
            max_running_meters=10_000,
            delivery=DeliverySettings(attempts=ATTEMPTS, interval=INTERVAL),
        )
        self.sim = self._open.enter_context(Simulator(config))
        began = time.monotonic()
        print(f"starting a cluster of {'the older' if old else 'this'} version", flush=True)
        self.cluster = Cluster(run, run / "dags", self._programs, self._python(old=old), disk)
        self._open.enter_context(self.cluster)
        self._old = old
        login = {"host": self.sim.url, "login": config.client_id, "password": config.client_secret}
        connection = {"conn_type": "mediation", **login, "extra": {"callout_hmac_secret": SECRET}}
        self.cluster.command("connections", "add", CONN_ID, "--conn-json", json.dumps(connection))
        self.cluster.wait_dags(dags, timeout=600)
        address = f"{self.cluster.url}/mediation/callouts/{CONN_ID}"
        self.sim.callouts(CalloutConfig(url=address, hmac_secret=SECRET))
        print(f"it works after {time.monotonic() - began:.0f} s", flush=True)

    def play(self, each: Round, arguments: argparse.Namespace) -> tuple[Played, History, list[Result], list[str]]:
        """Play a round, and return its result, what was recorded, the checks and the notes."""
        if self._old is None or self._old != each.old:
            self._set_up(old=each.old)
        scene = Scene(self.cluster, self._disk, lambda: self._python(old=not each.old))
        self.cluster.wait_ready()
        self.cluster.restarts.clear()
        self._number += 1
        groups = max(2, -(-arguments.sessions // PER_GROUP))
        load = Load(self.cluster, self.sim, self._number, groups, arguments.pace, arguments.seed + self._number)
        began = datetime.now(UTC)
        load.begin(slice(0, groups // 2))
        load.kill_a_task()
        load.wait_waiting(0.7)
        fault_at = time.time()
        errors: list[BaseException] = []

        def strike() -> None:
            try:
                each.fault(scene)
            except BaseException as error:  # raised again below
                errors.append(error)

        fault = threading.Thread(target=strike)
        fault.start()
        load.begin(slice(groups // 2, None))
        fault.join()
        if errors:
            raise errors[0]
        if each.name in ("upgrade", "way-back"):
            self._old = each.name == "way-back"
        left = load.wait_over()
        over = time.time() - fault_at
        more = []
        if each.lost:
            more, left = self._reconcile(load, began), left or load.wait_over()
        history = load.history()
        results = [*check(history, each.bounds), *check_tasks(history), *more]
        ours, airflows = load.lateness(history, fault_at)
        notes = [
            f"{each.what}: {len(history.walks)} sessions, {len(history.waits)} waits; all over {over:.0f} s after",
            f"tasks ended {ours.median:.0f} s (median) to {ours.longest:.0f} s after their sessions; "
            f"those of Airflow's own sensors {airflows.median:.0f} to {airflows.longest:.0f} s after their instant",
            deliveries(history),
            *([f"started again: {dict(self.cluster.restarts)}"] if self.cluster.restarts else []),
            *([left] if left else []),
        ]
        played = Played(
            name=each.name,
            at=f"{began:%Y-%m-%d %H:%M}",
            sessions=len(history.walks),
            waits=len(history.waits),
            changes=len(history.changes),
            violations=[str(violation) for result in results for violation in result.violations],
            uncertain=sum(wait.certain is False for wait in history.waits),
            ours=asdict(ours),
            airflows=asdict(airflows),
            over=over,
            restarted=dict(self.cluster.restarts),
        )
        return played, history, results, notes

    def impossible(self, each: Round) -> str:
        """Return why a round cannot be played; empty if it can."""
        if self._old is None:
            self._set_up(old=each.old)
        return each.impossible(Scene(self.cluster, self._disk, lambda: Path()))

    def _reconcile(self, load: Load, since: datetime) -> list[Result]:
        """Repair the journal by the callout history, and compare the repairs with what it lacks."""
        lost = edges(load.history())
        command = ("mediation", "reconcile", "--conn-id", CONN_ID, "--json", "--since", since.isoformat())
        repaired: list[list[dict[str, Any]]] = []
        for _ in range(2):
            lines = self.cluster.command(*command).splitlines()
            found = next(json.loads(line) for line in reversed(lines) if line.startswith("{"))
            repaired.append(list(found["repaired"]))
        return [compare(lost, repaired[0], len(repaired[1]))]


@contextmanager
def own_disk(path: Path) -> Iterator[Path]:
    """Mount a small file system in memory; where that is not allowed, an ordinary directory takes its place."""
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0 and not path.is_mount():
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
        subprocess.run(command, capture_output=True, check=False)
    try:
        yield path
    finally:
        if path.is_mount():
            subprocess.run(["umount", str(path)], capture_output=True, check=False)


def main(argv: list[str] | None = None) -> int:
    arguments = options(argv)
    arguments.root.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it ends what it started
    kept = Results(arguments.root / "results")
    passed = True
    if not arguments.table:
        with (arguments.root / "owner").open("w") as owner, Stage(arguments.root, arguments.before) as stage:
            fcntl.flock(owner, fcntl.LOCK_EX)  # one drill at a time has the directory
            for each in kept.due(arguments.rounds, again=arguments.again):
                if why := stage.impossible(each):
                    print(f"\n{each.name} cannot be played: {why}", flush=True)
                    continue
                title = f"Drill: cluster, {each.name}"
                try:
                    played, history, results, notes = stage.play(each, arguments)
                except Exception as error:  # the next round has a new cluster
                    stage.close()
                    passed = show(title, [Result(each.what, 0, [Violation("not played", each.name, repr(error))])], [])
                    continue
                kept.keep(played, history)
                passed &= show(title, results, notes)
    print(kept.table())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
