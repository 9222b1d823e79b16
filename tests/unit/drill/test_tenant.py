"""The drill's sessions have the requested number and variety."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.drill.tenant import SORTS, plays


@pytest.mark.parametrize(("sessions", "changes"), [(500, 10_000), (500, 10_001), (60, 1_000)])
def test_the_plans_have_exactly_the_requested_sessions_and_changes(sessions: int, changes: int) -> None:
    made = plays(sessions, changes, seed=1)
    assert len(made) == sessions
    assert sum(len(play.statuses) for play in made) == changes
    assert {play.sort.name for play in made} == {sort.name for sort in SORTS}
    assert all(len(set(pair)) == 2 for play in made for pair in zip(play.statuses, play.statuses[1:], strict=False))
    assert made == plays(sessions, changes, seed=1)


def test_the_plans_contain_loops_reopenings_and_tests() -> None:
    made = plays(500, 10_000, seed=1)
    assert Counter(play.run_type for play in made)["DEBUG"] == 50
    assert sum(play.statuses.count("PAUSED") > 10 for play in made) > 200
    assert sum("FAILED" in play.statuses[:-1] for play in made) > 80


def test_too_few_changes_for_the_sessions_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few"):
        plays(500, 1_000, seed=1)
