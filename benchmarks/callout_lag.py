"""How long a callout takes to wake its task: a thousand deferred waits on one triggerer of a real Airflow.

A private Airflow (on PostgreSQL, or on SQLite) with one triggerer, on which a thousand `MeterSessionSensor`s wait for a
session each, of ten meters; they start there, without a worker. Then each session's callout is posted, some a second,
in random order. The lag is from the moment before the callout is sent to two lines of the task's own log in the
triggerer: that the session has ended, and, after the XCom was written, that the task has. For some of the tasks it is
also measured to the start of the task after them. The simulator counts the requests to Zuora in the meantime.

  python -m benchmarks.callout_lag                      on PostgreSQL and SQLite, about 12 minutes
  python -m benchmarks.callout_lag --check              the same; exit code 1 unless all claims hold
  python -m benchmarks.callout_lag --only postgresql --waits 100     a quick run
  python -m benchmarks.callout_lag --markdown docs/benchmarks.md     update the numbers in the documentation

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from airflow_mediation_provider.simulator import MeterConfig, SimulatorConfig, running_simulator
from benchmarks.report import Table, common_arguments, publish
from testkit.postgres import Postgres
from testkit.processes import wait_until
from testkit.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASES = ("postgresql", "sqlite")
COLUMNS = ("database", "waits", "callouts/s", "from the callout to", "times", "p50 s", "p99 s", "max s")
CLAIMED_SECONDS = 1.0
METERS = tuple(str(number) for number in range(1, 11))
RUNS = 20
CROSS_CHECK_SECONDS = 300
TOKEN = "token-of-the-benchmark"
# How many waits are followed by another task: a worker takes seconds for each.
FOLLOWED = 2
# Texts in a task's log: when it waits, when its trigger has detected the end, and when the task ends.
SUBSCRIBED, KNOWN, ENDED = "are read at", "is COMPLETED", "by callout, and that is certain"
DAG = """
from airflow.sdk import dag, task
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

@dag(schedule=None, max_active_runs={runs})
def callout_lag():
    @task
    def follower():
        pass

    for number in range({per_run}):
        wait = MeterSessionSensor(
            task_id=f"wait_{{number}}",
            meter_id="{{{{ dag_run.conf['meter'] }}}}",
            session_id="R-{{{{ dag_run.conf['run'] }}}}-" + str(number),
            mediation_conn_id="bench",
            start_from_trigger=True,
        )
        if number < {followed}:
            wait >> follower.override(task_id=f"follower_{{number}}")()

