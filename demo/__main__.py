"""`make demo`: the example Dags on a private Airflow, against a simulated Zuora Mediation.

Exit code 0: each run ended as expected. 1: one did not, or something did not start. 130: interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.play import Played, play
from demo.scenes import SCENES
from testkit.processes import NotInTimeError
from testkit.stage import PROJECT, Stage, StageInUseError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MARKS = {"success": "green", "failed": "red", "skipped": "dim", "upstream_failed": "dark_orange", "deferred": "magenta"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the UI up until Ctrl-C")
    parser.add_argument("--root", type=Path, default=PROJECT / ".demo", help="directory for all files")
    options = parser.parse_args(arguments)
    # Also SIGINT: a shell starts its background processes with SIGINT ignored.
    for each in STOPS:
        signal.signal(each, _interrupt)
    # Without a terminal, a line may have any length.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    began = time.monotonic()
    stage = Stage(options.root)
    try:
        console.print("Starting a simulated Zuora Mediation and a private Airflow ...")
        stage.start()
        console.print(f"Airflow is up after {time.monotonic() - began:.0f} s: {stage.airflow.url}")
        with Progress(console) as progress:
            played = play(stage, SCENES, progress.show)
        problems = [problem for each in played for result in each.results for problem in result.problems]
        console.print(summary(played))
        for problem in problems:
            console.print(f"[red]wrong:[/] {problem}", highlight=False, soft_wrap=True)
        verdict = f"{len(problems)} wrong" if problems else "each as expected"
        console.print("callout to run: seconds from the callout of a session's end to the start of the run it starts")
        console.print(f"{len(played)} Dag runs, {verdict}; {time.monotonic() - began:.0f} s in all")
        if options.keep:
            console.print(f"\nAirflow: {stage.airflow.url}   simulator: {stage.simulator.url}   Ctrl-C stops both")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        return 1 if problems else 0
    except (NotInTimeError, StageInUseError) as error:
        console.print(f"[red]{type(error).__name__}[/]", str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    finally:
        # A second Ctrl-C must not leave processes behind.
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        stage.close()


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signum, frame)


class Progress:
    """Shows the progress of the runs: a table that changes on a terminal, else a line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._said: dict[str, str | None] = {}

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, playing: list[Played]) -> None:
        """Show the present state of all runs."""
        if self._live:
            self._live.update(self._table(playing))
            return
        for each in playing:
            for task_id, state in each.tasks.items():
                key = f"{each.scene.dag_id} ({each.scene.shows}) {task_id}"
                if state not in {None, "scheduled", "queued", self._said.get(key)}:
                    self._said[key] = state
                    self._console.print(f"{time.monotonic() - self._began:4.0f} s  {key}: {state}", highlight=False)

    def _table(self, playing: list[Played]) -> Table:
        table = Table("Dag", "shows", "run", "tasks", title=f"{time.monotonic() - self._began:.0f} s", expand=True)
        for each in playing:
            tasks = Text(overflow="fold")
            for task_id, state in each.tasks.items():
                if state is not None:
                    tasks.append(f"{task_id.rpartition('.')[2]} ", style=MARKS.get(state, "bold yellow"))
            table.add_row(each.scene.dag_id, each.scene.shows, Text(each.run, MARKS.get(each.run, "bold")), tasks)
        return table


def summary(played: list[Played]) -> Table:
    """Return the table at the end: a line for each meter of each run."""
    table = Table(box=SIMPLE, padding=0, pad_edge=False)
    headings = ("Dag, meter", "session", "status", "branch taken", "downstream run", "sec", "callout to run", "")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in {"Dag, meter", "session", "status"})
    for each in played:
        for result in each.results:
            mark = Text("wrong", "red") if result.problems else Text("ok", "green")
            table.add_row(
                f"{each.scene.dag_id} {result.row.meter}",
                result.session,
                result.status,
                result.branch,
                result.downstream,
                f"{each.seconds:.0f}",
                "" if result.after_callout is None else f"{result.after_callout:.1f}",
                mark,
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
