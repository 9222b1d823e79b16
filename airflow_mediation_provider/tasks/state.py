"""State that a task keeps for its next process: one store, and one rule for whether a user cleared the task since.

Airflow's task state store (Airflow 3.3) outlasts retries, reschedules, deferrals and Clear. So each record contains the
numbers of the try that wrote it, and :func:`was_cleared` decides whether it belongs to the work before a Clear. Airflow
3.2 has no such store: nothing is kept there. Airflow's own present state of a task instance is queried here too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol


log = logging.getLogger(__name__)

# Airflow's own default of 30 days may be shorter than a wait; a retry without a record would start anew.
_RETENTION: Final = timedelta(days=60)

NO_ANSWER: Final = "unknown"
"""Stands for the state when Airflow gave no answer."""


@dataclass(frozen=True, slots=True)
class Tries:
    """Airflow's numbers of a try.

    :param max_tries: ``ti.max_tries``; Clear sets it to the tries made plus ``retries``, a plain retry never changes it
    :param retries: the task's ``retries``; ``None``: an earlier version of this package did not keep it
    :param number: ``ti.try_number``; 0 in a record, where it is not needed
    """

    max_tries: int | None
    retries: int | None
    number: int = 0

    @classmethod
    def of(cls, ti: RuntimeTaskInstanceProtocol, retries: int | None) -> Tries:
        """Return the numbers of the running try.

        :param retries: the operator's
        """
        return cls(ti.max_tries, retries or 0, ti.try_number)

    @classmethod
    def kept(cls, record: Mapping[str, Any], max_tries: str = "max_tries") -> Tries:
        """Return the numbers in a record.

        :param max_tries: the key of the first of them
        """
        return cls(record.get(max_tries), record.get("retries"))

    @property
    def before_clear(self) -> int:
        """The number of tries made before the last Clear; 0 without one."""
        return max(0, (self.max_tries or 0) - (self.retries or 0))


def was_cleared(kept: Tries, now: Tries, *, over: bool) -> bool:
    """Return whether a user cleared the task since a record was kept.

    A Clear changes ``max_tries``, except where ``retries`` was lowered by exactly the tries made. A plain retry after
    ``retries`` was lowered has the same numbers then, so the record decides: work that was over is not retried, unless
    its worker was lost before Airflow received the result.

    :param kept: of the try that kept the record
    :param now: of this try
    :param over: the work ended, by the record
    """
    if kept.max_tries != now.max_tries:
        return True
    return over and kept.retries is not None and kept.before_clear < now.before_clear < now.number


class Store(Protocol):
    """The part of ``context["task_state_store"]`` that this module needs."""

    def get(self, key: str) -> Any:
        """Return the value kept under the key, or ``None``."""

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """Keep the value under the key for so long; raise if it may not be stored."""


class TaskState:
    """One JSON record of a task instance.

    :param store: ``context["task_state_store"]``, or ``None`` where Airflow has none
    :param key: of the record
    :param longest: seconds that the task may take; the record is kept for longer
    """

    def __init__(self, store: Store | None, key: str, *, longest: float = 0.0) -> None:
        self._store = store
        self._key = key
        self._retention = _RETENTION + timedelta(seconds=longest)

    @classmethod
    def of(cls, context: Context, key: str, *, longest: float = 0.0) -> TaskState:
        """Return a record of the running task."""
        return cls(context.get("task_state_store"), key, longest=longest)

    @property
    def lasting(self) -> bool:
        """Whether the next process will find the record of this one."""
        return self._store is not None

    def get(self) -> Mapping[str, Any]:
        """Return the last record; an empty one without any."""
        record = None if self._store is None else self._store.get(self._key)
        return record if isinstance(record, Mapping) else {}

    def set(self, record: Mapping[str, Any], *, required: bool) -> None:
        """Keep the record, if Airflow has a store.

        :param required: without the record the work must not be done, so an error of the store ends the try
        """
        if self._store is None:
            return
        try:
            self._store.set(self._key, dict(record), retention=self._retention)
        except Exception:
            # A custom state backend may raise any error.
            if required:
                raise
            log.warning("The task's state %s could not be kept; the task continues.", self._key, exc_info=True)


def state_query(ti: Any) -> dict[str, Any]:
    """Return the arguments of ``get_task_states`` that select one task instance.

    :param ti: the task instance
    """
    return {"dag_id": ti.dag_id, "task_ids": [ti.task_id], "run_ids": [ti.run_id], "map_index": _map_index(ti)}


def state_in(states: Mapping[str, Mapping[str, Any]], ti: Any) -> str | None:
    """Return the state in an answer: ``None`` if the task has none, ``NO_ANSWER`` if it is missing in the answer.

    :param states: what ``get_task_states`` returned
    :param ti: the task instance
    """
    index = _map_index(ti)
    name = ti.task_id if index < 0 else f"{ti.task_id}_{index}"
    found = states.get(ti.run_id, {})
    if name not in found:
        return NO_ANSWER
    return None if found[name] is None else str(found[name])


def _map_index(ti: Any) -> int:
    return -1 if ti.map_index is None else int(ti.map_index)


def deadline_of_try(context: Context, timeout: float) -> datetime:
    """Return the deadline of the running try: ``timeout`` seconds after its first start, also after a deferral."""
    started = context["ti"].start_date or utcnow()
    return started.astimezone(UTC) + timedelta(seconds=timeout)


def utcnow() -> datetime:
    """Return the time of the wall clock."""
    return datetime.now(UTC)
