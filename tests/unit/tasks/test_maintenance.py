"""One pass of the reconciliation: its requests, and the lines that it prints."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import ReconcileReply, ReconcileRequest
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError
from airflow_mediation_provider.tasks import maintenance as progress
from airflow_mediation_provider.tasks import maintenance as reconciliation
from airflow_mediation_provider.tasks.maintenance import Task, reconcile

NOW = datetime.now(UTC).replace(microsecond=0)


def records(sessions: int, changes: int = 3) -> list[dict[str, Any]]:
    """Return a history with the sessions' changes in mixed order."""
    return [
        {
            "attemptedNum": 1,
            "createTime": f"{NOW - timedelta(hours=2) + timedelta(minutes=change):%Y-%m-%dT%H:%M:%S}",
            "eventCategory": "ns:change",
            "eventContext": {"meterId": "1", "sessionId": f"R-{session}", "status": f"S{change}"},
            "responseCode": 503,
        }
        for change in range(changes)
        for session in range(sessions)
    ]


class Zuora:
    """The part of the hook that a pass needs."""

    def __init__(self, history: list[dict[str, Any]], statuses: dict[str, str] | None = None) -> None:
        self.history, self.statuses, self.asked = history, statuses or {}, []

    def callout_history(self, since: datetime, until: datetime, **options: Any) -> Any:
        self.asked.append({"since": since, "until": until, **options})
        return iter(self.history)

    def run_status(self, meter_id: str) -> str:
        self.asked.append(meter_id)
        if meter_id not in self.statuses:
            raise MisconfigurationError("The meter does not exist.")
        return self.statuses[meter_id]


class Journal:
    """An empty journal, which misses every change."""

    def __init__(self, silent: tuple[tuple[str, str], ...] = ()) -> None:
        self.requests: list[ReconcileRequest] = []
        self.silent = silent

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        self.requests.append(request)
        told = [
            SessionTransition(
                meter_id=meter, session_id=session, status="RUNNING", source=Source.CALLOUT,
                observed_at=NOW - timedelta(hours=9),
            )
            for meter, session in self.silent
        ]  # fmt: skip
        return ReconcileReply(
            missing=tuple(str(entry.notification_id) for entry in request.entries),
            open=tuple(fold([each]) for each in told) if request.open_before else (),
        )


def run(zuora: Zuora, journal: Journal, extra: dict[str, Any] | None = None, **task: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    span = Task(**{"since": NOW - timedelta(days=1), "until": NOW, **task})
    found = reconcile(zuora, callout_settings("zuora", extra or {}), journal, span, lines.append)  # type: ignore[arg-type]
    return found, lines


def test_the_changes_of_a_session_are_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "_BATCH", 5)
    journal = Journal()

    found, _ = run(Zuora(records(7)), journal, open_for=None)

    batches = [[entry.session_id for entry in request.entries] for request in journal.requests]
    assert [len(batch) for batch in batches] == [6, 6, 6, 3]
    for session in {session for batch in batches for session in batch}:
        assert sum(session in batch for batch in batches) == 1
    assert len(found.repaired) == found.told == 21
    assert [entry.observed_at for entry in found.repaired] == sorted(entry.observed_at for entry in found.repaired)


@pytest.mark.parametrize(("zone", "hours"), [("", 15), ("UTC", 1), ("America/New_York", 1)])
def test_an_unknown_time_zone_widens_the_span(zone: str, hours: int) -> None:
    zuora = Zuora([])

    _, lines = run(zuora, Journal(), {"callout_timezone": zone}, event_category="ns:change", open_for=None)

    assert any(line.startswith("No record has the event category 'ns:change'") for line in lines)
    margin = timedelta(hours=hours)
    assert zuora.asked == [
        {
            "since": NOW - timedelta(days=1) - margin,
            "until": NOW + margin,
            "timezone": zone or "UTC",
            "event_category": "ns:change",
        }
    ]


def test_a_dry_run_is_passed_to_the_journal() -> None:
    journal = Journal()

    found, lines = run(Zuora(records(1)), journal, dry_run=True, open_for=None)

    assert [request.dry_run for request in journal.requests] == [True]
    assert found.to_dict()["dry_run"] is True
    assert sum(line.startswith("Missing: ") for line in lines) == 3


def test_changes_that_may_have_been_pruned_are_not_added_again() -> None:
    zuora, old = Zuora(records(1)), NOW - timedelta(days=13, minutes=1)

    with pytest.raises(MisconfigurationError, match="13 days back is the limit"):
        run(zuora, Journal(), since=old)

    assert zuora.asked == []
    assert run(zuora, Journal(), since=old, dry_run=True, open_for=None)[0].told == 3
    assert run(zuora, Journal(), since=old + timedelta(hours=1), open_for=None)[0].told == 3


def test_a_meter_that_cannot_be_read_does_not_stop_the_pass() -> None:
    zuora = Zuora([], {"2": "COMPLETED"})

    found, lines = run(zuora, Journal((("1", "R-1"), ("2", "R-2"), ("2", "R-3"))))

    assert zuora.asked[1:] == ["1", "2"]
    assert [(state.session_id, status) for state, status in found.stuck] == [
        ("R-1", None), ("R-2", "COMPLETED"), ("R-3", "COMPLETED"),
    ]  # fmt: skip
    assert "The run status of meter 1 cannot be read: The meter does not exist." in lines
    assert sum(line.startswith("Open: ") for line in lines) == 3


def test_a_long_pass_prints_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10_000, 6))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    _, lines = run(Zuora(records(1)), Journal(), open_for=None)

    assert any(line.startswith("1 records read, up to ") for line in lines)
    assert "3 of 3 changes compared ..." in lines


def test_long_lists_of_lines_are_cut() -> None:
    _, lines = run(Zuora(records(200)), Journal(), open_for=None)

    assert len(lines) < 110
    assert "... and more." in lines


def test_the_event_category_is_printed_if_it_saves_requests() -> None:
    other = {"eventContext": {"<Account.Id>": "1"}}

    assert any("'ns:change'" in line for line in run(Zuora([*records(1), other]), Journal(), open_for=None)[1])
    assert not any("'ns:change'" in line for line in run(Zuora(records(1)), Journal(), open_for=None)[1])
