"""The drill of callouts: thousands of changes, repeated and out of order, to API servers that are killed meanwhile.

``python -m tests.drill.callouts``: PostgreSQL, 500 sessions; ``--database sqlite --sessions 60 --changes 1000``.
Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_mediation_provider.protocol.status import ENDS_BY_POLL, SUCCESS, RunType
from airflow_mediation_provider.simulator import DeliverySettings
from tests.drill import tenant
from tests.drill.checker import Bounds, check
from tests.drill.history import History, Wait
from tests.drill.reaper import Reaper
from tests.drill.report import deliveries, show
from tests.drill.stage import SERVERS, Stage

# As many attempts as Zuora allows; a total outage of the servers takes less than four intervals.
ATTEMPTS, INTERVAL = 5, 20.0
# Seconds between two polls of a wait: so long that only callouts can end it here.
NO_POLLS = 3600.0


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.callouts", description=__doc__)
    made.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    made.add_argument("--sessions", type=int, default=500)
    made.add_argument("--changes", type=int, default=10_000)
    made.add_argument("--senders", type=int, default=16, help="callouts at once")
    made.add_argument("--seconds", type=float, default=120, help="in which the sessions take place")
    made.add_argument("--deaths", type=float, default=8, metavar="SECONDS", help="from one to the next; 0: none")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave logs and the recorded history there")
    made.add_argument("--check", type=Path, metavar="FILE", help="check a recorded history, and do nothing else")
    return made.parse_args(argv)


def play(stage: Stage, plays: list[tenant.Play], seconds: float, seed: int) -> None:
    """Start all sessions, spread over the time, so that the longest ends about in time; and wait for each."""
    chance = random.Random(seed)
    begun = time.monotonic()
    starts = sorted(chance.random() * seconds / 2 for _ in plays)
    for number, (each, start) in enumerate(zip(plays, starts, strict=True)):
        time.sleep(max(0.0, begun + start - time.monotonic()))
        now = datetime.now(UTC)
        since = now.replace(microsecond=now.microsecond // 1000 * 1000)  # callouts contain milliseconds
        session_id = tenant.start(stage.sim, each, seconds / 2 / len(each.statuses), chance)
        wait_for(stage, each, session_id, since, number)


def wait_for(stage: Stage, each: tenant.Play, session_id: str, since: datetime, number: int) -> None:
    """Start a wait for a session; for each tenth session also one for the first of its meter since an instant."""
    run_type = RunType(each.run_type)
    success, failures = SUCCESS[run_type], tuple(sorted(ENDS_BY_POLL[run_type] - {SUCCESS[run_type]}))
    wait = Wait(f"{each.sort.name} {session_id}", each.meter_id, session_id, (success,), failures, "waiting")
    condition: dict[str, Any] = {"meter_id": each.meter_id, "run_type": each.run_type, "session_id": session_id}
    if run_type is RunType.NORMAL and number % 4 == 0:
        wait = replace(wait, previous=("PUSH_COMPLETED",))
        condition["previous_statuses"] = ["PUSH_COMPLETED"]
    stage.waits.add(wait, condition, poll_interval=NO_POLLS)
    if number % 10 == 0:
        unnamed = {"meter_id": each.meter_id, "run_type": each.run_type, "since": since.isoformat()}
        first = replace(wait, id=f"{wait.id}, unnamed", previous=(), named=session_id)
        stage.waits.add(first, unnamed, poll_interval=NO_POLLS)


def drill(arguments: argparse.Namespace, root: Path) -> tuple[History, list[str]]:
    """Run the drill, and return the recorded history and the notes."""
    plays = tenant.plays(arguments.sessions, arguments.changes, arguments.seed)
    delivery = DeliverySettings(
        attempts=ATTEMPTS, interval=INTERVAL, concurrency=arguments.senders, seed=arguments.seed
    )
    with Stage(root, tenant.configuration(delivery), tenant.consumers(), arguments.database) as stage:
        stage.sim.callouts(*tenant.callouts(stage.callouts_url, disorder=arguments.seconds / 6))
        reaper = Reaper(stage.airflow, SERVERS, arguments.deaths)
        began = time.monotonic()
        with reaper if arguments.deaths else nullcontext():
            play(stage, plays, arguments.seconds, arguments.seed)
            stage.wait_changes(arguments.changes)
        stage.sim.wait_delivered(timeout=900)
        stage.wait_runs()
        took = time.monotonic() - began
        history = stage.history(stage.waits.finish())
    notes = [
        f"{len(history.changes)} changes of {len(plays)} sessions on {arguments.database}, in {took:.0f} s",
        deliveries(history),
        f"{reaper.deaths} servers died by SIGKILL; {stage.balancer.refused} connections found none",
    ]
    return history, notes


def allowed(history: History) -> Bounds:
    """Return how many sessions may be ambiguous: those of the sorts whose reports do not determine the status."""
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
