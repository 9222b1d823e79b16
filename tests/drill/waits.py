"""Hundreds of waits in a process of their own, as in a triggerer: the real hub, the real feed.

``python -m tests.drill.waits CONN_ID FILE`` reads one wait a line from its input and writes one end a line to the file.
After the last line of its input it reports all waits that go on, and ends.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.drill.history import Wait

OUTCOMES = {"MET": "met", "FAILED": "failed"}


class Waits:
    """The process of the waits, controlled from outside; a context manager.

    :param root: where its output goes
    :param env: its environment: that of Airflow's components
    :param conn_id: the connection whose sessions are waited for
    """

    def __init__(self, root: Path, env: Mapping[str, str], conn_id: str) -> None:
        self._ends = root / "waits.jsonl"
        self._log = root / "waits.log"
        self._env = dict(env)
        self._conn_id = conn_id
        self._asked: dict[str, Wait] = {}

    def __enter__(self) -> Self:
        self._ends.touch()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.drill.waits", self._conn_id, str(self._ends)],
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()

    def add(self, wait: Wait, condition: dict[str, Any], **options: Any) -> None:
        """Start a wait.

        :param wait: what it is really for
        :param condition: what the wait gets of that: arguments of ``SessionCondition``
        :param options: arguments of ``SessionWait``, and ``poll_interval``; times in seconds or as ISO 8601
        """
        self._asked[wait.id] = wait
        assert self._process.stdin is not None
        print(json.dumps({"id": wait.id, "condition": condition, **options}), file=self._process.stdin, flush=True)

    def so_far(self) -> list[Wait]:
        """Return the waits that ended up to now."""
        ends = {end.pop("id"): end for end in map(json.loads, self._ends.read_text().splitlines())}
        return [_ended(wait, ends.get(wait.id, {})) for wait in self._asked.values()]

    def finish(self, timeout: float = 60) -> list[Wait]:
        """End the process and return how each wait ended.

        :raises RuntimeError: the process failed
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(timeout) != 0:
            raise RuntimeError(f"the waits failed:\n{self._log.read_text()[-3000:]}")
        return self.so_far()


def _ended(wait: Wait, end: dict[str, Any]) -> Wait:
    # If the condition names the session, there is nothing to compare; nor if the end names none.
    named = None if wait.named is None else end.get("named") or wait.session_id
    return replace(wait, **{**end, "named": named})


# ---- in the process


async def _follow(conn_id: str, asked: dict[str, Any], ends: TextIO) -> None:
    from airflow_mediation_provider import triggerer as watch
    from airflow_mediation_provider.protocol.waits.condition import SessionCondition
    from airflow_mediation_provider.protocol.waits.wait import SessionWait

    name, poll_interval = asked.pop("id"), asked.pop("poll_interval")
    condition = SessionCondition.from_dict(asked.pop("condition"))
    options: dict[str, Any] = {
        key: timedelta(seconds=asked.pop(key)) for key in ("settle", "max_unreachable") if key in asked
    }
    if "started_at" in asked:
        asked["started_at"] = datetime.fromisoformat(asked["started_at"])
    wait = SessionWait(condition, created_at=datetime.now(UTC), **options, **asked)
    waiter = watch.subscribe(conn_id, wait, poll_interval=poll_interval)
    end: dict[str, Any] = {"outcome": "waiting"}
    try:
        while True:
            news = await waiter.news()
            for line in news.lines:
                print(f"{name}: {line}")
            if news.result is not None:
                session = news.result.session or {}
                end = {
                    "outcome": OUTCOMES.get(str(news.result.end), f"{news.result.end}: {news.result.message}"),
                    "end_status": session.get("status"),
                    "certain": session.get("certain"),
                    "named": session.get("session_id"),
                }
                return
    except asyncio.CancelledError:
        return
    except Exception as error:  # recorded for the checker
        end = {"outcome": repr(error)}
    finally:
        waiter.close()
        print(json.dumps({"id": name, "ended_at": datetime.now(UTC).timestamp(), **end}), file=ends, flush=True)


async def _main(conn_id: str, ends: TextIO) -> None:
    from airflow_mediation_provider import triggerer as watch

    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = [asyncio.create_task(_follow(conn_id, json.loads(line), ends)) async for line in reader]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await watch.settled()


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a", encoding="utf-8") as file:
        asyncio.run(_main(sys.argv[1], file))
