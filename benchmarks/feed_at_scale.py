"""What the feed costs: its answers beside a million rows, and the effect of hundreds of waiting requests.

A real `airflow api-server` with default settings, on SQLite, then on a private PostgreSQL. One client queries the feed
as triggerers do, signed and over HTTP, beside an empty journal and one of a million rows. Then two hundred long polls
wait for changes that never come, while another client uses Airflow's REST API; and the server is stopped meanwhile.

  python -m benchmarks.feed_at_scale                      everything, about 15 minutes
  python -m benchmarks.feed_at_scale --check              the same; exit code 1 unless all claims hold
  python -m benchmarks.feed_at_scale --only sqlite --rows 20000 --times 20      a quick run
  python -m benchmarks.feed_at_scale --markdown docs/benchmarks.md     update the numbers in the documentation

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import FeedReply, FeedRequest, MeterQuestion
from benchmarks.feed_polls import SECRET, Asker, IdlePolls
from benchmarks.journal_rows import METERS, ROWS, meter_of, seed, session_of
from benchmarks.report import Table, common_arguments, publish, quantile
from testkit.postgres import Postgres
from testkit.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DATABASES: Final = ("sqlite", "postgresql")
COLUMNS: Final = ("database", "API workers", "what", "beside", "p50 ms", "p99 ms", "max ms")
ANSWER_SECONDS: Final = 0.020
STOP_SECONDS: Final = 2.0
# The claim: what two hundred waiting requests may add to another request's median.
SLOWED_SECONDS: Final = 0.005
# The shortest time between two queries of the feed to the database.
_PACE_SECONDS: Final = 0.3
_WARM_UP: Final = 10


@dataclass
class Timing:
    """One row: how long something took, each time.

    :param claimed: seconds that 99 of 100 may take; ``None``: nothing is claimed
    """

    database: str
    workers: int
    what: str
    beside: str
    seconds: list[float]
    claimed: float | None = None

    def quantile(self, part: float) -> float:
        """Return the seconds within which this part of them ended."""
        return quantile(self.seconds, part)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        numbers = (f"{1000 * self.quantile(part):.1f}" for part in (0.5, 0.99, 1.0))
        return [self.database, str(self.workers), self.what, self.beside, *numbers]

    def broken_claims(self) -> list[str]:
        """Return the claims that failed."""
        if self.claimed is None or self.quantile(0.99) <= self.claimed:
            return []
        what = f"{self.database}, {self.workers} workers, {self.what} beside {self.beside}"
        return [f"{what}: {1000 * self.quantile(0.99):.1f} ms, at most {1000 * self.claimed:.0f} claimed"]


def slowed(alone: Timing, crowded: Timing) -> list[str]:
    """Return whether the waiting requests slow another request down."""
    more = crowded.quantile(0.5) - alone.quantile(0.5)
    if more <= SLOWED_SECONDS:
        return []
    return [f"{crowded.database}: {crowded.what} took {1000 * more:.1f} ms more beside {crowded.beside}"]


@contextlib.contextmanager
def airflow(database: str, workers: int, servers: int = 1) -> Iterator[tuple[AirflowStack, str]]:
    """Run API servers with the connection `bench`; yields one of them with the address of their database."""
    connection = {"conn_type": "mediation", "password": SECRET, "extra": {"callout_token": SECRET}}
    env = {"AIRFLOW_CONN_BENCH": json.dumps(connection), "AIRFLOW__API__WORKERS": str(workers)}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        if database == "postgresql":
            address = stack.enter_context(Postgres(durable=True)).create("airflow")
        else:
            address = f"sqlite:///{root / 'airflow' / 'airflow.db'}"
        dags = root / "no-dags"
        server = AirflowStack(root, dags, env, database=address, components=["api-server"], api_servers=servers)
        yield stack.enter_context(server), address


def questions(sessions: int) -> dict[str, dict[str, MeterQuestion]]:
    """Return the queries: those of one waiting task, and those of a triggerer with many."""
    newest = sessions - 1
    many: dict[str, MeterQuestion] = {}
    for number in range(newest, newest - 20, -1):
        ids = frozenset(session_of(max(number - METERS * age, 0)) for age in range(10))
        since = frozenset({datetime.now(UTC) - timedelta(days=days) for days in (1, 30)})
        many[meter_of(number)] = MeterQuestion(sessions=ids, since=since)
    return {
        "full query, one session": {meter_of(newest): MeterQuestion(sessions=frozenset({session_of(newest)}))},
        "full query, one unnamed session": {
            meter_of(newest): MeterQuestion(since=frozenset({datetime.now(UTC) - timedelta(days=365)}))
        },
        "full query, 20 meters, 200 sessions": many,
    }


def known(meters: Mapping[str, MeterQuestion], reply: FeedReply) -> dict[str, MeterQuestion]:
    """Return the queries of a triggerer that has the sessions of a reply."""
    revisions: dict[str, dict[str, int]] = {meter_id: {} for meter_id in meters}
    for state, revision in zip(reply.sessions, reply.revisions, strict=True):
        revisions.setdefault(state.meter_id, {})[state.session_id] = revision
    return {meter_id: replace(question, known=revisions[meter_id]) for meter_id, question in meters.items()}


def time_answers(url: str, database: str, sessions: int, beside: str, times: int) -> list[Timing]:
    """Time full queries, and queries for changes of which there are none."""
    asker = Asker(url)
    timings = []
    for what, meters in questions(max(sessions, 1)).items():
        seconds = [asker.ask(FeedRequest(meters=meters, full=True))[1] for _ in range(_WARM_UP + times)][_WARM_UP:]
        claimed = ANSWER_SECONDS if len(meters) == 1 else None
        timings.append(Timing(database, 1, what, beside, seconds, claimed))
    first, _ = asker.ask(FeedRequest(meters=meters, full=True))
    again = known(meters, first)
    seconds = [asker.ask(FeedRequest(meters=again, full=True))[1] for _ in range(_WARM_UP + times)][_WARM_UP:]
    timings.append(Timing(database, 1, f"{what}, all known", beside, seconds, ANSWER_SECONDS))
    cursor, seconds = first.cursor, []
    for _ in range(times):
        time.sleep(_PACE_SECONDS)
        reply, took = asker.ask(FeedRequest(meters=meters, cursor=cursor))
        cursor = reply.cursor
        seconds.append(took)
    timings.append(Timing(database, 1, "changes since a cursor", beside, seconds, ANSWER_SECONDS))
    return timings


def time_news(urls: Sequence[str], database: str, beside: str, times: int) -> list[Timing]:
    """Time how long after a report is stored a long poll returns it: in the same process, and in another one."""
    from concurrent.futures import ThreadPoolExecutor

    reporter = Asker(urls[0])
    timings = []
    with ThreadPoolExecutor(1) as pool:
        for what, url in zip(("change, in the process that wrote it", "change, in another process"), urls, strict=True):
            asker = Asker(url)
            meters = {"news": MeterQuestion()}
            cursor = asker.ask(FeedRequest(meters=meters, full=True))[0].cursor
            seconds = []
            for number in range(times):
                asking = pool.submit(
                    _ask_and_look_at_the_clock, asker, FeedRequest(meters=meters, cursor=cursor, wait=20)
                )
                time.sleep(_PACE_SECONDS + 0.1 * (number % 3))
                reporter.observe([_change(f"R-{what[-3:]}-{number}")])
                durable = time.perf_counter()
                cursor, at = asking.result()
                seconds.append(max(at - durable, 0.0))
            timings.append(Timing(database, 1, what, beside, seconds, 1.0))
    return timings


def _ask_and_look_at_the_clock(asker: Asker, question: FeedRequest) -> tuple[str | None, float]:
    reply, _ = asker.ask(question)
    assert reply.sessions, "no change"
    return reply.cursor, time.perf_counter()


def _change(session_id: str) -> JournalEntry:
    now = datetime.now(UTC)
    change = SessionTransition(
        meter_id="news", session_id=session_id, status="RUNNING", observed_at=now, source=Source.RUN
    )
    return JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=now, source=change.source, transition=change)


def time_others(server: AirflowStack, database: str, beside: str, times: int) -> Timing:
    """Time a request of Airflow's REST API that reads the database."""
    seconds = []
    for _ in range(_WARM_UP + times):
        began = time.perf_counter()
        server.api("GET", "/dags")
        seconds.append(time.perf_counter() - began)
    return Timing(database, 1, "GET /api/v2/dags", beside, seconds[_WARM_UP:])


