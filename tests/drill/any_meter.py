"""The drill of any meter: thousands of changes of thousands of meters, one Dag on all of them and ten on one each.

``python -m tests.drill.any_meter``: 10,000 changes of 2,000 meters on PostgreSQL; ``--changes 300 --meters 60
--throughput 100`` for a quick run. Each arrival of a session at a scheduled status must be in exactly one Dag run; two
arrivals of one session share a run only where the scheduler had not made it yet. What Airflow lost would be offered by
``airflow mediation replay``: it must find nothing.

Before that, with no scheduler, it measures in turns how many callouts eight senders get answered: over a connection
with a Dag on any meter, and over one with an ordinary Dag for each meter. Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
from sqlalchemy import create_engine, text

from testkit.postgres import Postgres
from testkit.processes import wait_until
from testkit.stack import AirflowStack
from tests.drill.checker import Result, Violation
from tests.drill.report import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from sqlalchemy import Engine

SECRET = "s3cret-of-the-drill"
CONN_ID, ANY, ORDINARY = "drill", "throughput_any", "throughput_ordinary"
WALK = ("INITIALIZING", "RUNNING", "USAGE_PUSHING", "COMPLETED")
SCHEDULED = ("RUNNING", "COMPLETED")
ORDINARY_DAGS = 10
# Turns of each connection in the measurement of throughput.
TURNS = 4
SLOWEST = 0.5

_DAGS = '''\
"""Dags of a drill: the scheduler itself ends their only task."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_mediation_provider.assets import ANY_METER, on_meter_session


def make(dag_id, schedule):
    with DAG(dag_id, schedule=schedule, max_active_runs=100_000, max_active_tasks=1000, catchup=False) as dag:
        EmptyOperator(task_id="done")
    globals()[dag_id] = dag


make("any", on_meter_session(ANY_METER, {scheduled!r}, mediation_conn_id={conn!r}))
make({any!r}, on_meter_session(ANY_METER, "COMPLETED", mediation_conn_id={any!r}))
for meter in range({ordinary_dags}):
    make(f"ordinary_{{meter}}", on_meter_session(meter, "COMPLETED", mediation_conn_id={conn!r}))
    make(f"{ordinary}_{{meter}}", on_meter_session(meter, "COMPLETED", mediation_conn_id={ordinary!r}))
