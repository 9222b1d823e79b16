"""Refusals: every shape, every known code, the words that stand for codes nobody documented, and how long to wait."""

from __future__ import annotations

import json

import pytest

from airflow_mediation_provider.protocol.errors import (
    CapacityError,
    DuplicateKeyError,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
)
from airflow_mediation_provider.protocol.probe import judge_probe
from airflow_mediation_provider.protocol.refusals import Reply, read_words, refusal, refused, retry_after


def reply(status=400, body=None, **headers):
    return Reply(status, headers, body if isinstance(body, bytes) else json.dumps(body or {}).encode())


def coded(code, message="words", status=400):
    return reply(status, {"success": False, "error": {"code": code, "message": message}})


def of(answer, **kwargs):
    return refusal("stop of meter 5", "rest.zuora.com", answer, **kwargs)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": "70002103", "message": "no meter"}}, ("70002103", "no meter")),
        ({"error": {"code": 70002103, "message": "no", "detail": "meter 5"}}, ("70002103", "no: meter 5")),
        ({"errors": [{"code": "1", "message": "a"}, {"code": "2", "message": "b"}]}, ("1", "a; b")),
        ({"reasons": [{"code": 53100020, "message": "bad"}], "processId": "p"}, ("53100020", "bad")),
        ({"message": "Authentication error"}, (None, "Authentication error")),
        (
            {"error": "invalid_client", "error_description": "Bad credentials"},
            (None, "invalid_client; Bad credentials"),
        ),
        ({"code": "70002104", "message": "v"}, ("70002104", "v")),
        ({"error": None, "errors": [], "reasons": None, "message": None}, (None, None)),
        ({"errors": ["plain"]}, (None, "plain")),
    ],
)
def test_every_shape(body, expected):
    assert read_words(body) == expected


def test_words_are_cut_and_on_one_line():
    _, words = read_words({"message": "a\n b " + "x" * 1000})

    assert words.startswith("a b x")
    assert len(words) == 500


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("70002001", MisconfigurationError, "entity"),
        ("70002002", MisconfigurationError, "user"),
        ("70002003", MisconfigurationError, "entity ID"),
        ("70002004", MisconfigurationError, "not enabled"),
        ("70002005", TransientError, "rate"),
        ("70002006", MisconfigurationError, "permission"),
        ("70002103", MisconfigurationError, "meter does not exist"),
        ("70002104", MisconfigurationError, "0.0.1"),
        ("70002122", NotRunningError, "no run"),
        ("70003043", StopInProgressError, "under way"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_known_codes_whatever_the_http_status(code, kind, says, status):
    error = of(coded(code, status=status))

    assert type(error) is kind
    assert says in str(error)
    assert (error.code, error.zuora_message, error.status_code) == (code, "words", status)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, PermanentError),
        (302, TransientError),
        (400, PermanentError),
        (401, MisconfigurationError),
        (403, MisconfigurationError),
        (404, MisconfigurationError),
        (405, PermanentError),
        (407, MisconfigurationError),
        (408, TransientError),
        (425, TransientError),
        (429, TransientError),
        (500, TransientError),
        (503, TransientError),
        (504, TransientError),
    ],
)
def test_http_status_where_no_code_says_more(status, kind):
    assert type(of(coded("12345678", status=status))) is kind


def test_what_is_no_zuora_is_named_for_what_it_is():
    error = of(Reply(405, {}, b'{"detail": "Method Not Allowed"}'))
    assert type(error) is MisconfigurationError
    assert "check the REST base URL" in str(error)


def test_the_sentence_quotes_what_support_asks_for():
    answer = Reply(400, {"zuora-request-id": "abc-1"}, coded("70002122", "not running").body)

    error = of(answer)

    assert str(error) == (
        "The stop of meter 5 was refused by rest.zuora.com: no run of the meter version is active "
        "(Zuora says: not running, code 70002122, HTTP 400, request id abc-1)."
    )
    assert error.request_id == "abc-1"
    assert of(reply(400, {"requestId": "from-body"})).request_id == "from-body"


