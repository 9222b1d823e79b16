"""The bounds of what waits cost: the triggerer with 10,000 of them, and the API server that serves them.

Costs are the processor time of the measured process itself, so that other work on the machine counts little. Beside
each cost a fixed piece of work is measured in the same process, the control: a row whose control differs from that of
the other rows was disturbed. A time with a claim is also shown scaled to a processor on which the control takes
``REFERENCE_SECONDS``. Times that have to be waited for (a callout beside a report) are compared within one run.

  python -m benchmarks.bounds                              everything, about eight minutes
  python -m benchmarks.bounds --check                      the same; exit code 1 unless all claims hold
  python -m benchmarks.bounds --before COMMIT              also an earlier commit, in turns with this one
  python -m benchmarks.bounds --only reads                 one part
  python -m benchmarks.bounds --markdown docs/benchmarks.md     update the numbers in the documentation
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

from benchmarks import api_server
from benchmarks.harness import Bench, Job
from benchmarks.report import Table, common_arguments, publish, quantile
from benchmarks.server_in_process import QUIET, SECRET, control
from testkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

ROOT: Final = Path(__file__).parents[1]
PARTS: Final = ("triggerer", "rivals", "reads", "reports", "fairness", "fleet")
COLUMNS: Final = ("what", "measured", "claimed at most", "earlier commit", "control ms, median / max")
ROWS: Final = 50_000
INTERVAL: Final = 2.0
WAITS, METERS = 10_000, 50
REFERENCE_SECONDS: Final = 0.0011
"""Of the control, on the processor to which times are scaled for comparison."""
_TIMES: Final = ("%", "s", "ms")
FIRST_WAITS: Final = 4_000
"""Of these waits, started by the 50 a second as a triggerer does it; the others by 400."""
STEADY_SECONDS: Final = 70.0
"""With a full read of the feed, which is made once a minute."""
RIVALS: Final = ("dbt-cloud", "databricks", "http")
RIVAL_WAITS, RIVAL_SECONDS = 1_000, 20.0
_spawn = multiprocessing.get_context("spawn")


@dataclass
class Bound:
    """One row: what was measured, in a unit, and what is claimed.

    :param most: the claim, ``None`` where there is none
    :param before: the same of an earlier commit
    :param gain: how many times less than the earlier commit is claimed
    :param control: processor time of the control beside it, in seconds
    """

    what: str
    value: float
    unit: str
    most: float | None = None
    before: float | None = None
    gain: float | None = None
    control: Sequence[float] = field(default_factory=list)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        claim = "" if self.most is None else f"{self.most:g} {self.unit}"
        if self.gain is not None and self.before is not None:
            share = "half" if self.gain == 2 else f"a {self.gain:g}th"
            claim += f"{', ' if claim else ''}{share} of the earlier commit"
        before = "" if self.before is None else self._text(self.before)
        if self.before and self.value:
            before += f", {self.before / self.value:.1f} times as much"
        noise = [f"{1000 * each:.1f}" for each in (statistics.median(self.control), max(self.control))]
        measured = self._text(self.value)
        if self.most is not None and self.unit in _TIMES:
            measured += f" ({self._text(self.at_reference)})"
        return [self.what, measured, claim, before, " / ".join(noise)]

    @property
    def at_reference(self) -> float:
        """The value on a processor of that speed; a ratio, a number or a size is the same on each."""
        return self.value * REFERENCE_SECONDS / statistics.median(self.control) if self.unit in _TIMES else self.value

    def _text(self, value: float) -> str:
        return f"{value:.3g} {self.unit}" if value < 100 else f"{value:.0f} {self.unit}"

    def broken_claims(self) -> list[str]:
        """Return the claims that failed."""
        broken = []
        if self.most is not None and self.value > self.most:
            broken.append(f"{self.what}: {self._text(self.value)}, at most {self.most:g} claimed")
        if self.gain is not None and self.before is not None and self.value * self.gain > self.before:
            broken.append(f"{self.what}: {self.before / self.value:.1f} times less than before, {self.gain:g} claimed")
        return broken


# ---- the API server ----


class Child:
    """`server_in_process` in a process of its own; a context manager.

    :param tree: with the packages that it imports: this tree, or that of an earlier commit
    :param address: of an empty database; SQLite without one
    """

    def __init__(self, tree: Path = ROOT, address: str | None = None) -> None:
        self._tree, self._address = tree, address

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self._log = self._stack.enter_context((home / "log").open("w+"))
        address = self._address or f"sqlite:///{home / 'airflow.db'}"
        file = Path(__file__).with_name("server_in_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(file), address, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._tree,
            env={**os.environ, "PYTHONPATH": str(self._tree)},
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stack.close()

    def do(self, command: str, **arguments: Any) -> Any:
        """Carry out one command, and return its result."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._log.seek(0)
        raise RuntimeError(f"the process for {command} ended:\n{self._log.read()[-4000:]}")


