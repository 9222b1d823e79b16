"""TLS below a private authority: each setting means the same in all four clients, in processes that inherit nothing."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from airflow_mediation_provider.feed.flow import Candidate, FeedUnavailableError
from airflow_mediation_provider.feed.long_poll import FeedClient
from airflow_mediation_provider.feed.worker import WorkerFeedClient, forget_address
from airflow_mediation_provider.hooks.mediation import MediationHook
from airflow_mediation_provider.protocol.wire import HANDSHAKE_PATH, PROTOCOL, SERVICE
from testkit.authority import Authority

pytestmark = pytest.mark.services

REPOSITORY = Path(__file__).parents[2]
CLIENTS = ("requests", "aiohttp", "feed sync", "feed async")
# Prints why each client reached no answer, or an empty text.
PROBE = """
import asyncio, json, os, sys
from airflow_mediation_provider.feed.flow import FeedUnavailableError
from airflow_mediation_provider.feed.long_poll import FeedClient
from airflow_mediation_provider.feed.worker import WorkerFeedClient
from airflow_mediation_provider.hooks.mediation import MediationHook
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.flow import Failure, Request

hook = MediationHook("zuora")
get = Request("GET", os.environ["SERVER"] + "/any", {})

def said(outcome):
    return outcome.reason if isinstance(outcome, Failure) else ""

def by_requests():
    return said(SyncTransport(hook.settings).send(get))

async def by_aiohttp():
    transport = await AsyncTransport.open(hook.settings)
    try:
        return said(await transport.send(get))
    finally:
        await transport.close()

def by_sync_feed():
    client = WorkerFeedClient(hook)
    client.observe()
    return client.trouble

async def by_async_feed():
    async def secret():
        return "secret"
    client = FeedClient("zuora", secret)
    try:
        await client.report()
    finally:
        await client.close()
    return ""

found = {}
for name, ask in {
    "requests": by_requests,
    "aiohttp": lambda: asyncio.run(by_aiohttp()),
    "feed sync": by_sync_feed,
    "feed async": lambda: asyncio.run(by_async_feed()),
}.items():
    try:
        found[name] = ask()
    except (MediationError, FeedUnavailableError) as error:
        found[name] = str(error)
print(json.dumps(found))
"""


class Server:
    """Answers everything, with TLS."""

    def __init__(self, cert: str, key: str, *, clients: str | None = None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                shakes = self.path.endswith(HANDSHAKE_PATH)
                body = json.dumps({"service": SERVICE, "protocol": PROTOCOL} if shakes else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return the values that settings name: files of certificates, and addresses of servers."""
    folder = tmp_path_factory.mktemp("trust")
    ours, other = Authority(folder, "ours"), Authority(folder, "other")
    cert, key = ours.issue("server")
    client_cert, client_key = ours.issue("client")
    open_server, strict = Server(cert, key), Server(cert, key, clients=ours.file)
    yield {
        "ours": ours.file,
        "other": other.file,
        "server": open_server.url,
        "strict": strict.url,
        "client_cert": client_cert,
        "client_key": client_key,
        "home": str(folder / "home"),
    }
    open_server.close()
    strict.close()


