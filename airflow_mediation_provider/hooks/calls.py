"""How many calls this process has sent over each connection, and not told the journal yet.

Requests for a token are left out: Zuora limits them by themselves, and far more generously than a token needs. Counts
are lost with their process: it tells them with whatever else it tells the API server, and a process that never does
that (a hook in a task of one's own) is not counted.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.calls import HourlyCalls, counted, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

_counts: dict[str, tuple[HourlyCalls, ...]] = {}
_lock = threading.Lock()


def note(conn_id: str, reply: object) -> None:
    """Count one call; from any thread or event loop.

    :param reply: what was answered; anything but a ``Reply``: nothing was
    """
    _add(conn_id, (counted(reply, datetime.now(UTC)),))


def unreported(conn_id: str) -> tuple[HourlyCalls, ...]:
    """Return what was counted over a connection and not reported, the oldest hour first."""
    return _counts.get(conn_id, ())


@contextmanager
def reported(conn_id: str) -> Iterator[tuple[HourlyCalls, ...]]:
    """Give what is to be reported now; it counts as reported unless the block raises.

    Two who report at once never report the same. Only a report that arrived, and whose answer was lost, is told twice:
    the calls of a minute, as a rule.
    """
    with _lock:
        taken = _counts.pop(conn_id, ())
    try:
        yield taken
    except BaseException:
        _add(conn_id, taken)
        raise


def forget_all() -> None:
    """Forget every count. A forked process does it first: its parent reports them."""
    global _counts, _lock
    _counts, _lock = {}, threading.Lock()


def _add(conn_id: str, calls: tuple[HourlyCalls, ...]) -> None:
    if calls:
        with _lock:
            _counts[conn_id] = merged((*_counts.get(conn_id, ()), *calls))


os.register_at_fork(after_in_child=forget_all)
