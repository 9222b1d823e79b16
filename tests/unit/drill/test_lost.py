"""The drill of losses sees what was lost, and whether the repair listed exactly that."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.drill.history import Change, History, Row
from tests.drill.lost import compare, edges

FIRST, SECOND = ("101", "R-1", None, "RUNNING"), ("101", "R-1", "RUNNING", "COMPLETED")


def told(edge: tuple[str, str, str | None, str]) -> dict[str, Any]:
    meter, session, previous, status = edge
    return {"meter_id": meter, "session_id": session, "previous_status": previous, "status": status}


def test_what_the_journal_lacks_was_lost() -> None:
    changes = [Change(1, "101", "R-1", "NORMAL", None, "RUNNING"), Change(2, "101", "R-1", "NORMAL", *SECOND[2:])]
    kept = Row("status_change", "n-1", *FIRST)
    assert edges(History(changes, [], [kept])) == {SECOND: 1}
    assert edges(History(changes, [], [kept, kept, Row("status_change", "n-2", *SECOND)])) == {}


def test_a_repair_is_exact_or_found_out() -> None:
    lost = Counter([FIRST, SECOND])
    assert compare(lost, [told(SECOND), told(FIRST)], 0).violations == []
    assert ["was lost and is not repaired" in str(each) for each in compare(lost, [told(FIRST)], 0).violations] == [
        True
    ]
    thrice = compare(lost, [told(FIRST), told(FIRST), told(SECOND)], 0)
    assert ["is repaired, and was not lost" in str(each) for each in thrice.violations] == [True]
    assert "once more" in str(compare(lost, [told(FIRST), told(SECOND)], 1).violations[0])