def reads(before: Path | None, rounds: int = 15, times: int = 10) -> Iterator[Bound]:
    """Measure full reads, on each database; the versions take turns."""
    for database in ("SQLite", "PostgreSQL"):
        with contextlib.ExitStack() as stack:
            trees = {"now": ROOT} | ({"before": before} if before else {})
            addresses: dict[str, str | None] = dict.fromkeys(trees)
            if database == "PostgreSQL":
                server = stack.enter_context(Postgres())
                addresses = {name: server.create(name) for name in trees}
            children = {name: stack.enter_context(Child(tree, addresses[name])) for name, tree in trees.items()}
            for child in children.values():
                child.do("seed", rows=ROWS)
                child.do("looks", times=times, known=True)
            sessions, heap = children["now"].do("sessions_of"), children["now"].do("heap")
            costs: dict[str, list[list[float]]] = defaultdict(list)
            for _ in range(rounds):
                for name, child in children.items():
                    costs[name] += child.do("looks", times=times, known=True)
            costs["all"] = children["now"].do("looks", times=rounds * times // 2, known=False)

        def of(name: str, number: int = 0) -> list[float]:
            return [cost[number] for cost in costs[name]]  # noqa: B023

        what = f"{database}: full read of 20 meters, {sessions} sessions"
        for part, label, gain in ((0.5, "median", 8.0), (0.99, "p99", 10.0)):
            earlier = 1000 * quantile(of("before"), part) if before else None
            value = 1000 * quantile(of("now"), part)
            yield Bound(f"{what}, {label}", value, "ms", before=earlier, gain=gain, control=of("now", 3))
        earlier = float(sum(of("before", 1))) if before else None
        what = f"{database}: full collections of {heap:,} objects in {rounds * times} such reads"
        yield Bound(what, sum(of("now", 1)), "collections", 0, before=earlier, control=of("now", 3))
        what = f"{database}: the same read by a new triggerer, which gets all sessions, median"
        yield Bound(what, 1000 * quantile(of("all"), 0.5), "ms", control=of("all", 3))
        what = f"{database}: full collections in {rounds * times // 2} of these"
        yield Bound(what, sum(of("all", 1)), "collections", 0, control=of("all", 3))


def reports(before: Path | None) -> Iterator[Bound]:
    """Measure the reports of waits, and callouts beside them, on SQLite."""
    with contextlib.ExitStack() as stack:
        trees = {"now": ROOT} | ({"before": before} if before else {})
        children = {name: stack.enter_context(Child(tree)) for name, tree in trees.items()}
        for child in children.values():
            child.do("seed", rows=ROWS)
        costs: dict[str, list[list[float]]] = defaultdict(list)
        for _ in range(4):
            for name, child in children.items():
                costs[name] += child.do("minutes", times=5, waits=1000, meters=10)[1:]
        noise = [cost[3] for cost in costs["now"]]
        earlier = 1000 * statistics.median(cost[0] for cost in costs["before"]) if before else None
        value = 1000 * statistics.median(cost[0] for cost in costs["now"])
        yield Bound("SQLite: a minute of 1,000 unchanged waits on 10 meters", value, "ms", 20, earlier, control=noise)
        for again, state in ((False, "new"), (True, "unchanged")):
            ratios: dict[str, list[float]] = {}
            for name, child in children.items():
                turns = [child.do("callouts", waits=2000, count=40, again=again) for _ in range(7)]
                ratios[name] = [statistics.median(turn["beside"]) / statistics.median(turn["alone"]) for turn in turns]
            yield Bound(
                f"SQLite: a callout beside a report of 2,000 {state} waits, median",
                statistics.median(ratios["now"]),
                "times one without",
                2,
                statistics.median(ratios["before"]) if before else None,
                control=noise,
            )


def fairness(before: Path | None) -> Iterator[Bound]:
    """Measure one connection's answers while another one asks for 20,000 meters."""
    with contextlib.ExitStack() as stack:
        trees = {"now": ROOT} | ({"before": before} if before else {})
        children = {name: stack.enter_context(Child(tree)) for name, tree in trees.items()}
        ratios: dict[str, float] = {}
        noise = []
        for name, child in children.items():
            child.do("seed", rows=ROWS)
            turns = [child.do("fairness", meters=20_000, count=40) for _ in range(5)]
            noise.append(child.do("spent")["control"])
            ratios[name] = statistics.median(
                statistics.median(turn["beside"]) / statistics.median(turn["alone"]) for turn in turns if turn["beside"]
            )
    what = "SQLite: an answer beside another connection's question for 20,000 meters, median"
    yield Bound(what, ratios["now"], "times one without", 2, ratios.get("before"), control=noise)


def fleet(_before: Path | None) -> Iterator[Bound]:
    """Simulate 100,000 waits on 500 meters over 20 triggerers, and measure a minute of the API server."""
    changes = [0, 200, 800]
    with Child() as child:
        costs = child.do("fleet", triggerers=20, meters=500, sessions=10, changes=changes)
    totals = []
    for count, (state, polls, reader, noise, _) in zip(changes, costs, strict=True):
        totals.append(state + polls + reader)
        shares = f"state {state:.2f}, polls {polls:.2f}, reader {reader:.2f}"
        what = f"SQLite: a minute of 20 triggerers with 100,000 waits on 500 meters, {count} changes ({shares})"
        yield Bound(what, totals[-1], "s", control=[noise])
    noise = [cost[3] for cost in costs]
    few, many = (totals[1] - totals[0]) / 200, (totals[2] - totals[0]) / 800
    yield Bound(
        "the cost of one of 800 changes in a minute, in that of one of 200", many / few, "times", 1.5, control=noise
    )
    collections = sum(cost[4] for cost in costs)
    yield Bound("full collections in these three minutes", collections, "collections", control=noise)


# ---- the triggerer ----


class _Turns(asyncio.SelectorEventLoop):
    """Measures the processor time of the loop's own thread in each of its turns, and of full collections in it."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.turns: dict[str, float] = defaultdict(float)
        self.collections: dict[str, list[float]] = defaultdict(list)
        self._collected = self._began = 0.0
        gc.callbacks.append(self._collect)

    def _run_once(self) -> None:
        began, self._collected = time.thread_time(), 0.0
        super()._run_once()  # type: ignore[misc]
        took = time.thread_time() - began - self._collected
        self.turns[self.phase] = max(self.turns[self.phase], took)

    def _collect(self, phase: str, info: Mapping[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self._began = time.thread_time()
        else:
            took = time.thread_time() - self._began
            self._collected += took
            self.collections[self.phase].append(took)


def wait_for(pipe: Connection, zuora: int, server: int, folder: str) -> None:
    """Be a triggerer: start the waits, wait, and send what it cost."""
    _become_triggerer(folder, "triggerer", zuora, server)
    _run(_wait_for(pipe, loop := _Turns()), loop)


def wait_for_nothing(pipe: Connection, folder: str) -> None:
    """Be a triggerer of as many triggers that only wait, and send what their start cost."""
    _become_triggerer(folder, "empty", 1, 1)
    _run(_wait_for_nothing(pipe, loop := _Turns()), loop)


def subscribe_to_one(pipe: Connection, folder: str) -> None:
    """Subscribe 10,000 waits to one meter, some times, and send the processor time of each."""
    _become_triggerer(folder, "one", 1, 1)
    _run(_subscribe(pipe), _Turns())


def _become_triggerer(folder: str, name: str, zuora: int, server: int) -> None:
    log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    connection = {"conn_type": "mediation", "host": f"https://127.0.0.1:{zuora}", "login": "client", "password": SECRET}
    os.environ |= {
        "AIRFLOW_HOME": f"{folder}/airflow-{name}",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__MEDIATION__FEED_URL": f"http://127.0.0.1:{server}/mediation",
        "SSL_CERT_FILE": f"{folder}/server.pem",
        "REQUESTS_CA_BUNDLE": f"{folder}/server.pem",
        f"AIRFLOW_CONN_{QUIET.upper()}": json.dumps(connection),
    }
    import logging

    import structlog

    logging.getLogger().setLevel(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def _run(work: Coroutine[Any, Any, None], loop: _Turns) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work)


async def _wait_for(pipe: Connection, loop: _Turns) -> None:
    noise: list[float] = []
    waits: list[asyncio.Task[Any]] = []

    async def probe() -> None:
        while True:
            await asyncio.sleep(0.25)
            noise.append(control())

    def mark(phase: str) -> None:
        pipe.send((phase, time.process_time() - sum(noise)))
        pipe.recv()
        loop.phase = phase

    # Imports, and what is made once for a process.
    waits.append(asyncio.create_task(_drain(_trigger(WAITS))))
    await asyncio.sleep(3)
    probing = asyncio.create_task(probe())
    mark("start")
    await _start_all(waits, map(_trigger, range(FIRST_WAITS)), 50)
    await asyncio.sleep(INTERVAL)
    mark("go on")
    await _start_all(waits, map(_trigger, range(FIRST_WAITS, WAITS)), 400)
    await asyncio.sleep(3 * INTERVAL)
    mark("steady")
    await asyncio.sleep(STEADY_SECONDS)
    mark("end")
    probing.cancel()
    assert not any(each.done() for each in waits), "a wait ended"
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, probing, return_exceptions=True)
    pipe.send({"turns": dict(loop.turns), "collections": dict(loop.collections), "noise": noise})


async def _wait_for_nothing(pipe: Connection, loop: _Turns) -> None:
    from benchmarks.contenders import EmptyTrigger

    waits: list[asyncio.Task[Any]] = []
    await _start_all(waits, (EmptyTrigger() for _ in range(1)), 1000)
    gc.freeze()
    await _start_all(waits, (EmptyTrigger() for _ in range(WAITS)), 1000)
    await asyncio.sleep(1)
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    pipe.send(loop.collections[""])


async def _start_all(waits: list[asyncio.Task[Any]], triggers: Iterable[Any], a_second: int) -> None:
    for number, trigger in enumerate(triggers):
        if number % 50 == 0:
            await asyncio.sleep(50 / a_second)
        waits.append(asyncio.create_task(_drain(trigger)))
        await asyncio.sleep(0)


async def _drain(trigger: Any) -> None:
    import greenback

    await greenback.ensure_portal()
    async for _ in trigger.run():
        pass


def _trigger(number: int, meter: int | None = None) -> Any:
    from benchmarks.contenders import CONTENDERS

    trigger: Any = CONTENDERS["mediation"].build(number % METERS if meter is None else meter, INTERVAL)
    trigger.mediation_conn_id = QUIET
    trigger.task_instance = SimpleNamespace(
        dag_id="bench", run_id=f"run-{number}", task_id="wait", map_index=-1, try_number=1, id=None
    )
    return trigger


async def _subscribe(pipe: Connection) -> None:
    from airflow_mediation_provider import triggerer
    from airflow_mediation_provider.feed.reports import WaitingTask
    from airflow_mediation_provider.protocol.waits.wait import SessionWait

    found = []
    for _ in range(5):
        made = [_trigger(number, meter=0) for number in range(WAITS)]
        waits = [(SessionWait.from_dict(each.wait), WaitingTask.of(each.task_instance)) for each in made]
        noise, began = control(), time.process_time()
        waiters = [triggerer.subscribe(QUIET, wait, poll_interval=INTERVAL, task=task) for wait, task in waits]
        found.append((time.process_time() - began, noise))
        for waiter in waiters:
            waiter.close()
        await triggerer.settled()
    pipe.send(found)


def _received(pipe: Connection, log: Path) -> Any:
    try:
        if pipe.poll(300):
            return pipe.recv()
        reason = "it does not answer"
    except EOFError:
        reason = "it ended"
    raise RuntimeError(f"{log.stem}: {reason}\n{log.read_text()[-4000:]}")


def triggerer(_before: Path | None) -> Iterator[Bound]:
    """Measure a triggerer with 10,000 waits that belong to tasks, and the API server that serves it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        pem = api_server.write_certificate(folder)
        subscribed = _received(_start(stack, subscribe_to_one, str(folder)), folder / "one.log")
        empty = _received(_start(stack, wait_for_nothing, str(folder)), folder / "empty.log")
        server = stack.enter_context(Child())
        port = server.do("serve")
        zuora = _start(stack, api_server.serve, str(pem))
        pipe = _start(stack, wait_for, zuora.recv(), port, str(folder))
        marks: dict[str, tuple[float, float, dict[str, float], dict[str, Any]]] = {}
        while not isinstance(message := _received(pipe, folder / "triggerer.log"), dict):
            phase, seconds = message
            zuora.send(("stats", ()))
            marks[phase] = seconds, time.monotonic(), server.do("spent"), zuora.recv()
            pipe.send("go on")
    noise, turns, collections = message["noise"], message["turns"], message["collections"]
    seconds = marks["end"][1] - marks["steady"][1]
    polls = (marks["end"][3]["requests"] - marks["steady"][3]["requests"]) / seconds
    share = 100 * (marks["end"][0] - marks["steady"][0]) / seconds
    what = f"triggerer, {WAITS:,} waits of tasks on {METERS} meters, feed, polls every {INTERVAL:g} s"
    yield Bound(f"{what} ({polls:.0f} a second): share of a core", share, "%", 2, control=noise)
    longest = 1000 * max(turns["start"], turns["go on"])
    yield Bound(f"{what}: longest turn of the event loop at the start", longest, "ms", 50, control=noise)
    yield Bound(f"{what}: the same in a minute of the steady state", 1000 * turns["steady"], "ms", 50, control=noise)
    found = [*collections.get("start", ()), *collections.get("go on", ())]
    theirs = f"{len(found)} of them; of {WAITS:,} triggers that only wait, {1000 * max(empty):.0f} ms"
    yield Bound(f"{what}: longest full collection at the start ({theirs})", 1000 * max(found), "ms", control=noise)
    one, own = statistics.median(each for each, _ in subscribed), [each for _, each in subscribed]
    yield Bound(f"triggerer: {WAITS:,} waits on one meter subscribed", one, "s", 1, control=own)
    started = {name: marks["go on"][2][name] - marks["start"][2][name] for name in ("seconds", "bytes")}
    what = f"API server, SQLite, {FIRST_WAITS:,} waits on {METERS} meters started, 50 a second"
    own = [mark[2]["control"] for mark in marks.values()]
    yield Bound(f"{what}: processor time", started["seconds"], "s", 3, control=own)
    yield Bound(f"{what}: replies", started["bytes"] / 2**20, "MiB", 5, control=own)
    minute = 60 * (marks["end"][2]["seconds"] - marks["steady"][2]["seconds"]) / seconds
    yield Bound(f"API server, SQLite: a minute of {WAITS:,} waits on {METERS} meters", 1000 * minute, "ms", control=own)


def rivals(_before: Path | None) -> Iterator[Bound]:
    """Measure triggerers with a tenth as many waits of other providers, which poll an object for each of them."""
    from benchmarks.contenders import CONTENDERS

    for name in RIVALS:
        job = Job(name, RIVAL_WAITS, RIVAL_WAITS, INTERVAL, settle=3 * INTERVAL, steady=RIVAL_SECONDS, finish=0)
        with Bench(name) as bench:
            measured = bench.run(job)
        share = 100 * measured.outcome.cpu_seconds / measured.outcome.seconds
        what = f"triggerer, {RIVAL_WAITS:,} waits of {CONTENDERS[name].label}, polls every {INTERVAL:g} s"
        polls = measured.per_second("requests")
        noise = [control() for _ in range(5)]
        yield Bound(f"{what} ({polls:.0f} a second): share of a core", share, "%", control=noise)


def _start(stack: contextlib.ExitStack, target: Any, *arguments: Any) -> Connection:
    """Start a process that ends when its pipe is closed, at the latest when this program ends."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()

    def stop() -> None:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()

    stack.callback(stop)
    return ours


@contextlib.contextmanager
def tree_of(commit: str | None) -> Iterator[Path | None]:
    """Check an earlier commit out, in a folder of its own."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(PARTS))
    parser.add_argument("--before", metavar="COMMIT", help="an earlier commit to compare with")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path | None], Iterator[Bound]]] = {
        "triggerer": triggerer,
        "rivals": rivals,
        "reads": reads,
        "reports": reports,
        "fairness": fairness,
        "fleet": fleet,
    }
    bounds: list[Bound] = []
    with tree_of(arguments.before) as before:
        for part in arguments.only or PARTS:
            print(f"{part} ...", file=sys.stderr, flush=True)
            bounds += parts[part](before)
    earlier = f"Earlier commit: {arguments.before}, in turns with this one." if arguments.before else ""
    table = Table(
        name="bounds",
        title="Bounds of the cost of waits",
        columns=COLUMNS,
        rows=[bound.row() for bound in bounds],
        notes=[
            "Processor time of the measured process itself, with all of its threads; a turn of the event loop without.",
            "The control is a fixed piece of work in the same process; it shows what other work on the machine adds.",
            f"In brackets: at a control of {1000 * REFERENCE_SECONDS:g} ms; claims are checked as measured.",
            *([earlier] if earlier else []),
        ],
    )
    broken = [sentence for bound in bounds for sentence in bound.broken_claims()]
    return publish(arguments, table, [asdict(bound) for bound in bounds], broken)


if __name__ == "__main__":
    sys.exit(main())
