"""Senders in a process of their own; each posts again once it is answered, and each request has its own connection."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import multiprocessing
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "s3cret-of-the-benchmark"
OK = 200
# How long Zuora waits in all for an answer to a callout.
ANSWER_TIMEOUT_SECONDS = 25.0


@dataclass(frozen=True)
class Load:
    """What is sent, how, and for how long.

    :param port: of the API server on 127.0.0.1
    :param path: `callouts` (ours) or `events` (Airflow's own `POST /api/v2/assets/events`)
    :param asset: the meter of the callouts, or the id of Airflow's asset
    :param token: for Airflow's path
    :param senders: requests at the same time
    :param seconds: for which new ones are sent
    :param first: number of the first session; each request is about a session of its own
    """

    port: int
    path: str
    asset: str
    token: str
    senders: int
    seconds: float
    first: int


@dataclass
class Sent:
    """The result: seconds of each request that was answered 200, and the number of the others by their answer."""

    seconds: float
    answered: list[float]
    failed: dict[str, int]


def send(load: Load) -> Sent:
    """Send a load from a process of its own, and return the result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (load,))


def requests_of(load: Load) -> Iterator[bytes]:
    """Return the requests of a load, one after the other."""
    for number in itertools.count(load.first):
        event = {
            "meterId": load.asset,
            "sessionId": f"R-{number:08d}",
            "runType": "NORMAL",
            "status": "COMPLETED",
            "previousStatus": "RUNNING",
            "startTime": "2026-03-31T09:17:21Z",
            "endTime": "2026-03-31T09:42:05Z",
        }
        if load.path == "callouts":
            body = json.dumps(event).encode()
            digest = base64.b64encode(hmac.digest(SECRET.encode(), body, hashlib.sha256)).decode()
            target, headers = (
                "/mediation/callouts/bench",
                {
                    "X-Mediation-Signature": digest,
                    "Zuora-Notification-Id": f"{load.asset}-{number}",
                },
            )
        else:
            change = {"asset_id": int(load.asset), "extra": event, "partition_key": event["sessionId"]}
            body = json.dumps(change).encode()
            target, headers = "/api/v2/assets/events", {"Authorization": f"Bearer {load.token}"}
        headers |= {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [
            f"POST {target} HTTP/1.1",
            "Connection: close",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        yield "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _run(load: Load) -> Sent:
    return asyncio.run(_send(load))


async def _send(load: Load) -> Sent:
    sent = Sent(0.0, [], {})
    requests = requests_of(load)
    begun = time.perf_counter()

    async def sender() -> None:
        while (at := time.perf_counter()) - begun < load.seconds:
            answer = await _answer(load.port, next(requests))
            if answer == OK:
                sent.answered.append(time.perf_counter() - at)
            else:
                sent.failed[str(answer)] = sent.failed.get(str(answer), 0) + 1

    await asyncio.gather(*(sender() for _ in range(load.senders)))
    sent.seconds = time.perf_counter() - begun
    return sent


async def _answer(port: int, request: bytes) -> Any:
    """Return the status of the answer, or the error."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                reply = await reader.read()
            finally:
                writer.close()
        return int(reply.split(maxsplit=2)[1])
    except (OSError, TimeoutError, IndexError) as error:
        return type(error).__name__
