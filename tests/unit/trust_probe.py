"""A process whose copies ask a server with trust settings of their own: with each client, and from a Dag.

Airflow needs ten seconds of a processor to import its modules and to make the server that its tasks ask. The copies
share these, and nothing else: until it is copied, the process has neither a setting nor a connection, and runs a Dag
without any task of this package. A setting that was read when a module is imported would not count in a copy.

Each line of the input asks for a copy, each line of the output is its result; a copy writes its log to a file.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, task

from airflow_mediation_provider.feed.flow import FeedUnavailableError
from airflow_mediation_provider.feed.long_poll import FeedClient
from airflow_mediation_provider.feed.worker import WorkerFeedClient
from airflow_mediation_provider.hooks.mediation import MediationHook
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.flow import Failure, Request
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

if TYPE_CHECKING:
    from collections.abc import Callable

METERS = {"poke": "1001", "deferrable": "1002"}
CONNECTION = "zuora"

with DAG("nothing", schedule=None) as nothing:

    @task
    def nothing_at_all() -> None:
        pass

    nothing_at_all()

# A task that was tried again would not fail at once.
with DAG("trust", schedule=None, default_args={"retries": 1}) as trust:
    for mode, meter_id in METERS.items():
        MeterSessionSensor(
            task_id=mode,
            meter_id=meter_id,
            session_id="{{ dag_run.conf['" + mode + "'] }}",
            mediation_conn_id=CONNECTION,
            deferrable=mode == "deferrable",
            poke_interval=0.1,
            settle=0,
            exclusive=True,
            timeout=300,
        )


def clients(server: str) -> dict[str, str]:
    """Return why each client got no answer; empty if it got one."""
    hook = MediationHook(CONNECTION)
    get = Request("GET", f"{server}/any", {})

    async def by_aiohttp() -> str:
        transport = await AsyncTransport.open(hook.settings)
        try:
            return _reason(await transport.send(get))
        finally:
            await transport.close()

    def by_sync_feed() -> str:
        client = WorkerFeedClient(hook)
        client.observe()
        return client.trouble

    async def by_async_feed() -> str:
        async def secret() -> str:
            return "secret"

        client = FeedClient(CONNECTION, secret)
        try:
            await client.report()
        finally:
            await client.close()
        return ""

    asks: dict[str, Callable[[], str]] = {
        "requests": lambda: _reason(SyncTransport(hook.settings).send(get)),
        "aiohttp": lambda: asyncio.run(by_aiohttp()),
        "feed sync": by_sync_feed,
        "feed async": lambda: asyncio.run(by_async_feed()),
    }
    found = {}
    for name, ask in asks.items():
        try:
            found[name] = ask()
        except (MediationError, FeedUnavailableError) as error:
            found[name] = str(error)
    return found


def _reason(outcome: object) -> str:
    return outcome.reason if isinstance(outcome, Failure) else ""


def tasks(dag: DAG, conf: dict[str, str]) -> dict[str, Any]:
    """Run a Dag as its author does, and return the state, the tries and the result of each task."""
    run = dag.test(run_conf=conf)
    return {
        ti.task_id: {"state": ti.state, "tries": ti.try_number, "session": ti.xcom_pull(task_ids=ti.task_id)}
        for ti in run.get_task_instances()
    }


def prepare() -> None:
    """Have Airflow import and make everything that it needs to run a Dag, and end its threads and connections."""
    from airflow import settings
    from airflow.sdk.execution_time.supervisor import in_process_api_server

    assert tasks(nothing, {})["nothing_at_all"]["state"] == "success"
    # No copy has the threads. The server's ends with its last client, in Airflow 3.2 never, but it rests; each copy
    # makes one of its own. Airflow 3.2 keeps no server.
    with suppress(AttributeError):
        del in_process_api_server().transport
    settings.dispose_orm()
    until = time.monotonic() + 10
    while threading.active_count() > 1 and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    gc.freeze()


def copy(order: dict[str, Any]) -> Any:
    """Carry out an order in a copy of this process."""
    result, sink = os.pipe()
    if pid := os.fork():
        os.close(sink)
        with os.fdopen(result) as answer:
            text = answer.read()
        os.waitpid(pid, 0)
        return json.loads(text or "null")
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from airflow import settings

        settings.configure_orm()
        os.environ.update(order["env"])
        found = {
            "clients": clients(order["server"]),
            "tasks": tasks(trust, order["conf"]) if order["conf"] else {},
        }
        os.write(sink, json.dumps(found).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    """Read orders until the input ends; the answers go to the file whose number is the argument, as imports log."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    prepare()
    for line in sys.stdin:
        answers.write(json.dumps(copy(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