'''


class Arrival(NamedTuple):
    """A session that reached a status on which a Dag is scheduled."""

    dag_id: str
    meter_id: str
    session_id: str
    status: str


class Run(NamedTuple):
    """A Dag run, and the arrivals that its events name."""

    dag_id: str
    key: str
    arrivals: frozenset[Arrival]


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.any_meter", description=__doc__)
    made.add_argument("--changes", type=int, default=10_000)
    made.add_argument("--meters", type=int, default=2_000)
    made.add_argument("--senders", type=int, default=8, help="callouts at once")
    made.add_argument("--throughput", type=int, default=500, metavar="CALLOUTS", help="in each turn; 0: not measured")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave logs there")
    return made.parse_args(argv)


def one_run_each(expected: AbstractSet[Arrival], runs: Iterable[Run]) -> Result:
    """Check that each arrival is in exactly one run, and that each run is of one session."""
    found: dict[Arrival, int] = defaultdict(int)
    violations = []
    joined = 0
    for run in runs:
        joined += len(run.arrivals) - 1
        if {each.session_id for each in run.arrivals} != {run.key}:
            violations.append(Violation("run", run.key, f"a run of {run.dag_id} is about {sorted(run.arrivals)}"))
        for each in run.arrivals:
            found[each] += 1
    for each in sorted({*expected, *found}):
        wanted = int(each in expected)
        if found[each] != wanted:
            subject = f"session {each.session_id} of meter {each.meter_id}"
            what = f"{each.dag_id} has {found[each]} runs for {each.status}, expected {wanted}"
            violations.append(Violation("run", subject, what))
    note = f"{joined} arrivals joined a pending run of their session" if joined else ""
    return Result("arrivals have one run each", len(expected), violations, note)


def walks(changes: int, meters: int, chance: random.Random) -> list[list[tuple[str, str, str, str]]]:
    """Return the changes in waves: a session's next change comes in the next wave."""
    sessions = [(str(number % meters), f"R-{number:08}") for number in range(-(-changes // len(WALK)))]
    waves = []
    for before, status in itertools.pairwise(("", *WALK)):
        wave = [(meter, session, before, status) for meter, session in sessions]
        chance.shuffle(wave)
        waves.append(wave)
    return waves


def arrivals(waves: Iterable[Iterable[tuple[str, str, str, str]]]) -> set[Arrival]:
    """Return what must start runs."""
    found = set()
    for meter, session, _, status in itertools.chain.from_iterable(waves):
        if status in SCHEDULED:
            found.add(Arrival("any", meter, session, status))
        if status == "COMPLETED" and int(meter) < ORDINARY_DAGS:
            found.add(Arrival(f"ordinary_{meter}", meter, session, status))
    return found


class Senders:
    """Posts callouts, so many at once.

    :param url: of the callouts, without the connection
    """

    def __init__(self, url: str, at_once: int) -> None:
        self._url = url
        self._at_once = at_once

    def post(self, conn_id: str, changes: Sequence[tuple[str, str, str, str]]) -> float:
        """Post the changes of a connection, and return the seconds until all were answered 200."""
        return asyncio.run(self._post(f"{self._url}/{conn_id}", changes))

    async def _post(self, url: str, changes: Sequence[tuple[str, str, str, str]]) -> float:
        left = iter(changes)
        began = time.perf_counter()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

            async def sender() -> None:
                for meter, session, before, status in left:
                    event = {"meterId": meter, "sessionId": session, "runType": "NORMAL"}
                    body = json.dumps({**event, "status": status, "previousStatus": before}).encode()
                    digest = base64.b64encode(hmac.digest(SECRET.encode(), body, hashlib.sha256)).decode()
                    headers = {
                        "X-Mediation-Signature": digest,
                        "Zuora-Notification-Id": f"{session}-{status}",
                        "Content-Type": "application/json",
                    }
                    for pause in (1, 1, 5, 20):  # as Zuora does, which repeats each callout
                        if (await client.post(url, content=body, headers=headers)).status_code == 200:
                            break
                        await asyncio.sleep(pause)

            await asyncio.gather(*(sender() for _ in range(self._at_once)))
        return time.perf_counter() - began


def throughput(senders: Senders, callouts: int) -> tuple[Result, set[Arrival]]:
    """Measure both connections in turns; return the comparison, and what must start runs."""
    seconds: dict[str, float] = defaultdict(float)
    expected = set()
    numbers = itertools.count()
    for turn in range(TURNS):
        for conn_id in (ANY, ORDINARY)[:: -1 if turn % 2 else 1]:
            changes = [
                (str(number % ORDINARY_DAGS), f"R-{conn_id}-{number:06}", "RUNNING", "COMPLETED")
                for number in itertools.islice(numbers, callouts)
            ]
            seconds[conn_id] += senders.post(conn_id, changes)
            for meter, session, _, status in changes:
                dag_id = ANY if conn_id == ANY else f"{ORDINARY}_{meter}"
                expected.add(Arrival(dag_id, meter, session, status))
    rates = {conn_id: TURNS * callouts / took for conn_id, took in seconds.items()}
    note = f"{rates[ANY]:.1f} callouts/s with a Dag on any meter, {rates[ORDINARY]:.1f} with one for each meter"
    slow = [Violation("slow", ANY, note)] if rates[ANY] < SLOWEST * rates[ORDINARY] else []
    claim = f"callouts to a Dag on any meter, at least {SLOWEST:.0%} of the rate"
    return Result(claim, 2 * TURNS * callouts, slow, note), expected


def runs_of(engine: Engine) -> list[Run]:
    """Return all Dag runs with their arrivals."""
    statement = (
        "SELECT dag_run.id, dag_run.dag_id, dag_run.partition_key, asset_event.extra FROM dag_run"
        " JOIN dagrun_asset_event ON dagrun_asset_event.dag_run_id = dag_run.id"
        " JOIN asset_event ON asset_event.id = dagrun_asset_event.event_id"
    )
    found: dict[tuple[int, str, str], set[Arrival]] = defaultdict(set)
    with engine.connect() as connection:
        for run_id, dag_id, key, extra in connection.execute(text(statement)):
            told: dict[str, Any] = extra if isinstance(extra, dict) else json.loads(extra)
            found[run_id, dag_id, key].add(Arrival(dag_id, told["meter_id"], told["session_id"], told["status"]))
    return [Run(dag_id, key, frozenset(of_run)) for (_, dag_id, key), of_run in found.items()]


def replayed(airflow: AirflowStack, dag_ids: Iterable[str]) -> Result:
    """Check that no Dag has missed anything."""
    violations = []
    count = 0
    for dag_id in dag_ids:
        command = [
            sys.executable,
            "-m",
            "airflow",
            "mediation",
            "replay",
            "--dag",
            dag_id,
            "--since",
            "1d",
            "--dry-run",
        ]
        done = subprocess.run(command, env=airflow.processes.env, capture_output=True, text=True, check=False)
        line = next((line for line in done.stdout.splitlines() if line.startswith(f"{dag_id}: ")), done.stderr[-300:])
        count += 1
        if " 0 would get one." not in line:
            violations.append(Violation("replay", dag_id, line))
    return Result("Dags have missed nothing, by replay", count, violations)


def drill(arguments: argparse.Namespace, root: Path) -> tuple[list[Result], list[str]]:
    """Run the drill, and return the checks and the notes."""
    dags = root / "dags"
    dags.mkdir(parents=True)
    names = {"conn": CONN_ID, "any": ANY, "ordinary": ORDINARY}
    source = _DAGS.format(scheduled=list(SCHEDULED), ordinary_dags=ORDINARY_DAGS, **names)
    (dags / "drill.py").write_text(source, encoding="utf-8")
    connection = json.dumps({"conn_type": "mediation", "extra": {"callout_hmac_secret": SECRET}})
    env = {f"AIRFLOW_CONN_{conn_id.upper()}": connection for conn_id in names.values()}
    ordinary = [f"{name}_{meter}" for name in ("ordinary", ORDINARY) for meter in range(ORDINARY_DAGS)]
    waves = walks(arguments.changes, arguments.meters, random.Random(arguments.seed))
    expected = arrivals(waves)
    results = []
    with Postgres() as postgres:
        address = postgres.create("drill")
        engine = create_engine(address)
        components = ("api-server", "scheduler", "dag-processor")
        with AirflowStack(root, dags, env, database=address, components=components) as airflow:
            airflow.wait_dags({"any", ANY, *ordinary})
            senders = Senders(f"{airflow.url}/mediation/callouts", arguments.senders)
            if arguments.throughput:
                airflow.stop("scheduler")
                senders.post(ANY, [("0", "R-warm-up", "RUNNING", "COMPLETED")])
                senders.post(ORDINARY, [("0", "R-warm-up", "RUNNING", "COMPLETED")])
                compared, more = throughput(senders, arguments.throughput)
                expected |= more | {Arrival(dag_id, "0", "R-warm-up", "COMPLETED") for dag_id in (ANY, f"{ORDINARY}_0")}
                results.append(compared)
                airflow.start("scheduler")
            began = time.monotonic()
            for wave in waves:
                senders.post(CONN_ID, wave)
            sent = time.monotonic() - began
            wait_until(lambda: not _pending(engine), timeout=1800, what="the scheduler to make all runs", every=2)
            made = time.monotonic() - began
            runs = runs_of(engine)
            results += [one_run_each(expected, runs), replayed(airflow, ["any", ANY])]
        engine.dispose()
    count = f"{sum(map(len, waves))} changes of {arguments.meters} meters"
    notes = [
        f"{count} were answered 200 in {sent:.0f} s by {arguments.senders} senders",
        f"{len(runs)} Dag runs were made, the last {made - sent:.0f} s after the last callout",
    ]
    return results, notes


def _pending(engine: Engine) -> int:
    statement = "SELECT count(*) FROM asset_partition_dag_run WHERE created_dag_run_id IS NULL"
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar_one())


def main(argv: list[str] | None = None) -> int:
    arguments = options(argv)
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="mediation-drill-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        results, notes = drill(arguments, root)
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    return 0 if show("Drill: any meter", results, notes) else 1


if __name__ == "__main__":
    sys.exit(main())
