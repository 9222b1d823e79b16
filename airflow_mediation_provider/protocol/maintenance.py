"""Maintenance messages and rules, without I/O: reconcile the journal with the callout history, and prune it.

A change that is reported twice is harmless where a session cannot return to a status. On a cycle (PAUSED and RUNNING)
each occurrence counts, so there the occurrences in the history are matched by time with those in the journal.

A worker reads the history and has no database; the API server has one. So both jobs are messages between the two.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.callouts.cursor import RETRY_SPAN, HistoryCursor
from airflow_mediation_provider.protocol.callouts.history import NEAR, attempts_of, begins_later
from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, reachable, status_before
from airflow_mediation_provider.protocol.times import Instant, humanize, in_words, set_to_utc, to_json, to_utc
from airflow_mediation_provider.protocol.wire import Message
from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_mediation_provider.protocol.transition import SessionTransition


RECONCILE_PATH: Final = "/reconcile"
HISTORY_PATH: Final = "/history"
# A callout is received within seconds of its attempt, which takes at most 25; the rest is for clocks that differ.
PROMPT: Final = timedelta(minutes=1)
# Where the tenant's zone is not the one in the connection, all times of the history are wrong by hours.
FAR: Final = timedelta(hours=15)

Key = tuple[str, str | None]

PRUNE_PATH: Final = "/prune"
# Zuora sends a callout at most 5 times, at most 1,440 minutes apart: a repeated one must be recognised in those days,
# or it would start Dags again. A wait needs older sessions: a Dag that runs weekly waits for sessions of the last seven
# days, and as long as Airflow lets a sensor wait by default, which is seven days too.
# https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/configure-callout-settings
SHORTEST_DAYS: Final = 14
FURTHEST: Final = timedelta(days=SHORTEST_DAYS - 1)
"""How far back a repair may reach: prune deletes nothing that is younger, with a margin. Older changes might count as
missing, and start Dags again."""


def missing(
    told: Sequence[JournalEntry], known: Iterable[SessionTransition], *, continuous: bool = False
) -> list[JournalEntry]:
    """Return the changes of the callout history that the journal never received.

    :param told: status changes as ``read_history`` returns them, all of each session
    :param known: the journal's reports of these sessions
    :param continuous: whether the history was read before, up to the span that is compared, and its zone is known
    :return: some of ``told``, the oldest first; where times do not distinguish them, rather too few than too many
    """
    sessions: dict[Key, list[JournalEntry]] = defaultdict(list)
    reports: dict[Key, list[SessionTransition]] = defaultdict(list)
    for entry in told:
        sessions[str(entry.meter_id), entry.session_id].append(entry)
    for report in known:
        reports[report.meter_id, report.session_id].append(report)
    lost = [
        entry
        for key, entries in sessions.items()
        for entry in _missing_of_session(entries, reports[key], continuous=continuous)
    ]
    return sorted(lost, key=_order)


def _order(entry: JournalEntry) -> tuple[datetime, str]:
    return (entry.observed_at, entry.notification_id or "")


def _missing_of_session(
    told: list[JournalEntry], known: list[SessionTransition], *, continuous: bool
) -> list[JournalEntry]:
    changes: dict[tuple[str | None, str], list[JournalEntry]] = defaultdict(list)
    for entry in sorted(told, key=_order):
        assert entry.transition is not None  # noqa: S101  # a status change has one
        changes[status_before(entry.transition), entry.transition.status].append(entry)
    onward: dict[str | None, set[str]] = defaultdict(set)
    for before, status in (*changes, *((status_before(report), report.status) for report in known)):
        onward[before].add(status)
    lost = []
    for (before, status), times in changes.items():
        came = [
            r
            for r in known
            if r.status == status and (status_before(r) == before or None in (status_before(r), before))
        ]
        # Other changes lead from its end back to its start: a session can make this change again.
        if before is not None and before in reachable(status, onward):
            lost += _not_matched(times, came, continuous=continuous)
        elif not came:
            lost.append(times[0])
    return lost


def _not_matched(times: list[JournalEntry], came: list[SessionTransition], *, continuous: bool) -> list[JournalEntry]:
    """Return the occurrences of one change that no report matches.

    As many reports as possible are matched with an occurrence close in time. A report that is left over repeats the
    occurrence next to it (the user has two notifications), or may be of any occurrence where the clocks do not agree.
    Where the history is read continuously, the clocks do agree: such a report may be of an earlier occurrence, whose
    callout came late. And the first attempt of an occurrence that begins with a later one was read before.
    """
    known = {report.notification_id for report in came}
    own = {entry.notification_id for entry in times}
    open_times = {number for number, entry in enumerate(times) if entry.notification_id not in known}
    attempts = [[at for at, _ in attempts_of(entry)] for entry in times]
    reports = [to_utc("observed_at", r.observed_at) for r in came if r.notification_id not in own]
    distances = [[min(abs(at - came_at) for at in each) for each in attempts] for came_at in reports]
    close = [
        sorted((d, number) for number, d in enumerate(row) if number in open_times and d <= PROMPT) for row in distances
    ]
    pairs = _most_pairs([[number for _, number in row] for row in close])
    open_times -= set(pairs)
    for report in set(range(len(reports))) - set(pairs.values()):
        if min(distances[report]) > NEAR:
            came_at, earliest = reports[report], reports[report] - RETRY_SPAN
            fitting = [
                number
                for number in sorted(open_times)
                if (earliest <= attempts[number][0] <= came_at if continuous else distances[report][number] <= FAR)
            ]
            open_times -= set(fitting[:1])
    if continuous:
        # An attempt at a callout that is among these occurrences itself was grouped with it.
        first = min(reports, default=None)
        open_times -= {n for n in open_times if begins_later(times[n]) and first is not None and first < attempts[n][0]}
    return [times[number] for number in sorted(open_times)]


def _most_pairs(wishes: list[list[int]]) -> dict[int, int]:
    """Match reports with occurrences, as many as possible (Kuhn's augmenting paths).

    :param wishes: for each report the occurrences that it may match, the best first
    :return: occurrence -> report
    """
    taken: dict[int, int] = {}

    def give(who: int, asked: set[int]) -> bool:
        for wish in wishes[who]:
            if wish not in asked:
                asked.add(wish)
                if wish not in taken or give(taken[wish], asked):
                    taken[wish] = who
                    return True
        return False

    for who in range(len(wishes)):
        give(who, set())
    return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileRequest(Message):
    """A worker's request to the API server to compare the callout history with the journal.

    :param entries: status changes of the callout history; all of a session must be in one request
    :param dry_run: only return what is missing
    :param open_before: return also the sessions that have not ended and had no report since then
    :param continuous: as ``missing`` takes it
    :param before: entries from this time on are compared, and never stored: their callouts may still arrive
    :raises ValueError: an entry is not a status change
    """

    what = "reconcile request"
    entries: tuple[JournalEntry, ...] = ()
    dry_run: bool = False
    open_before: Instant | None = None
    continuous: bool = False
    before: Instant | None = None

    def __post_init__(self) -> None:
        """Convert the instants to UTC, and refuse entries that are no status change."""
        set_to_utc(self, "open_before", "before")
        if any(entry.transition is None or entry.session_id is None for entry in self.entries):
            raise ValueError("an entry is no status change")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReply(Message):
    """The reply to a ``ReconcileRequest``.

    :param missing: the notification ids of the entries that the journal did not have
    :param open: sessions that have not ended and had no report for too long
    """

    what = "reconcile reply"
    missing: tuple[str, ...]
    open: tuple[SessionState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRequest(Message):
    """A reader's request to the API server: for its turn to read the callout history, or with what a read came to.

    :param seconds: between two reads of this reader
    :param revision: of the cursor that the read began with; ``None``: the reader asks for its turn
    :param cursor: the cursor after the read; ``None``: it failed
    :param goes_on: whether the reader reads on at once
    :param trouble: why it failed
    :param lasting: whether that lasts until a user sets it right
    :param calls: API usage that was not reported before
    """

    what = "history request"
    seconds: float
    revision: int | None = None
    cursor: HistoryCursor | None = None
    goes_on: bool = False
    trouble: str = ""
    lasting: bool = False
    calls: tuple[HourlyUsage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReply(Message):
    """The reply to a ``HistoryRequest``.

    :param cursor: the connection's cursor as it is stored
    :param revision: its revision: only the reader that has the last one moves the cursor
    :param wait: seconds until the reader's turn; 0: it reads now
    """

    what = "history reply"
    cursor: HistoryCursor
    revision: int
    wait: float = 0.0


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """The result of one reconciliation.

    :param records: number of records of the callout history that were read
    :param told: number of status changes in them
    :param repaired: those that the journal did not have; inserted, unless it was a dry run
    :param unreadable: number of records that are of a session, but lack the change
    :param stuck: sessions that have not ended and had no report for too long, with their meter's run status
    """

    dry_run: bool = False
    records: int = 0
    told: int = 0
    unreadable: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    repaired: list[JournalEntry] = field(default_factory=list)
    stuck: list[tuple[SessionState, str | None]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, for XCom and ``--output``."""
        return {
            "dry_run": self.dry_run,
            "records": self.records,
            "told": self.told,
            "unreadable": self.unreadable,
            "categories": self.categories,
            "repaired": [entry.transition.to_dict() for entry in self.repaired if entry.transition],
            "stuck": [
                {
                    **state.transition.to_dict(),
                    "last_observed_at": to_json(state.last_observed_at),
                    "meter_status": status,
                }
                for state, status in self.stuck
            ],
        }

    def summary(self) -> str:
        """Return the counts in one sentence or two."""
        lost = len(self.repaired)
        if lost == 0:
            verb = "is missing in the journal"
        elif self.dry_run:
            verb = "is missing in the journal" if lost == 1 else "are missing in the journal"
        else:
            was, now = ("was", "is") if lost == 1 else ("were", "are")
            verb = f"{was} missing in the journal and {now} there now"
        text = (
            f"The callout history has {_count(self.told, 'status change')} ({_count(self.records, 'record')} read): "
            f"{lost or 'none'} {verb}."
        )
        if self.unreadable:
            verb = "is of a session, but has" if self.unreadable == 1 else "are of sessions, but have"
            text += f" {_count(self.unreadable, 'record')} {verb} no status change."
        if self.stuck:
            verb = "has" if len(self.stuck) == 1 else "have"
            text += f" {_count(len(self.stuck), 'session')} {verb} not ended and had no report for long."
        return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def repaired_line(entry: JournalEntry) -> str:
    """Return one line: the change that was missing, and why, according to Zuora."""
    change = entry.transition
    assert change is not None  # noqa: S101  # a status change has one
    attempts = attempts_of(entry)
    code = attempts[-1][1]
    fate = {None: "", 200: "; it was answered 200, but not by this journal"}.get(
        code, f"; its callout ended with {code} after {_count(len(attempts), 'attempt')}"
    )
    return (
        f"session {change.session_id} of meter {change.meter_id}: {change.previous_status or 'start'} -> "
        f"{change.status} at {in_words(entry.observed_at)}{fate}"
    )


def stuck_line(state: SessionState, meter_status: str | None, now: datetime) -> str:
    """Return one line that describes a session that does not end.

    :param state: the session
    :param meter_status: the run status of its meter; ``None``: it could not be polled
    :param now: the time now
    """
    since = humanize(now - to_utc("last_observed_at", state.last_observed_at))
    doubt = " (which is not certain)" if state.ambiguous else ""
    text = (
        f"session {state.session_id} of meter {state.meter_id} is {state.status}{doubt}, without a report for {since}"
    )
    if meter_status is None:
        return f"{text}; the run status of its meter could not be read"
    if meter_status == state.status:
        return f"{text}; the run status of its meter is {meter_status} too"
    return (
        f"{text}; the run status of its meter is {meter_status}: its callouts may be lost permanently, or this is "
        f"another session's status (a run status names no session, so nothing was changed)"
    )


def check_days(days: object) -> float:
    """Return the number of days of the journal to keep.

    :raises ValueError: it is not a number, or too small; the message names the reason
    """
    if isinstance(days, bool) or not isinstance(days, int | float):
        raise ValueError(f"how many days to keep must be a number, not {days!r}")  # an argument's value
    if not days >= SHORTEST_DAYS:
        raise ValueError(
            f"{days:g} days are too few, at least {SHORTEST_DAYS} are kept: a callout that Zuora sends again would "
            "start Dags once more, and waits need the sessions of the last days"
        )
    return days


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Numbers of rows that were deleted, or would be.

    :param sessions: sessions that ended
    :param changes: the status changes of these sessions
    :param others: all other rows: polls, periodic updates, unparsed callouts, hourly API usage
    :param waits: waits that ended, or that no process reports any more
    :param needed: old sessions that stay because a wait still needs them
    """

    sessions: int = 0
    changes: int = 0
    others: int = 0
    waits: int = 0
    needed: int = 0

    def __str__(self) -> str:
        """Return it as part of a sentence."""
        text = (
            f"{self.sessions:,} sessions with {self.changes:,} changes of status, "
            f"{self.others:,} other records, {self.waits:,} waits"
        )
        return f"{text}; {self.needed:,} sessions stay for waits that go on" if self.needed else text

    def __add__(self, other: Pruned) -> Pruned:
        """Return the sums."""
        return Pruned(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(frozen=True, slots=True)
class PruneRequest(Message):
    """A worker's request to the API server to delete old rows of the connection that signs the request.

    :param older_than_days: the number of days to keep
    :raises ValueError: it is too small
    """

    what = "prune request"
    older_than_days: float

    def __post_init__(self) -> None:
        """Check the number of days."""
        check_days(self.older_than_days)


@dataclass(frozen=True, slots=True)
class PruneReply(Message):
    """The reply to a ``PruneRequest``.

    :param pruned: the rows that this request deleted
    :param done: nothing is left to delete; otherwise the client sends the same request again
    """

    what = "prune reply"
    pruned: Pruned
    done: bool
