"""The load that the callouts endpoint sustains, beside Airflow's own path for asset events.

A real `airflow api-server` with default settings for each path, with a database of its own: SQLite, then PostgreSQL
whose commits wait for the disk. Each sender posts its next request as soon as the last one is answered: to our endpoint
signed callouts, each about another session that COMPLETED; to Airflow's `POST /api/v2/assets/events` the same facts as
an event with the session as partition key. Both make one asset event for each request, on an asset that schedules a Dag
or on one that does not; our endpoint also writes the journal. The two take turns of a few seconds. No scheduler runs.

  python -m benchmarks.callout_throughput                      everything, about 15 minutes
  python -m benchmarks.callout_throughput --check              the same; exit code 1 unless all claims hold
  python -m benchmarks.callout_throughput --only sqlite --workers 1 --senders 8 --seconds 2     a quick run
  python -m benchmarks.callout_throughput --markdown docs/benchmarks.md     update the numbers in the documentation

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from benchmarks.load import ANSWER_TIMEOUT_SECONDS, SECRET, Load, Sent, send
from benchmarks.report import Table, common_arguments, publish
from testkit.postgres import Postgres
from testkit.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

DATABASES = ("sqlite", "postgresql")
ASSETS = {"scheduling": "schedules a Dag", "idle": "schedules nothing"}
PATHS = {"callouts": "callouts", "events": "Airflow's asset events"}
COLUMNS = (
    "database",
    "API workers",
    "senders",
    "asset",
    "path",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "max ms",
    "CPU ms/request",
    "answered",
    "errors",
)
WARM_UP_SECONDS = 2.0
# Two measurements of the same thing differ by this much on a quiet machine.
NOISE = 0.05


@dataclass(frozen=True)
class Cell:
    """The conditions of one row."""

    database: str
    workers: int
    senders: int
    asset: str


@dataclass
class Result:
    """The measurements of one path in one cell, over all its turns."""

    cell: Cell
    path: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    answered: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    turns: list[list[float]] = field(default_factory=list)

    def add(self, sent: Sent, cpu_seconds: float) -> None:
        """Count one turn; `cpu_seconds` are those of the server's processes."""
        self.seconds += sent.seconds
        self.cpu_seconds += cpu_seconds
        self.answered = sorted(self.answered + sent.answered)
        self.turns.append(sorted(sent.answered))
        for what, count in sent.failed.items():
            self.failed[what] = self.failed.get(what, 0) + count

    @property
    def per_second(self) -> float:
        """Return how many answers of 200 there were per second."""
        return len(self.answered) / self.seconds

    def milliseconds(self, quantile: float) -> float:
        """Return the time within which a share of the requests was answered; infinite if too many failed.

        It is the median of the turns' own values: with eight requests at once, a single moment in which the machine
        does something else would otherwise be the p99 of all. If requests failed, it is the value of all of them.
        """
        turns = [self.answered] if self.failed else self.turns
        return statistics.median(_milliseconds(turn, quantile, sum(self.failed.values())) for turn in turns)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        cell = self.cell
        errors = ", ".join(f"{count} x {what}" for what, count in sorted(self.failed.items()))
        return [
            *(cell.database, str(cell.workers), str(cell.senders), ASSETS[cell.asset], PATHS[self.path]),
            f"{self.per_second:.1f}",
            *(_text(self.milliseconds(quantile)) for quantile in (0.5, 0.99)),
            _text(_milliseconds(self.answered, 1.0, sum(self.failed.values()))),
            f"{1000 * self.cpu_seconds / max(len(self.answered) + sum(self.failed.values()), 1):.1f}",
            str(len(self.answered)),
            errors or "0",
        ]


def _milliseconds(answered: list[float], quantile: float, failed: int) -> float:
    count = len(answered) + failed
    index = min(int(count * quantile), count - 1)
    return 1000 * answered[index] if 0 <= index < len(answered) else float("inf")


def _text(milliseconds: float) -> str:
    return "never" if milliseconds == float("inf") else f"{milliseconds:.0f}"


def broken_claims(ours: Result, airflows: Result) -> list[str]:
    """Return where our path is behind Airflow's own, one sentence each."""
    cell = ours.cell
    where = f"{cell.database}, {cell.senders} senders, API workers {cell.workers}, asset {ASSETS[cell.asset]}"
    p99, there = ours.milliseconds(0.99), airflows.milliseconds(0.99)
    broken = []
    if ours.failed:
        broken.append(f"{where}: errors {ours.failed}")
    if ours.per_second < airflows.per_second * (1 - NOISE):
        broken.append(f"{where}: {ours.per_second:.1f} requests/s, Airflow's path {airflows.per_second:.1f}")
    if p99 > there * (1 + NOISE):
        broken.append(f"{where}: p99 {_text(p99)} ms, Airflow's path {_text(there)} ms")
    return broken


