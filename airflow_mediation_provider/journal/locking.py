"""On SQLite writers take turns: over the threads and processes of all API servers that share the file.

SQLite lets one transaction write at a time and makes the others try again until they give up; under load some of them
never get their turn. A queue before the database costs less than that. Other databases lock rows, and need none of it.
"""

from __future__ import annotations

import fcntl
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

_PAUSE_SECONDS: Final = 0.0005
_threads: Final = threading.Lock()


@contextmanager
def writers_turn(url: URL, deadline: float) -> Iterator[None]:
    """Hold this process's and this file's turn to write.

    :param url: the database's address
    :param deadline: until when to wait for it, in ``time.monotonic()``
    :raises TimeoutError: the turn did not come
    """
    if url.get_backend_name() != "sqlite":
        yield
        return
    if not _threads.acquire(timeout=max(deadline - time.monotonic(), 0)):
        raise TimeoutError("other threads write to SQLite")
    try:
        if not url.database or url.database == ":memory:":
            yield
            return
        # Files of their own: closing a second handle of the database's file would drop SQLite's own locks.
        turn, next_turn = (Path(f"{url.database}-mediation-{name}") for name in ("lock", "next"))
        with turn.open("ab") as held, next_turn.open("ab") as wanted:
            # Whoever is next says so: the process that has just written cannot take the turn again before it.
            _lock(wanted, deadline)
            _lock(held, deadline)
            fcntl.flock(wanted, fcntl.LOCK_UN)
            yield
    finally:
        _threads.release()


def _lock(file: IO[bytes], deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError("other processes write to SQLite") from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return
