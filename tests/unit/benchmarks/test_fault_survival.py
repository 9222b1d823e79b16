from __future__ import annotations

import pytest

from benchmarks.api_server import flip_time
from benchmarks.fault_survival import CASES, INTERVAL, judge
from benchmarks.harness import End, Job, Measurement, Outcome

FAULT_AT, FLIPPED_AT = 100.0, 106.0


def survival(case_name: str, ends: list[End], *, faulty: int, waits: int = 2):
    case = CASES[case_name]
    job = Job(
        contender="mediation",
        waits=waits,
        objects=waits,
        interval=INTERVAL,
        settle=1,
        steady=case.seconds,
        finish=12,
        fault=case.fault,
        lasting=case.lasting,
    )
    run = Measurement(
        job=job,
        outcome=Outcome(ends=ends),
        steady_from={"at": FAULT_AT},
        steady_to={"at": FLIPPED_AT},
        flipped_at=0.0 if case.lasting else FLIPPED_AT,
        final={"faulty": faulty},
        busiest_interval=waits,
    )
    return judge(case, run)


def good(index: int, at: float) -> End:
    return End(index, at, succeeded=True, text="")


def bad(index: int, at: float, text: str = "boom") -> End:
    return End(index, at, succeeded=False, text=text)


def test_waits_that_end_after_the_fault_count_as_survived():
    found = survival("503", [good(0, 106.4), good(1, 107.0)], faulty=12)

    assert found.cell() == "survived; 6.0 rq, 1.0 s"
    assert found.broken_claims() == []


def test_an_error_counts_as_died_and_a_wait_without_an_end_as_blind():
    found = survival("503", [bad(0, 100.5)], faulty=2)

    assert found.cell() == "died 1/2, blind 1/2; 1.0 rq"
    assert found.broken_claims() == ["503: 0 of 2 waits survived: ['boom']"]


def test_success_before_the_remote_object_ended_does_not_count_as_survived():
    found = survival("HTML with 200", [good(0, 101.0), good(1, 107.0)], faulty=2)

    assert found.cell().startswith("FALSE SUCCESS 1/2")
    assert found.broken_claims() == ["HTML with 200: 1 of 2 waits survived: []"]


@pytest.mark.parametrize(("faulty", "kept"), [(0, False), (2, True), (16, True), (18, False)])
def test_polling_too_often_or_never_meeting_the_fault_breaks_the_claim(faulty, kept):
    found = survival("503", [good(0, 106.4), good(1, 107.0)], faulty=faulty)

    assert (found.broken_claims() == []) is kept


def test_retry_after_allows_fewer_requests():
    found = survival("429, Retry-After 3", [good(0, 106.4), good(1, 107.0)], faulty=12)

    assert found.broken_claims() == ["429, Retry-After 3: 6.0 faulty answers per wait, 1 to 4 claimed"]


def test_a_lasting_fault_must_end_every_wait_and_be_named():
    named = survival("401, lasting", [bad(0, 103.0, "HTTP 401"), bad(1, 103.0, "HTTP 401")], faulty=6)
    unnamed = survival("401, lasting", [bad(0, 103.0, "failed")], faulty=6)

    assert named.cell() == "ended with reason 2/2; 3.0 rq"
    assert named.broken_claims() == []
    assert unnamed.broken_claims() == ["401, lasting: 1 of 2 waits ended", "401, lasting: no 401 in the reason: failed"]


def test_a_hang_may_cost_thirty_seconds_and_the_pauses_around_it():
    kept = survival("hang", [good(0, 130.5), good(1, 132.5)], faulty=2)
    late = survival("hang", [good(0, 130.5), good(1, 134.0)], faulty=2)

    assert kept.broken_claims() == []
    assert late.broken_claims() == ["hang: detected 34.0 s after the hang began, 33 claimed"]


def test_objects_end_one_after_the_other():
    assert [flip_time(10.0, 4.0, index, 4) for index in range(4)] == [10.0, 11.0, 12.0, 13.0]
