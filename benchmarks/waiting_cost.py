"""What a waiting trigger costs: N deferred waits of each kind, side by side.

Every kind of trigger runs on one event loop in a process of its own, as in a triggerer, against one HTTPS server in
another process on 127.0.0.1. N triggers start, 50 a second as a triggerer starts them; 20 s of steady state are
measured; then the remote objects end one after the other and the detections are timed. A second, shorter run measures
memory with tracemalloc. Ours waits on 10 meters, and once more on a meter each; the others do not share polls, so each
of their waits is on an object of its own, as they are used. Memory is counted on top of N empty triggers, measured in
the same way.

  python -m benchmarks.waiting_cost                        all kinds, 1,000 waits, about 9 minutes
  python -m benchmarks.waiting_cost --check                the same; exit code 1 unless all claims hold
  python -m benchmarks.waiting_cost --waits 50 --steady 6  a quick run, about 2 minutes
  python -m benchmarks.waiting_cost --only mediation --check
  python -m benchmarks.waiting_cost --markdown docs/benchmarks.md     update the numbers in the documentation

Needs the packages of the extra `bench`. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.contenders import CONTENDERS
from benchmarks.harness import Bench, Job, Measurement
from benchmarks.report import Table, common_arguments, publish

if TYPE_CHECKING:
    from argparse import Namespace

COLUMNS = (
    "trigger",
    "polled objects",
    "requests/s",
    "per interval, mean / max",
    "connections max",
    "opened/s",
    "CPU ms/s",
    "KiB/wait RSS",
    "KiB/wait traced",
    "loop lag max ms",
    "detected after s, mean / p95 / max",
    "detected",
)
# The claims for MeterSessionTrigger: 1,000 waits on 10 meters.
REQUESTS_PER_INTERVAL = 10
CONNECTIONS = 4
KIB_PER_WAIT = 8.0
LAG_MS = 50.0
# An idle event loop lags more than this only while other programs use the processor.
NOISE_MS = 20.0
# The poll interval while memory is traced, in poll intervals.
MEMORY_INTERVALS = 4


@dataclass
class Cost:
    """The numbers of one kind of trigger; memory per wait is on top of the empty trigger."""

    kind: str
    waits: int
    objects: int
    requests_per_second: float
    requests_per_interval: float
    busiest_interval: int
    connections_max: int
    opened_per_second: float
    cpu_ms_per_second: float
    rss_kib_per_wait: float
    traced_kib_per_wait: float
    lag_max_ms: float
    detection_seconds: list[float]
    server_cpu_share: float

    def row(self) -> list[str]:
        """Return the cells of the table."""
        found = self.detection_seconds
        quantiles = (fmean(found), found[int(len(found) * 0.95)], found[-1]) if found else ()
        return [
            CONTENDERS[self.kind].label,
            str(self.objects) if self.kind != "empty" else "-",
            f"{self.requests_per_second:.1f}",
            f"{self.requests_per_interval:.1f} / {self.busiest_interval}",
            str(self.connections_max),
            f"{self.opened_per_second:.1f}",
            f"{self.cpu_ms_per_second:.1f}",
            f"{self.rss_kib_per_wait:.1f}",
            f"{self.traced_kib_per_wait:.1f}",
            f"{self.lag_max_ms:.0f}",
            " / ".join(f"{seconds:.2f}" for seconds in quantiles) or "-",
            f"{len(found)}/{self.waits}" if self.kind != "empty" else "-",
        ]

    def broken_claims(self) -> list[str]:
        """Return the claims that failed, one sentence each."""
        claims = [
            ("requests in the busiest poll interval", self.busiest_interval, REQUESTS_PER_INTERVAL),
            ("open connections", self.connections_max, CONNECTIONS),
            ("KiB a wait (RSS)", self.rss_kib_per_wait, KIB_PER_WAIT),
            ("KiB a wait (tracemalloc)", self.traced_kib_per_wait, KIB_PER_WAIT),
            ("ms of event-loop lag", self.lag_max_ms, LAG_MS),
            ("waits whose end was not detected", self.waits - len(self.detection_seconds), 0),
        ]
        return [f"{value:.1f} {what}, at most {limit} claimed" for what, value, limit in claims if value > limit]


def cost_of(run: Measurement, memory: Measurement, empty_rss: float, empty_traced: float) -> Cost:
    """Return the numbers of two runs; `empty_*` are the empty trigger's KiB per wait."""
    job, outcome = run.job, run.outcome
    return Cost(
        kind=job.contender,
        waits=job.waits,
        objects=job.objects,
        requests_per_second=run.per_second("requests"),
        requests_per_interval=run.per_second("requests") * job.interval,
        busiest_interval=run.busiest_interval,
        connections_max=run.final["open_max"],
        opened_per_second=run.per_second("opened"),
        cpu_ms_per_second=1000 * outcome.cpu_seconds / outcome.seconds,
        rss_kib_per_wait=outcome.rss_bytes / job.waits / 1024 - empty_rss,
        traced_kib_per_wait=memory.outcome.traced_bytes / job.waits / 1024 - empty_traced,
        lag_max_ms=1000 * outcome.lag_max,
        detection_seconds=run.latencies(),
        server_cpu_share=run.per_second("cpu_seconds"),
    )


