"""Refusals: every form, every known code, messages that stand for undocumented codes, and how long to wait."""

from __future__ import annotations

import json

import pytest

from airflow_mediation_provider.protocol.zuora.errors import (
    CapacityError,
    DuplicateKeyError,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
    UnknownRefusalError,
)
from airflow_mediation_provider.protocol.zuora.refusals import Reply, read_words, refusal, refused, retry_after
from airflow_mediation_provider.protocol.zuora.replies import judge_probe


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
def test_code_and_message_are_read_from_every_form(body, expected):
    assert read_words(body) == expected


def test_messages_are_cut_and_on_one_line():
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
def test_known_codes_outrank_the_http_status(code, kind, says, status):
    error = of(coded(code, status=status))

    assert type(error) is kind
    assert says in str(error)
    assert (error.code, error.zuora_message, error.status_code) == (code, "words", status)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, UnknownRefusalError),
        (302, TransientError),
        (400, UnknownRefusalError),
        (401, MisconfigurationError),
        (403, MisconfigurationError),
        (404, MisconfigurationError),
        (405, UnknownRefusalError),
        (409, UnknownRefusalError),
        (407, MisconfigurationError),
        (408, TransientError),
        (425, TransientError),
        (429, TransientError),
        (500, TransientError),
        (503, TransientError),
        (504, TransientError),
    ],
)
def test_the_http_status_decides_without_a_known_code(status, kind):
    assert type(of(coded("12345678", status=status))) is kind


def test_an_answer_that_is_not_from_zuora_is_described():
    error = of(Reply(405, {}, b'{"detail": "Method Not Allowed"}'))
    assert type(error) is MisconfigurationError
    assert "check the REST base URL" in str(error)


def test_the_sentence_has_code_status_and_request_id():
    answer = Reply(400, {"zuora-request-id": "abc-1"}, coded("70002122", "not running").body)

    error = of(answer)

    assert str(error) == (
        "The stop of meter 5 was refused by rest.zuora.com: no run of the meter version is active "
        "(Zuora says: not running, code 70002122, HTTP 400, request id abc-1)."
    )
    assert error.request_id == "abc-1"
    assert of(reply(400, {"requestId": "from-body"})).request_id == "from-body"


@pytest.mark.parametrize("body", [b"<html>Forbidden</html>", b"", b"\xff\xfe\x00"])
def test_a_403_without_json_blames_the_proxy(body):
    assert "in front" in str(of(reply(403, body)))
    assert "platform role" not in str(of(reply(403, {"message": "no"})))


@pytest.mark.parametrize("changes", [True, False])
def test_a_refusal_without_json_is_perhaps_not_zuoras(changes):
    assert "perhaps not Zuora's: check the REST base URL" in str(of(reply(400, b"<html>"), changes=changes))


@pytest.mark.parametrize(
    "page",
    [
        b"<html>400 The plain HTTP request was sent to HTTPS port</html>",
        b"Client sent an HTTP request to an HTTPS server.",
        b"You're speaking plain HTTP to an SSL-enabled server port.",
    ],
)
def test_the_page_of_a_server_with_tls_names_the_remedy(page):
    error = of(reply(400, page))

    assert type(error) is MisconfigurationError
    assert "write https:// before the host" in str(error)


def test_a_404_distinguishes_the_meter_from_the_host():
    assert "base URL" in str(of(reply(404, b"<html>")))
    assert "check the id" in str(of(coded("70002199", status=404)))


@pytest.mark.parametrize("status", [200, 400, 409, 500])
def test_a_capacity_refusal_is_recognised_by_its_message(status):
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
def test_a_used_key_is_recognised_by_its_message(words, code):
    assert type(of(coded(code, words), unique_key="k-1")) is DuplicateKeyError
    assert type(of(coded(code, words))) is UnknownRefusalError  # no key was sent


@pytest.mark.parametrize("key", ["k", "key", "run", "unique", "already", "exists", "A run", "k-1"])
def test_a_short_key_does_not_hide_the_message_around_it(key):
    error = of(coded(None, f"A run with unique key {key} already exists"), unique_key=key)

    assert type(error) is DuplicateKeyError