class Side:
    """One path on an Airflow of its own, with the benchmark's Dags; a context manager that leaves nothing behind.

    :param path: key of `PATHS`
    :param address: of an empty database; SQLite's in the server's directory without one
    """

    def __init__(self, path: str, workers: int, address: str | None) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        # Unlike in the demo, SQLite's own lock timeout applies, as for users: five seconds.
        address = address or f"sqlite:///{root / 'airflow' / 'airflow.db'}"
        connection = {"conn_type": "mediation", "extra": {"callout_hmac_secret": SECRET}}
        env = {"AIRFLOW_CONN_BENCH": json.dumps(connection), "AIRFLOW__API__WORKERS": str(workers)}
        dags = Path(__file__).parent / "dags"
        self._server = AirflowStack(root, dags, env, database=address, components=["api-server"])
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._server)
        command = [sys.executable, "-m", "airflow", "dags", "reserialize"]
        self._server.processes.run("reserialize", command, timeout=120)
        assets = self._server.api("GET", "/assets")["assets"]
        self._assets = {asset["uri"].removeprefix("bench://events/"): str(asset["id"]) for asset in assets}
        self._warm_up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def turn(self, senders: int, asset: str, seconds: float) -> tuple[Sent, float]:
        """Send for some seconds; return the answers, and the processor time that the server used."""
        before = self._cpu_seconds()
        sent = self._send(senders, asset, seconds)
        used = self._cpu_seconds() - before
        if sent.failed:  # requests without a client any more may run for minutes, and lock the database
            self._server.stop("api-server", sig=signal.SIGKILL)
            self._server.start("api-server")
            self._server.wait_healthy()
            self._warm_up()
        return sent, used

    def _warm_up(self) -> None:
        """Send some requests, so that the server's caches are filled and its database connections open."""
        self._send(2, "idle", WARM_UP_SECONDS)

    def _send(self, senders: int, asset: str, seconds: float) -> Sent:
        if not hasattr(self, "_token"):
            reply = httpx.get(f"{self._server.url}/auth/token", trust_env=False).raise_for_status()
            self._token = reply.json()["access_token"]
        return send(
            Load(
                port=int(self._server.url.rpartition(":")[2]),
                path=self._path,
                asset=asset if self._path == "callouts" else self._assets[asset],
                token=self._token,
                senders=senders,
                seconds=seconds,
                first=next(self._numbers) * 1_000_000,
            )
        )

    def _cpu_seconds(self) -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self._server.pids("api-server"))


@contextlib.contextmanager
def both_sides(database: str, workers: int) -> Iterator[dict[str, Side]]:
    """Run both paths on one kind of database."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Postgres(durable=True)) if database == "postgresql" else None
        yield {
            path: stack.enter_context(Side(path, workers, cluster.create(path) if cluster else None)) for path in PATHS
        }


def measure(sides: Mapping[str, Side], cell: Cell, turns: int, seconds: float) -> list[Result]:
    """Measure both paths in one cell in turns, each first equally often; a path stops after a turn with errors."""
    results = {path: Result(cell, path) for path in PATHS}
    for turn in range(turns):
        for path, result in list(results.items())[:: -1 if turn % 2 else 1]:
            if not result.failed:
                result.add(*sides[path].turn(cell.senders, cell.asset, seconds))
    return list(results.values())


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(DATABASES))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of the API server (1 2)")
    parser.add_argument("--senders", type=int, nargs="+", default=[8, 32], help="requests at once (8 32)")
    parser.add_argument("--turns", type=int, default=6, help="turns of each path in each row, at most (6)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn (3)")
    arguments = parser.parse_args()

    results: list[Result] = []
    broken: list[str] = []
    for database, workers in itertools.product(arguments.only or DATABASES, arguments.workers):
        with both_sides(database, workers) as sides:
            for senders, asset in itertools.product(arguments.senders, ASSETS):
                cell = Cell(database, workers, senders, asset)
                print(f"{cell} ...", file=sys.stderr, flush=True)
                ours, airflows = measure(sides, cell, arguments.turns, arguments.seconds)
                for result in (ours, airflows):
                    print("  ", *result.row()[4:], sep="  ", file=sys.stderr, flush=True)
                results += [ours, airflows]
                broken += broken_claims(ours, airflows)

    table = Table(
        name="callout_throughput",
        title="Callouts beside Airflow's own asset events",
        columns=COLUMNS,
        rows=[result.row() for result in results],
        notes=[
            "One asset event for each request on both paths; a callout is also authenticated, journaled and folded.",
            f"Turns of {arguments.seconds:g} s, {arguments.turns} for each row; no scheduler runs. p50 and p99 are the "
            "medians of the turns' own, the maximum is of all.",
            f"No answer within {ANSWER_TIMEOUT_SECONDS:g} s is an error, as for Zuora; it ends its path's turns.",
            "Each request on a connection of its own. PostgreSQL waits for the disk at each commit.",
        ],
    )
    return publish(
        arguments,
        table,
        [{**asdict(result), "answered": len(result.answered), "turns": len(result.turns)} for result in results],
        broken,
    )


if __name__ == "__main__":
    sys.exit(main())
