"""A temporary fault never ends a wait; a permanent error ends a task at once, with one sentence."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_mediation_provider.simulator import running_simulator
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from testkit.processes import wait_until
from tests.integration.scenario import PATIENCE, Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testkit.stage import Stage
    from tests.integration.scenario import Act

# Until the scenario ends it.
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]
FAULTS: dict[str, dict[str, Any]] = {
    "unavailable": {"kind": "status", "status": 503, "seconds": 5},
    "hanging": {"kind": "hang", "count": 1},
    "html": {"kind": "html", "count": 2},
    "no_json": {"kind": "badjson", "count": 2},
    "reset": {"kind": "reset", "count": 2},
    "truncated": {"kind": "truncated", "count": 2},
    "unknown_status": {"kind": "unknown_status", "count": 2, "code": 77},
    "tokens_expired": {"kind": "expire_tokens"},
}
# An unknown status is an answer, and an expired token is renewed within one.
NO_OUTAGE = ("unknown_status", "tokens_expired")
MISTAKES = {
    "missing_connection": r"there_is_none",
    "wrong_secret": r"does not accept the client id and secret",
    "wrong_host": r"(base URL|data center|host)",
    "misspelt_host": r"there is no such host name",
    "missing_scheme": r"write http:// before the host",
    "not_enabled": r"Mediation is not enabled in this tenant",
    "unknown_meter": r"the meter does not exist in this tenant",
}


def troubled(name: str, act: Act) -> Iterator[None]:
    fault = dict(FAULTS[name])
    kind = fault.pop("kind")
    act.meter(ENDLESS)
    session = act.session(ENDLESS)
    yield
    if act.task_id.endswith("deferrable"):
        act.wait_deferred()
    act.wait_polled(1)
    if kind == "expire_tokens":
        before = max(each["number"] for each in act.stage.simulator.log("token", granted=True))
        act.stage.simulator.fault(kind)
        # The first task that gets a 401 requests a new token for all in the same process.
        renewed(act, before)
    else:
        act.fault(kind, path="/runStatus$", **fault)
        struck = {"status": 503} if kind == "status" else {"faults": [kind]}
        act.logged("request", finished=True, count=fault.get("count", 1), **struck)
    act.wait_polled(1)
    assert act.play.task(act.task_id)["state"] in ("running", "deferred")
    act.finish()
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", 1)
    result = act.xcom()
    assert (result["session_id"], result["status"], result["certain"]) == (session, "COMPLETED", True)
    # One line for an outage, one for its end.
    log = act.task_log()
    outages = log.count("he status cannot be read")
    assert log.count("Zuora reached again") == outages
    # All share their tokens: those that another scenario lets expire may affect this one too.
    strikes = 0 if kind == "expire_tokens" else log.count("the token is not accepted")
    assert outages - strikes == (name not in NO_OUTAGE)


def renewed(act: Act, before: int) -> None:
    """Wait until the meter's status is read with a token that was granted later."""

    def there() -> bool:
        answers = act.log("request", status=200)
        return any((each["token"] or 0) > before for each in answers if each["path"].endswith("/runStatus"))

    wait_until(there, timeout=PATIENCE, what=f"a new token for meter {act.meter_id}")


def unavailable_when_called(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    act.fault("status", path="/run/", status=503, count=2)
    yield
    session = act.started()[0]["session_id"]
    act.wait_deferred()
    act.wait_polled()
    act.finish()
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", 1)
    assert act.starts() == [session]
    assert act.xcom()["session_id"] == session


def mistaken(mistake: str, act: Act) -> Iterator[None]:
    yield
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("failed", 1)
    (sentence,) = re.findall(r"Task failed with exception (.*)", act.task_log())
    assert sentence.startswith("MediationMisconfigured: ")
    assert re.search(MISTAKES[mistake], sentence)
    assert act.xcom() is None


TROUBLES = {
    **{f"{name}_{where}": partial(troubled, name) for name in FAULTS for where in ("poke", "deferrable")},
    "unavailable_when_called": unavailable_when_called,
}
KINDS = ("sensor", "run", *(["started_there"] if AIRFLOW_V_3_3_PLUS else []))
WRONG = {f"{name}_{kind}": partial(mistaken, name) for name in MISTAKES for kind in KINDS}


@pytest.fixture(scope="module")
def plays(stage: Stage) -> Iterator[dict[str, Play]]:
    """Run both Dags at the same time: some of the first one's tasks only wait for a request that hangs."""
    with running_simulator(mediation_enabled=False) as other_tenant:
        connect(stage, "not_enabled", other_tenant.url)
        connect(stage, "wrong_secret", stage.simulator.url, password="wrong")
        # A web server that is not Zuora.
        connect(stage, "wrong_host", stage.airflow.url)
        connect(stage, "misspelt_host", "https://rest.zuora.invalid")
        # Without a scheme, https is assumed.
        connect(stage, "missing_scheme", stage.simulator.url.removeprefix("http://"))
        with Play(stage, "faults", TROUBLES).playing() as faults, Play(stage, "mistakes", WRONG).playing() as mistakes:
            yield {"faults": faults, "mistakes": mistakes}


def connect(stage: Stage, conn_id: str, url: str, *, password: str = "simulator-secret") -> None:
    fields = {
        "connection_id": conn_id,
        "conn_type": "mediation",
        "host": url,
        "login": "simulator-client",
        "password": password,
    }
    try:
        stage.airflow.api("POST", "/connections", json=fields)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.CONFLICT:
            raise


@pytest.mark.parametrize("scenario", TROUBLES)
def test_a_wait_survives_a_temporary_fault(plays: dict[str, Play], scenario: str) -> None:
    plays["faults"].outcome(scenario)


@pytest.mark.parametrize("scenario", WRONG)
def test_a_mistake_fails_the_task_at_once(plays: dict[str, Play], scenario: str) -> None:
    plays["mistakes"].outcome(scenario)
