"""A long export in the triggerer: no worker waits for it, and a triggerer that is killed costs neither job nor task.

``python -m tests.drill.export`` prints a table of the checks; the exit code is 1 if one failed. Ten minutes and a half,
or ``--seconds`` and a half a minute.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from testkit.processes import wait_until
from testkit.stage import Stage
from tests.drill.checker import Result, Violation
from tests.drill.report import show
from tests.integration.scenario import Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.scenario import Act

TASK = "export"
DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator

with DAG("drill_export", schedule=None, params={{"meters": {{}}}}):
    AuditTrailExportOperator(
        task_id="export",
        meter_id="{{{{ params.meters.export }}}}",
        deferrable=True,
        poke_interval={poke},
        retries=2,
        retry_delay=timedelta(seconds=1),
    )
"""
WITHOUT_TRIGGERER = 5.0
"""Seconds between the end of a triggerer and the start of another."""
LATENESS = 30.0
"""A task may end so many seconds later than the first poll that can show it."""


def options(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.drill.export", description=__doc__)
    made.add_argument("--seconds", type=float, default=600, help="how long the export takes")
    return made.parse_args(argv)


class Drill:
    """One export, and what was seen of it.

    :param stage: simulator and Airflow
    :param poke: seconds between two polls
    :param seconds: how long the export takes
    """

    def __init__(self, stage: Stage, poke: float, seconds: float) -> None:
        self.stage = stage
        self.poke = poke
        self.seconds = seconds
        play = Play(stage, "drill_export", {TASK: _nothing})
        self.act: Act = play.acts[TASK]
        self.act.meter([["RUNNING", None]])
        stage.airflow.trigger(play.dag_id, {"meters": {TASK: self.act.meter_id}}, run_id=play.run_id)
        self.samples: list[tuple[str, int]] = []

    def play(self) -> list[Result]:
        """Wait for the export, kill the triggerer in the middle, and return what was found."""
        self.act.wait_deferred()
        (job,) = self.act.log("export")
        created = datetime.fromisoformat(job["time"])
        done = created + timedelta(seconds=self.seconds)
        self.watch(until=created + timedelta(seconds=self.seconds / 2))
        before = self.polls()
        self.stage.airflow.stop("triggerer", sig=signal.SIGKILL)
        self.watch(until=datetime.now(created.tzinfo) + timedelta(seconds=WITHOUT_TRIGGERER))
        self.stage.airflow.start("triggerer")
        # The last poll is that which finds the files: the task resumes on a worker after it.
        self.watch(until=done)
        after = self.polls() - before
        limit = self.seconds / 2 + self.poke + LATENESS
        ended = wait_until(self.ended, timeout=limit + 60, what="the task to end", every=0.5)
        late = (datetime.fromisoformat(ended["end_date"]) - done).total_seconds()
        jobs, result = self.act.log("export"), self.act.xcom()
        busy = [f"{state}, {slots} slots in use" for state, slots in self.samples if (state, slots) != ("deferred", 0)]
        state = f"{ended['state']} in try {ended['try_number']}"
        files = result["files"] if result else []
        return [
            self.found("the task holds no worker while it waits", len(self.samples), busy),
            self.found("both triggerers polled", 2, [f"{before} and {after} polls"] if not (before and after) else []),
            self.found("one export job", 1, [f"{len(jobs)} jobs"] if len(jobs) != 1 else []),
            self.found("the task succeeds in its first try", 1, [state] if state != "success in try 1" else []),
            self.found("... with the job's files", len(files), [] if files else [f"{result}"]),
            self.found(
                "... in time",
                1,
                [f"{late:.0f} s late"] if late > self.poke + LATENESS else [],
                f"{late:.0f} s after the job, polled every {self.poke:g} s: {before} and {after} polls",
            ),
        ]

    def polls(self) -> int:
        """Return how often the job was polled."""
        return len(self.act.log("request", method="GET"))

    def watch(self, *, until: datetime) -> None:
        """Note each second the state of the task, and how many workers run one."""
        while datetime.now(until.tzinfo) < until:
            pool = self.stage.airflow.api("GET", "/pools/default_pool")
            self.samples.append((str(self.act.play.task(TASK)["state"]), int(pool["running_slots"])))
            time.sleep(1)

    def ended(self) -> dict[str, object] | None:
        """Return the task instance once it has ended."""
        ti = self.act.play.task(TASK)
        return ti if ti["state"] in ("success", "failed") else None

    @staticmethod
    def found(claim: str, count: int, wrong: list[str], note: str = "") -> Result:
        return Result(claim, count, [Violation(claim, TASK, each) for each in wrong], note)


def _nothing(act: Act) -> Iterator[None]:  # the drill itself is the scenario
    yield


def main(argv: list[str] | None = None) -> int:
    seconds = options(argv).seconds
    poke = max(1.0, min(30.0, seconds / 20))
    root = Path(tempfile.mkdtemp(prefix="mediation-drill-"))
    began = time.monotonic()
    try:
        dags = root / "dags"
        dags.mkdir()
        (dags / "drill_export.py").write_text(DAG.format(poke=poke))
        with Stage(root / "stage", dags, env={"AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8"}) as stage:
            stage.simulator.call("POST", "/config", json={"export_seconds": seconds})
            stage.airflow.wait_dags({"drill_export"})
            results = Drill(stage, poke, seconds).play()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    notes = [f"an export of {seconds:g} s; in {timedelta(seconds=round(time.monotonic() - began))}"]
    return 0 if show("Drill: export", results, notes) else 1


if __name__ == "__main__":
    sys.exit(main())
