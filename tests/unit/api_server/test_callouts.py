"""The answer to a callout, and what is stored of it."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import logging

import pytest

from airflow_mediation_provider.api_server import callouts
from airflow_mediation_provider.api_server import journal as recorder
from airflow_mediation_provider.journal.writer import JournalMissing, JournalUnavailable
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from tests.timing import at_most
from tests.unit.api_server.conftest import since_accepted
from tests.unit.api_server.signed import BODY, CHANGE, signature, until

PATH = "/callouts/zuora"


def basic(username: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


def receipts(seen):
    return [each for kept in seen.receipts.values() for each in kept]


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


async def test_200_is_never_sent_before_the_event_is_durable(client, journal):
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
    ids=["broken JSON", "empty", "no session id", "compressed, with any Content-Encoding"],
)
async def test_an_authenticated_callout_that_cannot_be_parsed_is_stored_whole(client, journal, body, error):
    reply = await post(client, body, headers={**signature(body), "Content-Encoding": "gzip"})

    assert reply.status_code == 200
    [entry] = journal.entries
    assert entry.kind is EntryKind.UNPARSED
    assert error in entry.body["error"]
    kept = entry.body["text"].encode() if "text" in entry.body else base64.b64decode(entry.body["base64"])
    assert kept == body


async def test_the_header_that_airflow_adds_with_all_admins_hides_no_credentials(client, directory):
    directory["zuora"] = {"callout_username": "zuora", "callout_password": "hush"}
    sent = list(basic("zuora", "hush").items())

    assert (await post(client, headers=[*sent, ("Authorization", "Bearer airflow")])).status_code == 200
    assert (await post(client, headers=[("Authorization", "Bearer airflow"), *sent])).status_code == 401


async def test_a_chunked_body_without_a_length_is_accepted(client, journal):
    async def pieces():
        for start in range(0, len(BODY), 7):
            yield BODY[start : start + 7]

    reply = await post(client, pieces(), headers=signature(BODY))

    assert reply.status_code == 200
    assert "content-length" not in reply.request.headers
    assert journal.entries[0].session_id == "R-00005468"


@pytest.mark.parametrize("spelled", ["team/zuora", "team%2Fzuora"])
async def test_a_connection_id_with_a_slash_is_found(client, directory, journal, spelled):
    directory["team/zuora"] = directory["zuora"]

    assert (await post(client, path=f"/callouts/{spelled}")).status_code == 200
    assert journal.calls[0]["conn_id"] == "team/zuora"


# ---- not authenticated ----


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
async def test_an_unauthenticated_callout_is_answered_401_and_not_stored(client, directory, journal, headers, said):
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
    assert said(logging.INFO) == []  # Zuora always starts this way


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


# ---- no connection that accepts it ----


@pytest.mark.parametrize(
    "path", ["/callouts/nobody", "/callouts/without", "/callouts/", "/callouts/" + "x" * 251, "/callouts/a%00b"]
)
async def test_all_connections_without_callouts_give_the_same_answer(client, directory, journal, path):
    directory["without"] = {"data_center": "PROD_EU"}

    reply = await post(client, path=path)

    assert (reply.status_code, reply.json()) == (404, {"success": False, "error": "nothing accepts callouts here"})
    assert journal.entries == []


@pytest.mark.parametrize("path", ["/nothere", "/docs", "/openapi.json", "/redoc", "/callout/zuora"])
async def test_no_other_path_exists(client, path):
    reply = await client.get(path)

    assert (reply.status_code, reply.json()) == (404, {"success": False, "error": "not found"})


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_a_method_without_a_body_is_answered_405_counted_and_logged(client, journal, method, said, seen):
    for path in (PATH, PATH, "/callouts/nobody"):
        reply = await client.request(method, path, headers=signature(b""))

        assert (reply.status_code, reply.headers["allow"]) == (405, "POST, PUT, PATCH")
        if method != "HEAD":
            assert reply.json() == {"success": False, "error": "method not allowed"}
    assert journal.entries == []
    assert since_accepted(seen) == {("zuora", 405): 2, (NO_CONNECTION, 405): 1}
    assert said()[0].endswith(f"connection 'zuora': its method is {method}: choose POST in the callout template")


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_proven_callout_counts_by_each_method_with_a_body(client, journal, method):
    assert (await client.request(method, PATH, content=BODY, headers=signature(BODY))).status_code == 200
    assert (await client.request(method, PATH, content=BODY, headers={})).status_code == 401
    assert [entry.session_id for entry in journal.entries] == ["R-00005468"]


@pytest.mark.parametrize(
    "path",
    [
        "/callouts/zuora/",
        "/callouts//zuora",
        "http://airflow//callouts/zuora",
        "http://airflow//callouts///zuora//",
        "/callouts/zuora%20",
        "/callouts/%20zuora%0A",
        "/callouts/%C2%A0zuora%E2%80%8B/",
    ],
)
async def test_a_pasted_address_reaches_its_connection(client, journal, path):
    assert (await post(client, path=path)).status_code == 200
    assert journal.calls[0]["conn_id"] == "zuora"
    assert (await post(client, path=path, headers={})).status_code == 401


async def test_an_address_without_end_delays_no_other_request_and_is_logged_in_part(app, client, said):
    with at_most(1):
        replies = [
            await client.request(method, "/callouts/a" + between * 16_000 + "b")
            for method in ("POST", "GET")
            for between in ("%20", "/", "/%20")
        ]

    assert [reply.status_code for reply in replies] == [404, 404, 404, 405, 405, 405]
    assert max(map(len, said())) < 400
    # What the log keeps for a minute is no longer than what it writes.
    assert max(len(conn_id) for _, conn_id, _ in app._built().state.throttled_log._recent[False]._values) <= 251


async def test_a_slash_within_an_id_stays(client, directory, journal):
    directory["team/zuora"] = directory["zuora"]

    assert (await post(client, path="/callouts//team//zuora/")).status_code == 200
    assert journal.calls[0]["conn_id"] == "team/zuora"


async def test_merge_fields_in_the_address_are_read(client, directory, journal):
    directory["zuora"] = {"callout_token": "t0ken"}

    path = f"{PATH}?meterId=2470&sessionId=R-9&status=FAILED&previousStatus=&key=hush"
    assert (await post(client, b"", path=path, headers={"X-Mediation-Token": "t0ken"})).status_code == 200

    [entry] = journal.entries
    assert (entry.session_id, entry.transition.status, "key" in entry.body) == ("R-9", "FAILED", False)


async def test_refused_callouts_are_counted_until_one_is_accepted(client, directory, seen):
    directory["without"] = {}
    for path, headers in (
        (PATH, {}),
        (PATH, signature(b"")),
        ("/callouts/without", {}),
        ("/callouts/nobody", {}),
        ("/callouts/nothing", {}),
    ):
        await post(client, path=path, headers=headers)
    await client.get(PATH)
    assert since_accepted(seen) == {
        ("zuora", 401): 2,
        ("without", 404): 1,
        ("zuora", 405): 1,
        (NO_CONNECTION, 404): 2,
    }

    assert (await post(client)).status_code == 200
    assert since_accepted(seen) == {("without", 404): 1, (NO_CONNECTION, 404): 2}


# ---- receipts ----


async def test_an_accepted_callout_has_a_receipt_with_the_row_that_it_added(client, seen):
    headers = {**signature(BODY), "Zuora-Notification-Id": "n-1", "X-Api-Key": "of a gateway"}
    await post(client, headers=headers, path=f"{PATH}?key=hush")

    [kept] = receipts(seen)
    assert (kept.conn_id, kept.status, kept.proof, kept.reason) == ("zuora", 200, "proven", "")
    assert (kept.notification_id, kept.transition_id) == ("n-1", 7)
    assert (kept.body, kept.body_size, kept.query) == (None, len(BODY), {})
    assert (
        kept.headers.items()
        >= {
            "zuora-notification-id": "n-1",
            "x-mediation-signature": "*** (44 characters)",
            "x-api-key": "***",
        }.items()
    )
    assert 0 <= kept.milliseconds < 5000


async def test_a_refused_callout_has_a_receipt_with_the_reason_and_the_body(client, seen):
    await post(client, headers=signature(BODY, "yesterdays-secret"), path=f"{PATH}?meterId=2470&key=hush")

    [kept] = receipts(seen)
    assert (kept.status, kept.proof) == (401, "refused")
    assert kept.reason == "the signature in the header X-Mediation-Signature is wrong"
    assert (kept.body, kept.query) == (BODY.decode(), {"meterId": "2470", "key": "***"})


@pytest.mark.parametrize(
    ("path", "extra", "answer", "kept"),
    [
        ("zuora", {}, 404, ("zuora", 404, "unchecked", "it has no callout authentication (callout_hmac_secret, ...)")),
        (
            "zuora",
            {"callout_hmac_secret": "hush", "callout_hmac_algorithm": "hush"},
            503,
            ("zuora", 503, "unchecked", "its callout settings are wrong"),
        ),
        ("invented", {}, 404, None),
    ],
    ids=["takes no callouts", "wrong settings", "no connection"],
)
async def test_only_a_connection_that_exists_has_receipts(client, directory, seen, path, extra, answer, kept):
    directory["zuora"] = extra
    assert (await post(client, path=f"/callouts/{path}")).status_code == answer
    assert [(each.conn_id, each.status, each.proof, each.reason[:59]) for each in receipts(seen)] == [kept] * bool(kept)
    assert "invented" not in str(seen.answers)


async def test_the_first_request_of_basic_authentication_is_no_refusal(client, directory, seen):
    directory["zuora"] = {"callout_username": "zuora", "callout_password": "hush"}
    await post(client, headers={})
    assert not seen
    await post(client, headers=basic("zuora", "wrong"))
    [kept] = receipts(seen)
    assert kept.headers["authorization"] == "Basic ***"


async def test_a_body_that_is_too_large_is_kept_for_the_connection_by_its_size(client, seen):
    reply = await post(client, b" " * (callouts.BODY_LIMIT + 1), headers={})
    assert reply.status_code == 413
    await post(client, b" " * (callouts.BODY_LIMIT + 1), path="/callouts/invented", headers={})
    [kept] = receipts(seen)
    assert (kept.conn_id, kept.body, kept.body_size) == ("zuora", None, callouts.BODY_LIMIT + 1)
    assert {(key.conn_id, key.status) for key in seen.answers} == {("zuora", 413), (NO_CONNECTION, 413)}


async def test_what_could_not_be_stored_has_a_receipt(client, journal, seen):
    journal.trouble = JournalUnavailable("locked")
    assert (await post(client)).status_code == 503
    [kept] = receipts(seen)
    assert (kept.status, kept.proof, kept.reason) == (503, "proven", "it could not be stored: locked")
    journal.trouble = RuntimeError("hush")
    assert (await post(client)).status_code == 503
    assert receipts(seen)[1].reason == "an unexpected error (see the API server's log)"


# ---- invalid bodies ----


async def test_a_body_announced_as_too_large_is_not_read(client, journal):
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


async def test_the_largest_body_is_accepted(client, journal):
    body = json.dumps({**CHANGE, "filler": "x" * (callouts.BODY_LIMIT - len(BODY) - 14)}).encode()
    assert len(body) == callouts.BODY_LIMIT

    assert (await post(client, body)).status_code == 200
    assert journal.entries[0].session_id == "R-00005468"


async def test_a_sender_that_is_too_slow_is_answered_408(client, journal, monkeypatch):
    monkeypatch.setattr(callouts, "BODY_SECONDS", 0.01)

    async def dripping():
        yield BODY[:5]
        await asyncio.Event().wait()

    reply = await post(client, dripping(), headers=signature(BODY))

    assert reply.status_code == 408  # which Zuora sends again
    assert journal.entries == []


async def test_a_sender_that_disconnects_stores_nothing(app, journal, said):
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


# ---- errors here ----


async def test_a_secrets_backend_that_is_down_is_answered_503(client, directory, journal, said):
    directory.down = True

    reply = await post(client)

    assert (reply.status_code, reply.json()) == (503, {"success": False, "error": "temporarily unavailable"})
    assert "VaultBackend raised ConnectionError" in said()[0]


async def test_wrong_settings_are_answered_503_and_logged(client, directory, said):
    directory["zuora"] = {"callout_hmac_secret": "s", "callout_hmac_algorithm": "MD5"}

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "the receiver is misconfigured")
    assert "callout_hmac_algorithm MD5 is too weak" in said(logging.ERROR)[0]


@pytest.mark.parametrize(
    "trouble",
    [JournalUnavailable("database is locked"), JournalMissing("run `airflow mediation db migrate`")],
)
async def test_a_journal_error_is_answered_503(client, journal, said, trouble):
    journal.trouble = trouble

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "temporarily unavailable")
    assert str(trouble) in said(logging.ERROR)[0]


async def test_an_unexpected_error_is_answered_503_without_its_message(client, journal, caplog):
    journal.trouble = RuntimeError("the database's password is hush")

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "temporarily unavailable")
    assert "hush" in caplog.text  # for the operator of the server


async def test_a_write_that_hangs_is_answered_in_time_and_goes_on(client, journal, monkeypatch):
    monkeypatch.setattr(callouts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(recorder, "SHORTEST", 0.0)
    journal.gate.clear()

    assert (await post(client)).status_code == 503

    journal.gate.set()
    await until(lambda: journal.entries)


async def test_a_write_that_fails_after_its_answer_logs_no_asyncio_error(client, journal, monkeypatch, caplog):
    monkeypatch.setattr(callouts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(recorder, "SHORTEST", 0.0)
    journal.gate.clear()
    assert (await post(client)).status_code == 503

    journal.trouble = JournalUnavailable  # the class: an error object that we kept would keep the future
    journal.gate.set()
    await until(lambda: journal.written)
    assert (await post(client)).status_code == 503
    gc.collect()

    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_a_caller_that_disconnects_does_not_cancel_its_write(client, journal):
    journal.gate.clear()
    asking = asyncio.create_task(post(client))
    await until(lambda: journal.writing == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    journal.gate.set()
    await until(lambda: journal.entries)


async def test_writes_wait_for_their_turn_and_delay_no_other_request(client, journal):
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


async def test_invented_ids_do_not_fill_the_log(client, said):
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


async def test_the_handshake_identifies_the_server(client):
    from airflow_mediation_provider import __version__

    reply = await client.get("/handshake")

    assert reply.json() == {"service": "mediation", "protocol": 1, "version": __version__}
    assert (await client.post("/handshake")).status_code == 405