def reached(
    place: dict[str, str], env: dict[str, str], extra: dict[str, Any], server: str = "server"
) -> dict[str, str]:
    """Return what stopped each client in a process of its own; empty where it got an answer."""
    connection = {
        "conn_type": "mediation",
        "host": place[server],
        "login": "id",
        "password": "secret",
        "extra": {name: _filled(value, place) for name, value in extra.items()},
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={
            "PATH": os.defpath,
            "HOME": place["home"],
            "AIRFLOW_HOME": place["home"],
            "PYTHONPATH": str(REPOSITORY),
            "AIRFLOW_CONN_ZUORA": json.dumps(connection),
            "AIRFLOW__MEDIATION__FEED_URL": f"{place[server]}/mediation",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{place[server]}/execution",
            "AIRFLOW__API__BASE_URL": place[server],
            "SERVER": place[server],
            **{name: _filled(value, place) for name, value in env.items()},
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _filled(value: Any, place: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_filled(each, place) for each in value]
    return place.get(value, value) if isinstance(value, str) else value


CA_FILE = {"AIRFLOW__API__SSL_CA_FILE": "ours"}
DEAD_PROXY = {"https_proxy": "http://127.0.0.1:1"}
CLIENT_CERT = {"AIRFLOW__API__CLIENT_SSL_CERT": "client_cert", "AIRFLOW__API__CLIENT_SSL_KEY": "client_key"}


@pytest.mark.parametrize(
    ("env", "extra", "server", "clients"),
    [
        ({}, {}, "server", ()),
        ({"REQUESTS_CA_BUNDLE": "ours", "CURL_CA_BUNDLE": "other", "SSL_CERT_FILE": "other"}, {}, "server", CLIENTS),
        # aiohttp itself reads no networks in no_proxy.
        ({"CURL_CA_BUNDLE": "ours", **DEAD_PROXY, "no_proxy": "127.0.0.0/8"}, {}, "server", CLIENTS),
        ({"SSL_CERT_FILE": "ours"}, {}, "server", CLIENTS),
        # The feed has the settings of Airflow's own client, not those of the connection to Zuora.
        ({"REQUESTS_CA_BUNDLE": "other"}, {"verify": "ours"}, "server", CLIENTS[:2]),
        ({"REQUESTS_CA_BUNDLE": "other", "SSL_CERT_FILE": "other"}, {"verify": False}, "server", CLIENTS[:2]),
        (
            {**CA_FILE, **CLIENT_CERT},
            {"verify": "ours", "cert": ["client_cert", "client_key"]},
            "strict",
            CLIENTS,
        ),
        ({"REQUESTS_CA_BUNDLE": "ours"}, {}, "strict", ()),
        ({"REQUESTS_CA_BUNDLE": "ours", **DEAD_PROXY}, {}, "server", ()),
        (
            {"REQUESTS_CA_BUNDLE": "other", "AIRFLOW__API__SSL_CERT": "ours"},
            {"trust_env": False},
            "server",
            CLIENTS[2:],
        ),
    ],
    ids=[
        "nothing",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "verify-path",
        "verify-false",
        "client-certificate",
        "no-client-certificate",
        "proxy",
        "ssl_cert",
    ],
)
def test_a_setting_means_the_same_in_all_clients(place, env, extra, server, clients):
    stopped = reached(place, env, extra, server)

    assert [name for name in CLIENTS if not stopped[name]] == list(clients), stopped
    for name in set(CLIENTS[2:]) - set(clients) if server == "server" and "https_proxy" not in env else ():
        assert stopped[name] == (
            f"no API server with this provider was found: {place[server]}/mediation/handshake gave no answer (its "
            "certificate is not trusted: unable to get local issuer certificate; set [api] ssl_ca_file to the "
            "certificates of its authority)"
        )


@pytest.mark.parametrize("client", ["worker", "triggerer"])
def test_the_feed_reads_a_replaced_authority(place, client, tmp_path, monkeypatch, connected):
    file = tmp_path / "ca.pem"
    file.write_bytes(Path(place["other"]).read_bytes())
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW__API__SSL_CA_FILE", str(file))
    address = Candidate(f"{place['server']}/mediation", "a")

    def replace() -> None:
        file.write_bytes(Path(place["ours"]).read_bytes())

    async def triggerer() -> None:
        async def secret() -> str:
            return "secret"

        feed = FeedClient("zuora", secret, addresses=lambda: [address])
        with pytest.raises(FeedUnavailableError, match=r"set \[api\] ssl_ca_file"):
            await feed.report()
        replace()
        await feed.report()
        await feed.close()

    if client == "triggerer":
        asyncio.run(triggerer())
        return
    feed = WorkerFeedClient(connected)
    assert not feed.observe()
    assert "set [api] ssl_ca_file" in feed.trouble
    forget_address()
    replace()
    assert feed.observe()
    feed.close()


@pytest.fixture
def connected(place, monkeypatch):
    """Return the hook of a connection, whose feed is at the server."""
    monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", f"{place['server']}/mediation")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"{place['server']}/execution")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", place["server"])
    connection = {"conn_type": "mediation", "host": "https://zuora.example", "login": "id", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps(connection))
    forget_address()
    yield MediationHook("zuora")
    forget_address()
