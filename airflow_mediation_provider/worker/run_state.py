"""What a run stores between tries, so that a crash never starts a second session: the key first, then the call.

The state is kept in Airflow's task state store (Airflow 3.3), which survives retries, deferrals and Clear. It belongs
to one *generation*: one intended session. A generation goes on after a crash and after "unreachable"; a new one
begins

- when the session of the last one is dead (a status of ``fail_on``), which is stored before the task fails;
- when the task now runs another meter, version or run type, or uses another connection;
- when a user cleared the task, see ``tasks.state.was_cleared``. Now and then Airflow turns the Clear of a task that
  runs on a worker into a plain retry: then the session goes on. The Clear cannot be stored, because the task instance
  gets another id with it.

A task that succeeds stores its result first: if the worker dies before Airflow has recorded the success, the next try
starts nothing again.

A generation is named by the id that Airflow gives to the try that began it. The id is unique even where a run is
deleted and created again, and stays the same when Airflow hands one try to another worker.

Airflow 3.2 has no such store. There the key is derived from what stays the same between the tries of one Clear, so that
a crashed try finds its key used; see ``derived_generation``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.tasks.state import TaskState, Tries, was_cleared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult

STATE_KEY: Final = "mediation_run"
STATE_VERSION: Final = 1
CLEARED: Final = "the task was cleared"


class RunPhase(StrEnum):
    """How far a generation has come."""

    CALLING = "calling"  # the call was about to be made: it may have started a session, or not
    STARTED = "started"  # Zuora's reply named the session
    UNNAMED = "unnamed"  # a session was started, but its id was lost with the reply
    DEAD = "dead"  # the session ended in a status of fail_on: the next try begins a new generation
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
    :param phase: how far it has come
    :param called_at: just before the first call, UTC
    :param baseline: the meter version's status read just before the first call
    :param session: Zuora's reply as a ``SessionTransition`` in plain JSON
    :param run_id: Zuora's own id of the run, for links
    :param ended_as: the status in which the session ended
    :param result: what the task returns, once it has it
    """

    generation: str
    max_tries: int
    retries: int = 0
    mediation_conn_id: str
    request: dict[str, Any]
    unique_key: str | None = None
    phase: RunPhase = RunPhase.CALLING
    called_at: datetime | None = None
    baseline: str | None = None
    session: dict[str, Any] | None = None
    run_id: str | None = None
    ended_as: str | None = None
    result: SessionResult | None = None
    version: int = field(default=STATE_VERSION)

    @property
    def session_id(self) -> str | None:
        """The session, where Zuora's reply named it."""
        return (self.session or {}).get("session_id")

    def dead(self, how: str) -> RunState:
        """Return the state with which the next try begins a new generation."""
        return replace(self, phase=RunPhase.DEAD, ended_as=how)

    def done(self, result: SessionResult) -> RunState:
        """Return the state with which a retry returns the same result."""
        return replace(self, phase=RunPhase.DONE, result=result)

    @property
    def may_be_live(self) -> bool:
        """Whether a session of this generation may go on, as far as is known."""
        return self.phase in (RunPhase.STARTED, RunPhase.UNNAMED) or (
            self.phase is RunPhase.CALLING and self.called_at is not None
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
        known["phase"] = RunPhase(known.get("phase", RunPhase.CALLING))
        return cls(**known)


class KeptRun:
    """The stored state of one task instance; without a store (Airflow 3.2) nothing is kept.

    :param state: the task's record
    """

    def __init__(self, state: TaskState) -> None:
        self._state = state

    @classmethod
    def of(cls, context: Context, longest: float) -> KeptRun:
        """Return the stored state of the running task.

        :param longest: seconds that the task may take
        """
        return cls(TaskState.of(context, STATE_KEY, longest=longest))

    @property
    def lasting(self) -> bool:
        """Whether the next try will find what this one keeps."""
        return self._state.lasting

    def load(self) -> RunState | None:
        """Return what an earlier try, or this one before it deferred, kept."""
        kept = self._state.get()
        return RunState.from_dict(kept) if kept else None

    def save(self, state: RunState) -> RunState:
        """Keep the state, and return it. An error here must end the try: what is not kept must not be done."""
        self._state.set(state.to_dict(), required=True)
        return state


def why_new_generation(
    kept: RunState | None, tries: Tries, *, mediation_conn_id: str, request: Mapping[str, Any]
) -> str | None:
    """Return why a new generation begins, for the log; ``None`` where the stored one goes on.

    :param kept: what the last try kept
    :param tries: Airflow's numbers of this try
    :param mediation_conn_id: the connection of this try
    :param request: the arguments that this try would call with
    """
    if kept is None:
        return "first run"
    if was_cleared(Tries(kept.max_tries, kept.retries), tries, over=kept.phase is RunPhase.DONE):
        return CLEARED
    if kept.phase is RunPhase.DEAD:
        return f"the last one ended as {kept.ended_as}"
    same = ("meter_id", "version", "run_type")
    if kept.mediation_conn_id != mediation_conn_id or any(kept.request.get(k) != request.get(k) for k in same):
        return "the last try ran another meter"
    return None


def derived_generation(tries: Tries, *, advanced: int) -> str:
    """Name a generation without a store (Airflow 3.2): by the tries before the last Clear, and by ``advanced``.

    Weaker than a stored one: the name repeats where a run is deleted and created again under the same run id, and where
    ``retries`` changed between two tries.

    :param advanced: how many generations of this try are known to be dead
    """
    return f"after-{tries.before_clear}-tries.{advanced}"


def unique_key(
    *, mediation_conn_id: str, request: Mapping[str, Any], instance: tuple[Any, ...], generation: str
) -> str:
    """Return the ``uniqueKey`` of a generation: the same for each repetition of its call, and for nothing else.

    Length and alphabet stay within Zuora's own example, because its limits are not documented. See
    https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter

    :param instance: dag id, run id, task id and map index
    """
    identity = [mediation_conn_id, request["meter_id"], request["version"], *instance, generation]
    return "airflow-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
