"""Grounds: whether a wait can rest on Zuora's callouts, or on polls alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
