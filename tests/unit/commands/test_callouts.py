"""`airflow mediation callout-template` and `send-test-callout`, as Airflow's own parser calls them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.cli.cli_parser import get_parser
from sqlalchemy import select
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.commands import callout_url
from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.protocol.callouts.settings import SECRET_FIELDS
from airflow_mediation_provider.testing.journal import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

SECRETS = {name: f"hidden-{number}" for number, name in enumerate(sorted(SECRET_FIELDS))}
EXTRA = {
    "hmac": {"callout_hmac_secret": "s", "callout_hmac_message": "{{Request.Headers.Date}}{{Request.Body}}"},
    "hmac in a custom header": {
        "callout_hmac_secret": "s",
        "callout_hmac_message": "{{Request.Headers.X-Own}}{{Request.Body}}",
        "callout_hmac_encoding": "HEX",
        "callout_hmac_prefix": "v1 ",
    },
    "basic": {"callout_username": "zuora", "callout_password": "p"},
    "token": {"callout_token": "t"},
    "all": {**SECRETS, "callout_username": "zuora"},
}


@pytest.fixture(autouse=True)
def _database(sqlite_database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    airflow_on(sqlite_database)
    connect(monkeypatch, {"callout_token": "t"})


def connect(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]) -> None:
    connection = {"conn_type": "mediation", "login": "i", "password": "p", "extra": {"data_center": "PROD", **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps(connection))


def airflow(*arguments: str) -> None:
    args = get_parser().parse_args(["mediation", *arguments])
    args.func(args)


def send(url: str) -> None:
    airflow("send-test-callout", "--conn-id", "zuora", "--url", f"{url}/callouts/zuora")


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_the_test_callout_arrives_in_the_journal(
    extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect(monkeypatch, extra)

    with serve(create_app()) as url:
        send(url)

    said = capsys.readouterr().out
    assert "401, as it must be" in said
    assert "It is in the journal, as a test" in said
    assert "This does not check the way from Zuora" in said  # 127.0.0.1, on another port
    assert "callouts arrive" not in said
    with settings.NonScopedSession() as session:
        [row] = session.scalars(select(TransitionRow)).all()
    assert (row.kind, row.status, row.meter_id) == ("test", None, "0")
    assert str(row.notification_id).startswith("test-")


def test_another_spelling_of_the_id_is_named_before_anything_is_sent() -> None:
    with pytest.raises(SystemExit, match=r"^Connection 'Zuora' is found under the id 'zuora': use that one here"):
        airflow("send-test-callout", "--conn-id", "Zuora", "--url", "http://127.0.0.1:1")


def test_an_address_with_another_spelling_is_detected() -> None:
    with serve(create_app()) as url, pytest.raises(SystemExit, match="404: the API server"):
        airflow("send-test-callout", "--conn-id", "zuora", "--url", f"{url}/callouts/Zuora")


def test_the_template_needs_no_journal(capsys: pytest.CaptureFixture[str], airflow_on, tmp_path) -> None:
    airflow_on(f"sqlite:///{tmp_path / 'nothing' / 'airflow.db'}")

    airflow("callout-template", "--conn-id", "Zuora", "--url", "https://airflow.example.com")
    assert "https://airflow.example.com/mediation/callouts/Zuora" in capsys.readouterr().out


def test_the_endpoint_of_another_airflow_is_detected() -> None:
    class Elsewhere:
        def record(self, entries: Any, **_: Any) -> Any:
            from airflow_mediation_provider.journal.writer import Recorded

            return Recorded(new=len(entries))

    from airflow_mediation_provider.api_server.journal import Recorder

    connections = Connections(lambda conn_id: MediationConnection(conn_id, None, "p", {"callout_token": "t"}))
    with (
        serve(create_app(connections, Recorder(Elsewhere().record))) as url,
        pytest.raises(SystemExit, match="another Airflow"),
    ):
        send(url)


def test_another_secret_at_the_api_server_is_detected() -> None:
    connections = Connections(lambda conn_id: MediationConnection(conn_id, None, "p", {"callout_token": "other"}))
    with serve(create_app(connections)) as url, pytest.raises(SystemExit, match="401: the credentials are refused"):
        send(url)


def test_a_connection_missing_at_the_api_server_is_detected() -> None:
    with serve(create_app(Connections(lambda _: None))) as url, pytest.raises(SystemExit, match="404: the API server"):
        send(url)


class Page:
    """Another page at the address."""

    def __init__(self, *replies: Response) -> None:
        self._replies = list(replies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        await reply(scope, receive, send)


REFUSED = JSONResponse({"success": False, "error": "not authenticated"}, 401)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (Page(HTMLResponse("<html>")), "without credentials was answered 200"),
        (Page(REFUSED, HTMLResponse("<html>")), "200, but not from this endpoint"),
        (Page(REFUSED, JSONResponse({"success": False})), "200, but not from this endpoint"),
        (Page(RedirectResponse("https://elsewhere/")), "307, to https://elsewhere/: Zuora follows no redirect"),
        (Page(PlainTextResponse("", 404)), "404: nothing is at this address"),
        (Page(PlainTextResponse("", 405)), "405: Airflow answers, but not this provider"),
        (Page(PlainTextResponse("", 403)), "403: something before Airflow forbids it"),
        (Page(PlainTextResponse("", 502)), "502: a proxy does not reach"),
        (Page(JSONResponse({"success": False}, 503)), "503: the API server cannot store callouts"),
        (Page(REFUSED, PlainTextResponse("", 401)), "asks for credentials of its own"),
        (Page(PlainTextResponse("", 418)), "418: it is not from this endpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_wrong_answer_is_explained(page: ASGIApp, words: str) -> None:
    with serve(page) as url, pytest.raises(SystemExit, match=words):
        send(url)


def test_a_lost_challenge_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, EXTRA["basic"])
    with serve(Page(REFUSED)) as url, pytest.raises(SystemExit, match="does not ask for Basic credentials"):
        send(url)


def test_a_refused_connection_is_explained() -> None:
    with pytest.raises(SystemExit, match=r"^Failed: no answer: Failed to establish a new connection: .*refused\.$"):
        send("http://127.0.0.1:9/mediation")


def test_a_server_without_tls_is_not_reported_as_a_wrong_certificate() -> None:
    with (
        serve(Page(REFUSED)) as url,
        pytest.raises(SystemExit, match=r"^Failed: the TLS connection failed: (?!.*certificate)"),
    ):
        send(url.replace("http://", "https://"))


@pytest.mark.parametrize("name", ["send-test-callout", "callout-template"])
def test_an_address_without_a_scheme_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match=r"--url must be an address like https://.*, not 'airflow.example.com'"):
        airflow(name, "--conn-id", "zuora", "--url", "airflow.example.com")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({}, "accepts no callouts: set callout_hmac_secret"),
        ({"callout_username": "x"}, "callout_password is not"),
    ],
)
def test_a_connection_that_accepts_no_callouts_is_refused(
    extra: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, extra)
    with pytest.raises(SystemExit, match=words):
        send("http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["send-test-callout", "callout-template"])
def test_a_missing_connection_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="There is no connection 'missing' of type mediation"):
        airflow(name, "--conn-id", "missing")


def test_the_template_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    connect(monkeypatch, EXTRA["all"])
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com:8443/prefix/")

    airflow("callout-template", "--conn-id", "zuora")

    said = capsys.readouterr().out
    assert "https://airflow.example.com:8443/prefix/mediation/callouts/zuora" in said
    assert "only https addresses on port 443" in said
    assert "{{MeterSession.Status}}" in said
    assert "hidden" not in said


def test_the_template_for_a_public_address_has_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    airflow("callout-template", "--conn-id", "zuora", "--url", "https://public.example.com/mediation/callouts/zuora")

    said = capsys.readouterr().out
    assert "https://public.example.com/mediation/callouts/zuora" in said
    assert "port 443" not in said


@pytest.mark.parametrize(
    "given",
    [
        "https://public.example.com",
        "https://public.example.com/",
        "https://public.example.com/mediation",
        "https://public.example.com/mediation/callouts/a%20b",
    ],
)
def test_the_callout_url_is_completed(given: str) -> None:
    assert callout_url("a b", given) == "https://public.example.com/mediation/callouts/a%20b"


@pytest.mark.parametrize("end", ["/", "%20", " "])
def test_the_very_address_that_was_given_is_proven(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"https://public.example.com/mediation/callouts/zuora{end}"
    assert callout_url("zuora", address) == address
    received = []
    app = create_app()

    async def listen(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(scope.get("path"))
        await app(scope, receive, send)

    with serve(listen) as url:
        airflow("send-test-callout", "--conn-id", "zuora", "--url", f"{url}/callouts/zuora{end}")

    assert [path for path in received if path] == [f"/mediation/callouts/zuora{end.replace('%20', ' ')}"] * 2
    assert "It is in the journal" in capsys.readouterr().out
