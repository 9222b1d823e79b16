"""What the feed costs a large installation: answers at a million rows, many who wait, and a shutdown meanwhile.

A real `airflow api-server` on SQLite, then on a private PostgreSQL, with a journal of 1,000,000 changes of 250,000
sessions on 50 meters. Measured from the client, over HTTP and with signatures:

- a full look: of ten meters, each with two named sessions, its live ones, and the first 20 since a week ago;
- what changed, with a cursor: nothing;
- another request (`GET /api/v2/version`), alone and beside 200 long polls that wait for news;
- the seconds from SIGTERM to the server's end while those 200 wait.

  python -m benchmarks.feed_at_scale                                  everything, a few minutes
  python -m benchmarks.feed_at_scale --check                          the same; exit code 1 unless our claims hold
  python -m benchmarks.feed_at_scale --only sqlite --sessions 10000   a quick look
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
from sqlalchemy import create_engine

from airflow_mediation_provider.protocol.feed import (
    FEED_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    derive_key,
    signed_headers,
)
from benchmarks.journal_seed import meter_of, seed, session_of
from benchmarks.report import Table, common_arguments, publish
from demo.postgres import Postgres
from demo.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

DATABASES = ("sqlite", "postgresql")
CONN_ID, SECRET = "bench", "client-secret"  # of the benchmark alone
METERS = 50
WAITING = 200
LOOKS = 300
CLAIMED_MILLISECONDS = 20.0
CLAIMED_SHUTDOWN_SECONDS = 2.0
# What one request differs from the next by on a machine with two cores.
NOISE_MILLISECONDS = 15.0


@dataclass
class Result:
    """What was measured on one database, in milliseconds but for the shutdown."""

    database: str
    rows: int
    full: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    told: int = 0
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    shutdown_seconds: float = 0.0

    def row(self) -> list[str]:
        """Return the cells of the table."""
        times = (self.full, self.changes, self.alone, self.beside)
        cells = [f"{statistics.median(each):.1f} / {_p99(each):.1f}" for each in times]
        return [self.database, f"{self.rows:,}", str(self.told), *cells, f"{self.shutdown_seconds:.2f}"]

    def broken_claims(self) -> list[str]:
        """Return what does not hold, a sentence each."""
        broken = []
        for what, times in (("a full look", self.full), ("what changed", self.changes)):
            if statistics.median(times) >= CLAIMED_MILLISECONDS:
                broken.append(f"{self.database}: {what} takes {statistics.median(times):.1f} ms")
        if _p99(self.beside) > _p99(self.alone) + NOISE_MILLISECONDS:
            broken.append(f"{self.database}: beside {WAITING} long polls a request takes {_p99(self.beside):.1f} ms")
        if self.shutdown_seconds > CLAIMED_SHUTDOWN_SECONDS:
            broken.append(f"{self.database}: the shutdown took {self.shutdown_seconds:.1f} s")
        return broken


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


async def ask(client: httpx.AsyncClient, question: FeedRequest) -> FeedReply:
    """Ask the feed once."""
    body = question.to_bytes()
    headers = signed_headers(derive_key(SECRET), path=FEED_PATH, conn_id=CONN_ID, body=body, timestamp=int(time.time()))
    reply = await client.post(f"/mediation{FEED_PATH}", content=body, headers=headers)
    return FeedReply.from_bytes(reply.raise_for_status().content)


async def timed(call: Callable[[], Awaitable[object]], times: int = LOOKS) -> list[float]:
    """Return the milliseconds of each call, one after the other."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


async def measure(server: AirflowStack, result: Result, sessions: int) -> None:
    """Measure everything on a server that runs, and stop it."""
    since = datetime.now(UTC) - timedelta(days=7)
    meters = {
        meter_of(number, METERS): MeterQuestion(
            sessions=frozenset({session_of(number), session_of(number + sessions // 2)}), since=frozenset({since})
        )
        for number in range(10)
    }
    limits = httpx.Limits(max_connections=WAITING + 10)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60, limits=limits) as client:
        reply = await ask(client, FeedRequest(meters=meters, full=True))
        result.told = len(reply.sessions)
        result.full = await timed(lambda: ask(client, FeedRequest(meters=meters, full=True)))
        result.changes = await timed(lambda: ask(client, FeedRequest(meters=meters, cursor=reply.cursor)))
        version = "/api/v2/version"
        await timed(lambda: client.get(version), 20)
        result.alone = await timed(lambda: client.get(version))
        waiting = [asyncio.create_task(wait_on(client, meters)) for _ in range(WAITING)]
        await asyncio.sleep(2)  # until all of them wait; they go on for 20 seconds
        result.beside = await timed(lambda: client.get(version))
        (process, *_) = server.pids("api-server")
        began = time.monotonic()
        os.kill(process, signal.SIGTERM)
        await asyncio.to_thread(psutil.Process(process).wait, 60)
        result.shutdown_seconds = time.monotonic() - began
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def wait_on(client: httpx.AsyncClient, meters: dict[str, MeterQuestion]) -> None:
    """Wait for news again and again, as a triggerer does."""
    cursor = (await ask(client, FeedRequest(meters=meters, full=True))).cursor
    while True:
        cursor = (await ask(client, FeedRequest(meters=meters, cursor=cursor, wait=20))).cursor


@contextlib.contextmanager
def airflow(database: str, sessions: int) -> Iterator[AirflowStack]:
    """Run an API server whose journal is full."""
    connection = {"conn_type": "mediation", "password": SECRET, "extra": {"callout_hmac_secret": "s3cret"}}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        dags = root / "dags"
        dags.mkdir()
        if database == "postgresql":
            address = stack.enter_context(Postgres(durable=True)).create("airflow")
        else:
            address = f"sqlite:///{root / 'airflow' / 'airflow.db'}"
        env = {f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(connection)}
        server = AirflowStack(root, dags, env, database=address, components=["api-server"])
        (root / "airflow").mkdir()
        server.processes.run("migrate", [sys.executable, "-m", "airflow", "db", "migrate"], timeout=120)
        seed(create_engine(address), sessions=sessions, meters=METERS, conn_id=CONN_ID)
        yield stack.enter_context(server)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(DATABASES))
    parser.add_argument("--sessions", type=int, default=250_000, help="each has four rows in the journal (250000)")
    arguments = parser.parse_args()
    results = []
    for database in arguments.only or DATABASES:
        print(f"{database} ...", file=sys.stderr, flush=True)
        result = Result(database, rows=4 * arguments.sessions)
        with airflow(database, arguments.sessions) as server:
            asyncio.run(measure(server, result, arguments.sessions))
        results.append(result)
    table = Table(
        name="feed_at_scale",
        title="The feed at a million rows",
        columns=(
            "database",
            "rows",
            "sessions told",
            "full look p50 / p99 ms",
            "what changed p50 / p99 ms",
            "another request p50 / p99 ms",
            f"beside {WAITING} long polls",
            "shutdown s",
        ),
        rows=[result.row() for result in results],
        notes=[f"{LOOKS} requests each, one after the other. One API server with one worker; nothing else runs."],
    )
    broken = [sentence for result in results for sentence in result.broken_claims()]
    return publish(arguments, table, [asdict(result) for result in results], broken)


if __name__ == "__main__":
    sys.exit(main())