callout_lag()
"""


@dataclass
class Lag:
    """One database: seconds from each callout to its effects.

    :param polls: requests for a meter's status from the first wait to the last end
    :param seconds: between the first wait and the last end
    """

    database: str
    waits: int
    rate: float
    to_event: list[float] = field(default_factory=list)
    to_end: list[float] = field(default_factory=list)
    to_start: list[float] = field(default_factory=list)
    polls: int = 0
    seconds: float = 0.0

    @property
    def polls_allowed(self) -> int:
        """Return the polls that are claimed: one of each meter when its first wait starts, and the cross-checks."""
        return len(METERS) * (1 + math.floor(self.seconds / CROSS_CHECK_SECONDS))

    def rows(self) -> list[list[str]]:
        """Return the rows of the table."""
        what = {
            "its trigger's verdict": self.to_event,
            "the task's end, with its XCom": self.to_end,
            "the start of the task after": self.to_start,
        }
        return [
            [self.database, str(self.waits), f"{self.rate:g}", name, str(len(found)), *map(_text, _quantiles(found))]
            for name, found in what.items()
        ]

    def broken_claims(self) -> list[str]:
        """Return the claims that failed, one sentence each."""
        broken = []
        if len(self.to_event) < self.waits:
            broken.append(f"{self.database}: {self.waits - len(self.to_event)} waits did not end by their callout")
        if (late := _quantiles(self.to_event)[1]) > CLAIMED_SECONDS:
            broken.append(f"{self.database}: 99 of 100 verdicts within {late:.2f} s, {CLAIMED_SECONDS:g} s claimed")
        if self.polls > self.polls_allowed:
            broken.append(f"{self.database}: Zuora got {self.polls} requests, {self.polls_allowed} at most claimed")
        return broken


def _quantiles(found: list[float]) -> tuple[float, float, float]:
    if not found:
        return (math.inf,) * 3
    ordered = sorted(found)
    return (*(ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.99)), ordered[-1])


def _text(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.2f}"


class Bench:
    """An Airflow whose triggerer has all the waits.

    :param airflow: the Airflow
    :param waits: how many
    """

    def __init__(self, airflow: AirflowStack, waits: int) -> None:
        self.airflow = airflow
        self.per_run = waits // RUNS
        self.waits = self.per_run * RUNS
        self._logs = airflow.home / "logs" / "dag_id=callout_lag"
        self.sessions = [(run, number) for run in range(RUNS) for number in range(self.per_run)]

    def defer_all(self) -> None:
        """Start all runs, and return when each of their waits is on the triggerer and receives callouts."""
        self.airflow.wait_dags({"callout_lag"})
        for run in range(RUNS):
            conf = {"run": run, "meter": METERS[run % len(METERS)]}
            self.airflow.trigger("callout_lag", conf, run_id=f"run_{run}")
        wait_until(
            lambda: len(self._logged(SUBSCRIBED)) == self.waits,
            timeout=120 + self.waits,
            what=f"{self.waits} waits on the triggerer",
            every=2,
        )

    def call_out(self, rate: float, seed: int) -> dict[tuple[int, int], float]:
        """Post the callout of each session, and return when each was sent."""
        sent: dict[tuple[int, int], float] = {}
        order = random.Random(seed).sample(self.sessions, len(self.sessions))
        began = time.time()
        with httpx.Client(base_url=self.airflow.url, timeout=30, trust_env=False) as client:

            def post(number: int, session: tuple[int, int]) -> None:
                time.sleep(max(0.0, began + number / rate - time.time()))
                sent[session] = time.time()
                self._post(client, *session)

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(post, range(len(order)), order))
        return sent

    def _post(self, client: httpx.Client, run: int, number: int) -> None:
        now = datetime.now(UTC).isoformat()
        event = {
            "meterId": METERS[run % len(METERS)],
            "sessionId": f"R-{run}-{number}",
            "runType": "NORMAL",
            "status": "COMPLETED",
            "previousStatus": "RUNNING",
            "startTime": now,
            "endTime": now,
        }
        headers = {"X-Mediation-Token": TOKEN}
        client.post("/mediation/callouts/bench", json=event, headers=headers).raise_for_status()

    def ended(self, timeout: float) -> dict[tuple[int, int], float]:
        """Return when each task had its result; waits for all of them until the timeout."""
        deadline = time.monotonic() + timeout
        while len(ends := self._logged(ENDED)) < self.waits and time.monotonic() < deadline:
            time.sleep(1)
        return ends

    def known(self) -> dict[tuple[int, int], float]:
        """Return when each trigger had detected how its session ended."""
        return self._logged(KNOWN)

    def followed(self, timeout: float) -> dict[tuple[int, int], float]:
        """Return when each follower started."""
        starts: dict[tuple[int, int], float] = {}
        deadline = time.monotonic() + timeout
        while len(starts) < RUNS * min(FOLLOWED, self.per_run) and time.monotonic() < deadline:
            time.sleep(2)
            for run in range(RUNS):
                for ti in self.airflow.task_instances("callout_lag", f"run_{run}"):
                    name, _, number = ti["task_id"].rpartition("_")
                    if name == "follower" and ti["start_date"]:
                        starts[run, int(number)] = datetime.fromisoformat(ti["start_date"]).timestamp()
        return starts

    def _logged(self, text: str) -> dict[tuple[int, int], float]:
        """Return when each task's log first contained a text, in the triggerer or, if it ended there, on a worker."""
        found: dict[tuple[int, int], float] = {}
        for file in self._logs.glob("run_id=*/task_id=wait_*/*.log"):
            for line in file.read_text().splitlines():
                if text in line:
                    run, number = (part.rpartition("_")[2] for part in (file.parent.parent.name, file.parent.name))
                    at = datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
                    found.setdefault((int(run), int(number)), at)
        return found