@pytest.mark.parametrize("body", [b"<html>Forbidden</html>", b"", b"\xff\xfe\x00"])
def test_a_403_without_json_blames_what_is_in_front(body):
    assert "in front" in str(of(reply(403, body)))
    assert "platform role" not in str(of(reply(403, {"message": "no"})))


def test_a_404_tells_the_meter_from_the_host():
    assert "base URL" in str(of(reply(404, b"<html>")))
    assert "check the id" in str(of(coded("70002199", status=404)))


@pytest.mark.parametrize("status", [200, 400, 409, 500])
def test_capacity_by_its_words(status):
    error = of(coded("70009999", "Maximum running meter count exceeded", status))

    assert type(error) is CapacityError


@pytest.mark.parametrize(
    "words",
    [
        "Duplicate uniqueKey",
        "The unique key 'k-1' already exists for meter 5",
        "uniqueKey k-1 has been used",
        "UNIQUE_KEY is duplicated",
        "duplicate key value k-1",
        "idempotency key already in use",
        "uniqueKey must be unique",
    ],
)
@pytest.mark.parametrize("code", ["70002999", None])
def test_a_used_key_by_its_words(words, code):
    assert type(of(coded(code, words), unique_key="k-1")) is DuplicateKeyError
    assert type(of(coded(code, words))) is PermanentError  # no key was sent


@pytest.mark.parametrize(
    "words",
    [
        "uniqueKey is too long",
        "The source of the run with uniqueKey 'duplicate_already_exists' is wrong",
        "The file already exists",
        None,
    ],
)
def test_what_is_no_used_key(words):
    error = of(coded("70002023", words), unique_key="duplicate_already_exists")

    assert type(error) is PermanentError


@pytest.mark.parametrize("status", [429, 500])
def test_a_used_key_is_not_read_out_of_a_fault(status):
    assert type(of(coded("1", "duplicate uniqueKey", status), unique_key="k")) is TransientError


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Mediation is not enabled for the tenant.", MisconfigurationError),
        ("Meter 5 does not exist", MisconfigurationError),
        ("Meter version 0.0.2 of meter 5 was not found", MisconfigurationError),
        ("The meter version is not running", NotRunningError),
        ("A stop is already in progress", StopInProgressError),
        ("Something else", PermanentError),
    ],
)
def test_words_without_a_code(words, kind):
    assert type(of(reply(400, {"message": words}))) is kind


def test_words_count_less_than_a_code():
    error = of(coded("70002023", "The eventStoreId of the meter is unknown"))

    assert type(error) is PermanentError


def test_refused():
    assert refused(reply(200, {"success": False}), {"success": False})
    assert refused(reply(302), {})
    assert not refused(reply(200), {})
    assert not refused(Reply(204), None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "7", "ratelimit-reset": "40"}, 7),
        ({"ratelimit-reset": "40"}, 40),
        ({"ratelimit-reset": "9, 40;w=60"}, 9),
        ({"ratelimit-reset": "9;w=60"}, 9),
        ({"retry-after": "soon", "ratelimit-reset": "3"}, 3),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


def test_transient_errors_carry_it():
    assert of(Reply(429, {"retry-after": "12"}, b"")).retry_after == 12
    assert of(Reply(503, {}, b"")).retry_after is None


@pytest.mark.parametrize(
    ("answer", "works", "says"),
    [
        (coded("70002103", status=404), True, "Not proven"),
        (coded("70002103"), True, "Not proven"),
        (reply(404, {"message": "Meter 0 does not exist"}), True, "Not proven"),
        (coded("70002004"), False, "Mediation is not enabled"),
        (coded("70002006"), False, "permission is missing"),
        (reply(403, {}), False, "permission is missing"),
        (reply(404, b"<html>"), False, "no Mediation API at this address"),
        (coded("70002023", "meterId is wrong"), True, "if oddly"),
        (reply(401, {"message": "no"}), False, "could not be proven"),
        (reply(503), False, "could not be proven"),
    ],
)
def test_what_the_connection_test_concludes(answer, works, says):
    ok, sentence = judge_probe("rest.zuora.com", of(answer))

    assert ok is works
    assert says in sentence


def test_an_impossible_meter_that_answers_proves_as_much():
    assert judge_probe("h", None)[0]