@pytest.mark.parametrize(
    "words",
    [
        "uniqueKey is too long",
        "The source of the run with uniqueKey 'duplicate_already_exists' is wrong",
        "The file already exists",
        None,
    ],
)
def test_other_messages_are_not_taken_for_a_used_key(words):
    error = of(coded("70002023", words), unique_key="duplicate_already_exists")

    assert type(error) is PermanentError


@pytest.mark.parametrize("status", [429, 500])
def test_a_fault_is_not_taken_for_a_used_key(status):
    assert type(of(coded("1", "duplicate uniqueKey", status), unique_key="k")) is TransientError


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Mediation is not enabled for the tenant.", MisconfigurationError),
        ("Meter 5 does not exist", MisconfigurationError),
        ("Meter version 0.0.2 of meter 5 was not found", MisconfigurationError),
        ("The meter version is not running", NotRunningError),
        ("A stop is already in progress", StopInProgressError),
        ("Your session has expired", MisconfigurationError),
        ("The service is temporarily unavailable, try again later", TransientError),
        ("Something else", UnknownRefusalError),
    ],
)
def test_messages_without_a_code_are_classified(words, kind):
    assert type(of(reply(400, {"message": words}))) is kind


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "Invalid session R-00005468"),
        (None, "Invalid session id R-00000001"),
        (None, "The session is invalid for this meter"),
        (None, "The session has expired: audit records are kept for 90 days"),
        (None, "The provided access token expired for source SNOWFLAKE"),
        (None, "The status of meter 1001 is unknown at the moment"),
        (None, "The source file 77 of meter 1001 was not found"),
        (None, "The event store of the meter does not exist"),
        ("70002999", "The meter service had an unknown error"),
        ("70002999", "Separate limits are not allowed for temporary tables"),
    ],
)
def test_a_message_about_something_else_stays_unknown(code, message):
    assert type(of(coded(code, message), unique_key="k-1")) is UnknownRefusalError


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("53000020", "Invalid value for field temporaryFlag", PermanentError),
        ("53000045", "Temporary tables are not supported, try again later", PermanentError),
        ("53000030", "Separate limits are not allowed", PermanentError),
        ("53000061", "Meter 5 is busy", TransientError),
    ],
)
def test_the_platforms_category_outranks_a_message_that_only_seems_temporary(code, message, kind):
    assert type(of(coded(code, message))) is kind


@pytest.mark.parametrize(
    "message",
    [
        "Meter 5 does not exist",
        "Meter service: upstream not found, restarting",
        "Your session has expired",
        "The meter version is not running",
    ],
)
@pytest.mark.parametrize("status", [500, 503])
def test_a_fault_of_the_server_is_not_final_by_its_message(message, status):
    assert type(of(coded("70002999", message, status))) is TransientError


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Maximum running meter count exceeded: 5 meters are already running (uniqueKey not consumed)", CapacityError),
        ("A run with unique key k-1 was rejected: a stop of the meter is already in progress", StopInProgressError),
        ("Meter 1001 is already running; the unique key k-1 was not used", UnknownRefusalError),
        ("uniqueKey is invalid: a key exists of at most 32 characters", UnknownRefusalError),
        ("A run with this key already exists", DuplicateKeyError),
        ("The run key was already used", DuplicateKeyError),
    ],
)
def test_a_refusal_that_mentions_the_key_is_no_duplicate_by_that(message, kind):
    assert type(of(coded(None, message), unique_key="k-1")) is kind


