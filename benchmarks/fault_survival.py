"""What a waiting trigger survives: one fault at a time between N healthy waits and their server.

The waits of each kind first poll running remote objects; then, for 6 s, one kind of fault replaces every answer; when
it is over, the remote objects have ended successfully. A trigger that ends before that would have failed its task while
the remote work was healthy. Each wait is on its own remote object (ours: a meter), so that requests can be compared.
"rq" are the faulty answers for each wait: about one per poll interval is ideal. The seconds are how long after the end
of its remote object the last wait detected it. Short 401s and 404s (1.5 s: a token that expired, a replica that lags)
are distinguished from lasting ones, which must end the wait with the reason.

  python -m benchmarks.fault_survival                       all kinds, about 6 minutes
  python -m benchmarks.fault_survival --check               the same; exit code 1 unless all claims hold
  python -m benchmarks.fault_survival --faults 503 hang --only mediation
  python -m benchmarks.fault_survival --markdown docs/benchmarks.md   update the numbers in the documentation

Needs the packages of the extra `bench`.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from benchmarks.api_server import Fault
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import Bench, Job, Measurement
from benchmarks.report import Table, common_arguments, publish

INTERVAL = 1.0
RETRY_AFTER = 3
HANG_COST_SECONDS = 30.0
# A request hangs up to an interval after the fault began, and the next one is sent a pause after its timeout.
HANG_DETECTED_SECONDS = HANG_COST_SECONDS + 3 * INTERVAL


@dataclass(frozen=True)
class Case:
    """One fault, how long it lasts, and whether it is permanent."""

    name: str
    fault: Fault
    seconds: float = 6.0
    lasting: bool = False
    patience: float = 12.0

    @property
    def most_answers(self) -> float:
        """Return how many faulty answers a wait may get: about one per poll, fewer after a Retry-After."""
        return self.seconds / (self.fault.retry_after or INTERVAL) + 2


_REFUSED, _UNKNOWN = Fault("status", 401, spares_token=True), Fault("status", 404, spares_token=True)
CASES = {
    case.name: case
    for case in (
        Case("503", Fault("status", 503)),
        Case("429", Fault("status", 429)),
        Case(f"429, Retry-After {RETRY_AFTER}", Fault("status", 429, retry_after=RETRY_AFTER)),
        Case("reset", Fault("reset")),
        Case("HTML with 200", Fault("html")),
        Case("bad JSON with 200", Fault("badjson")),
        Case("401, short", _REFUSED, seconds=1.5),
        Case("404, short", _UNKNOWN, seconds=1.5),
        Case("hang", Fault("hang"), patience=HANG_COST_SECONDS + 6),
        Case("401, lasting", _REFUSED, lasting=True),
        Case("404, lasting", _UNKNOWN, lasting=True, patience=6),
    )
}


@dataclass
class Survival:
    """How the waits of one kind ended under one fault."""

    kind: str
    case: str
    waits: int
    died: int
    false_success: int
    survived: int
    still_waiting: int
    faulty_answers_per_wait: float
    blind_seconds: float | None
    seconds_from_fault: float | None
    reasons: list[str]

    def cell(self) -> str:
        """Return the text for the table."""
        parts = [
            f"{word} {number}/{self.waits}"
            for word, number in (
                ("FALSE SUCCESS", self.false_success),
                ("ended with reason" if CASES[self.case].lasting else "died", self.died),
                ("still waiting" if CASES[self.case].lasting else "blind", self.still_waiting),
            )
            if number
        ]
        blind = f", {self.blind_seconds:.1f} s" if self.blind_seconds is not None else ""
        return f"{', '.join(parts) or 'survived'}; {self.faulty_answers_per_wait:.1f} rq{blind}"

    def broken_claims(self) -> list[str]:
        """Return the claims that failed, one sentence each."""
        case, broken = CASES[self.case], []
        if case.lasting:
            if self.died < self.waits:
                broken.append(f"{self.died} of {self.waits} waits ended")
            status = str(case.fault.status)
            broken += [f"no {status} in the reason: {text}" for text in self.reasons if status not in text]
        elif self.survived < self.waits:
            broken.append(f"{self.survived} of {self.waits} waits survived: {self.reasons}")
        if not 0 < self.faulty_answers_per_wait <= case.most_answers:
            broken.append(
                f"{self.faulty_answers_per_wait:.1f} faulty answers per wait, 1 to {case.most_answers:g} claimed"
            )
        if case.fault.kind == "hang" and (self.seconds_from_fault or 0) > HANG_DETECTED_SECONDS:
            broken.append(
                f"detected {self.seconds_from_fault:.1f} s after the hang began, {HANG_DETECTED_SECONDS:g} claimed"
            )
        return [f"{self.case}: {sentence}" for sentence in broken]


def judge(case: Case, run: Measurement) -> Survival:
    """Return how the waits of one run ended."""
    ends, waits = run.outcome.ends, run.job.waits
    early = [end for end in ends if case.lasting or end.at < run.flipped_at]
    late = [end for end in ends if not case.lasting and end.at >= run.flipped_at]
    good = [end for end in late if end.succeeded]
    last = max((end.at for end in good), default=None)
    return Survival(
        kind=run.job.contender,
        case=case.name,
        waits=waits,
        died=sum(not end.succeeded for end in ends),
        false_success=sum(end.succeeded for end in early),
        survived=len(good),
        still_waiting=waits - len(ends),
        faulty_answers_per_wait=run.final["faulty"] / waits,
        blind_seconds=last - run.flipped_at if last else None,
        seconds_from_fault=last - run.steady_from["at"] if last else None,
        reasons=sorted({end.text for end in ends if not end.succeeded}),
    )


def survivals(kind: str, cases: list[Case], waits: int) -> list[Survival]:
    """Run every case against one kind of trigger, one after the other."""
    results = []
    with Bench(kind) as bench:
        for case in cases:
            print(f"{CONTENDERS[kind].label}: {case.name} ...", file=sys.stderr, flush=True)
            job = Job(
                contender=kind,
                waits=waits,
                objects=waits,
                interval=INTERVAL,
                settle=2.5 * INTERVAL,
                steady=case.seconds,
                finish=case.patience,
                start_rate=0,
                fault=case.fault,
                lasting=case.lasting,
            )
            results.append(judge(case, bench.run(job)))
    return results


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(CONTENDERS))
    parser.add_argument("--waits", type=int, default=10, help="triggers of each kind (10)")
    parser.add_argument("--faults", nargs="+", choices=list(CASES), metavar="FAULT", help=f"of: {'; '.join(CASES)}")
    arguments = parser.parse_args()

    cases = [CASES[name] for name in arguments.faults or CASES]
    kinds = [kind for kind in arguments.only or CONTENDERS if kind != "empty"]
    # Ours runs alone, so that its numbers are not affected; the others run in parallel to save time.
    alone, beside = [kind for kind in kinds if kind == "mediation"], [kind for kind in kinds if kind != "mediation"]
    results = {kind: survivals(kind, cases, arguments.waits) for kind in alone}
    with ThreadPoolExecutor(max(1, len(beside))) as pool:
        results |= zip(beside, pool.map(lambda kind: survivals(kind, cases, arguments.waits), beside), strict=True)

    ours = results.get("mediation", [])
    lasting = [found for found in ours if CASES[found.case].lasting]
    reasons = [f"MeterSessionTrigger, {found.case}: `{text}`" for found in lasting for text in found.reasons[:1]]
    if arguments.check and not ours:
        parser.error("--check needs the kind mediation")
    table = Table(
        name="fault_survival",
        title=f"{arguments.waits} waits, polled every {INTERVAL:g} s: a fault for 6 s, then the end of the remote work",
        columns=["fault", *(CONTENDERS[kind].label for kind in results)],
        rows=[[case.name, *(results[kind][row].cell() for kind in results)] for row, case in enumerate(cases)],
        notes=[
            "rq: faulty answers for each wait (hang: unanswered requests). Seconds: until all had detected the end.",
            "died: an error while the remote object was healthy, so the Airflow task fails.",
            "FALSE SUCCESS: reported success while the remote object still ran.",
            "blind: not detected 12 s after the fault was over (hang: 36 s). 'short' faults last 1.5 s.",
            *reasons,
        ],
    )
    broken = [sentence for found in ours for sentence in found.broken_claims()]
    return publish(arguments, table, [asdict(found) for row in results.values() for found in row], broken)


if __name__ == "__main__":
    sys.exit(main())
