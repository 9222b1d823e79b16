"""Counts of the calls that this process has sent over each connection and not yet reported to the journal.

Requests for a token are not counted: Zuora limits them separately, and far more generously than a token needs. A
process loses its counts when it ends: it reports them with its other reports to the API server, and a process without
any (a hook in a task of a user) is not counted.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage, counted, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

_counts: dict[str, tuple[HourlyUsage, ...]] = {}
_lock = threading.Lock()


def count_request(conn_id: str, reply: object) -> None:
    """Count one call; from any thread or event loop.

    :param reply: the answer; anything but a ``Reply`` means no answer
    """
    _add(conn_id, (counted(reply, datetime.now(UTC)),))


def unreported(conn_id: str) -> tuple[HourlyUsage, ...]:
    """Return the unreported counts of a connection, the oldest hour first."""
    return _counts.get(conn_id, ())


@contextmanager
def reported(conn_id: str) -> Iterator[tuple[HourlyUsage, ...]]:
    """Yield the counts to report now; they count as reported unless the block raises.

    Two concurrent reports never contain the same calls. Only a report that was received, and whose answer was lost, is
    repeated: as a rule, the calls of one minute.
    """
    with _lock:
        taken = _counts.pop(conn_id, ())
    try:
        yield taken
    except BaseException:
        _add(conn_id, taken)
        raise


def forget_all() -> None:
    """Clear all counts. A forked process does it first: its parent reports them."""
    global _counts, _lock
    _counts, _lock = {}, threading.Lock()


def _add(conn_id: str, calls: tuple[HourlyUsage, ...]) -> None:
    if calls:
        with _lock:
            _counts[conn_id] = merged((*_counts.get(conn_id, ()), *calls))


os.register_at_fork(after_in_child=forget_all)
