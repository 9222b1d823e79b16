"""A simulator with a manual clock, and a plain HTTP client."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import pytest

from airflow_mediation_provider.simulator import Simulator, SimulatorConfig, running_simulator
from airflow_mediation_provider.simulator.clock import ManualClock
from airflow_mediation_provider.simulator.control import Tenant

from .receiver import Receiver, running_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Client:
    """Calls a simulator: one connection for each call, and a token by default."""

    url: str
    token: str | None = None
    timeout: float = 5.0
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send a request exactly as given."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=self.timeout)
        try:
            content = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def login(self, secret: str = "simulator-secret", **changes: str) -> Answer:
        fields = {"grant_type": "client_credentials", "client_id": "simulator-client", "client_secret": secret}
        form = urlencode({**fields, **changes})
        return self.send("POST", "/oauth/token", form, {"Content-Type": "application/x-www-form-urlencoded"})

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Answer:
        """Call an operation with a valid token and the headers that Zuora requires."""
        if self.token is None:
            self.token = self.login().json["access_token"]
        path = f"{path}?{urlencode(query, doseq=True)}" if query else path
        return self.send(method, path, body, {**self.headers, "Authorization": f"Bearer {self.token}"})

    def run(self, meter: str = "1001", **body: Any) -> Answer:
        return self.call("POST", f"/meters/run/{meter}/0.0.1", body or None)

    def status(self, meter: str = "1001") -> str:
        return self.call("GET", f"/meters/{meter}/0.0.1/runStatus").json["data"]["runStatusDescription"]

    def control(self, method: str, path: str, body: Any = None) -> Answer:
        return self.send(method, f"/_simulator{path}", body)


@pytest.fixture
def sim(services: None) -> Iterator[Simulator]:
    """A demo tenant with a manual clock."""
    with running_simulator(SimulatorConfig(clock="manual")) as simulator:
        yield simulator


@pytest.fixture
def client(sim: Simulator) -> Client:
    return Client(sim.url)


@dataclass
class Bench:
    """A tenant without a server, and its clock."""

    tenant: Tenant
    clock: ManualClock

    def history(self, session_id: str) -> list[str]:
        return [entry["status"] for entry in self.tenant.log.read(kind="transition", session_id=session_id)]


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """A tenant whose engine a test drives; parametrize indirectly with settings."""
    tenant = Tenant(SimulatorConfig(clock="manual", **getattr(request, "param", {})))
    assert isinstance(tenant.clock, ManualClock)
    return Bench(tenant, tenant.clock)


@pytest.fixture
def receiver(services: None) -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running
