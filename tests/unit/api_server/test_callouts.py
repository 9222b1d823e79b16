"""What a callout is answered, and what becomes of its event."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import logging

import pytest

from airflow_mediation_provider.api_server import callouts, recorder
from airflow_mediation_provider.journal.record import JournalMissing, JournalUnavailable
from airflow_mediation_provider.protocol.entry import EntryKind
from tests.unit.api_server.signed import BODY, CHANGE, signature, until

PATH = "/callouts/zuora"


def basic(username: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


async def post(client, body=BODY, path=PATH, headers=None, **more):
    return await client.post(path, content=body, headers=signature(body) if headers is None else headers, **more)


# ---- accepted ----


async def test_a_signed_callout_is_answered_200_once_it_is_recorded(client, journal):
    reply = await post(client, headers={**signature(BODY), "Zuora-Notification-Id": "n-1"})

    assert (reply.status_code, reply.json()) == (200, {"success": True})
    assert reply.headers["content-type"] == "application/json"
    [entry] = journal.entries
    assert entry.kind is EntryKind.STATUS_CHANGE
    assert (entry.notification_id, entry.session_id, entry.transition.status) == ("n-1", "R-00005468", "COMPLETED")
    [call] = journal.calls
    assert (call["conn_id"], call["team"]) == ("zuora", "blue")
    assert 7 < call["deadline_seconds"] <= 8


async def test_never_200_before(client, journal):
    journal.gate.clear()
    asking = asyncio.create_task(post(client))
    await until(lambda: journal.writing == 1)
    assert not asking.done()

    journal.gate.set()
    assert (await asking).status_code == 200


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"meterId": "2470", "sess', "not JSON"),
        (b"", "not JSON"),
        (json.dumps({**CHANGE, "sessionId": ""}).encode(), "no session id"),
        (gzip.compress(BODY), "not JSON"),
    ],
    ids=["broken JSON", "empty", "no session id", "compressed, whatever Content-Encoding says"],
)
async def test_what_is_proven_but_cannot_be_read_is_kept_whole(client, journal, body, error):
    reply = await post(client, body, headers={**signature(body), "Content-Encoding": "gzip"})

    assert reply.status_code == 200
    [entry] = journal.entries
    assert entry.kind is EntryKind.UNPARSED
    assert error in entry.body["error"]
    kept = entry.body["text"].encode() if "text" in entry.body else base64.b64decode(entry.body["base64"])
    assert kept == body


async def test_what_airflow_adds_where_everybody_is_an_admin_hides_no_credentials(client, directory):
    directory["zuora"] = {"callout_username": "zuora", "callout_password": "hush"}
    sent = list(basic("zuora", "hush").items())

    assert (await post(client, headers=[*sent, ("Authorization", "Bearer airflow")])).status_code == 200
    assert (await post(client, headers=[("Authorization", "Bearer airflow"), *sent])).status_code == 401


async def test_a_body_in_pieces_without_a_length(client, journal):
    async def pieces():
        for start in range(0, len(BODY), 7):
            yield BODY[start : start + 7]

    reply = await post(client, pieces(), headers=signature(BODY))

    assert reply.status_code == 200
    assert "content-length" not in reply.request.headers
    assert journal.entries[0].session_id == "R-00005468"


@pytest.mark.parametrize("spelled", ["team/zuora", "team%2Fzuora"])
async def test_an_id_with_a_slash(client, directory, journal, spelled):
    directory["team/zuora"] = directory["zuora"]

    assert (await post(client, path=f"/callouts/{spelled}")).status_code == 200
    assert journal.calls[0]["conn_id"] == "team/zuora"


# ---- not proven ----


@pytest.mark.parametrize(
    "headers",
    [
        signature(BODY, "guessed"),
        signature(b"{}"),
        signature(BODY, "s3cret-of-another"),
        {},
        basic("zuora", "s3cret-of-zuora"),
        {"X-Mediation-Signature": "\u00e9".encode("latin-1")},
    ],
    ids=["wrong secret", "another body's", "another connection's", "missing", "not what is configured", "not ASCII"],
)
async def test_what_is_not_proven_is_answered_401_and_not_recorded(client, directory, journal, headers, said):
    directory["another"] = {"callout_hmac_secret": "s3cret-of-another"}

    reply = await post(client, headers=headers)

    assert (reply.status_code, reply.json()) == (401, {"success": False, "error": "not authenticated"})
    assert "www-authenticate" not in reply.headers
    assert journal.entries == []
    assert len(said()) == 1


async def test_a_secret_is_rotated_without_losing_a_callout(client, directory, seconds):
    async def answers():
        seconds[0] += 5
        return [
            (await post(client, headers=signature(BODY, secret))).status_code for secret in ("s3cret-of-zuora", "new")
        ]

    assert await answers() == [200, 401]
    directory["zuora"] = {"callout_hmac_secret": "new", "callout_hmac_previous_secret": "s3cret-of-zuora"}
    assert await answers() == [200, 200]
    directory["zuora"] = {"callout_hmac_secret": "new"}
    assert await answers() == [401, 200]


async def test_zuora_asks_without_credentials_is_challenged_and_asks_with_them(client, directory, journal, said):
    directory["zuora"] = {"callout_username": "zuora", "callout_password": "hush"}

    first = await post(client, headers={})
    second = await post(client, headers=basic("zuora", "hush"))

    assert (first.status_code, first.headers["www-authenticate"]) == (401, 'Basic realm="mediation"')
    assert second.status_code == 200
    assert len(journal.entries) == 1
    assert said(logging.INFO) == []  # it is how Zuora always begins


async def test_all_that_is_configured_is_required(client, directory, said):
    directory["zuora"] = {
        "callout_hmac_secret": "s3cret-of-zuora",
        "callout_username": "zuora",
        "callout_password": "hush",
        "callout_token": "t0ken",
    }
    proofs = [signature(BODY), basic("zuora", "hush"), {"X-Mediation-Token": "t0ken"}]

    for left_out in range(3):
        headers = {
            name: value for number, each in enumerate(proofs) if number != left_out for name, value in each.items()
        }
        assert (await post(client, headers=headers)).status_code == 401
    assert (await post(client, headers={**proofs[0], **proofs[1], **proofs[2]})).status_code == 200


# ---- nobody to take it ----


@pytest.mark.parametrize(
    "path", ["/callouts/nobody", "/callouts/without", "/callouts/", "/callouts/" + "x" * 251, "/callouts/a%00b"]
)
async def test_one_answer_for_every_connection_that_takes_none(client, directory, journal, path):
    directory["without"] = {"data_center": "PROD_EU"}

    reply = await post(client, path=path)

    assert (reply.status_code, reply.json()) == (404, {"success": False, "error": "nothing accepts callouts here"})
    assert journal.entries == []


@pytest.mark.parametrize("path", ["/", "", "/callouts", "/docs", "/openapi.json", "/redoc", "/callout/zuora"])
async def test_no_other_path_says_anything(client, path):
    reply = await client.get(path)

    assert (reply.status_code, reply.json()) == (404, {"success": False, "error": "not found"})


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_another_method_is_answered_405(client, journal, method):
    reply = await client.request(method, PATH, content=BODY, headers=signature(BODY))

    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert reply.json() == {"success": False, "error": "method not allowed"}
    assert journal.entries == []


# ---- what does not come as it should ----


async def test_a_body_that_says_it_is_too_large_is_not_read(client, journal):
    async def endless():
        pytest.fail("read")
        yield b""

    headers = {**signature(BODY), "Content-Length": str(callouts.BODY_LIMIT + 1)}
    reply = await post(client, endless(), headers=headers)

    assert (reply.status_code, reply.headers["connection"]) == (413, "close")


async def test_a_body_that_turns_out_too_large_is_read_no_further(client, journal):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 65536
            yield bytes(65536)

    reply = await post(client, endless(), headers=signature(BODY))

    assert reply.status_code == 413
    assert sent <= callouts.BODY_LIMIT + 65536


async def test_the_largest_body_is_taken(client, journal):
    body = json.dumps({**CHANGE, "filler": "x" * (callouts.BODY_LIMIT - len(BODY) - 14)}).encode()
    assert len(body) == callouts.BODY_LIMIT

    assert (await post(client, body)).status_code == 200
    assert journal.entries[0].session_id == "R-00005468"


async def test_a_sender_that_is_too_slow(client, journal, monkeypatch):
    monkeypatch.setattr(callouts, "BODY_SECONDS", 0.01)

    async def dripping():
        yield BODY[:5]
        await asyncio.Event().wait()

    reply = await post(client, dripping(), headers=signature(BODY))

    assert reply.status_code == 408  # which Zuora sends again
    assert journal.entries == []


async def test_a_sender_that_goes_away_has_told_nothing(app, journal, said):
    received = iter(
        [{"type": "http.request", "body": BODY, "more_body": True}, {"type": "http.disconnect"}],
    )

    async def receive():
        return next(received)

    async def send(_message):
        pass

    headers = [(name.lower().encode(), value.encode()) for name, value in signature(BODY).items()]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b"", "root_path": ""}
    await app(scope, receive, send)

    assert journal.entries == []
    assert said(logging.ERROR) == []


# ---- trouble here ----


async def test_a_secrets_backend_that_is_down_is_answered_503(client, directory, journal, said):
    directory.down = True

    reply = await post(client)

    assert (reply.status_code, reply.json()) == (503, {"success": False, "error": "temporarily unavailable"})
    assert "VaultBackend raised ConnectionError" in said()[0]


async def test_settings_that_are_wrong_are_answered_503_and_the_log_says_which(client, directory, said):
    directory["zuora"] = {"callout_hmac_secret": "s", "callout_hmac_algorithm": "MD5"}

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "the receiver is set up wrongly")
    assert "callout_hmac_algorithm MD5 is too weak" in said(logging.ERROR)[0]


@pytest.mark.parametrize(
    "trouble",
    [JournalUnavailable("database is locked"), JournalMissing("run `airflow mediation db migrate`")],
)
async def test_a_journal_in_trouble_is_answered_503(client, journal, said, trouble):
    journal.trouble = trouble

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "temporarily unavailable")
    assert str(trouble) in said(logging.ERROR)[0]


async def test_what_nobody_foresaw_is_answered_503_without_a_word_of_it(client, journal, caplog):
    journal.trouble = RuntimeError("the database's password is hush")

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "temporarily unavailable")
    assert "hush" in caplog.text  # for who runs the server


async def test_a_write_that_hangs_is_answered_in_time_and_goes_on(client, journal, monkeypatch):
    monkeypatch.setattr(callouts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(recorder, "SHORTEST", 0.0)
    journal.gate.clear()

    assert (await post(client)).status_code == 503

    journal.gate.set()
    await until(lambda: journal.entries)


async def test_a_write_that_fails_when_nobody_waits_any_more_makes_no_noise(client, journal, monkeypatch, caplog):
    monkeypatch.setattr(callouts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(recorder, "SHORTEST", 0.0)
    journal.gate.clear()
    assert (await post(client)).status_code == 503

    journal.trouble = JournalUnavailable  # the class: an error that we kept would keep the future
    journal.gate.set()
    await until(lambda: journal.written)
    assert (await post(client)).status_code == 503
    gc.collect()

    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_a_caller_that_goes_away_does_not_undo_what_it_told(client, journal):
    journal.gate.clear()
    asking = asyncio.create_task(post(client))
    await until(lambda: journal.writing == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    journal.gate.set()
    await until(lambda: journal.entries)


async def test_writes_wait_for_their_turn_and_hold_up_nobody_else(client, journal):
    journal.gate.clear()
    asking = [asyncio.create_task(post(client)) for _ in range(20)]
    await until(lambda: journal.writing == recorder.THREADS)
    assert (await client.get("/handshake")).status_code == 200
    assert journal.writing == recorder.THREADS

    journal.gate.set()
    assert {reply.status_code for reply in await asyncio.gather(*asking)} == {200}
    assert len(journal.entries) == 20


# ---- the log ----


async def test_a_refusal_is_logged_once_a_minute_for_each_connection_and_reason(client, directory, said):
    directory["other"] = directory["zuora"]
    for _ in range(3):
        await post(client, headers={})
        await post(client, headers=signature(b""))
        await post(client, headers={}, path="/callouts/other")

    assert said() == [
        "A callout was answered 401, connection 'zuora': no signature in the header X-Mediation-Signature",
        "A callout was answered 401, connection 'zuora': the signature in the header X-Mediation-Signature is wrong",
        "A callout was answered 401, connection 'other': no signature in the header X-Mediation-Signature",
    ]


async def test_invented_ids_fill_no_log(client, said):
    for number in range(300):
        await post(client, path=f"/callouts/invented-{number}")
    await post(client, path="/callouts/" + "x" * 5000)

    assert len(said()) == 200
    assert max(map(len, said())) < 400


async def test_the_log_holds_nothing_of_the_request_and_no_secret(client, directory, caplog):
    caplog.set_level(logging.DEBUG, "airflow_mediation_provider")
    directory["zuora"] = {"callout_hmac_secret": "hush", "callout_username": "zuora", "callout_password": "hush"}
    for headers in ({"X-Mediation-Signature": "sent-signature"}, basic("zuora", "sent-password"), {}):
        await post(client, b'{"body": "sent-body"}', headers=headers)
    await post(client, b"sent-body\n", path="/callouts/line%0Abreak", headers={})

    assert "answered 401" in caplog.text
    for secret in ("hush", "sent-signature", "sent-body", basic("zuora", "sent-password")["Authorization"][6:]):
        assert secret not in caplog.text
    assert "line\nbreak" not in caplog.text


# ---- the handshake ----


async def test_the_handshake_tells_who_is_here(client):
    from airflow_mediation_provider import __version__

    reply = await client.get("/handshake")

    assert reply.json() == {"service": "mediation", "protocol": 1, "version": __version__}
    assert (await client.post("/handshake")).status_code == 405