def measure(kind: str, objects: int, arguments: Namespace, empty_rss: float, empty_traced: float) -> Cost:
    """Measure one row of the table; `empty_*` are the empty trigger's KiB per wait."""
    print(f"{CONTENDERS[kind].label}, {objects} objects ...", file=sys.stderr, flush=True)
    run = Job(
        contender=kind,
        waits=arguments.waits,
        objects=objects,
        interval=arguments.interval,
        settle=2 * arguments.interval,
        steady=arguments.steady,
        finish=4 * arguments.interval + 8 if kind != "empty" else 0,
        spread=2 * arguments.interval,
        start_rate=arguments.start_rate,
    )
    # tracemalloc slows everything down: at the measured interval the busiest triggers would not keep up.
    calm = MEMORY_INTERVALS * arguments.interval
    memory = replace(run, trace_memory=True, interval=calm, settle=calm, steady=calm, start_rate=200)
    # A process for each: what one run leaves behind must not count as another's memory.
    with Bench(kind) as bench:
        measured = bench.run(run)
    with Bench(kind) as bench:
        traced = bench.run(memory)
    return cost_of(measured, traced, empty_rss, empty_traced)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(CONTENDERS))
    parser.add_argument("--waits", type=int, default=1000, help="number of triggers (1000)")
    parser.add_argument("--meters", type=int, default=10, help="meters that ours waits on (10)")
    parser.add_argument("--interval", type=float, default=2.0, help="poll interval, seconds (2)")
    parser.add_argument("--steady", type=float, default=20.0, help="seconds of steady state (20)")
    parser.add_argument("--start-rate", type=int, default=50, help="triggers started a second (50), 0: all at once")
    arguments = parser.parse_args()

    kinds = [kind for kind in arguments.only or CONTENDERS if kind != "empty"]
    if arguments.check and "mediation" not in kinds:
        parser.error("--check needs the kind mediation")
    waits, meters = arguments.waits, min(arguments.meters, arguments.waits)
    empty = measure("empty", waits, arguments, 0.0, 0.0)
    costs, missing = [empty], []
    for kind in kinds:
        for objects in (meters, waits) if CONTENDERS[kind].shares_objects else (waits,):
            try:
                costs.append(measure(kind, objects, arguments, empty.rss_kib_per_wait, empty.traced_kib_per_wait))
            except RuntimeError as error:  # what was measured of the others is not lost
                print(error, file=sys.stderr)
                missing.append(f"Not measured: {CONTENDERS[kind].label}, {objects} objects.")
    ours = next((cost for cost in costs if cost.kind == "mediation"), None)

    noise = f"The machine was busy with other work: the loop lagged {empty.lag_max_ms:.0f} ms beside empty triggers."
    table = Table(
        name="waiting_cost",
        title=f"{arguments.waits} deferred waits, polled every {arguments.interval:g} s",
        columns=COLUMNS,
        rows=[cost.row() for cost in costs],
        notes=[
            "MeterSessionTrigger shares a meter's polls. The others share none: each wait is on an object of its own.",
            f"{arguments.steady:g} s of steady state; {arguments.start_rate or 'all'} triggers were started a second.",
            "All over TLS, nothing patched. Memory of the empty trigger is absolute, all other memory is on top of it.",
            "RSS: with the peak of open sockets and TLS buffers. "
            f"Traced: tracemalloc's median, in a run with polls every {MEMORY_INTERVALS * arguments.interval:g} s.",
            f"Ideal polls detect after {arguments.interval / 2:g} s in the mean and {arguments.interval:g} s at most.",
            f"The server used at most {max(cost.server_cpu_share for cost in costs):.0%} of its core.",
            *missing,
            *([noise] if empty.lag_max_ms > NOISE_MS else []),
        ],
    )
    broken = [*missing, *(ours.broken_claims() if ours else [])]
    return publish(arguments, table, [asdict(cost) for cost in costs], broken)


if __name__ == "__main__":
    sys.exit(main())
