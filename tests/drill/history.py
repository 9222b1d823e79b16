"""The record of a drill: what the simulator did, and what the provider stored; plain JSON, checked offline."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

Subject = tuple[str, str]  # meter and session
ANY_METER = "*"  # in the address of an asset and in a schedule


@dataclass(frozen=True)
class Change:
    """A change of a session's status, as it really happened.

    :param seq: its number in the simulator's log: changes of one session ascend
    """

    seq: int
    meter_id: str
    session_id: str
    run_type: str
    previous: str | None
    status: str


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver a callout.

    :param change: ``seq`` of the change that it reports
    :param callout_id: the callout, of which it may be one of several attempts
    :param code: HTTP status; negative: no answer; ``None``: it was aborted, or never started
    :param outcome: delivered, retried, failed or vanished
    :param at: when it started, seconds since the epoch
    :param seconds: how long it took
    """

    change: int
    callout_id: str
    notification_id: str | None
    code: int | None
    outcome: str | None
    at: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A row of the journal's transitions."""

    kind: str
    notification_id: str | None
    meter_id: str | None
    session_id: str | None
    previous: str | None
    status: str | None
    source: str = "callout"


@dataclass(frozen=True)
class State:
    """A row of the journal's sessions."""

    meter_id: str
    session_id: str
    run_type: str
    status: str
    ambiguous: bool
    conflict: bool
    terminal: bool


@dataclass(frozen=True)
class AssetEvent:
    """An asset event: a session of a meter reached a status."""

    meter_id: str
    status: str
    key: str | None


@dataclass(frozen=True)
class Consumer:
    """A Dag, and one pair of meter and status whose sessions it is scheduled on."""

    dag_id: str
    meter_id: str
    status: str


@dataclass(frozen=True)
class Run:
    """A Dag run."""

    dag_id: str
    key: str | None
    state: str


@dataclass(frozen=True)
class Wait:
    """A wait for a session, and how it ended.

    :param previous: the status before, if the condition names one
    :param outcome: met, failed, waiting (to the end), or error
    :param end_status: the status that it ended with
    :param certain: whether its end was certain
    :param alone: whether no other session of the meter was live beside it
    :param named: the session that it ended with, if the condition names none: the first of the meter from an instant
        on, which is really ``session_id``
    :param ended_at: when it ended, seconds since the epoch
    :param own: whether the task started the session itself, on a meter that nothing else starts
    :param killed: whether a user marked the task as failed, so that it stops its session
    """

    id: str
    meter_id: str
    session_id: str
    statuses: tuple[str, ...]
    fail_on: tuple[str, ...]
    outcome: str
    end_status: str | None = None
    certain: bool | None = None
    previous: tuple[str, ...] = ()
    alone: bool = True
    named: str | None = None
    ended_at: float = 0.0
    own: bool = False
    killed: bool = False


@dataclass(frozen=True)
class Start:
    """A session that a task started by Zuora's API."""

    meter_id: str
    session_id: str
    unique_key: str | None


@dataclass(frozen=True)
class Stop:
    """A stop call to a meter, and the sessions that it ended."""

    meter_id: str
    sessions: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task that does not wait for a session.

    :param key: the session that started its Dag run, if one did
    :param given: the session that the run named to it; ``None`` for a task that asks for none
    """

    dag_id: str
    run_id: str
    task_id: str
    state: str | None
    key: str | None = None
    given: str | None = None


@dataclass(frozen=True)
class History:
    """Everything that a drill recorded."""

    changes: list[Change] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    events: list[AssetEvent] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what ``save()`` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, Any] = {
            "changes": Change,
            "attempts": Attempt,
            "rows": Row,
            "states": State,
            "events": AssetEvent,
            "consumers": Consumer,
            "runs": Run,
            "waits": Wait,
            "starts": Start,
            "stops": Stop,
            "tasks": Task,
        }
        return cls(**{f.name: [_load(kinds[f.name], each) for each in data[f.name]] for f in fields(cls)})

    @cached_property
    def state_of(self) -> dict[Subject, State]:
        """Return the journal's state of each session."""
        return {(state.meter_id, state.session_id): state for state in self.states}

    def walk_of(self, meter_id: str, session_id: str | None) -> Walk | None:
        """Return what a session did; ``meter_id`` may be any meter."""
        if meter_id != ANY_METER:
            return self.walks.get((meter_id, session_id or ""))
        return next((walk for (_, session), walk in self.walks.items() if session == session_id), None)

    @cached_property
    def walks(self) -> dict[Subject, Walk]:
        """Return what each session really did."""
        steps: dict[Subject, list[Change]] = defaultdict(list)
        for change in sorted(self.changes, key=lambda change: change.seq):
            steps[change.meter_id, change.session_id].append(change)
        attempts: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            attempts[attempt.change].append(attempt)
        return {subject: Walk(changes, attempts) for subject, changes in steps.items()}


def _load(kind: Any, data: dict[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


class Walk:
    """What one session really did, and how it was reported.

    :param changes: of the session, in order
    :param attempts: the attempts for each change
    """

    def __init__(self, changes: list[Change], attempts: dict[int, list[Attempt]]) -> None:
        self.changes = changes
        self.statuses = [change.status for change in changes]
        self.last = self.statuses[-1]
        self._attempts = attempts

    def times_reached(self, status: str) -> int:
        """Return how often the session reached a status."""
        return self.statuses.count(status)

    def reached(self, status: str, previous: Collection[str | None] = ()) -> bool:
        """Return whether the session ever reached a status, from one of the previous ones if any are given."""
        return any(c.status == status and (not previous or c.previous in previous) for c in self.changes)

    @cached_property
    def received_at(self) -> float:
        """Return when the first report of the session was received at the latest, seconds since the epoch."""
        ends = [a.at + a.seconds for c in self.changes for a in self._attempts.get(c.seq, []) if a.code == 200]
        return min(ends, default=float("inf"))

    @cached_property
    def exact(self) -> bool:
        """Return whether the reports determine the last status in any order.

        They do if the walk can never return to it. If it can, each step of that cycle must have been reported under
        one notification id: without ids, or with several for one step, the rounds cannot be counted.
        """
        cycle = self._cycle()
        if len(cycle) == 1:
            return True
        steps = [c for c in self.changes if c.status in cycle and c.previous in cycle]
        ids = [{attempt.notification_id for attempt in self._attempts.get(c.seq, [])} for c in steps]
        return all(len(each) == 1 and None not in each for each in ids)

    @cached_property
    def countable(self) -> bool:
        """Return whether the reports at least show that they are not exact: a step of the cycle has no id."""
        cycle = self._cycle()
        steps = [c for c in self.changes if c.status in cycle and c.previous in cycle]
        return any(a.notification_id is None for c in steps for a in self._attempts.get(c.seq, []))

    def _cycle(self) -> set[str]:
        """Return the last status and all statuses that lead to it and follow it again."""
        onward: dict[str, set[str]] = defaultdict(set)
        for change in self.changes:
            if change.previous is not None:
                onward[change.previous].add(change.status)

        def reach(start: str) -> set[str]:
            found: set[str] = set()
            queue = [start]
            while queue:
                for status in onward[queue.pop()] - found:
                    found.add(status)
                    queue.append(status)
            return found

        return {self.last} | {status for status in reach(self.last) if self.last in reach(status)}
