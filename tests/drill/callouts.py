"""The drill of callouts: thousands of changes, doubled and disordered, to API servers that are killed meanwhile.

``python -m tests.drill.callouts``: PostgreSQL, 500 sessions; ``--database sqlite --sessions 60 --changes 1000``.
Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from airflow_mediation_provider.simulator import DeliverySettings, Simulator, running_simulator
from demo.postgres import Postgres
from demo.processes import wait_until
from demo.stack import AirflowStack
from tests.drill import tenant
from tests.drill.balancer import Balancer
from tests.drill.checker import Bounds, check
from tests.drill.dags import write_dags
from tests.drill.history import History
from tests.drill.observe import Database
from tests.drill.reaper import Reaper
from tests.drill.report import deliveries, show
from tests.drill.tenant import CONN_ID, SECRET

# A total outage of the servers takes less than twice so long: what it hits is delivered by the third attempt.
INTERVAL = 20.0
SERVERS = ("api-server", "api-server-2")


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.callouts", description=__doc__)
    made.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    made.add_argument("--sessions", type=int, default=500)
    made.add_argument("--changes", type=int, default=10_000)
    made.add_argument("--senders", type=int, default=16, help="callouts under way at once")
    made.add_argument("--seconds", type=float, default=120, help="in which the sessions take place")
    made.add_argument("--deaths", type=float, default=25, metavar="SECONDS", help="from one to the next; 0: none")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave logs and the recorded history there")
    made.add_argument("--check", type=Path, metavar="FILE", help="check a recorded history, and do nothing else")
    return made.parse_args(argv)


def connection(sim: Simulator) -> str:
    """Return the connection, as ``AIRFLOW_CONN_DRILL`` takes it."""
    return json.dumps(
        {
            "conn_type": "mediation",
            "host": sim.url,
            "login": sim.config.client_id,
            "password": sim.config.client_secret,
            "extra": {"callout_hmac_secret": SECRET},
        }
    )


def play(sim: Simulator, plays: list[tenant.Play], seconds: float, seed: int) -> None:
    """Start all sessions, spread over the time, such that the longest ends about in time."""
    chance = random.Random(seed)
    begun = time.monotonic()
    starts = sorted(chance.random() * seconds / 2 for _ in plays)
    for each, start in zip(plays, starts, strict=True):
        time.sleep(max(0.0, begun + start - time.monotonic()))
        tenant.start(sim, each, seconds / 2 / len(each.statuses), chance)


def changes_made(sim: Simulator) -> int:
    """Return how many changes there were so far."""
    return int(sim.health()["log"].get("transition", 0))


def settle(sim: Simulator, database: Database) -> None:
    """Wait until all is delivered, and no DAG run comes or ends any more."""
    sim.wait_delivered(timeout=900)
    seen: list[tuple[float, set[tuple[object, ...]]]] = []

    def quiet() -> bool:
        runs = {(run.dag_id, run.key, run.state) for run in database.runs()}
        if not seen or seen[-1][1] != runs:
            seen.append((time.monotonic(), runs))
        open_runs = any(state not in ("success", "failed") for _, _, state in runs)
        return time.monotonic() - seen[-1][0] > (60 if open_runs else 15)

    wait_until(quiet, timeout=600, what="the scheduler to be done", every=2)


def drill(arguments: argparse.Namespace, root: Path) -> tuple[History, list[str]]:
    """Carry it out, and return what was recorded, and what to say about it."""
    plays = tenant.plays(arguments.sessions, arguments.changes, arguments.seed)
    delivery = DeliverySettings(interval=INTERVAL, concurrency=arguments.senders, seed=arguments.seed)
    write_dags(root / "dags")
    with ExitStack() as stack:
        sim = stack.enter_context(running_simulator(tenant.configuration(delivery)))
        address = None
        if arguments.database == "postgresql":
            address = stack.enter_context(Postgres()).create("drill")
        airflow = AirflowStack(
            root,
            root / "dags",
            {f"AIRFLOW_CONN_{CONN_ID.upper()}": connection(sim)},
            database=address,
            components=("api-server", "scheduler", "dag-processor"),
            api_servers=2,
        )
        stack.enter_context(airflow)
        airflow.wait_dags([dag_id for dag_id, _ in tenant.consumers()])
        database = Database(address or f"sqlite:///{airflow.home / 'airflow.db'}?timeout=60")
        balancer = stack.enter_context(Balancer([int(urlsplit(url).port or 0) for url in airflow.api_urls]))
        sim.callouts(*tenant.callouts(f"{balancer.url}/mediation/callouts/{CONN_ID}", disorder=arguments.seconds / 6))
        reaper = Reaper(airflow, SERVERS, arguments.deaths)
        began = time.monotonic()
        with reaper if arguments.deaths else nullcontext():
            play(sim, plays, arguments.seconds, arguments.seed)
            wait_until(lambda: changes_made(sim) >= arguments.changes, timeout=600, what="all changes", every=2)
        settle(sim, database)
        took = time.monotonic() - began
        history = database.history(sim.log(("transition", "callout")), tenant.consumers(), [])
    notes = [
        f"{len(history.changes)} changes of {len(plays)} sessions on {arguments.database}, in {took:.0f} s",
        deliveries(history),
        f"{reaper.deaths} servers died by SIGKILL; {balancer.refused} connections found none",
    ]
    return history, notes


def allowed(history: History) -> Bounds:
    """Return how many sessions may be ambiguous: those of the sorts whose reports cannot tell, and no more."""
    unknowable = {meter for sort in tenant.SORTS if sort.name in tenant.UNKNOWABLE for meter in sort.meters}
    return Bounds(ambiguous=sum(meter in unknowable for meter, _ in history.walks))


def main(argv: list[str] | None = None) -> int:
    arguments = options(argv)
    if arguments.check:
        history, notes = History.load(arguments.check), [f"recorded in {arguments.check}"]
    else:
        root = arguments.keep or Path(tempfile.mkdtemp(prefix="mediation-drill-"))
        root.mkdir(parents=True, exist_ok=True)
        try:
            history, notes = drill(arguments, root)
            history.save(root / "history.json")
        finally:
            if not arguments.keep:
                shutil.rmtree(root, ignore_errors=True)
    return 0 if show("Drill: callouts", check(history, allowed(history)), notes) else 1


if __name__ == "__main__":
    sys.exit(main())
