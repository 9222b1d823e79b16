"""The drill of losses: half of all callouts get lost for an hour (scaled), and then the callout history repairs it.

``python -m tests.drill.lost``. Each wait for a session that was alone on its meter must end right, by polls where the
callouts are lost; the others must wait on, or end uncertain. ``airflow mediation reconcile`` must list
exactly what the journal lacks; after it the journal, the assets and the Dag runs must be complete, and all waits over.

A session is alone if no other one of its meter is live, nor starts before the wait for it is over.

Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.status import ENDS_BY_POLL, SUCCESS, RunType
from airflow_mediation_provider.simulator import CalloutConfig, DeliverySettings, MeterConfig, SimulatorConfig
from testkit.processes import NotInTimeError, wait_until
from tests.drill.checker import Bounds, Result, Violation, check, waits_are_right
from tests.drill.history import Consumer, Wait
from tests.drill.report import deliveries, show
from tests.drill.stage import Stage
from tests.drill.tenant import CONN_ID, SECRET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.drill.history import History

# One second stands for a minute. The provider's seconds are scaled in the same way.
SCALE = 1 / 60
POLL, CROSS_CHECK, SETTLE = 60 * SCALE, 300 * SCALE, 30 * SCALE
ALONE = tuple(str(number) for number in range(201, 225))
SHARED = ("301", "302", "303")
LOSSY = Bounds(lossy=True)
PATHS: tuple[tuple[str, ...], ...] = (
    ("INITIALIZING", "RUNNING", "COMPLETED"),
    ("INITIALIZING", "RUNNING", "FAILED"),
    ("INITIALIZING", "RUNNING", "USAGE_PUSHING", "PUSH_COMPLETED", "COMPLETED"),
    ("INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"),
)


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.lost", description=__doc__)
    made.add_argument("--loss", type=float, default=0.5, help="share of the callouts that get lost")
    made.add_argument("--seconds", type=float, default=60, help="in which the sessions take place: an hour, scaled")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave logs and the recorded history there")
    return made.parse_args(argv)


def consumers() -> list[Consumer]:
    pairs = [(meter, status) for meter in (*ALONE, *SHARED) for status in ("COMPLETED", "FAILED")]
    return [Consumer(f"{status.lower()}_{meter}", meter, status) for meter, status in pairs]


def play(stage: Stage, seconds: float, seed: int) -> int:
    """Start the sessions, and return how many changes they make.

    On a meter of its own a session starts once the wait for the previous one is over: so it is alone even on a slow
    machine. A wait that does not end in time keeps its meter.
    """
    chance = random.Random(seed)
    shared = sorted((chance.random() * seconds * 0.75, meter) for meter in SHARED for _ in range(12))
    free = {meter: chance.random() * 5 for meter in ALONE}
    waiting: dict[str, str] = {}
    changes = 0
    begun = time.monotonic()

    def start(meter: str) -> str:
        nonlocal changes
        path = chance.choice(PATHS)
        changes += len(path)
        before = next(each["status"] for each in stage.sim.health()["meters"] if each["id"] == meter)
        step = chance.uniform(6, 14) / (len(path) - 1) / SCALE
        script = [*((status, step) for status in path[:-1]), (path[-1], None)]
        session = stage.sim.start_session(meter, script=script)
        wait_for(stage, session, before)
        return str(session["session_id"])

    while (now := time.monotonic() - begun) < seconds * 0.75:
        while shared and shared[0][0] <= now:
            start(shared.pop(0)[1])
        over = {wait.id for wait in stage.waits.so_far() if wait.outcome != "waiting"}
        for meter, session_id in list(waiting.items()):
            if session_id in over:
                del waiting[meter]
                free[meter] = now + chance.uniform(0.5, 2)
        for meter in [meter for meter, at in free.items() if at <= now]:
            del free[meter]
            waiting[meter] = start(meter)
        time.sleep(0.1)
    return changes


def let_end(stage: Stage) -> None:
    """Give the waits for sessions that were alone the time that polls need; the checker sees those that go on."""

    def over() -> bool:
        return not any(wait.alone and wait.outcome == "waiting" for wait in stage.waits.so_far())

    with contextlib.suppress(NotInTimeError):
        wait_until(over, timeout=12 * CROSS_CHECK, what="the waits for sessions that were alone")


def wait_for(stage: Stage, session: Mapping[str, object], before: str) -> None:
    """Wait for a session like the operator that started it: with its id, its start and the status before."""
    session_id, meter = str(session["session_id"]), str(session["meter_id"])
    success = SUCCESS[RunType.NORMAL]
    failures = tuple(sorted(ENDS_BY_POLL[RunType.NORMAL] - {success}))
    wait = Wait(session_id, meter, session_id, (success,), failures, "waiting", alone=meter in ALONE)
    started = str(session["started_at"])[:26] + "+00:00"
    stage.waits.add(
        wait,
        {"meter_id": meter, "session_id": session_id, "run_type": "NORMAL"},
        poll_interval=POLL,
        settle=SETTLE,
        started_at=started,
        run_status=session["status"],
        baseline=before,
    )


def edges(history: History) -> Counter[tuple[str, str, str | None, str]]:
    """Return the changes that happened but are not in the journal, and how often."""
    true = Counter((c.meter_id, c.session_id, c.previous, c.status) for c in history.changes)
    kept: Counter[tuple[str, str, str | None, str]] = Counter()
    for row in history.rows:
        if row.kind == "status_change" and row.meter_id and row.session_id and row.status:
            kept[row.meter_id, row.session_id, row.previous, row.status] += 1
    return true - kept


def reconcile(stage: Stage, since: datetime) -> list[dict[str, str]]:
    """Run the command as a user does, and return the repairs that it printed."""
    command = [sys.executable, "-m", "airflow", "mediation", "reconcile", "--conn-id", CONN_ID, "--json"]
    name = f"reconcile-{time.monotonic():.0f}"
    stage.airflow.processes.run(name, [*command, "--since", since.isoformat()], timeout=120)
    lines = stage.airflow.processes.log_file(name).read_text().splitlines()
    found = next(json.loads(line) for line in reversed(lines) if line.startswith("{"))
    return list(found["repaired"])


def compare(lost: Counter[tuple[str, str, str | None, str]], repaired: list[dict[str, str]], again: int) -> Result:
    """Compare the repairs with what the journal lacked."""
    listed = Counter(
        (each["meter_id"], each["session_id"], each["previous_status"] or None, each["status"]) for each in repaired
    )
    violations = [Violation("repair", str(edge), "was lost and is not repaired") for edge in (lost - listed).elements()]
    violations += [
        Violation("repair", str(edge), "is repaired, and was not lost") for edge in (listed - lost).elements()
    ]
    if again:
        violations.append(Violation("repair", "a second pass", f"repairs {again} changes once more"))
    return Result("what was lost was listed and repaired", sum(lost.values()), violations)


def drill(arguments: argparse.Namespace, root: Path) -> tuple[History, list[Result], list[str]]:
    """Run the drill, and return the recorded history, the results and the notes."""
    config = SimulatorConfig(
        meters=tuple(MeterConfig(id=meter) for meter in (*ALONE, *SHARED)),
        max_running_meters=len(ALONE) + len(SHARED),
        time_scale=SCALE,
        delivery=DeliverySettings(seed=arguments.seed),
    )
    settings = {"AIRFLOW__MEDIATION__CROSS_CHECK_INTERVAL": f"{CROSS_CHECK:g}"}
    with Stage(root, config, consumers(), settings=settings) as stage:
        stage.sim.callouts(CalloutConfig(url=stage.callouts_url, hmac_secret=SECRET, loss=arguments.loss))
        since = datetime.now(UTC)
        changes = play(stage, arguments.seconds, arguments.seed)
        stage.wait_changes(changes)
        stage.sim.wait_delivered(timeout=300)
        stage.wait_runs()
        let_end(stage)
        before = stage.history(stage.waits.so_far())
        repaired = reconcile(stage, since)
        again = reconcile(stage, since)
        stage.wait_runs()
        after = stage.history(stage.waits.finish())
    lost = edges(before)
    results = [
        replace(waits_are_right(before, LOSSY), claim="by polls: waits for sessions that were alone ended right"),
        compare(lost, repaired, len(again)),
        *(result for result in check(replace(after, waits=[]), Bounds(repaired=True)) if result.count),
        replace(waits_are_right(after, LOSSY), claim="after the repair: no wait goes on that could end"),
    ]
    unsure = Counter(wait.alone for wait in before.waits if wait.certain is False)
    open_ = Counter(wait.alone for wait in before.waits if wait.outcome == "waiting")
    total = Counter(wait.alone for wait in before.waits)
    notes = [
        f"{len(before.changes)} changes of {len(before.walks)} sessions; {arguments.loss:.0%} of the callouts lost",
        deliveries(before),
        f"{sum(lost.values())} changes never reached the journal, and "
        f"{len(before.walks) - len(before.states)} sessions not at all",
        f"before the repair, of {total[True]} waits for sessions that were alone: {unsure[True]} not certain, "
        f"{open_[True]} open; of {total[False]} beside others: {unsure[False]} not certain, {open_[False]} open",
    ]
    return after, results, notes


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
    return 0 if show("Drill: half of all callouts lost", results, notes) else 1


if __name__ == "__main__":
    sys.exit(main())
