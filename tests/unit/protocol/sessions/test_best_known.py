"""The best known status: Zuora's end first, then the verdicts of tasks, regardless of the order of storage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.sessions.verdict import BestKnown, TaskVerdict, best_known
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
STATUSES = ["INITIALIZING", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELED"]


def at(minute: int) -> datetime:
    return NOON + timedelta(minutes=minute)


def report(status: str, before: str | None, minute: int, source: Source = Source.CALLOUT) -> SessionTransition:
    return SessionTransition(
        meter_id="1",
        session_id="R-1",
        status=status,
        previous_status=before,
        observed_at=at(minute),
        source=source,
        notification_id=f"{status}-{before}-{minute}",
    )


def verdict(status: str, minute: int, *, certain: bool = False, task: str = "wait") -> TaskVerdict:
    return TaskVerdict(
        wait_id=task,
        meter_id="1",
        session_id="R-1",
        run_type="NORMAL",
        status=status,
        at=at(minute),
        certain=certain,
        dag_id="usage",
        run_id="r",
        task_id=task,
        map_index=-1,
        try_number=1,
        ti_id=f"{task}-{minute}",
        mode="worker",
    )


RAN = report("INITIALIZING", None, 0, Source.RUN)
RUNNING = report("RUNNING", "INITIALIZING", 1)
REPORTS = st.lists(
    st.builds(report, st.sampled_from(STATUSES), st.none() | st.sampled_from(STATUSES), st.integers(0, 20)), max_size=5
)
VERDICTS = st.lists(
    st.builds(
        verdict,
        st.sampled_from(sorted(ANY_TERMINAL)),
        st.integers(0, 20),
        certain=st.booleans(),
        task=st.sampled_from("abc"),
    ),
    max_size=4,
    unique_by=lambda each: each.ti_id,
)


def known(reports: list[SessionTransition], *verdicts: TaskVerdict) -> BestKnown:
    return best_known(fold(reports) if reports else None, verdicts, reports)


def test_the_time_of_a_verdict_is_in_utc_and_has_a_zone() -> None:
    concluded = verdict("FAILED", 5)
    local = replace(concluded, at=concluded.at.astimezone(timezone(timedelta(hours=-7))))
    assert local.at.tzinfo is UTC
    with pytest.raises(ValueError, match="at must be a datetime with a time zone"):
        replace(concluded, at=concluded.at.replace(tzinfo=None))


def test_without_a_verdict_zuoras_report_is_the_best_known_status() -> None:
    assert known([RAN, RUNNING]) == BestKnown(
        status="RUNNING", evidence="callout", certain=True, ended=False, ended_at=None
    )
    ended = replace(report("FAILED", "RUNNING", 5), ended_at=at(4))
    assert known([RAN, RUNNING, ended]) == BestKnown(
        status="FAILED", evidence="callout", certain=True, ended=True, ended_at=at(4)
    )


def test_a_verdict_counts_where_zuora_reported_no_end() -> None:
    assert known([RAN, RUNNING], verdict("FAILED", 5)) == BestKnown(
        status="FAILED", evidence="poll", certain=False, ended=True, ended_at=at(5)
    )
    assert known([RAN], verdict("CANCELED", 5, certain=True)).certain
    assert known([], verdict("COMPLETED", 5)).status == "COMPLETED"
    with pytest.raises(ValueError, match="neither a report nor a verdict"):
        known([])


@pytest.mark.parametrize("minute", [2, 9])
def test_an_end_by_zuora_outranks_a_verdict_and_a_differing_verdict_stays_visible(minute: int) -> None:
    concluded = verdict("FAILED", 5, certain=True)
    ended = report("COMPLETED", "RUNNING", minute)
    best = known([RAN, RUNNING, ended], concluded)
    assert (best.status, best.evidence, best.certain, best.differing) == ("COMPLETED", "callout", True, (concluded,))
    assert known([RAN, RUNNING, replace(ended, status="FAILED")], concluded).differing == ()


def test_conflicting_ends_by_zuora_are_not_certain() -> None:
    best = known([report("COMPLETED", "RUNNING", 2), report("FAILED", "RUNNING", 3)], verdict("COMPLETED", 5))
    assert (best.status, best.certain, [each.status for each in best.differing]) == ("FAILED", False, ["COMPLETED"])


@pytest.mark.parametrize("certain", [True, False])
def test_a_later_reopening_voids_a_verdict(certain: bool) -> None:
    best = known([RAN, RUNNING, report("RUNNING", "FAILED", 8)], verdict("FAILED", 5, certain=certain))
    assert (best.ended, best.differing) == (False, ())
    # A re-opening before the verdict does not concern it.
    assert known([RAN, RUNNING, report("RUNNING", "FAILED", 3)], verdict("FAILED", 5, certain=certain)).ended


def test_a_later_report_voids_only_an_uncertain_verdict() -> None:
    uncertain, certain = verdict("COMPLETED", 5), verdict("COMPLETED", 5, certain=True)
    late = report("RUNNING", "INITIALIZING", 8)
    best = known([RAN, late], uncertain)
    assert (best.status, best.ended, best.differing) == ("RUNNING", False, (uncertain,))
    assert known([RAN, late], certain).status == "COMPLETED"
    assert known([RAN, late], uncertain, verdict("COMPLETED", 9)).ended


def test_of_several_verdicts_a_certain_one_counts_then_the_more_severe() -> None:
    completed, canceled, failed = verdict("COMPLETED", 5), verdict("CANCELED", 6), verdict("FAILED", 7)
    best = known([RAN], completed, canceled, failed)
    assert (best.status, best.differing) == ("FAILED", (canceled, completed))
    assert known([RAN], completed, canceled).status == "CANCELED"
    sure = replace(completed, certain=True)
    assert (known([RAN], sure, failed).status, known([RAN], sure, failed).certain) == ("COMPLETED", True)
    both = known([RAN], sure, replace(failed, certain=True))
    assert (both.status, both.certain) == ("FAILED", False)


@given(reports=REPORTS, verdicts=VERDICTS, data=st.data())
def test_the_order_of_reports_and_verdicts_does_not_matter(
    reports: list[SessionTransition], verdicts: list[TaskVerdict], data: st.DataObject
) -> None:
    if not reports and not verdicts:
        return
    shuffled, mixed = data.draw(st.permutations(reports)), data.draw(st.permutations(verdicts))
    assert known(reports, *verdicts) == known(shuffled, *mixed)


@given(reports=REPORTS.filter(bool), verdicts=VERDICTS)
def test_no_verdict_changes_an_end_that_zuora_reported(
    reports: list[SessionTransition], verdicts: list[TaskVerdict]
) -> None:
    zuora, best = fold(reports), known(reports, *verdicts)
    if zuora.terminal:
        assert replace(best, differing=()) == known(reports)
    elif not best.ended:
        assert (best.status, best.evidence) == (zuora.status, zuora.source)
    else:
        assert best.evidence == Source.POLL
        assert best.status in {each.status for each in verdicts}
    assert all(each.status != best.status for each in best.differing)


@given(reports=REPORTS, verdicts=VERDICTS.filter(bool))
def test_a_verdict_without_later_reports_ends_the_session(
    reports: list[SessionTransition], verdicts: list[TaskVerdict]
) -> None:
    after = max((each.observed_at for each in reports), default=NOON)
    if any(each.at >= after for each in verdicts):
        assert known(reports, *verdicts).ended
