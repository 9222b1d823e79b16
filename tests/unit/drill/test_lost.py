"""The drill of losses finds the lost callouts, and whether the repair listed exactly these."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.drill.history import Change, History, Row
from tests.drill.lost import compare, edges

FIRST, SECOND = ("101", "R-1", None, "RUNNING"), ("101", "R-1", "RUNNING", "COMPLETED")


def listed(edge: tuple[str, str, str | None, str]) -> dict[str, Any]:
    meter, session, previous, status = edge
    return {"meter_id": meter, "session_id": session, "previous_status": previous, "status": status}


def test_changes_that_the_journal_lacks_count_as_lost() -> None:
    changes = [Change(1, "101", "R-1", "NORMAL", None, "RUNNING"), Change(2, "101", "R-1", "NORMAL", *SECOND[2:])]
    kept = Row("status_change", "n-1", *FIRST)
    assert edges(History(changes, [], [kept])) == {SECOND: 1}
    assert edges(History(changes, [], [kept, kept, Row("status_change", "n-2", *SECOND)])) == {}


def test_a_repair_that_is_not_exact_is_a_violation() -> None:
    lost = Counter([FIRST, SECOND])
    assert compare(lost, [listed(SECOND), listed(FIRST)], 0).violations == []
    assert ["was lost and is not repaired" in str(each) for each in compare(lost, [listed(FIRST)], 0).violations] == [
        True
    ]
    thrice = compare(lost, [listed(FIRST), listed(FIRST), listed(SECOND)], 0)
    assert ["is repaired, and was not lost" in str(each) for each in thrice.violations] == [True]
    assert "once more" in str(compare(lost, [listed(FIRST), listed(SECOND)], 1).violations[0])