def cpu_share(server: AirflowStack, seconds: float = 10.0) -> float:
    """Return the part of a core that the API server uses while no client sends requests."""

    def used() -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in server.pids("api-server"))

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def time_stop(database: str, workers: int, polls: int) -> tuple[list[Timing], list[str]]:
    """Time how long waiting requests go on in a server that is stopped, and return which got no answer."""
    with airflow(database, workers) as (server, _), IdlePolls(server.url, polls) as waiting:
        [leader, *_] = server.pids("api-server")
        began = time.perf_counter()
        os.kill(leader, signal.SIGTERM)
        ended = waiting.end()
        answered = time.perf_counter() - began
        server.stop("api-server")
        stopped = time.perf_counter() - began
    beside = f"{polls} waiting requests"
    lost = {what: count for what, count in ended.items() if what != "answered"}
    broken = [f"{database}, {workers} workers: requests without an answer at the stop: {lost}"] if lost else []
    timings = [Timing(database, workers, "stopping API server: its process ended", beside, [stopped])]
    if polls:
        what = "stopping API server: waiting requests answered"
        timings.insert(0, Timing(database, workers, what, beside, [answered], STOP_SECONDS))
    return timings, broken


def measure(database: str, rows: int, polls: int, times: int) -> tuple[list[Timing], list[str], list[str]]:
    """Measure one database; return the timings, the claims that failed, and notes."""
    timings: list[Timing] = []
    with airflow(database, 1, servers=2) as (server, address):
        _progress(f"{database}: an empty journal ...")
        timings += time_answers(server.url, database, 0, "an empty journal", times)
        _progress(f"{database}: {rows} rows ...")
        began = time.perf_counter()
        sessions = seed(address, rows)
        note = f"{database}: {rows:,} rows of {sessions:,} sessions were seeded in {time.perf_counter() - began:.0f} s."
        time.sleep(61)  # until the feed's overlap no longer contains the queries of the empty journal
        timings += time_answers(server.url, database, sessions, f"{rows:,} rows", times)
        timings += time_news(server.api_urls, database, f"{rows:,} rows", min(times, 50))
        _progress(f"{database}: {polls} waiting requests ...")
        alone, idle = time_others(server, database, "no waiting requests", times), cpu_share(server)
        with IdlePolls(server.url, polls):
            crowded, busy = time_others(server, database, f"{polls} waiting requests", times), cpu_share(server)
        timings += [alone, crowded]
        note += f" {polls} waiting requests took {100 * (busy - idle):.1f}% of a core."
    broken = [sentence for timing in timings for sentence in timing.broken_claims()] + slowed(alone, crowded)
    return timings, broken, [note]


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(DATABASES))
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of the journal ({ROWS})")
    parser.add_argument("--polls", type=int, default=200, help="requests that wait (200)")
    parser.add_argument("--times", type=int, default=200, help="repetitions of each query (200)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of a server that stops (1 2)")
    arguments = parser.parse_args()

    timings: list[Timing] = []
    broken: list[str] = []
    notes: list[str] = []
    for database in arguments.only or DATABASES:
        measured, sentences, known = measure(database, arguments.rows, arguments.polls, arguments.times)
        timings, broken, notes = timings + measured, broken + sentences, notes + known
    database = (arguments.only or DATABASES)[0]
    for workers in arguments.workers:
        for polls in (0, arguments.polls):
            _progress(f"{workers} workers stop, {polls} waiting requests ...")
            stops, sentences = time_stop(database, workers, polls)
            timings += stops
            broken += [*(sentence for stop in stops for sentence in stop.broken_claims()), *sentences]

    table = Table(
        name="feed_at_scale",
        title="The feed beside a large journal and many waiting requests",
        columns=COLUMNS,
        rows=[timing.row() for timing in timings],
        notes=[
            f"Over HTTP and signed, one query after the other, {arguments.times} times each.",
            "An unnamed session is the first one of a meter since a year ago. All known: by a triggerer's later reads.",
            "Change: from the answer to the report until the answer to the waiting client.",
            *notes,
        ],
    )
    return publish(arguments, table, [asdict(timing) for timing in timings], broken)


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
