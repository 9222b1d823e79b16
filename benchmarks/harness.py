"""The processes of the trigger benchmarks: a server, and a worker that runs triggers on one event loop.

A *job* is one measurement: N triggers of one kind start at the triggerer's pace, settle, wait for a while in a steady
state, then the remote objects succeed and the detections are timed. Server, worker and controlling program are three
processes; all read the same monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import api_server
from benchmarks.api_server import Fault, flip_time

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from airflow.triggers.base import BaseTrigger

LAG_PROBE_SECONDS = 0.01
# Requests sent an interval apart can arrive a little closer together.
ARRIVAL_SECONDS = 0.05
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Job:
    """One measurement.

    :param contender: key of `contenders.CONTENDERS`
    :param waits: number of triggers
    :param objects: number of remote objects that they wait for; wait `i` is on object `i % objects`
    :param interval: poll interval, seconds
    :param settle: seconds between the last start and the steady state
    :param steady: seconds measured (fault survival: during which the fault is on)
    :param finish: seconds at most for the triggers to end after that
    :param spread: seconds over which the objects end, one after the other
    :param start_rate: triggers started each second, 0 for all at once; a triggerer starts 50, unless
        `[triggerer] max_trigger_to_select_per_loop` is set otherwise
    :param trace_memory: measure memory with tracemalloc, which slows everything, and leave out what follows the steady
        state
    :param fault: replaces the server's answers during the steady state
    :param lasting: the fault stays to the end, and no object succeeds
    """

    contender: str
    waits: int
    objects: int
    interval: float
    settle: float
    steady: float
    finish: float
    spread: float = 0.0
    start_rate: int = 50
    trace_memory: bool = False
    fault: Fault | None = None
    lasting: bool = False


@dataclass(frozen=True)
class End:
    """How one wait ended: when (monotonic clock), whether with its remote object's success, and its own message."""

    index: int
    at: float
    succeeded: bool
    text: str


@dataclass
class Outcome:
    """The worker's measurements of a job."""

    cpu_seconds: float = 0.0
    seconds: float = 0.0
    lag_max: float = 0.0
    stalls: int = 0
    rss_bytes: int = 0
    traced_bytes: int = 0
    ends: list[End] = field(default_factory=list)


@dataclass
class Measurement:
    """A job's outcome with the server's counts and the instants (monotonic clock) from which it is judged."""

    job: Job
    outcome: Outcome
    steady_from: dict[str, Any]
    steady_to: dict[str, Any]
    flipped_at: float
    final: dict[str, Any]
    busiest_interval: int

    def latencies(self) -> list[float]:
        """Return the seconds from the end of the remote object to the event, for every wait that succeeded."""
        job = self.job
        return sorted(
            end.at - flip_time(self.flipped_at, job.spread, end.index % job.objects, job.objects)
            for end in self.outcome.ends
            if end.succeeded
        )

    def per_second(self, counter: str) -> float:
        """Return the growth of a server counter per second of the steady state."""
        seconds = self.steady_to["at"] - self.steady_from["at"]
        return float((self.steady_to[counter] - self.steady_from[counter]) / seconds)


class Bench:
    """A server and a worker for one contender; a context manager that leaves nothing behind."""

    def __init__(self, contender: str) -> None:
        self.contender = contender

    def __enter__(self) -> Bench:
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        pem = api_server.write_certificate(folder)
        self.log = folder / "worker.log"
        self._server = self._start(api_server.serve, str(pem))
        port = self._receive(self._server, 30)
        self._worker = self._start(work, self.contender, port, str(folder))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _start(self, target: Any, *arguments: Any) -> Connection:
        """Start a process that ends when its pipe is closed, at the latest when this program ends."""
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()

        def stop() -> None:
            ours.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

        self._stack.callback(stop)
        return ours

    def _receive(self, connection: Connection, timeout: float) -> Any:
        try:
            if connection.poll(timeout):
                return connection.recv()
            reason = f"no message for {timeout:.0f} s"
        except EOFError:
            reason = "it died"
        log = self.log.read_text()[-4000:] if self.log.exists() else ""
        raise RuntimeError(f"benchmark process for {self.contender}: {reason}\n{log}")

    def _command(self, name: str, *arguments: Any) -> Any:
        self._server.send((name, arguments))
        return self._receive(self._server, 30)

    def run(self, job: Job) -> Measurement:
        """Run one job; takes at most its own seconds and two minutes for slow starts."""
        self._worker.send(job)
        marks: dict[str, dict[str, Any]] = {}
        flipped_at = 0.0
        ramp = job.waits / job.start_rate if job.start_rate else 0
        while True:
            message = self._receive(self._worker, 120 + ramp + job.settle + job.steady + job.finish)
            if isinstance(message, Outcome):
                final, busiest = self._command("stats"), self._command("busiest", job.interval - ARRIVAL_SECONDS)
                return Measurement(job, message, marks["steady"], marks["flip"], flipped_at, final, busiest)
            if message == "warm":
                self._command("reset")
            else:
                marks[message] = self._command("stats")
            if message == "steady" and job.fault:
                self._command("fault", job.fault)
            if message == "flip" and not job.lasting:
                self._command("fault", None)
                flipped_at = time.monotonic()
                self._command("flip", flipped_at, job.spread, job.objects)
            self._worker.send("go on")


