"""Windows: the two instants between which the awaited session must start, and when it is certain that none did.

A callout that could not be delivered is sent twice more, half an hour and an hour later. So a callout that was not
received an hour after a window, plus a few minutes by which clocks differ, is no longer to be expected.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_mediation_provider.protocol.status import IDLE_FOR_GOOD
from airflow_mediation_provider.protocol.times import Instant, in_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState

WINDOW_GRACE: Final = timedelta(minutes=65)
"""How long after a window a callout of it may still be received: Zuora's two retries, and the clocks' difference."""
SHORTEST: Final = timedelta(seconds=1)
"""Zuora reports starts in whole seconds."""


class Window(NamedTuple):
    """When the awaited session starts: at or after ``since``, and before ``before``."""

    since: Instant
    before: Instant


def check_window(since: datetime, before: datetime) -> None:
    """Check that a session can start between two instants.

    :raises ValueError: ``before`` is not after ``since``
    """
    if before - since < SHORTEST:
        raise ValueError(
            f"before ({before.isoformat()}) is not after since ({since.isoformat()}). Where the data interval of a run"
            " is empty, as with a cron string, a preset or a timedelta as the schedule, give before as a timedelta"
            " after since: before=timedelta(hours=1)"
        )


def bounds(since: datetime, before: datetime | timedelta | None) -> tuple[datetime, datetime | None]:
    """Return the earliest and the latest start of a session, in whole seconds, as Zuora reports starts.

    :param since: the earliest start
    :param before: the latest start (exclusive), or its distance from ``since``; ``None``: no latest start
    :raises ValueError: no session can start in between
    """
    latest = since + before if isinstance(before, timedelta) else before
    if latest is not None:
        check_window(since, latest)
        latest = latest.replace(microsecond=0)
    return since.replace(microsecond=0), latest


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterShown:
    """What polls show of a meter.

    :param status: the last status polled, ``None`` where none was
    :param read_at: when that poll was sent
    :param idle_at: when a poll last showed the meter idle
    :param settle: how long a reading may be stale
    """

    status: str | None
    read_at: datetime | None
    idle_at: datetime | None
    settle: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """What the journal received around a window of a meter that has passed.

    :param meter_id: the meter
    :param window: the window
    :param callouts_before: whether callouts of the connection were received before the window began
    :param received: a session of the meter that was first received inside the window, ``None`` where there is none
    """

    meter_id: str
    window: Window
    callouts_before: bool
    received: str | None


def why_over(
    report: WindowReport,
    shown: MeterShown,
    sessions: Iterable[SessionState],
    at: datetime,
    *,
    late: timedelta = timedelta(),
) -> str:
    """Return the reason why no session started in a window, and none can be found any more; empty while one may.

    Call it only where callouts were read all along, and no callout of a session that started in the window was
    received.

    :param report: what the journal received around the window
    :param shown: what polls show of the meter
    :param sessions: sessions of this and other meters, by callouts
    :param at: the time now
    :param late: how much later than a callout the callout history reports a change, where it is read instead
    """
    before = report.window.before
    if at < before + WINDOW_GRACE + late or not report.callouts_before or report.received is not None:
        return ""
    if shown.status is None or shown.read_at is None or shown.read_at < before + shown.settle:
        return ""
    live = [each for each in sessions if each.meter_id == report.meter_id and _is_live(each, shown)]
    if any(each.started_at is None or each.started_at < before for each in live):
        return ""
    if shown.status not in IDLE_FOR_GOOD and not live:
        return ""
    others = " and ".join(f"session {each.session_id}, which started later" for each in live)
    return (
        f"no session of meter {report.meter_id} started from {in_words(report.window.since)} until {in_words(before)}:"
        " callouts were received before that and read all along, and none of a session that began then; the meter is"
        f" {shown.status}{others and f', because of {others}'}"
    )


def _is_live(session: SessionState, shown: MeterShown) -> bool:
    """Return whether a session goes on; one whose meter was polled idle after its last callout has ended."""
    idle_since = shown.idle_at is not None and shown.idle_at >= session.last_observed_at + shown.settle
    return not session.terminal and not idle_since
