"""Faults on request: what can go wrong between a client and Zuora, one at a time or together."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.clock import Clock


class FaultKind(StrEnum):
    """What goes wrong."""

    STATUS = "status"  # answers with status, headers and body of the fault
    HTML = "html"  # answers 200 with an HTML page, as a proxy under maintenance does
    BADJSON = "badjson"  # answers 200 with a body that is not JSON, under the content type of JSON
    TRUNCATED = "truncated"  # announces the whole reply, sends half of it and closes
    SLOW = "slow"  # the reply is sent slowly, over `delay` seconds
    LATENCY = "latency"  # the reply is delayed by `delay` seconds
    DELAY_BEFORE = "delay_before"  # the request is carried out only after `delay` seconds, even if the client is gone
    HANG = "hang"  # never answers; the connection stays open
    RESET = "reset"  # the connection is reset (RST) and nothing was carried out
    LOST_REPLY = "lost_reply"  # the request is carried out, then the connection is reset
    UNKNOWN_STATUS = "unknown_status"  # runStatus returns the code `code`, which is not documented
    REJECT_AUTH = "reject_auth"  # answers 401, with any token
    EXPIRE_TOKENS = "expire_tokens"  # all tokens issued so far become invalid; happens at once


DELAYS = frozenset({FaultKind.LATENCY, FaultKind.DELAY_BEFORE, FaultKind.SLOW})
CARRIED_OUT = frozenset(DELAYS | {FaultKind.LOST_REPLY, FaultKind.TRUNCATED, FaultKind.UNKNOWN_STATUS})


@dataclass(kw_only=True, slots=True)
class Fault:
    """One fault and the requests that it affects.

    :param kind: what goes wrong
    :param path: regular expression searched for in the path; ``^/meters/`` by default (``/runStatus$`` for
        unknown_status)
    :param method: only this HTTP method
    :param meter: only calls of this meter
    :param after: number of matching requests that it does not affect first
    :param count: affects so many requests, then ends
    :param seconds: affects requests for so long from now (real, not scaled), then ends
    :param delay: seconds for latency, delay_before and slow (real)
    :param status: HTTP status of the reply (``status``: 503, ``html`` and ``badjson``: 200, unless given)
    :param headers: headers of the reply
    :param body: body of the reply: text as it is, anything else as JSON
    :param code: status code for ``unknown_status``
    :param carried_out: whether the request is carried out nevertheless; by default for lost_reply, truncated,
        unknown_status and the delays. ``status`` 504 with ``carried_out`` is a gateway timeout after a start.
    """

    kind: FaultKind
    path: str | None = None
    method: str | None = None
    meter: str | None = None
    after: int = 0
    count: int | None = None
    seconds: float | None = None
    delay: float = 1.0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    code: int = 99
    carried_out: bool | None = None
    id: int = field(default=0, init=False)
    served: int = field(default=0, init=False)
    until: float | None = field(default=None, init=False)
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self.kind = FaultKind(self.kind)
        except ValueError:
            raise ValueError(f"kind must be one of {', '.join(FaultKind)}, got {self.kind!r}") from None
        if self.path is None:
            self.path = "/runStatus$" if self.kind is FaultKind.UNKNOWN_STATUS else "^/meters/"
        try:
            self.pattern = re.compile(self.path)
        except (re.error, TypeError) as error:
            raise ValueError(f"path is no regular expression: {error}") from None
        for name in ("after", "count", "seconds", "delay", "status", "code"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
                raise ValueError(f"{name} must be a number >= 0, got {value!r}")
        if not isinstance(self.headers, Mapping):
            raise ValueError(f"headers must be a mapping, got {self.headers!r}")
        self.headers = {str(name): str(value) for name, value in self.headers.items()}
        self.method = self.method.upper() if self.method else None
        self.meter = str(self.meter) if self.meter is not None else None
        if self.carried_out is None:
            self.carried_out = self.kind in CARRIED_OUT
        if self.status is None:
            self.status = {FaultKind.STATUS: 503, FaultKind.REJECT_AUTH: 401}.get(self.kind, 200)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Fault:
        """Read a fault from a mapping of its fields.

        :raises ValueError: a field is unknown, missing or wrong
        """
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        if unknown := sorted(set(value) - set(known)):
            raise ValueError(f"fault: unknown field {', '.join(unknown)}; known: {', '.join(known)}")
        if "kind" not in value:
            raise ValueError(f"fault: kind is missing; one of {', '.join(FaultKind)}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fault as plain JSON, with how often it was applied."""
        names = ("id", "kind", "path", "method", "meter", "after", "count", "seconds", "delay", "status", "headers")
        return {name: getattr(self, name) for name in (*names, "body", "code", "carried_out", "served")}


class Faults:
    """The active faults.

    :param clock: measures the ``seconds`` of a fault
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._faults: list[Fault] = []
        self._ids = itertools.count(1)

    def add(self, fault: Fault) -> Fault:
        """Activate a fault; it gets an id."""
        fault.id = next(self._ids)
        if fault.seconds is not None:
            fault.until = self._clock.now() + fault.seconds
        self._faults.append(fault)
        return fault

    def remove(self, fault_id: int | None = None) -> int:
        """Remove one fault, or all; returns how many."""
        before = len(self._faults)
        self._faults = [fault for fault in self._faults if fault_id is not None and fault.id != fault_id]
        return before - len(self._faults)

    def active(self) -> list[Fault]:
        """Return the active faults, oldest first."""
        now = self._clock.now()
        self._faults = [
            fault
            for fault in self._faults
            if (fault.until is None or now < fault.until) and (fault.count is None or fault.served < fault.count)
        ]
        return [*self._faults]

    def strike(self, method: str, path: str, meter: str | None) -> list[Fault]:
        """Return the faults that affect a request, and count them: the delays, and the oldest of the others."""
        struck: list[Fault] = []
        final = False
        for fault in self.active():
            if (fault.method or method) != method or not fault.pattern.search(path):
                continue
            if fault.meter is not None and fault.meter != meter:
                continue
            if final and fault.kind not in DELAYS:
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            final = final or fault.kind not in DELAYS
            fault.served += 1
            struck.append(fault)
        return struck
