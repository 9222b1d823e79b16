"""Requests and replies of the simulator, apart from the server that carries them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from airflow_mediation_provider.simulator.sessions import INVALID_PARAMETER, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Call:
    """A request.

    :param headers: headers by lower-case name
    :param query: all values of each query parameter, decoded
    """

    method: str
    path: str
    query: Mapping[str, list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def one(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def many(self, name: str) -> list[str]:
        """Return a list parameter, given repeatedly or with commas."""
        return [part for value in self.query.get(name, ()) for part in value.split(",") if part]

    def required(self, name: str) -> str:
        """Return a query parameter that must be there.

        :raises Refusal: 70002023 it is not
        """
        if not (value := self.one(name)):
            raise Refusal(f"Parameter {name} is required.", INVALID_PARAMETER)
        return value

    def form(self) -> dict[str, str]:
        """Return the fields of a form body."""
        return {name: values[0] for name, values in parse_qs(self.body.decode("utf-8", "replace")).items()}

    def json(self) -> dict[str, Any]:
        """Return a JSON body, ``{}`` when there is none.

        :raises Refusal: 70002023 it is no JSON object
        """
        try:
            value = json.loads(self.body) if self.body.strip() else {}
        except (ValueError, RecursionError):
            raise Refusal("The body is not JSON.", INVALID_PARAMETER) from None
        if not isinstance(value, dict):
            raise Refusal("The body is not a JSON object.", INVALID_PARAMETER)
        return value


@dataclass(slots=True)
class Reply:
    """A reply: text or bytes as they are, anything else as JSON."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    def content(self) -> bytes:
        """Return the body as it goes over the wire."""
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()
