"""The chart of sessions over time: bars of statuses, as numbers that a template draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.api_server.pages.rendering import tone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

HEIGHT: Final = 60.0
_ORDER: Final = ("failed", "canceled", "paused", "none", "queued", "running", "pushing", "success")


@dataclass(frozen=True, slots=True)
class Part:
    """One status of a bar: where it is drawn, and how many sessions it stands for."""

    status: str
    count: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """The sessions that began in one span of time."""

    since: datetime
    until: datetime
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(part.count for part in self.parts)


@dataclass(frozen=True, slots=True)
class Chart:
    """All bars, and the sums of each status over all of them, the most grave first."""

    bars: tuple[Bar, ...]
    totals: tuple[tuple[str, int], ...]
    highest: int
    height: float = HEIGHT

    @property
    def count(self) -> int:
        """How many sessions it stands for."""
        return sum(count for _, count in self.totals)


def bars(counts: Sequence[dict[str, int]], *, since: datetime, until: datetime) -> Chart:
    """Return the chart.

    :param counts: status -> number of sessions, for equal spans of time
    :param since: where the first span begins
    :param until: where the last one ends
    """
    highest = max((sum(each.values()) for each in counts), default=0)
    step = (until - since) / len(counts)
    drawn = []
    for number, by_status in enumerate(counts):
        y, parts = HEIGHT, []
        for status, count in sorted(by_status.items(), key=lambda item: _grave(item[0])):
            # What is there is seen, beside however many others.
            height = max(HEIGHT * count / highest, 1.0)
            y -= height
            parts.append(Part(status, count, round(max(y, 0.0), 2), round(height, 2)))
        drawn.append(Bar(since + step * number, since + step * (number + 1), tuple(parts)))
    sums: dict[str, int] = {}
    for by_status in counts:
        for status, count in by_status.items():
            sums[status] = sums.get(status, 0) + count
    return Chart(tuple(drawn), tuple(sorted(sums.items(), key=lambda item: _grave(item[0]))), highest)


def _grave(status: str) -> tuple[int, str]:
    return _ORDER.index(tone(status)), status
