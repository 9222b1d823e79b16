"""What the simulator did, complete and in order: tests compare the product's behaviour with it.

An entry is a plain dict with ``seq`` (ascending, never reused), ``at`` (seconds since the epoch), ``time`` (the same as
ISO 8601, UTC), ``kind`` and the fields of its kind. A request is added when it arrives, so that one without an answer
is in the log too, and its ``outcome`` and ``status`` are filled in when it ends.
"""

from __future__ import annotations

import bisect
import json
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from airflow_mediation_provider.simulator.clock import Clock

Entry = dict[str, Any]


def iso(at: float) -> str:
    """Return an instant in seconds since the epoch as ISO 8601 in UTC, with microseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


class EventLog:
    """An ordered log that any thread may read and wait on.

    :param clock: where the times come from
    :param path: a file to which each entry is appended as a line of JSON once nothing about it can change any more
    """

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self._clock = clock
        self._entries: list[Entry] = []
        self._open: dict[int, Entry] = {}
        self._last = 0
        self._request: int | None = None
        self._changed = threading.Condition()
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None

    def add(self, kind: str, *, at: float | None = None, pending: bool = False, **fields: Any) -> int:
        """Add an entry.

        :param kind: its kind
        :param at: when it happened, seconds since the epoch; now by default
        :param pending: whether ``close()`` will complete the entry later
        :return: its ``seq``
        """
        when = self._clock.now() if at is None else at
        with self._changed:
            self._last += 1
            entry: Entry = {"seq": self._last, "at": when, "time": iso(when), "kind": kind, **fields}
            if self._request is not None:
                entry["request"] = self._request
            self._entries.append(entry)
            if pending:
                self._open[self._last] = entry
            else:
                self._write(entry)
            self._changed.notify_all()
            return self._last

    @contextmanager
    def during(self, request: int) -> Iterator[None]:
        """Mark the entries added in this block as caused by a request: its ``seq`` is their ``request``."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    def update(self, seq: int, **fields: Any) -> None:
        """Add fields to an entry that is still pending; does nothing to one that was closed or deleted."""
        with self._changed:
            if (entry := self._open.get(seq)) is not None:
                entry.update(fields)
                self._changed.notify_all()

    def close(self, seq: int, **fields: Any) -> None:
        """Complete a pending entry."""
        with self._changed:
            if (entry := self._open.pop(seq, None)) is not None:
                entry.update(fields)
                self._write(entry)
                self._changed.notify_all()

    def read(self, *, kind: str | Iterable[str] | None = None, since: int = 0, **fields: Any) -> list[Entry]:
        """Return copies of the entries, in order.

        :param kind: only entries of this kind, or of one of these
        :param since: only entries with a greater ``seq``
        :param fields: only entries whose fields equal these
        """
        kinds = None if kind is None else {kind} if isinstance(kind, str) else set(kind)
        with self._changed:
            first = bisect.bisect_right(self._entries, since, key=lambda entry: int(entry["seq"]))
            return [
                dict(entry)
                for entry in self._entries[first:]
                if (kinds is None or entry["kind"] in kinds)
                and all(entry.get(key) == value for key, value in fields.items())
            ]

    def wait_for(self, found: Callable[[], list[Entry]], count: int, seconds: float) -> list[Entry]:
        """Wait until ``found`` returns at least ``count`` entries, and return them.

        :param seconds: how long to wait at most, real time
        :raises TimeoutError: there were fewer by then
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(entries := found()) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    if len(entries := found()) >= count:
                        break
                    raise TimeoutError(f"{len(entries)} of {count} log entries after {seconds:g} s")
            return entries

    def counts(self) -> dict[str, int]:
        """Return how many entries there are of each kind."""
        with self._changed:
            counts: dict[str, int] = {}
            for entry in self._entries:
                counts[entry["kind"]] = counts.get(entry["kind"], 0) + 1
            return counts

    @property
    def last(self) -> int:
        """Return the ``seq`` of the newest entry, 0 before the first."""
        return self._last

    def clear(self) -> None:
        """Delete all entries; ``seq`` goes on."""
        with self._changed:
            self._entries.clear()
            self._open.clear()

    def end(self) -> None:
        """Write what is still pending and close the file."""
        with self._changed:
            for entry in self._open.values():
                self._write(entry)
            self._open.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, entry: Entry) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