def test_a_long_key_is_recognised_in_the_message():
    key = "0123456789abcdef"

    assert type(of(coded(None, f"Request {key} was already processed"), unique_key=key)) is DuplicateKeyError


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (("50000061", "50000020"), PermanentError),
        (("50000061", "70002103"), MisconfigurationError),
        (("12345", "70002103"), MisconfigurationError),
        (("12345", "50000061"), TransientError),
    ],
)
def test_the_permanent_one_of_several_reasons_counts(codes, kind):
    error = of(reply(400, {"success": False, "reasons": [{"code": code, "message": "m"} for code in codes]}))

    assert type(error) is kind
    assert error.code == codes[0]


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ({"errors": [{"code": "70002006", "message": "no"}]}, True),
        ({"error": {"code": 70002006}}, True),
        ({"success": "false"}, True),
        ({"Success": False, "Errors": [{"Code": "INVALID_VALUE", "Message": "no"}]}, True),
        ({"success": True, "errors": [{"code": "1", "message": "a warning"}]}, False),
        ({"errors": []}, False),
        ({"data": {"code": "7"}, "message": "fine", "code": "200"}, False),
    ],
)
def test_an_error_with_http_200_is_a_refusal(body, is_refused):
    assert refused(reply(200, body), body) is is_refused


def test_a_code_outranks_the_message():
    error = of(coded("70002023", "The eventStoreId of the meter is unknown"))

    assert type(error) is PermanentError


def test_a_reply_without_success_is_a_refusal():
    assert refused(reply(200, {"success": False}), {"success": False})
    assert refused(reply(302), {})
    assert refused(reply(300), {})
    assert refused(reply(199), {})
    assert not refused(reply(200), {})
    assert not refused(reply(299), {"success": True})
    assert not refused(Reply(204), None)


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


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
        ({"retry-after": "86400"}, 900),
        ({"ratelimit-reset": "9" * 400}, None),
        ({"ratelimit-reset": "9" * 400, "date": DATE}, 900),
        ({"ratelimit-reset": "1792567710", "date": DATE}, 30),
        ({"ratelimit-reset": "1792567710, 40;w=60", "date": DATE}, 30),
        ({"ratelimit-reset": "1792567710500", "date": DATE}, 30.5),
        ({"ratelimit-reset": "1798761600", "date": DATE}, 900),
        ({"ratelimit-reset": "1000000000000", "date": DATE}, 0),
        ({"ratelimit-reset": "1792567710"}, None),
        ({"ratelimit-reset": "1792567710", "date": "soon"}, None),
        ({"ratelimit-reset": "1e12"}, None),
        ({"ratelimit-reset": "inf"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT", "date": DATE}, 900),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000", "date": DATE}, 30),
        ({}, None),
    ],
)
def test_the_wait_is_read_from_the_headers(headers, seconds):
    assert retry_after(headers) == seconds


def test_transient_errors_have_the_wait():
    assert of(Reply(429, {"retry-after": "12"}, b"")).retry_after == 12
    assert of(Reply(503, {}, b"")).retry_after is None


@pytest.mark.parametrize(
    ("answer", "works", "says"),
    [
        (coded("70002103", status=404), True, "Not tested"),
        (coded("70002103"), True, "Not tested"),
        (reply(404, {"message": "Meter 0 does not exist"}), True, "Not tested"),
        (coded("70002004"), False, "Mediation is not enabled"),
        (coded("70002006"), False, "permission is missing"),
        (reply(403, {}), False, "permission is missing"),
        (reply(404, b"<html>"), False, "no Mediation API at this address"),
        (coded("70002023", "meterId is wrong"), True, "answers unexpectedly"),
        (reply(401, {"message": "no"}), False, "could not be tested"),
        (reply(503), False, "could not be tested"),
    ],
)
def test_the_connection_test_classifies_each_answer(answer, works, says):
    ok, sentence = judge_probe("rest.zuora.com", of(answer))

    assert ok is works
    assert says in sentence


def test_an_answer_for_the_impossible_meter_proves_the_connection():
    assert judge_probe("h", None)[0]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_without_a_finite_value_is_read_as_none(number):
    assert Reply(200, {}, f'{{"count": {number}, "share": 1.5}}'.encode()).json == {"count": None, "share": 1.5}


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_json_that_python_cannot_read_is_none(body):
    assert Reply(200, {}, body).json is None
