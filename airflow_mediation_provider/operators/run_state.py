"""What a run keeps between tries, so that a crash never starts a second session: the key first, then the call.

The state is kept in Airflow's task state store (Airflow 3.3), which survives retries, deferrals and Clear. It belongs
to one *generation*: one session on purpose. A generation goes on after a crash and after "unreachable"; a new one
begins

- when the session of the last one is dead (a status of ``fail_on``), which is written down before the task fails;
- when a user cleared the task: Airflow then sets ``max_tries`` to the tries made plus ``retries``. A plain retry
  never changes it. Now and then Airflow makes a plain retry of the Clear of a task that runs on a worker: then the
  session goes on. Nobody can write that down: with the Clear the task instance has another id.

A task that succeeds keeps its result first: a worker that dies before Airflow knows of the success starts nothing
again.

A generation is named by the id that Airflow gives to the try that began it: unique even where a run is deleted and made
again, and the same when Airflow hands one try to another worker.

Airflow 3.2 has no such store. There the key is derived from what stays the same between the tries of one Clear, so that
a crashed try finds its key used; see ``derived_generation``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from airflow.sdk import Context

STATE_KEY: Final = "mediation_run"
STATE_VERSION: Final = 1
# Airflow's own default of 30 days may be shorter than a wait; without the state a retry would start a second session.
_RETENTION: Final = timedelta(days=60)


CLEARED: Final = "the task was cleared"


class Phase(StrEnum):
    """How far a generation got."""

    CALLING = "calling"  # the call was about to be made: it may have started a session, or not
    STARTED = "started"  # Zuora said which session it started
    UNNAMED = "unnamed"  # a session was started, but its id was lost with the reply
    DEAD = "dead"  # the session ended as it must not: the next try begins a new generation
    DONE = "done"  # the task has its result: only Clear begins a new generation


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """One generation of a run, as kept between tries.

    :param generation: the name of the generation
    :param max_tries: ``ti.max_tries`` when it began; another value later means that a user cleared the task
    :param unique_key: Zuora's ``uniqueKey`` of this generation; ``None`` for a DEBUG run, which has none
    :param retries: the task's ``retries`` when it began
    :param mediation_conn_id: the connection of the call
    :param request: the arguments of the call; a repetition is identical
    :param phase: how far it got
    :param called_at: just before the first call, UTC
    :param baseline: the meter version's status read just before the first call
    :param session: Zuora's reply as a ``SessionTransition`` in plain JSON
    :param run_id: Zuora's own id of the run, for links
    :param ended_as: how the session ended, in one word
    :param result: what the task returns, once it has it
    """

    generation: str
    max_tries: int
    retries: int = 0
    mediation_conn_id: str
    request: dict[str, Any]
    unique_key: str | None = None
    phase: Phase = Phase.CALLING
    called_at: datetime | None = None
    baseline: str | None = None
    session: dict[str, Any] | None = None
    run_id: str | None = None
    ended_as: str | None = None
    result: dict[str, Any] | None = None
    version: int = field(default=STATE_VERSION)

    @property
    def session_id(self) -> str | None:
        """The session, where Zuora's reply named it."""
        return (self.session or {}).get("session_id")

    def dead(self, how: str) -> RunState:
        """Return the state with which the next try begins a new generation."""
        return replace(self, phase=Phase.DEAD, ended_as=how)

    def done(self, result: dict[str, Any]) -> RunState:
        """Return the state with which a retry returns the same result."""
        return replace(self, phase=Phase.DONE, result=result)

    @property
    def may_be_live(self) -> bool:
        """Whether a session of this generation may go on, as far as is known."""
        return self.phase in (Phase.STARTED, Phase.UNNAMED) or (
            self.phase is Phase.CALLING and self.called_at is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return {
            key: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunState:
        """Make a state from ``to_dict()``, also of an older or newer version of this package.

        :raises TypeError: a field that every version has is missing
        """
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        if isinstance(known.get("called_at"), str):
            known["called_at"] = datetime.fromisoformat(known["called_at"])
        known["phase"] = Phase(known.get("phase", Phase.CALLING))
        return cls(**known)


class Store(Protocol):
    """What this module needs of ``context["task_state_store"]``."""

    def get(self, key: str) -> Any:
        """Return the value kept under the key, or ``None``."""

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """Keep the value under the key for so long; raise when that is not certain."""


class RunMemory:
    """The kept state of one task instance; without a store (Airflow 3.2) it forgets.

    :param store: ``context["task_state_store"]``, or ``None``
    :param longest_wait: seconds that the task may wait; the state is kept for longer
    """

    def __init__(self, store: Store | None, longest_wait: float = 0.0) -> None:
        self._store = store
        self._retention = _RETENTION + timedelta(seconds=longest_wait)

    @classmethod
    def of(cls, context: Context, longest_wait: float) -> RunMemory:
        """Return the memory of the running task."""
        return cls(context.get("task_state_store"), longest_wait)

    @property
    def lasting(self) -> bool:
        """Whether the next try will find what this one keeps."""
        return self._store is not None

    def load(self) -> RunState | None:
        """Return what an earlier try, or this one before it deferred, kept."""
        kept = self._store.get(STATE_KEY) if self._store is not None else None
        return RunState.from_dict(kept) if isinstance(kept, Mapping) else None

    def save(self, state: RunState) -> RunState:
        """Keep the state, and return it. An error here must end the try: what is not kept must not be done."""
        if self._store is not None:
            self._store.set(STATE_KEY, state.to_dict(), retention=self._retention)
        return state


def why_new_generation(
    kept: RunState | None, *, max_tries: int, retries: int, mediation_conn_id: str, request: Mapping[str, Any]
) -> str | None:
    """Say why a new generation begins, in words for the log; ``None`` where the kept one goes on.

    :param kept: what the last try kept
    :param max_tries: ``ti.max_tries`` of this try
    :param retries: the task's ``retries`` in this try
    :param mediation_conn_id: the connection of this try
    :param request: the arguments that this try would call with
    """
    if kept is None:
        return "first run"
    if kept.max_tries != max_tries:
        return CLEARED
    if kept.phase is Phase.DEAD:
        return f"the last one ended as {kept.ended_as}"
    # Lowering the retries of a DAG can hide a Clear: the sum of tries and retries may then stay the same.
    if kept.phase is Phase.DONE and kept.retries != retries:
        return CLEARED
    same = ("meter_id", "version", "run_type")
    if kept.mediation_conn_id != mediation_conn_id or any(kept.request.get(k) != request.get(k) for k in same):
        return "the last try ran another meter"
    return None


def derived_generation(*, max_tries: int, retries: int, advanced: int) -> str:
    """Name a generation without any memory (Airflow 3.2): the tries before the last Clear, and how often we advanced.

    Weaker than a kept one: it is the same again where a run is deleted and made anew under the same run id, and where
    ``retries`` changed between two tries.
    """
    return f"after-{max(0, max_tries - retries)}-tries.{advanced}"


def unique_key(
    *, mediation_conn_id: str, request: Mapping[str, Any], instance: tuple[Any, ...], generation: str
) -> str:
    """Return the ``uniqueKey`` of a generation: the same for each repetition of its call, and for nothing else.

    Length and alphabet stay within Zuora's own example, for its limits are not documented. See
    https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter

    :param instance: dag id, run id, task id and map index
    """
    identity = [mediation_conn_id, request["meter_id"], request["version"], *instance, generation]
    return "airflow-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
