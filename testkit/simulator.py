"""The simulator's control API, as the demo and the integration tests use it."""

from __future__ import annotations

from typing import Any

import httpx

from testkit.processes import wait_until


class SimulatorControl:
    """Sets up a running simulator and reads what it did.

    :param url: its address, without a slash at the end
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=f"{url}/_simulator", timeout=10, trust_env=False)

    def disconnect(self) -> None:
        """Close the connections to the simulator."""
        self._http.close()

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Send a request to the control API and return the JSON reply.

        :param path: path below ``/_simulator``
        :raises httpx.HTTPStatusError: the simulator refused; its message contains the reason
        """
        reply = self._http.request(method, path, **request)
        if reply.is_error:
            raise httpx.HTTPStatusError(
                f"simulator, {method} {path}: {reply.status_code} {reply.text}", request=reply.request, response=reply
            )
        return reply.json()

    def healthy(self) -> bool:
        """Return whether it answers."""
        try:
            return bool(self.call("GET", "/health"))
        except httpx.HTTPError:
            return False

    def meter(self, meter_id: str, **settings: Any) -> None:
        """Create a meter, or reset one: ``script``, ``records``, ``errors``, ``overlap``, ``stale_for`` ..."""
        self.call("POST", f"/meters/{meter_id}", json=settings)

    def start_session(self, meter_id: str, **settings: Any) -> dict[str, Any]:
        """Start a session without the API, as Zuora's own schedule does, and return it."""
        return dict(self.call("POST", "/sessions", json={"meter": meter_id, **settings}))

    def start_session_if_room(self, meter_id: str) -> str | None:
        """Start such a session and return its id; ``None`` if five meters run already."""
        try:
            return str(self.start_session(meter_id)["session_id"])
        except httpx.HTTPStatusError as error:
            if "maximum running meter count" in error.response.text:
                return None
            raise

    def fault(self, kind: str, **settings: Any) -> dict[str, Any]:
        """Add a fault: ``kind`` and for which requests (``path``, ``method``, ``meter``), how often or how long."""
        return dict(self.call("POST", "/faults", json={"kind": kind, **settings}))

    def clear_faults(self) -> None:
        """Remove all faults."""
        self.call("DELETE", "/faults")

    def sessions(self, meter_id: str | None = None) -> list[dict[str, Any]]:
        """Return the sessions of a meter, or of all, the oldest first."""
        params = {} if meter_id is None else {"meter": meter_id}
        return list(self.call("GET", "/sessions", params=params)["sessions"])

    def log(self, kind: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Return the log entries, in order.

        :param kind: ``request``, ``start``, ``transition``, ``stop`` ...; all by default
        :param fields: only entries whose fields equal these
        """
        entries = self.call("GET", "/log")["entries"]
        return [
            entry
            for entry in entries
            if (kind is None or entry["kind"] == kind) and all(entry.get(key) == value for key, value in fields.items())
        ]

    def wait_log(self, kind: str, *, count: int = 1, timeout: float = 60, **fields: Any) -> list[dict[str, Any]]:
        """Wait until there are so many log entries of a kind, and return them.

        :raises NotInTimeError: there were fewer by then
        """

        def enough() -> list[dict[str, Any]] | None:
            found = self.log(kind, **fields)
            return found if len(found) >= count else None

        return wait_until(
            enough, timeout=timeout, what=f"{count} {kind} in the simulator's log with {fields}", every=0.1
        )
