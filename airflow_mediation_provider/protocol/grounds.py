"""Grounds: whether a wait can rest on Zuora's callouts, or on polls alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from airflow_mediation_provider.protocol.times import humanize


class Callouts(StrEnum):
    """Whether a wait hears what callouts say."""

    READ = "read"
    """Yes: the connection takes callouts, and the feed that hands them out answers."""
    LOST = "lost"
    """It did, and the feed does not answer just now."""
    OFF = "off"
    """The feed answers, and the connection takes no callouts."""
    UNFOUND = "unfound"
    """No feed was found."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a wait can rest on.

    :param callouts: whether it hears of callouts
    :param words: the same in words, for the task's log
    :param remedy: what to set up where it never will
    """

    callouts: Callouts
    words: str
    remedy: str = ""


def grounds_of(
    callouts: Callouts, conn_id: str, *, address: str | None, cross_check: float, reason: str = ""
) -> Grounds:
    """Return what a wait can rest on, in words.

    :param callouts: whether it hears of callouts
    :param conn_id: the Airflow connection
    :param address: where the feed was found
    :param cross_check: seconds between two polls while callouts are read
    :param reason: why the feed does not answer, where it does not
    """
    if callouts is Callouts.READ:
        rare = humanize(timedelta(seconds=cross_check))
        words = f"callouts of connection {conn_id!r} are read at {address}; polls cross-check them every {rare}"
        return Grounds(callouts, words)
    if callouts is Callouts.LOST:
        return Grounds(callouts, f"callouts cannot be read just now, polling meanwhile ({reason})")
    if callouts is Callouts.OFF:
        return Grounds(
            callouts,
            f"connection {conn_id!r} takes no callouts (as {address} knows it)",
            "give it callout authentication and let Zuora send them (see 'airflow mediation callout-template')",
        )
    return Grounds(
        callouts,
        f"no API server was found that hands out callouts ({reason})",
        "set [mediation] feed_url to its address with /mediation at the end",
    )
