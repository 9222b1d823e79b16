"""The drill of an Airflow that Zuora cannot reach: every callout goes nowhere, and the callout history alone is read.

``python -m tests.drill.callout_history``. Two readers, of two intervals, run in two triggerers, and one of these is
killed in the middle. Each session must start one Dag run, no session may be ambiguous, and each wait must end right and
with certainty. Zuora's history is written in a zone that the connection does not name. ``--late`` lets its records
appear later, and ``--retry`` repeats each callout while the session goes on, with a record of each callout or of each
attempt. Where records appear only after the last attempt, their times show no zone: there the connection must name it,
as with ``--known``.

Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.status import ENDS_BY_POLL, SUCCESS, RunType
from airflow_mediation_provider.simulator import CalloutConfig, DeliverySettings, MeterConfig, SimulatorConfig
from testkit.processes import NotInTimeError, wait_until
from tests.drill.checker import Bounds, Result, Violation, check
from tests.drill.history import Consumer, Wait
from tests.drill.report import deliveries, show
from tests.drill.stage import Stage

if TYPE_CHECKING:
    from tests.drill.history import History

INTERVALS = (5.0, 7.0)
METERS = tuple(str(number) for number in range(401, 409))
PATHS: tuple[tuple[str, ...], ...] = (
    ("INITIALIZING", "RUNNING", "COMPLETED"),
    ("INITIALIZING", "RUNNING", "FAILED"),
    ("INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"),
    ("INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"),
)
PER_PAGE = 40
SETTINGS = {"AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12"}


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.callout_history", description=__doc__)
    made.add_argument("--sessions", type=int, default=40)
    made.add_argument("--seconds", type=float, default=90, help="in which the sessions begin")
    made.add_argument("--late", type=float, default=0, help="seconds until a record appears in the history")
    made.add_argument("--retry", choices=("off", "callout", "attempt"), default="off", help="what has a record")
    made.add_argument("--known", action="store_true", help="the connection names the zone")
    made.add_argument("--zone", default="Asia/Kolkata", help="of the history's times")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave logs and the recorded history there")
    return made.parse_args(argv)


def consumers() -> list[Consumer]:
    return [Consumer(f"{s.lower()}_{m}", m, s) for m in METERS for s in ("COMPLETED", "FAILED", "PAUSED")]


def play(stage: Stage, arguments: argparse.Namespace) -> int:
    """Start the sessions, one after the other on each meter, and return how many changes they make.

    A triggerer is killed in the middle.
    """
    chance = random.Random(arguments.seed)
    plan = sorted(chance.random() * arguments.seconds for _ in range(arguments.sessions))
    begun, changes, killed = time.monotonic(), 0, False
    free = dict.fromkeys(METERS, 0.0)
    while plan:
        now = time.monotonic() - begun
        if not killed and now > arguments.seconds / 2:
            stage.airflow.stop("triggerer", sig=signal.SIGKILL)
            killed = True
        meter = min(free, key=lambda each: free[each])
        if plan[0] > now or free[meter] > now:
            time.sleep(0.1)
            continue
        plan.pop(0)
        path = chance.choice(PATHS)
        # The history is written in whole seconds.
        step = chance.uniform(2, 4)
        script = [*((status, step) for status in path[:-1]), (path[-1], None)]
        session = stage.sim.start_session(meter, script=script)
        free[meter] = now + step * len(path)
        changes += len(path)
        wait_for(stage, str(session["session_id"]), meter)
    return changes


def wait_for(stage: Stage, session_id: str, meter: str) -> None:
    """Wait for a session by its id, as a sensor does."""
    success = SUCCESS[RunType.NORMAL]
    failures = tuple(sorted(ENDS_BY_POLL[RunType.NORMAL] - {success}))
    condition = {"meter_id": meter, "session_id": session_id, "run_type": "NORMAL"}
    wait = Wait(session_id, meter, session_id, (success,), failures, "waiting")
    stage.waits.add(wait, condition, poll_interval=60, settle=5, require_certain=True)


def requests(stage: Stage, seconds: float, readers: int) -> tuple[Result, str]:
    """Check how many requests the readers made."""
    asked = [each for each in stage.sim.log("request") if each["path"].endswith("/notification-history/callout")]
    pages = Counter(int(each["query"]["page"]) for each in asked)
    records = len(stage.sim.callout_history())
    reads, most = pages[1], math.ceil(seconds / min(INTERVALS)) + readers
    further = sum(count for page, count in pages.items() if page > 1)
    violations = []
    if reads > most:
        violations.append(Violation("requests", "reads", f"{reads} in {seconds:.0f} s, and {most} are allowed"))
    if max(pages, default=1) > max(math.ceil(records / PER_PAGE), 1):
        violations.append(Violation("requests", "pages", f"{max(pages)} pages of {records} records"))
    note = f"{reads} reads in {seconds:.0f} s with {further} further pages; {records} records at the end"
    return Result("requests: one an interval, and one for 40 further records", len(asked), violations), note


def drill(arguments: argparse.Namespace, root: Path) -> tuple[History, list[Result], list[str]]:
    """Run the drill, and return the recorded history, the results and the notes."""
    config = SimulatorConfig(
        meters=tuple(MeterConfig(id=meter) for meter in METERS),
        max_running_meters=len(METERS),
        delivery=DeliverySettings(
            seed=arguments.seed,
            interval=7,
            history_timezone=arguments.zone,
            history_delay=arguments.late,
            history_of="attempt" if arguments.retry == "attempt" else "callout",
        ),
    )
    zone = arguments.zone if arguments.known else ""
    with Stage(root, config, consumers(), settings=SETTINGS, history=INTERVALS, zone=zone) as stage:
        stage.airflow.processes.start(
            "triggerer-2", [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
        )
        stage.sim.callouts(
            CalloutConfig(url="http://127.0.0.1:9/nowhere", retry=arguments.retry != "off", date_format="en_US")
        )
        wait_until(lambda: requests(stage, 1, 9)[0].count, timeout=60, what="a first read", every=0.5)
        begun = time.monotonic()
        changes = play(stage, arguments)
        stage.wait_changes(changes)
        stage.sim.wait_delivered(timeout=300)

        def over() -> bool:
            return all(wait.outcome != "waiting" for wait in stage.waits.so_far())

        note = ""
        try:
            wait_until(over, timeout=arguments.late + 60, what="the waits", every=1)
        except NotInTimeError as error:
            note = f"some waits go on: {error}"
        asked, spent = requests(stage, time.monotonic() - begun, 4)
        stage.wait_runs()
        history = stage.history(stage.waits.finish())
    results = [*(result for result in check(history, Bounds(repaired=True)) if result.count), asked]
    looped = sum("PAUSED" in walk.statuses for walk in history.walks.values())
    notes = [
        f"{len(history.changes)} changes of {len(history.walks)} sessions, {looped} with a loop; retries: "
        f"{arguments.retry}; records {arguments.late:g} s late, in {arguments.zone}",
        deliveries(history),
        spent,
        *([note] if note else []),
    ]
    return history, results, notes


def main(argv: list[str] | None = None) -> int:
    arguments = options(argv)
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="mediation-drill-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        history, results, notes = drill(arguments, root)
        history.save(root / "history.json")
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    return 0 if show("Drill: no open port, the callout history alone", results, notes) else 1


if __name__ == "__main__":
    sys.exit(main())