# ---- the worker process ----


def work(control: Connection, contender: str, port: int, folder: str) -> None:
    """Run the jobs that arrive through the pipe until it is closed."""
    log = os.open(f"{folder}/worker.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    os.environ.update(
        AIRFLOW_HOME=f"{folder}/airflow",
        AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        SSL_CERT_FILE=f"{folder}/server.pem",
    )
    import logging

    import structlog

    from benchmarks.contenders import CONTENDERS

    logging.getLogger().setLevel(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    os.environ["AIRFLOW_CONN_BENCH"] = json.dumps(CONTENDERS[contender].connection(port))
    with contextlib.suppress(EOFError):
        asyncio.run(_warm_up(contender))
        while True:
            job = control.recv()
            control.send(asyncio.run(_Run(job, control).run()))


async def _warm_up(contender: str) -> None:
    """Run one wait, so that imports and caches that are made once for a process exist, and end it."""
    from benchmarks.contenders import CONTENDERS

    run = asyncio.create_task(_drain(CONTENDERS[contender].build(0, 1.0)))
    await asyncio.sleep(2)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def _drain(trigger: BaseTrigger) -> Any:
    """Run a trigger as the triggerer does, and return the payload of its event."""
    import greenback

    await greenback.ensure_portal()
    payload = None
    try:
        async for event in trigger.run():
            payload = event.payload
    finally:
        await trigger.cleanup()
    return payload


class _Run:
    """One job on one event loop."""

    def __init__(self, job: Job, control: Connection) -> None:
        from benchmarks.contenders import CONTENDERS

        self.job, self.control = job, control
        self.contender = CONTENDERS[job.contender]
        self.outcome = Outcome()

    def _mark(self, name: str) -> None:
        """Send the controlling program the job's phase, and let it act before going on (about a millisecond)."""
        self.control.send(name)
        self.control.recv()

    async def run(self) -> Outcome:
        job, outcome = self.job, self.outcome
        if job.trace_memory:
            tracemalloc.start()
        gc.collect()
        before = _resident_bytes(), tracemalloc.get_traced_memory()[0]
        self._mark("warm")
        waits = await self._start_all()
        everything = asyncio.gather(*waits)
        await asyncio.sleep(job.settle)

        self._mark("steady")
        gc.collect()
        probe = asyncio.create_task(self._probe_lag())
        cpu, at = time.process_time(), time.monotonic()
        memory = [] if job.trace_memory else [(_resident_bytes(), 0)]
        while (left := at + job.steady - time.monotonic()) > 0 and not everything.done():
            await asyncio.wait((everything,), timeout=min(left, 0.35))
            if job.trace_memory:
                memory.append((_resident_bytes(), tracemalloc.get_traced_memory()[0]))
        outcome.cpu_seconds, outcome.seconds = time.process_time() - cpu, time.monotonic() - at
        memory.append((_resident_bytes(), tracemalloc.get_traced_memory()[0]))
        outcome.rss_bytes = memory[-1][0] - before[0]
        outcome.traced_bytes = int(statistics.median(traced for _, traced in memory)) - before[1]

        self._mark("flip")
        if job.finish and not job.trace_memory:
            await asyncio.wait((everything,), timeout=job.finish)
        probe.cancel()
        everything.cancel()
        await asyncio.gather(probe, everything, return_exceptions=True)
        await asyncio.gather(*waits, return_exceptions=True)
        tracemalloc.stop()
        return outcome

    async def _start_all(self) -> list[asyncio.Task[None]]:
        tasks = []
        for index in range(self.job.waits):
            if self.job.start_rate and index and index % self.job.start_rate == 0:
                await asyncio.sleep(1)
            trigger = self.contender.build(index % self.job.objects, self.job.interval)
            tasks.append(asyncio.create_task(self._wait(index, trigger)))
            await asyncio.sleep(0)
        return tasks

    async def _wait(self, index: int, trigger: BaseTrigger) -> None:
        try:
            payload = await _drain(trigger)
        except Exception as error:
            succeeded, text = False, f"{type(error).__name__}: {error}"
        else:
            succeeded = self.contender.succeeded(payload)
            text = str(payload.get("message", payload) if isinstance(payload, dict) else payload)
        self.outcome.ends.append(End(index, time.monotonic(), succeeded, text[:400]))

    async def _probe_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_PROBE_SECONDS
            await asyncio.sleep(LAG_PROBE_SECONDS)
            lag = time.monotonic() - due
            self.outcome.lag_max = max(self.outcome.lag_max, lag)
            self.outcome.stalls += lag > 0.2


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
