"""Which changes of the callout history the journal does not know, and what to say about them; no I/O.

A change that is told once too often does no harm where a session cannot come back to a status. On a cycle (PAUSED and
RUNNING) each time counts, so there every time that the history tells of is held against what came, by when it came.

What is said here goes over the wire too: a worker reads the history and has no database, the API server has one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.entry import Entry
from airflow_mediation_provider.protocol.history import attempts_of
from airflow_mediation_provider.protocol.lifecycle import SessionState, status_before
from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json, to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_mediation_provider.protocol.transition import SessionTransition

PROTOCOL: Final = 1
RECONCILE_PATH: Final = "/reconcile"
# A callout comes within seconds of its attempt, which has 25 of them; more is for clocks that differ.
PROMPT: Final = timedelta(minutes=1)
NEAR: Final = timedelta(minutes=5)
# Where the tenant's zone is not the one that the connection names, all times of the history are off by hours.
FAR: Final = timedelta(hours=15)

Key = tuple[str, str | None]


def missing(told: Sequence[Entry], known: Iterable[SessionTransition]) -> list[Entry]:
    """Return the changes of the callout history that never came.

    :param told: status changes as ``read_history`` returns them, all of each session
    :param known: what the journal knows of these sessions
    :return: some of ``told``, the oldest first; where time tells no difference, rather too few than too many
    """
    sessions: dict[Key, list[Entry]] = defaultdict(list)
    reports: dict[Key, list[SessionTransition]] = defaultdict(list)
    for entry in told:
        sessions[str(entry.meter_id), entry.session_id].append(entry)
    for report in known:
        reports[report.meter_id, report.session_id].append(report)
    lost = [entry for key, entries in sessions.items() for entry in _missing_of_session(entries, reports[key])]
    return sorted(lost, key=_order)


def _order(entry: Entry) -> tuple[datetime, str]:
    return (entry.observed_at, entry.notification_id or "")


def _missing_of_session(told: list[Entry], known: list[SessionTransition]) -> list[Entry]:
    changes: dict[tuple[str | None, str], list[Entry]] = defaultdict(list)
    for entry in sorted(told, key=_order):
        assert entry.transition is not None  # noqa: S101  # a status change has one
        changes[status_before(entry.transition), entry.transition.status].append(entry)
    edges = {*changes, *((status_before(report), report.status) for report in known)}
    lost = []
    for (before, status), times in changes.items():
        came = [
            r
            for r in known
            if r.status == status and (status_before(r) == before or None in (status_before(r), before))
        ]
        if _repeats(before, status, edges):
            lost += _not_matched(times, came)
        elif not came:
            lost.append(times[0])
    return lost


def _repeats(before: str | None, status: str, edges: set[tuple[str | None, str]]) -> bool:
    """Say whether a session can make this change again: whether others lead from its end back to its beginning."""
    found, queue = set(), [status]
    while queue:
        current = queue.pop()
        for start, end in edges:
            if start == current and end not in found:
                found.add(end)
                queue.append(end)
    return before is not None and before in found


def _not_matched(times: list[Entry], came: list[SessionTransition]) -> list[Entry]:
    """Return the times of one change that no report is of.

    As many reports as possible are each of a time that they are close to. One that is left over tells again of the time
    next to it (the user has two notifications), or is of any time where clocks do not agree.
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
            fitting = [number for number in sorted(open_times) if distances[report][number] <= FAR]
            open_times -= set(fitting[:1])
    return [times[number] for number in sorted(open_times)]


def _most_pairs(wishes: list[list[int]]) -> dict[int, int]:
    """Return whom each wish goes to, so that as many as possible get one (Kuhn's augmenting paths).

    :param wishes: for each one what it would take, the best first
    :return: what was taken -> who took it
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
class ReconcileRequest:
    """What a worker asks the API server.

    :param entries: status changes of the callout history; all that are known of a session belong into one request
    :param dry_run: only say what is missing
    :param open_before: tell also of the sessions that have not ended and of which nothing came since then
    """

    entries: Sequence[Entry] = ()
    dry_run: bool = False
    open_before: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the request as plain JSON."""
        return {
            "protocol": PROTOCOL,
            "entries": [entry.to_dict() for entry in self.entries],
            "dry_run": self.dry_run,
            "open_before": to_json(self.open_before),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReconcileRequest:
        """Make a request from ``to_dict()``.

        :raises ValueError: it is none, or of another protocol
        """
        entries = data.get("entries")
        if data.get("protocol") != PROTOCOL or not isinstance(entries, list):
            raise ValueError(f"this is no request of protocol {PROTOCOL}")
        made = tuple(Entry.from_dict(entry) for entry in entries)
        if any(entry.transition is None or entry.session_id is None for entry in made):
            raise ValueError("an entry is no status change")
        before = data.get("open_before")
        if before is not None and not isinstance(before, str):
            raise ValueError("open_before must be a time")
        return cls(entries=made, dry_run=data.get("dry_run") is True, open_before=from_json(before))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReply:
    """What came of it.

    :param missing: the notification ids of the entries that the journal did not know
    :param open: sessions that have not ended and of which nothing came for too long
    """

    missing: tuple[str, ...] = ()
    open: tuple[SessionState, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the reply as plain JSON."""
        return {
            "protocol": PROTOCOL,
            "missing": list(self.missing),
            "open": [state.to_dict() for state in self.open],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReconcileReply:
        """Make a reply from ``to_dict()``.

        :raises ValueError: it is none, or of another protocol
        """
        if data.get("protocol") != PROTOCOL:
            raise ValueError(f"this is no reply of protocol {PROTOCOL}")
        try:
            return cls(
                missing=tuple(str(each) for each in data["missing"]),
                open=tuple(SessionState.from_dict(each) for each in data["open"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the reply cannot be read: {error!r}") from None


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """What one pass found and did.

    :param records: how many records of the callout history were read
    :param told: status changes that they tell of
    :param repaired: those that the journal did not know; put in, unless it was a dry run
    :param unreadable: records that are of a session, but do not say what changed
    :param stuck: sessions that have not ended and of which nothing came for too long, with their meter's run status
    """

    dry_run: bool = False
    records: int = 0
    told: int = 0
    unreadable: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    repaired: list[Entry] = field(default_factory=list)
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
            verb = "is of a session, but does" if self.unreadable == 1 else "are of sessions, but do"
            text += f" {_count(self.unreadable, 'record')} {verb} not say what changed."
        if self.stuck:
            verb = (
                "has not ended, and nothing came of it" if len(self.stuck) == 1 else "have not ended, and nothing came"
            )
            text += f" {_count(len(self.stuck), 'session')} {verb} for long."
        return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def repaired_line(entry: Entry) -> str:
    """Return in one line which change was missing, and why by Zuora's account."""
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
    """Return in one line what a session that does not end looks like.

    :param meter_status: the run status of its meter; ``None``: it could not be asked
    """
    since = humanize(now - to_utc("last_observed_at", state.last_observed_at))
    doubt = " (which is not certain)" if state.ambiguous else ""
    text = f"session {state.session_id} of meter {state.meter_id} is {state.status}{doubt}, with no news for {since}"
    if meter_status is None:
        return f"{text}; the run status of its meter could not be read"
    if meter_status == state.status:
        return f"{text}; the run status of its meter is {meter_status} too"
    return (
        f"{text}; the run status of its meter is {meter_status}: callouts of it may be lost for good, or this is "
        f"another session's (a run status names none, so nothing was changed)"
    )
