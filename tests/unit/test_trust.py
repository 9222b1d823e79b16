"""TLS below a private authority: each setting means the same in all four clients and in Dags, and is not inherited."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import itertools
import json
import os
import select
import shutil
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from airflow_mediation_provider.feed.flow import Candidate, FeedUnavailableError
from airflow_mediation_provider.feed.long_poll import FeedClient
from airflow_mediation_provider.feed.worker import WorkerFeedClient, forget_address
from airflow_mediation_provider.hooks.mediation import MediationAsyncHook, MediationHook
from airflow_mediation_provider.protocol.wire import HANDSHAKE_PATH, PROTOCOL, SERVICE
from airflow_mediation_provider.protocol.zuora.errors import TransientError, UnusableAddressError
from airflow_mediation_provider.simulator import SimulatorConfig, running_simulator
from testkit.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_mediation_provider.simulator import Simulator

pytestmark = pytest.mark.services

REPOSITORY = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("trust_probe.py")
CLIENTS = ("requests", "aiohttp", "feed sync", "feed async")
# The meters of the probe's Dag, and the client that each of its tasks waits with.
METERS = {"poke": "1001", "deferrable": "1002"}
WAITS_WITH = {METERS["poke"]: "requests", METERS["deferrable"]: "aiohttp"}


class Server:
    """The simulator and an API server, with TLS.

    A session of `METERS` runs until the client that is to wait for it has polled it.
    """

    def __init__(self, simulator: Simulator, cert: str, key: str, *, clients: str | None = None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path.startswith(("/mediation", "/execution")):
                    shakes = self.path.endswith(HANDSHAKE_PATH)
                    answer = json.dumps({"service": SERVICE, "protocol": PROTOCOL} if shakes else {}).encode()
                    self._reply(200, {}, answer)
                else:
                    self._pass_on(body)

            do_POST = do_GET  # noqa: N815

            def _pass_on(self, body: bytes) -> None:
                way = http.client.HTTPConnection(urlsplit(simulator.url).netloc, timeout=30)
                with closing(way):
                    way.request(self.command, self.path, body, dict(self.headers))
                    answer = way.getresponse()
                    content = answer.read()
                for meter, client in WAITS_WITH.items():
                    if f"/{meter}/" in self.path and client in self.headers["user-agent"]:
                        simulator.steer(simulator.sessions(meter)[-1]["session_id"], [["COMPLETED", None]])
                kept = ("Content-Type", "Content-Encoding")
                self._reply(
                    answer.status, {name: answer.headers[name] for name in kept if name in answer.headers}, content
                )

            def _reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

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


class Probe:
    """The process of `trust_probe.py`, which inherits nothing.

    :param folder: for its database and logs
    :param database: a copy of Airflow's tables
    """

    def __init__(self, folder: Path, database: Path) -> None:
        self._folder = folder
        self._orders = itertools.count(1)
        shutil.copy(database, folder / "airflow.db")
        answers, sink = os.pipe()
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(PROBE), str(sink)],
                env={
                    "PATH": os.defpath,
                    "HOME": str(folder),
                    "AIRFLOW_HOME": str(folder),
                    "AIRFLOW__API_AUTH__JWT_SECRET": "of the server that tasks ask",
                    "AIRFLOW__CORE__DAGS_FOLDER": str(PROBE),
                    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                    "PYTHONPATH": str(REPOSITORY),
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[sink],
            )
        os.close(sink)
        self._answers = os.fdopen(answers)

    def ask(self, **order: Any) -> tuple[dict[str, Any], str]:
        """Have a copy of the process carry out an order; return its result, and what it logged."""
        assert self._process.stdin is not None
        log = self._folder / f"log-{next(self._orders)}"
        self._process.stdin.write(json.dumps({**order, "log": str(log)}).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._answers], [], [], 600)
        answer = json.loads(self._answers.readline() or "null") if ready else None
        logged = (log if log.exists() else self._folder / "log").read_text()
        assert answer is not None, logged[-5000:]
        return answer, logged

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._answers.close()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with running_simulator() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory, simulator):
    """Return the values that settings name: files of certificates, and addresses of servers."""
    folder = tmp_path_factory.mktemp("trust")
    ours, other = Authority(folder, "ours"), Authority(folder, "other")
    cert, key = ours.issue("server")
    client_cert, client_key = ours.issue("client")
    open_server, strict = Server(simulator, cert, key), Server(simulator, cert, key, clients=ours.file)
    yield {
        "ours": ours.file,
        "other": other.file,
        "server": open_server.url,
        "strict": strict.url,
        "client_cert": client_cert,
        "client_key": client_key,
    }
    open_server.close()
    strict.close()


@pytest.fixture(scope="module")
def probe(tmp_path_factory, sqlite_template) -> Iterator[Probe]:
    process = Probe(tmp_path_factory.mktemp("probe"), sqlite_template)
    yield process
    process.close()


def connection_to(url: str, extra: dict[str, Any]) -> str:
    config = SimulatorConfig()
    return json.dumps(
        {
            "conn_type": "mediation",
            "host": url,
            "login": config.client_id,
            "password": config.client_secret,
            "extra": extra,
        }
    )


def _filled(value: Any, place: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_filled(each, place) for each in value]
    return place.get(value, value) if isinstance(value, str) else value


CA_FILE = {"AIRFLOW__API__SSL_CA_FILE": "ours"}
UNTRUSTED = "its certificate is not trusted: set verify in the connection's extra to the file of the CA that signed it"
DEAD_PROXY = {"https_proxy": "http://127.0.0.1:1"}
CLIENT_CERT = {"AIRFLOW__API__CLIENT_SSL_CERT": "client_cert", "AIRFLOW__API__CLIENT_SSL_KEY": "client_key"}


# A Dag is run behind the settings by which Zuora's server is trusted, and behind none.
@pytest.mark.parametrize(
    ("env", "extra", "server", "clients", "dag"),
    [
        ({}, {}, "server", (), "failed"),
        (
            {"REQUESTS_CA_BUNDLE": "ours", "CURL_CA_BUNDLE": "other", "SSL_CERT_FILE": "other"},
            {},
            "server",
            CLIENTS,
            "success",
        ),
        # aiohttp itself reads no networks in no_proxy.
        ({"CURL_CA_BUNDLE": "ours", **DEAD_PROXY, "no_proxy": "127.0.0.0/8"}, {}, "server", CLIENTS, "success"),
        ({"SSL_CERT_FILE": "ours"}, {}, "server", CLIENTS, "success"),
        # The feed has the settings of Airflow's own client, not those of the connection to Zuora.
        ({"REQUESTS_CA_BUNDLE": "other"}, {"verify": "ours"}, "server", CLIENTS[:2], "success"),
        (
            {"REQUESTS_CA_BUNDLE": "other", "SSL_CERT_FILE": "other"},
            {"verify": False},
            "server",
            CLIENTS[:2],
            "success",
        ),
        (
            {**CA_FILE, **CLIENT_CERT},
            {"verify": "ours", "cert": ["client_cert", "client_key"]},
            "strict",
            CLIENTS,
            "success",
        ),
        ({"REQUESTS_CA_BUNDLE": "ours"}, {}, "strict", (), None),
        ({"REQUESTS_CA_BUNDLE": "ours", **DEAD_PROXY}, {}, "server", (), None),
        (
            {"REQUESTS_CA_BUNDLE": "other", "AIRFLOW__API__SSL_CERT": "ours"},
            {"trust_env": False},
            "server",
            CLIENTS[2:],
            None,
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
def test_a_setting_means_the_same_in_all_clients_and_in_a_dag(
    probe, place, simulator, env, extra, server, clients, dag
):
    url = place[server]
    sessions = {
        mode: simulator.start_session(meter, script=[["RUNNING", None]])["session_id"]
        for mode, meter in METERS.items()
        if dag
    }
    found, log = probe.ask(
        env={
            "AIRFLOW_CONN_ZUORA": connection_to(url, {name: _filled(value, place) for name, value in extra.items()}),
            "AIRFLOW__MEDIATION__FEED_URL": f"{url}/mediation",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution",
            "AIRFLOW__API__BASE_URL": url,
            **{name: _filled(value, place) for name, value in env.items()},
        },
        server=url,
        conf=sessions,
    )

    stopped = found["clients"]
    assert [name for name in CLIENTS if not stopped[name]] == list(clients), stopped
    for name in set(CLIENTS[2:]) - set(clients) if server == "server" and "https_proxy" not in env else ():
        assert stopped[name] == (
            f"no API server with this provider was found: {place[server]}/mediation/handshake gave no answer (its "
            "certificate is not trusted: unable to get local issuer certificate; set [api] ssl_ca_file to the "
            "certificates of its authority)"
        )
    # At the first try, though the tasks have another one.
    assert {name: (each["state"], each["tries"]) for name, each in found["tasks"].items()} == dict.fromkeys(
        sessions, (dag, 1)
    ), log
    if dag == "success":
        ended = {
            name: (each["session"]["session_id"], each["session"]["status"]) for name, each in found["tasks"].items()
        }
        assert ended == {name: (session_id, "COMPLETED") for name, session_id in sessions.items()}
    elif dag == "failed":
        assert log.count(UNTRUSTED) == 2
        for session_id in sessions.values():
            simulator.steer(session_id, [["CANCELED", None]])


def replace(file: Path, *sources: str) -> None:
    new = file.with_name("new.pem")
    new.write_bytes(b"".join(Path(each).read_bytes() for each in sources))
    new.replace(file)


@pytest.mark.parametrize("client", ["worker", "triggerer"])
def test_a_replaced_file_is_used_by_the_next_call(place, client, tmp_path, monkeypatch):
    authority, shown = tmp_path / "ca.pem", tmp_path / "client.pem"

    replace(authority, place["ours"])
    replace(shown, *Authority(tmp_path, "foreign").issue("stranger"))
    extra = {"verify": str(authority), "cert": str(shown)}
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", connection_to(place["strict"], extra))
    with asyncio.Runner() as loop:
        worker, triggerer = MediationHook("zuora", attempts=1), MediationAsyncHook("zuora", attempts=1)

        def ask() -> str:
            return worker.run_status("1003") if client == "worker" else loop.run(triggerer.run_status("1003"))

        # The server refuses the client, which cannot know why.
        with pytest.raises(TransientError):
            ask()
        replace(shown, place["client_cert"], place["client_key"])
        status = ask()
        replace(authority, place["other"])
        with pytest.raises(UnusableAddressError, match=r"not trusted by the connection's verify \("):
            ask()
        replace(authority, place["ours"])
        assert ask() == status
        # In between, what was read serves.
        authority.unlink()
        assert ask() == status
        worker.close()
        loop.run(triggerer.close())


@pytest.mark.parametrize("client", ["worker", "triggerer"])
def test_the_feed_reads_replaced_files(place, client, tmp_path, monkeypatch, connected):
    authority, shown = tmp_path / "ca.pem", tmp_path / "client.pem"
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW__API__SSL_CA_FILE", str(authority))
    for name in ("CERT", "KEY"):
        monkeypatch.setenv(f"AIRFLOW__API__CLIENT_SSL_{name}", str(shown))
    address = Candidate(f"{place['strict']}/mediation", "a")
    own = place["client_cert"], place["client_key"]

    async def secret() -> str:
        return "secret"

    with asyncio.Runner() as loop:
        worker = WorkerFeedClient(connected)
        triggerer = FeedClient("zuora", secret, addresses=lambda: [address])

        def trouble() -> str:
            if client == "worker":
                forget_address()
                return "" if worker.observe() else worker.trouble
            try:
                loop.run(triggerer.report())
            except FeedUnavailableError as error:
                return str(error)
            return ""

        replace(shown, *own)
        replace(authority, place["other"])
        assert "set [api] ssl_ca_file" in trouble()
        replace(authority, place["ours"])
        assert trouble() == ""
        replace(authority, place["other"])
        assert "certificate is not trusted" in trouble()
        replace(authority, place["ours"])
        replace(shown, *Authority(tmp_path, "foreign").issue("stranger"))
        assert trouble()
        replace(shown, *own)
        assert trouble() == ""
        worker.close()
        loop.run(triggerer.close())


@pytest.fixture
def connected(place, monkeypatch):
    """Return the hook of a connection, whose feed is at a server."""
    monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", f"{place['strict']}/mediation")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"{place['strict']}/execution")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", place["strict"])
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", connection_to("https://zuora.example", {}))
    forget_address()
    yield MediationHook("zuora")
    forget_address()
