"""What a drill recorded: what the simulator did, and what the provider made of it; plain JSON, checked offline."""

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


@dataclass(frozen=True)
class Change:
    """A change of a session's status, as it truly was.

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

    :param change: ``seq`` of the change that it tells
    :param callout_id: the callout, of which it may be one of several attempts
    :param code: HTTP status; negative: no answer came; ``None``: it was cut off, or never begun
    :param outcome: delivered, retried, failed or vanished
    :param at: when it began, seconds since the epoch
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
    """An asset event: a session of a meter came to a status."""

    meter_id: str
    status: str
    key: str | None


@dataclass(frozen=True)
class Consumer:
    """A DAG, and one pair of meter and status whose sessions it is scheduled on."""

    dag_id: str
    meter_id: str
    status: str


@dataclass(frozen=True)
class Run:
    """A DAG run."""

    dag_id: str
    key: str | None
    state: str


@dataclass(frozen=True)
class Wait:
    """A wait for a session, and how it ended.

    :param previous: the status before, where the condition names one
    :param outcome: met, failed, waiting (to the end), or error
    :param told: the status that it ended with
    :param certain: whether it said that it is certain
    :param alone: whether no other session of the meter was live beside it
    :param named: the session that it told, where the condition names none: the first of the meter from an instant on,
        which in truth is ``session_id``
    :param ended_at: when it ended, seconds since the epoch
    """

    id: str
    meter_id: str
    session_id: str
    statuses: tuple[str, ...]
    fail_on: tuple[str, ...]
    outcome: str
    told: str | None = None
    certain: bool | None = None
    previous: tuple[str, ...] = ()
    alone: bool = True
    named: str | None = None
    ended_at: float = 0.0


@dataclass(frozen=True)
class History:
    """All that a drill recorded."""

    changes: list[Change] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    events: list[AssetEvent] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)

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
        }
        return cls(**{f.name: [_load(kinds[f.name], each) for each in data[f.name]] for f in fields(cls)})

    @cached_property
    def state_of(self) -> dict[Subject, State]:
        """What the journal says of each session."""
        return {(state.meter_id, state.session_id): state for state in self.states}

    @cached_property
    def walks(self) -> dict[Subject, Walk]:
        """What each session truly did."""
        steps: dict[Subject, list[Change]] = defaultdict(list)
        for change in sorted(self.changes, key=lambda change: change.seq):
            steps[change.meter_id, change.session_id].append(change)
        told: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            told[attempt.change].append(attempt)
        return {subject: Walk(changes, told) for subject, changes in steps.items()}


def _load(kind: Any, data: dict[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


class Walk:
    """What one session truly did, and how it was told.

    :param changes: of the session, in order
    :param told: the attempts for each change
    """

    def __init__(self, changes: list[Change], told: dict[int, list[Attempt]]) -> None:
        self.changes = changes
        self.statuses = [change.status for change in changes]
        self.last = self.statuses[-1]
        self._told = told

    def arrivals(self, status: str) -> int:
        """Return how often the session came to a status."""
        return self.statuses.count(status)

    def came(self, status: str, previous: Collection[str | None] = ()) -> bool:
        """Return whether the session ever came to a status, from one of the given where any are."""
        return any(c.status == status and (not previous or c.previous in previous) for c in self.changes)

    @cached_property
    def heard_at(self) -> float:
        """When the first report of the session was surely known, seconds since the epoch."""
        ends = [a.at + a.seconds for c in self.changes for a in self._told.get(c.seq, []) if a.code == 200]
        return min(ends, default=float("inf"))

    @cached_property
    def exact(self) -> bool:
        """Whether the reports tell the last status for sure, in whatever order they come.

        They do where the walk never can come back to it. Where it can, each step of that cycle must have been told
        under one notification id: without ids, or with several for one step, nobody can count the rounds.
        """
        cycle = self._cycle()
        if len(cycle) == 1:
            return True
        steps = [c for c in self.changes if c.status in cycle and c.previous in cycle]
        ids = [{attempt.notification_id for attempt in self._told.get(c.seq, [])} for c in steps]
        return all(len(each) == 1 and None not in each for each in ids)

    @cached_property
    def countable(self) -> bool:
        """Whether the reports at least show that they are not exact: some step of the cycle came without an id."""
        cycle = self._cycle()
        steps = [c for c in self.changes if c.status in cycle and c.previous in cycle]
        return any(a.notification_id is None for c in steps for a in self._told.get(c.seq, []))

    def _cycle(self) -> set[str]:
        """Return the last status and all that it can come from and lead to again."""
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
