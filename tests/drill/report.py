"""The report of a drill: a table of the checks, and the violations."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.drill.checker import Result
    from tests.drill.history import History

_SHOWN: Final = 20


def show(title: str, results: Sequence[Result], notes: Sequence[str]) -> bool:
    """Print the results, and return whether there is no violation."""
    width = max(len(result.claim) for result in results)
    print(f"\n{title}")
    for note in notes:
        print(f"  {note}")
    print(f"\n  {'checked':<{width}}  {'count':>7}  violations")
    for result in results:
        found = str(len(result.violations)) if result.violations else "none"
        print(f"  {result.claim:<{width}}  {result.count:>7}  {found:<10}  {result.note}".rstrip())
    violations = [violation for result in results for violation in result.violations]
    for violation in violations[:_SHOWN]:
        print(f"    {violation}")
    if len(violations) > _SHOWN:
        print(f"    ... and {len(violations) - _SHOWN} more")
    print(f"\n  {'FAILED: ' + str(len(violations)) + ' violations' if violations else 'passed'}\n", flush=True)
    return not violations


def deliveries(history: History) -> str:
    """Return the results of the attempts as text."""
    codes = Counter("no answer" if (a.code or -1) < 0 else str(a.code) for a in history.attempts)
    callouts = len({attempt.callout_id for attempt in history.attempts})
    answered = sorted(attempt.seconds for attempt in history.attempts if attempt.code == 200)
    p99 = answered[int(len(answered) * 0.99)] if answered else 0.0
    answers = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    return f"{callouts} callouts in {len(history.attempts)} attempts ({answers}); answered 200 within {p99:.2f} s (p99)"
