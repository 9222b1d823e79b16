"""The journal in the process of a test: its tables in Airflow's database, and its API on a free port."""

from __future__ import annotations

import secrets
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.feed.worker import forget_address
from airflow_mediation_provider.journal.queries import transitions
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.status import status_name
from airflow_mediation_provider.protocol.urls import MOUNT, callout_address
from airflow_mediation_provider.simulator import CalloutConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
    from airflow_mediation_provider.simulator import Simulator

_LONGEST_SECONDS: Final = 10.0


class ServedJournal:
    """A journal that receives the callouts of a simulator.

    :param simulator: sends them
    :param conn_id: the connection that they are for
    :param url: address of the API, up to and with ``/mediation``
    """

    def __init__(self, simulator: Simulator, conn_id: str, url: str) -> None:
        self.url = url
        self.secret = secrets.token_hex(16)
        self._simulator, self._conn_id = simulator, conn_id

    def session(self, session_id: str, status: str, *, timeout: float = _LONGEST_SECONDS) -> SessionResult:
        """Wait until the callout of a status has arrived, and return the session as a Dag run of it would get it.

        :param session_id: of the simulator's session
        :param status: the status, by Zuora's name
        :param timeout: seconds in which the simulated session must reach it
        :raises ValueError: there is no such status, or no such session in the simulator
        :raises TimeoutError: the session did not reach it, or the journal has no callout of it
        """
        status = status_name("status", status)
        started = self._simulator.log("start", session_id=session_id)
        if not started:
            raise ValueError(f"the simulator started no session {session_id!r}")
        self._simulator.wait_for("transition", session_id=session_id, status=status, timeout=timeout)
        self._simulator.wait_delivered(timeout)
        meter_id = started[0]["meter_id"]
        for change in read(lambda session: transitions(session, self._conn_id, [(meter_id, session_id)])):
            if change.status == status:
                return session_result(change, evidence=change.source, certain=True, mediation_conn_id=self._conn_id)
        raise TimeoutError(
            f"the journal has no callout of {session_id} in {status}: see mediation_simulator.log('callout')"
        )


@contextmanager
def served_journal(simulator: Simulator, conn_id: str) -> Iterator[ServedJournal]:
    """Serve the journal's API, and send the simulator's callouts to it, during the block.

    :param simulator: sends them
    :param conn_id: the connection that they are for
    """
    with serve(create_app()) as url:
        journal = ServedJournal(simulator, conn_id, url)
        simulator.callouts(CalloutConfig(url=callout_address(url, conn_id), hmac_secret=journal.secret))
        # The address of an earlier test's journal, or that there was none.
        forget_address()
        try:
            yield journal
        finally:
            simulator.callouts()
            forget_address()


@contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Serve an application under ``/mediation``, as Airflow mounts it, and yield the address."""
    config = uvicorn.Config(
        Starlette(routes=[Mount(MOUNT, app)]), log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # It takes connections from now on, and answers them once the thread runs.
        thread = threading.Thread(target=server.run, args=([listening],), name="mediation-journal", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{MOUNT}"
        finally:
            server.should_exit = True
            thread.join(_LONGEST_SECONDS)
