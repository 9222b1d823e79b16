"""The bar of a session's phases: as numbers and words that a template draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_mediation_provider.protocol.times import humanize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.phases import Phase

WIDTH: Final = 1000.0
# What is there is seen, beside however long a phase.
_LEAST: Final = 6.0


class Part(NamedTuple):
    """One phase: where it is drawn, and in words."""

    status: str
    x: float
    width: float
    title: str


def parts(phases: Sequence[Phase], now: datetime) -> list[Part]:
    """Return the phases of a session as parts of a bar.

    :param phases: in their order
    :param now: the time now, at which the last one may go on
    """
    begin = phases[0].begin
    whole = max(((phases[-1].end or now) - begin).total_seconds(), 1.0)
    drawn = []
    for phase in phases:
        lasts = phase.lasts(now)
        x = WIDTH * (phase.begin - begin).total_seconds() / whole
        width = max(WIDTH * lasts.total_seconds() / whole, _LEAST)
        so_far = " so far" if phase.end is None else ""
        drawn.append(
            Part(
                phase.status,
                round(min(x, WIDTH - _LEAST), 1),
                round(width, 1),
                f"{phase.status}: {humanize(lasts)}{so_far}",
            )
        )
    return drawn


def in_words(phases: Sequence[Phase], now: datetime) -> str:
    """Return the phases and how long each of them lasted, for who cannot see the bar."""
    return ", ".join(f"{phase.status} {humanize(phase.lasts(now))}" for phase in phases)
