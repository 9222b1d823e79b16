"""The table of conditions in docs/schedules.md, and which sessions fit each of its rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from testkit.stage import PROJECT

ARRIVALS: dict[str, dict[str, Any]] = {
    "completed": {"status": "COMPLETED"},
    "completed after pause": {"status": "COMPLETED", "before": "PAUSED"},
    "completed 1002": {"status": "COMPLETED", "meter": "1002"},
    "completed elsewhere": {"status": "COMPLETED", "meter": "77"},
    "failed": {"status": "FAILED"},
    "failed elsewhere": {"status": "FAILED", "meter": "77", "before": None},
    "failed in eu": {"status": "FAILED", "meter": "78", "conn": "eu"},
    "canceled": {"status": "CANCELED"},
    "running": {"status": "RUNNING", "before": "INITIALIZING", "meter": "77"},
    "running again": {"status": "RUNNING", "before": "PAUSED", "meter": "77"},
    "passed": {"status": "TESTING_PASSED", "before": "TESTING", "debug": True},
    "test failed": {"status": "TESTING_FAILED", "before": "TESTING", "debug": True},
    "test canceled": {"status": "CANCELED", "before": "TESTING", "debug": True},
    "test failed as a live one": {"status": "FAILED", "before": "TESTING", "debug": True},
    "unknown run type": {"status": "COMPLETED", "run_type": "CANARY"},
}
"""A session each, by its name: what it reached, and from where; meter 1001 and RUNNING before unless given."""

# Which of these fit a row, by its first column.
_FITS: dict[str, set[str]] = {
    "a NORMAL session of a meter ends well": {"completed", "completed after pause"},
    "a DEBUG session of a meter ends well": {"passed"},
    "a session of either run type ends well": {"completed", "completed after pause", "passed"},
    "a NORMAL session of any meter fails": {"failed", "failed elsewhere"},
    "a DEBUG session of any meter fails": {"test failed"},
    "either of the two": {"failed", "failed elsewhere", "test failed"},
    "a session of a meter fails, NORMAL or DEBUG": {"failed", "test failed", "test failed as a live one"},
    "one of several meters ends well": {"completed", "completed after pause", "completed 1002"},
    "a NORMAL session goes from RUNNING to COMPLETED, not from elsewhere": {"completed"},
    "a DEBUG session goes from TESTING to TESTING_FAILED": {"test failed"},
    "a NORMAL session is canceled": {"canceled"},
    "a DEBUG session is canceled": {"test canceled"},
    "a session of either run type is canceled": {"canceled", "test canceled"},
    "a NORMAL session of any meter starts to run": {"running"},
    "a NORMAL session of any meter of two tenants fails": {"failed", "failed elsewhere", "failed in eu"},
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    :param what: the first column
    :param cells: the code of the others, by the name of the column; without those that say that there is none
    :param fits: the names of the arrivals that fit it
    """

    what: str
    cells: dict[str, str]
    fits: set[str]


def _rows() -> list[Row]:
    rows = []
    for line in (PROJECT / "docs/schedules.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\| .* \| `on_meter_session", line):
            what, *cells = (each.strip().replace("\\|", "|") for each in re.split(r"(?<!\\)\|", line)[1:-1])
            code = dict(zip(("schedule", "sensor", "branch"), cells, strict=True))
            rows.append(
                Row(what, {name: each.strip("`") for name, each in code.items() if each[0] == "`"}, _FITS[what])
            )
    return rows


ROWS = _rows()
assert [row.what for row in ROWS] == list(_FITS)
