"""What a wait has learned, kept from one process to the next: retries, reschedules and crashed triggers forget nothing.

Kept in Airflow's task state store (Airflow 3.3), which also survives Clear; so the record names its *generation*,
``ti.max_tries``, which Airflow changes when a user clears the task and never on a plain retry. Without a store
(Airflow 3.2) nothing is kept, and a new process begins with a new baseline.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_mediation_provider.protocol.wait import SessionWait

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

log = logging.getLogger(__name__)

KEY: Final = "mediation_session_wait"
VERSION: Final = 1


class Store(Protocol):
    """What this module needs of ``context["task_state_store"]``."""

    def get(self, key: str) -> Any:
        """Return the value kept under the key, or ``None``."""

    def set(self, key: str, value: Any) -> None:
        """Keep the value under the key."""


class WaitMemory:
    """The kept wait of one task instance.

    :param store: ``context["task_state_store"]``, or ``None`` where Airflow has none
    :param generation: ``ti.max_tries``
    :param try_number: ``ti.try_number``: a deadline belongs to a try, all else to the generation
    """

    def __init__(self, store: Store | None, *, generation: int, try_number: int) -> None:
        self._store = store
        self._generation = generation
        self._try_number = try_number
        record = store.get(KEY) if store is not None else None
        if not isinstance(record, Mapping) or record.get("generation") != generation:
            record = {}
        wait = record.get("wait")
        self._wait: dict[str, Any] | None = dict(wait) if isinstance(wait, Mapping) else None
        self._wait_try: int | None = record.get("wait_try")
        self.method_name: str = record.get("method_name", "execute_complete")
        crashed = record.get("crashed", {})
        self.crashes: int = crashed.get("times", 0) if crashed.get("try_number") == try_number else 0

    @classmethod
    def of(cls, context: Context) -> WaitMemory:
        """Return the memory of the running task."""
        ti = context["ti"]
        return cls(context.get("task_state_store"), generation=ti.max_tries, try_number=ti.try_number)

    def belongs_to(self, ti: RuntimeTaskInstanceProtocol) -> bool:
        """Say whether it is the memory of this try of a task."""
        return (self._generation, self._try_number) == (ti.max_tries, ti.try_number)

    @property
    def of_this_try(self) -> bool:
        """Whether this try has waited already, in an earlier process."""
        return self._wait_try == self._try_number

    def recall(self, fresh: SessionWait) -> SessionWait:
        """Return the kept wait where it asks the same as ``fresh``, else ``fresh``.

        A new try gets its own deadline and a new patience with Zuora, and keeps what is known about the session.
        """
        kept = self.last()
        if kept is None or question(kept) != question(fresh):
            return fresh
        if self.of_this_try:
            return kept
        return kept.renewed(until=fresh.condition.until)

    def last(self) -> SessionWait | None:
        """Return the wait as it was kept last, or ``None``; a record that this version cannot read counts as none."""
        if self._wait is None:
            return None
        try:
            return SessionWait.from_dict(self._wait)
        except (KeyError, TypeError, ValueError):
            log.warning("The kept state of the wait cannot be read; the wait begins anew.", exc_info=True)
            return None

    def keep(self, wait: SessionWait, method_name: str, *, required: bool = False) -> None:
        """Keep the wait for the next process.

        :param method_name: the operator's method that gets the result
        :param required: the next process cannot go on without it, so an error of the store ends this one
        :raises RuntimeError: required, and this Airflow has no task state store
        """
        self._wait = wait.to_dict()
        self.method_name = method_name
        self._wait_try = self._try_number
        self._write(required=required)

    def adopt(self, wait: Mapping[str, Any]) -> None:
        """Take over what the trigger of this try knew when it ended without an end of the session.

        :param wait: ``SessionWait.to_dict()``
        """
        self._wait = dict(wait)
        self._wait_try = self._try_number
        self._write(required=False)

    def count_crash(self) -> int:
        """Note that a trigger of this try crashed, and return how many did so far."""
        self.crashes += 1
        self._write(required=False)
        return self.crashes

    def _write(self, *, required: bool) -> None:
        if self._store is None:
            if required:
                raise RuntimeError("this Airflow has no task state store, which a rescheduled wait needs (Airflow 3.3)")
            return
        record = {
            "version": VERSION,
            "generation": self._generation,
            "wait": self._wait,
            "wait_try": self._wait_try,
            "method_name": self.method_name,
            "crashed": {"try_number": self._try_number, "times": self.crashes},
        }
        try:
            self._store.set(KEY, {key: value for key, value in record.items() if value is not None})
        except Exception:
            # Anything may come from a custom state backend. Without the record only a later crash costs the baseline.
            if required:
                raise
            log.warning("The state of the wait could not be kept; the wait goes on.", exc_info=True)


def question(wait: SessionWait) -> dict[str, Any]:
    """Return what is waited for, without the deadline: two waits that ask the same may share what they know."""
    return {key: value for key, value in wait.condition.to_dict().items() if key != "until"}