@contextlib.contextmanager
def airflow_on(database: str, simulator: str, waits: int) -> Iterator[AirflowStack]:
    """Run an Airflow with the benchmark's Dag; removed at the end."""
    connection = {
        "conn_type": "mediation",
        "host": simulator,
        "login": "simulator-client",
        "password": "simulator-secret",
        "extra": {"callout_token": TOKEN},
    }
    env = {
        "AIRFLOW_CONN_BENCH": json.dumps(connection),
        "AIRFLOW__TRIGGERER__CAPACITY": str(2 * waits),
        "AIRFLOW__MEDIATION__CROSS_CHECK_INTERVAL": str(CROSS_CHECK_SECONDS),
    }
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        dags = root / "dags"
        dags.mkdir()
        (dags / "callout_lag.py").write_text(DAG.format(runs=RUNS, per_run=waits // RUNS, followed=FOLLOWED))
        url = None
        if database == "postgresql":
            url = stack.enter_context(Postgres(durable=True)).create("airflow")
        yield stack.enter_context(AirflowStack(root / "airflow", dags, env, database=url))


def measure(database: str, waits: int, rate: float, seed: int) -> Lag:
    """Measure on one database."""
    print(f"{database}: {waits} waits ...", file=sys.stderr, flush=True)
    config = SimulatorConfig(meters=tuple(MeterConfig(id=meter) for meter in METERS))
    with running_simulator(config) as simulator, airflow_on(database, simulator.url, waits) as airflow:
        bench = Bench(airflow, waits)
        began = time.monotonic()
        bench.defer_all()
        sent = bench.call_out(rate, seed)
        ends = bench.ended(timeout=120)
        lag = Lag(database, bench.waits, rate, seconds=time.monotonic() - began)
        lag.polls = _polls(simulator.log(kind="request"))
        lag.to_event = [at - sent[session] for session, at in bench.known().items()]
        lag.to_end = [at - sent[session] for session, at in ends.items()]
        lag.to_start = [at - sent[session] for session, at in bench.followed(timeout=120).items()]
    return lag


def _polls(requests: list[Any]) -> int:
    return sum("/runStatus" in str(each["path"]) for each in requests)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(DATABASES))
    parser.add_argument("--waits", type=int, default=1000, help=f"at once, a multiple of {RUNS} (1000)")
    parser.add_argument("--rate", type=float, default=5.0, help="callouts a second (5)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the callouts (1)")
    arguments = parser.parse_args()
    if arguments.waits < RUNS or arguments.waits % RUNS:
        parser.error(f"--waits must be a multiple of {RUNS}")
    lags, missing = [], []
    for database in arguments.only or DATABASES:
        try:
            lags.append(measure(database, arguments.waits, arguments.rate, arguments.seed))
        except Exception as error:  # what was measured on the other is not lost
            print(error, file=sys.stderr)
            missing.append(f"Not measured: {database}.")
    polls = ", ".join(f"{lag.polls} in {lag.seconds:.0f} s on {lag.database}" for lag in lags)
    table = Table(
        name="callout_lag",
        title=f"{arguments.waits} deferred waits on one triggerer, {arguments.rate:g} callouts a second",
        columns=COLUMNS,
        rows=[row for lag in lags for row in lag.rows()],
        notes=[
            "From before the callout is sent; its own answer, after the commit, is part of the lag.",
            "The verdict: a trigger that resumes its task on a worker fires its event at that moment. These end their"
            " tasks themselves; each writes its XCom first, and Airflow's triggerer sends one such request at a time.",
            f"{RUNS * FOLLOWED} of the waits have a task after them; scheduler and LocalExecutor have their defaults.",
            f"Requests to Zuora for the status of the {len(METERS)} meters in the same time: {polls}.",
            *missing,
        ],
    )
    broken = [*missing, *(sentence for lag in lags for sentence in lag.broken_claims())]
    return publish(arguments, table, [asdict(lag) for lag in lags], broken)


if __name__ == "__main__":
    sys.exit(main())
