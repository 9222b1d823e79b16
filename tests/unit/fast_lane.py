"""What `make unit` leaves to `make test`: the tests with the marker `full`.

Tables of outcomes run each row in every mode of a task. Here one mode of each row has no marker, in another row another
one, so that each mode keeps its share. A test of cost or of scale has the marker in its own module.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

MARKER = "full"


def modes(names: Iterable[str]) -> list[Any]:
    """Return parameters that say how a row is run, and not what is expected of it."""
    return [pytest.param(name, id=name, marks=pytest.mark.mode(name)) for name in names]


def mark(items: list[pytest.Item]) -> None:
    rows: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if mode := item.get_closest_marker("mode"):
            test, _, row = item.nodeid.partition("[")
            rows[test + row.replace(*mode.args, "")].append(item)
    for row, runs in rows.items():
        # The choice depends only on the row, so it is the same with any selection of tests.
        kept = zlib.crc32(row.encode()) % len(runs)
        for item in runs[:kept] + runs[kept + 1 :]:
            item.add_marker(MARKER)
