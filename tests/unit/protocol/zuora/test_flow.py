"""The flow of token, request, backoff and retry, driven by hand: no sockets, no clock."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.zuora import requests as api
from airflow_mediation_provider.protocol.zuora.errors import (
    DuplicateKeyError,
    MisconfigurationError,
    PermanentError,
    TransientError,
    UnknownRefusalError,
    UnusableAddressError,
)
from airflow_mediation_provider.protocol.zuora.flow import (
    Claim,
    Failure,
    Join,
    Peer,
    Request,
    Send,
    Sleep,
    backoff,
    exchange,
    legal_header,
    legal_track_id,
    obtain_token,
)
from airflow_mediation_provider.protocol.zuora.refusals import Reply

PEER = Peer(
    base_url="https://rest.zuora.com", client_id="id", client_secret="hush-hush", headers={"Zuora-Track-Id": "t"}
)
RUNNING = Reply(200, {}, b'{"success": true, "data": {"runStatus": 5}}')
UNAUTHORIZED = Reply(401, {}, b'{"message": "Authentication error"}')
BUSY = Reply(503, {}, b"")


def token(text="token-1", **more):
    return Reply(200, {}, json.dumps({"access_token": text, "expires_in": 3599, **more}).encode())


@dataclass
class FakeTokens:
    """Tokens without threads: the caller always carries out the fetch itself."""

    token: str | None = "token-0"
    error: Exception | None = None
    life: float | None = None
    ended: int = 0
    discarded: list = field(default_factory=list)

    def claim(self):
        return Claim(token=self.token) if self.token else Claim(carry_out=self)

    def discard(self, token):
        self.discarded.append(token)
        if self.token == token:
            self.token = None

    def land(self, token, life):
        self.token, self.life = token, life

    def fail(self, error):
        self.ended += 1
        self.error = error


def drive(flow, outcomes):
    """Answer every request in turn; return the result, the requests and the seconds slept."""
    outcomes, requests, slept, outcome = iter(outcomes), [], [], None
    try:
        while True:
            step = flow.send(outcome)
            outcome = None
            if isinstance(step, Send):
                requests.append(step.request)
                outcome = next(outcomes)
            elif isinstance(step, Sleep):
                slept.append(step.seconds)
    except StopIteration as done:
        return done.value, requests, slept
    except Exception as error:
        error.requests, error.slept = requests, slept
        raise
    finally:
        flow.close()


def unnoted(_outcome):
    """Ignore the outcome of a request."""


def ask(outcomes, call=None, tokens=None, attempts=5, jitter=lambda: 0.0, note=unnoted, patience=math.inf):
    options = {"attempts": attempts, "jitter": jitter, "note": note, "patience": patience}
    return drive(exchange(call or api.run_status(5), PEER, tokens or FakeTokens(), **options), outcomes)


class TestSending:
    def test_a_call_is_sent_with_its_headers(self):
        result, requests, slept = ask([RUNNING])

        assert (result, slept) == ("RUNNING", [])
        [request] = requests
        assert (request.method, request.url) == ("GET", "https://rest.zuora.com/meters/5/0.0.1/runStatus")
        assert request.headers == {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Authorization": "Bearer token-0",
            "Zuora-Track-Id": "t",
        }
        assert request.body is None

    def test_body_and_query_are_sent(self):
        _, [run], _ = ask([Reply(200, {}, b"{}")], api.run_meter(5, unique_key="k"))
        _, [stop], _ = ask([Reply(200, {}, b"{}")], api.stop_meter(5, force=True))

        assert json.loads(run.body) == {"uniqueKey": "k"}
        assert stop.url.endswith("/meters/stop/5/0.0.1?forceStop=true")

    def test_no_repr_shows_a_secret(self):
        request = Request("POST", "u", {"Authorization": "Bearer hush"}, b"hush")
        shown = repr([PEER, Send(request), Claim(token="hush"), Reply(200, {"a": "hush"}, b"hush")])

        assert "hush" not in shown


class TestToken:
    def test_a_token_is_fetched_as_documented(self):
        tokens = FakeTokens(token=None)

        result, [first, second], _ = ask([token(), RUNNING], tokens=tokens)

        assert result == "RUNNING"
        assert (first.method, first.url) == ("POST", "https://rest.zuora.com/oauth/token")
        assert first.headers["Content-Type"] == "application/x-www-form-urlencoded"
        assert "Authorization" not in first.headers
        assert first.body == b"client_id=id&client_secret=hush-hush&grant_type=client_credentials"
        assert second.headers["Authorization"] == "Bearer token-1"
        assert tokens.life == 3599

    def test_a_long_lifetime_is_cut_to_a_day(self):
        tokens = FakeTokens(token=None)

        ask([token(expires_in=1e12), RUNNING], tokens=tokens)

        assert tokens.life == 86400

    @pytest.mark.parametrize("life", [None, "soon", {}, 0, -1, math.nan, math.inf, 10**400])
    def test_an_invalid_lifetime_gets_the_default(self, life):
        tokens = FakeTokens(token=None)

        ask([token(expires_in=life), RUNNING], tokens=tokens)

        assert tokens.life == 3600

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_wrong_credentials_fail_at_once(self, status):
        tokens = FakeTokens(token=None)
        wrong = Reply(status, {}, b'{"error": "invalid_client"}')

        with pytest.raises(MisconfigurationError, match=r"client id and secret.*data center.*invalid_client") as caught:
            ask([wrong], tokens=tokens)

        assert len(caught.value.requests) == 1
        assert tokens.error is caught.value
        assert "hush" not in str(caught.value)

    def test_a_proxy_in_front_is_not_wrong_credentials(self):
        with pytest.raises(MisconfigurationError, match="in front"):
            ask([Reply(403, {}, b"<html>")], tokens=FakeTokens(token=None))

    @pytest.mark.parametrize(
        "fault",
        [BUSY, Reply(429), Failure("reset"), Reply(200, {}, b"<html>"), Reply(200, {}, b'{"token_type": "bearer"}')],
    )
    def test_a_transient_fault_of_the_token_is_retried(self, fault):
        result, requests, slept = ask([fault, token(), RUNNING], tokens=FakeTokens(token=None))

        assert (result, len(requests), len(slept)) == ("RUNNING", 3, 1)

    def test_a_fault_of_the_token_is_retried_even_for_a_run_without_a_key(self):
        _, requests, _ = ask([BUSY, token(), Reply(200, {}, b"{}")], api.run_meter(5), FakeTokens(token=None))

        assert [request.url.rsplit("/", 2)[0] for request in requests].count("https://rest.zuora.com/meters/run") == 1

    def test_a_closed_flow_abandons_its_fetch(self):
        tokens = FakeTokens(token=None)
        flow = exchange(api.run_status(5), PEER, tokens, attempts=1, note=unnoted)
        assert isinstance(next(flow), Send)

        flow.close()

        assert (tokens.ended, tokens.error) == (1, None)

    def test_waiting_callers_get_the_error_of_the_fetch(self):
        class Waiting(FakeTokens):
            def claim(self):
                return Claim(wait_for=self)

        tokens = Waiting(error=MisconfigurationError("wrong", code="c"))
        flow = obtain_token(PEER, tokens)
        assert isinstance(next(flow), Join)

        with pytest.raises(MisconfigurationError, match="wrong") as caught:
            next(flow)

        assert caught.value is not tokens.error
        assert caught.value.code == "c"


EXPIRED_BY_CODE = {"success": False, "reasons": [{"code": 90000011, "message": "this resource is protected"}]}
EXPIRED_BY_MESSAGE = (
    {"success": False, "error": {"code": "1", "message": "Your session has expired."}},
    {"errors": [{"code": "INVALID_SESSION", "message": "sign in"}], "success": False},
    {"success": False, "message": "Invalid access token"},
)


class TestUnauthorized:
    def test_a_refused_token_is_renewed_once(self):
        tokens = FakeTokens()

        result, requests, slept = ask([UNAUTHORIZED, token("token-2"), RUNNING], tokens=tokens, attempts=1)

        assert (result, slept) == ("RUNNING", [])
        assert tokens.discarded == ["token-0"]
        assert requests[2].headers["Authorization"] == "Bearer token-2"

    def test_a_second_401_is_a_misconfiguration(self):
        tokens = FakeTokens()

        with pytest.raises(MisconfigurationError, match="client id and secret") as caught:
            ask([UNAUTHORIZED, token("token-2"), UNAUTHORIZED], tokens=tokens)

        assert len(caught.value.requests) == 3
        assert tokens.token is None

    def test_a_run_call_is_sent_again_after_a_401(self):
        _, requests, _ = ask([UNAUTHORIZED, token(), Reply(200, {}, b"{}")], api.run_meter(5))

        assert len(requests) == 3

    def test_a_fault_while_renewing_the_token_does_not_make_the_run_call_uncertain(self):
        _, requests, _ = ask([UNAUTHORIZED, BUSY, token(), Reply(200, {}, b"{}")], api.run_meter(5))

        assert len(requests) == 4

    @pytest.mark.parametrize("status", [200, 400, 500])
    def test_the_code_of_an_expired_session_renews_the_token_of_any_call(self, status):
        tokens = FakeTokens()
        expired = Reply(status, {}, json.dumps(EXPIRED_BY_CODE).encode())

        _, requests, slept = ask([expired, token("token-2"), Reply(200, {}, b"{}")], api.run_meter(5), tokens=tokens)

        assert (tokens.discarded, slept) == (["token-0"], [])
        assert requests[2].headers["Authorization"] == "Bearer token-2"
        with pytest.raises(MisconfigurationError, match="client id and secret"):
            ask([expired, token("token-2"), expired])

    @pytest.mark.parametrize("status", [200, 400])
    @pytest.mark.parametrize("body", EXPIRED_BY_MESSAGE)
    def test_the_message_of_an_expired_session_renews_the_token_of_a_call_that_may_be_repeated(self, status, body):
        expired = Reply(status, {}, json.dumps(body).encode())

        assert len(ask([expired, token("token-2"), RUNNING])[1]) == 3
        with pytest.raises(MisconfigurationError, match="client id and secret") as caught:
            ask([expired] * 9, api.debug_meter(5))
        assert len(caught.value.requests) == 1

    @pytest.mark.parametrize("body", EXPIRED_BY_MESSAGE)
    def test_a_fault_of_the_server_does_not_renew_the_token_by_its_message(self, body):
        with pytest.raises(TransientError) as caught:
            ask([Reply(500, {}, json.dumps(body).encode())] * 9, api.debug_meter(5))
        assert len(caught.value.requests) == 1

    def test_a_missing_permission_may_be_a_401(self):
        denied = Reply(401, {}, b'{"error": {"code": "70002006", "message": "no"}}')

        with pytest.raises(MisconfigurationError, match="permission"):
            ask([denied, token(), denied])


FAULTS = {
    "429": Reply(429),
    "500": Reply(500),
    "502": Reply(502, {}, b"<html>"),
    "503": BUSY,
    "504": Reply(504),
    "408": Reply(408),
    "rate": Reply(400, {}, b'{"success": false, "error": {"code": "70002005", "message": "slow down"}}'),
    "rate200": Reply(200, {}, b'{"success": false, "error": {"code": "70002005"}}'),
    "reset": Failure("ConnectionResetError"),
    "html": Reply(200, {"content-type": "text/html; charset=utf-8"}, b"<html>maintenance</html>"),
    "badjson": Reply(200, {}, b'{"success": tr'),
    "list": Reply(200, {}, b"[1]"),
    "empty": Reply(200),
    "redirect": Reply(302, {"location": "https://status.zuora.com/?q=1"}),
    "no status": Reply(200, {}, b'{"success": true, "data": {}}'),
}
NOT_CARRIED_OUT = {"429", "rate", "rate200"}


class TestRepeating:
    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
    def test_a_transient_fault_is_retried(self, fault):
        result, requests, slept = ask([fault, fault, RUNNING])

        assert (result, len(requests)) == ("RUNNING", 3)
        assert slept == [0.5, 1.0]

    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
    def test_the_number_of_attempts_is_limited(self, fault):
        for attempts in (1, 3):
            with pytest.raises(TransientError) as caught:
                ask([fault] * 9, attempts=attempts)
            assert len(caught.value.requests) == attempts
            assert len(caught.value.slept) == attempts - 1

    @pytest.mark.parametrize(
        "name", sorted(FAULTS.keys() - NOT_CARRIED_OUT - {"no status"})
    )  # for a run that is a success
    def test_a_run_call_without_a_key_is_not_repeated_if_it_may_have_been_carried_out(self, name):
        fault = FAULTS[name]
        for call in (api.run_meter(5), api.debug_meter(5)):
            with pytest.raises(TransientError, match=r"not sent again.*may have been started") as caught:
                ask([fault] * 9, call)
            assert len(caught.value.requests) == 1

    @pytest.mark.parametrize("name", sorted(NOT_CARRIED_OUT))
    def test_a_run_call_that_was_certainly_not_carried_out_is_repeated(self, name):
        run, requests, _ = ask([FAULTS[name], Reply(200, {}, b'{"success": true, "data": {}}')], api.debug_meter(5))

        assert run.meter_id == "5"
        assert len(requests) == 2

    def test_a_run_call_with_a_key_is_repeated_unchanged(self):
        duplicate = Reply(400, {}, b'{"success": false, "error": {"code": "9", "message": "duplicate uniqueKey k"}}')

        with pytest.raises(DuplicateKeyError) as caught:
            ask([Failure("timeout"), duplicate], api.run_meter(5, unique_key="k"))

        first, second = caught.value.requests
        assert first == second

    def test_a_stop_is_repeated(self):
        _, requests, _ = ask([BUSY, Reply(200, {}, b'{"success": true}')], api.stop_meter(5))

        assert len(requests) == 2

    @pytest.mark.parametrize("status", [200, 400, 404])
    def test_a_permanent_refusal_is_not_retried(self, status):
        refusal = Reply(status, {}, b'{"success": false, "error": {"code": "70002104", "message": "no"}}')

        with pytest.raises(PermanentError, match="no") as caught:
            ask([refusal])

        assert len(caught.value.requests) == 1

    @pytest.mark.parametrize("status", [200, 400, 409])
    def test_an_undocumented_refusal_is_repeated_for_a_read_alone(self, status):
        refusal = Reply(status, {}, b'{"success": false, "error": {"code": "12345678", "message": "odd"}}')

        assert len(ask([refusal, RUNNING])[1]) == 2
        with pytest.raises(UnknownRefusalError, match="odd") as caught:
            ask([refusal] * 9, attempts=3)
        assert len(caught.value.requests) == 3
        for call in (api.run_meter(5, unique_key="k"), api.debug_meter(5), api.stop_meter(5)):
            with pytest.raises(PermanentError, match=r"not retried.*odd") as caught:
                ask([refusal] * 9, call)
            assert len(caught.value.requests) == 1

    def test_a_403_is_repeated_once_for_a_read(self):
        forbidden = Reply(403, {}, b"<html>")

        assert len(ask([forbidden, RUNNING])[1]) == 2
        for call, sent in ((api.run_status(5), 2), (api.stop_meter(5), 1)):
            with pytest.raises(MisconfigurationError, match="forbidden") as caught:
                ask([forbidden] * 9, call)
            assert len(caught.value.requests) == sent

    def test_a_redirect_from_http_to_https_names_the_remedy(self):
        plain = Peer(base_url="http://rest.zuora.com", client_id="c", client_secret="s")
        moved = Reply(301, {"location": "https://rest.zuora.com/"})

        with pytest.raises(UnusableAddressError, match="write https:// before the host"):
            drive(exchange(api.run_status(5), plain, FakeTokens(), attempts=5, note=unnoted), [moved])

    def test_an_address_that_cannot_work_is_tried_once(self):
        with pytest.raises(UnusableAddressError, match=r"cannot reach rest\.zuora\.com: write http://") as caught:
            ask([Failure("write http://", unusable=True)] * 9)

        assert len(caught.value.requests) == 1

    def test_retry_after_is_honoured(self):
        _, _, slept = ask([Reply(429, {"retry-after": "17"}), Reply(503, {"ratelimit-reset": "90, 3"}), RUNNING])

        assert slept == [17, 90]

    def test_a_longer_wait_than_allowed_is_raised(self):
        with pytest.raises(TransientError) as caught:
            ask([Reply(429, {"ratelimit-reset": "40000"})])

        assert caught.value.retry_after == 900
        assert caught.value.slept == []

    def test_the_pauses_of_one_call_are_limited_together(self):
        with pytest.raises(TransientError) as caught:
            ask([Reply(429, {"retry-after": "140"})] * 9)

        assert caught.value.slept == [140, 140]

    def test_no_pause_is_longer_than_the_caller_has(self):
        with pytest.raises(TransientError) as caught:
            ask([Reply(429, {"retry-after": "40"})] * 9, patience=60)

        assert caught.value.slept == [40]

    def test_the_log_line_has_the_error_and_the_wait(self):
        flow = exchange(api.run_status(5), PEER, FakeTokens(), attempts=2, note=unnoted, jitter=lambda: 0.0)
        next(flow)

        step = flow.send(FAULTS["html"])

        assert step.reason == (
            "The run status of meter 5 was answered by rest.zuora.com with something else than the expected JSON "
            "(text/html, 24 bytes, HTTP 200): maintenance, a proxy, or not the REST base URL. "
            "Asking again in 0.5 s (attempt 2 of 2)."
        )


class TestNoting:
    def test_each_request_of_the_call_is_noted_with_its_outcome_but_none_for_a_token(self):
        noted = []

        ask([token(), UNAUTHORIZED, token("token-2"), BUSY, RUNNING], tokens=FakeTokens(token=None), note=noted.append)

        assert noted == [UNAUTHORIZED, BUSY, RUNNING]

    def test_a_cancelled_request_is_noted_too(self):
        noted = []
        flow = exchange(api.run_status(5), PEER, FakeTokens(), attempts=1, note=noted.append)
        next(flow)

        flow.close()

        assert noted == [None]


class TestBackoff:
    @given(st.integers(1, 60), st.floats(0, 1))
    def test_the_backoff_grows_to_a_limit_and_is_spread(self, failures, chance):
        wait = backoff(failures, None, lambda: chance)

        assert 0.5 <= wait <= 30
        assert backoff(failures, None, lambda: 0.0) * 2 == backoff(failures, None, lambda: 1.0)

    @given(st.floats(0, 300), st.floats(0, 1))
    def test_the_wait_is_never_shorter_than_zuora_asked(self, asked, chance):
        assert asked <= backoff(1, asked, lambda: chance) <= asked * 1.1 + 1


class TestTrackId:
    ODD = "scheduled__2026-01-01T00:00:00+00:00"

    def test_a_short_track_id_is_readable(self):
        assert legal_track_id("dag", "task", "run", 3, 2) == "dag.task.run.3.2"
        assert legal_track_id("dag", "task", "run") == "dag.task.run.1"

    @given(st.text(), st.text(), st.text(), st.integers(-1, 9999), st.integers(1, 99))
    def test_a_track_id_is_always_legal(self, dag, task, run, index, try_number):
        track = legal_track_id(dag, task, run, index, try_number)

        assert 0 < len(track) <= 64
        assert track.isascii()
        assert track.isprintable()
        assert not set(track) & set(":;\"' ")

    def test_cut_or_replaced_track_ids_are_different(self):
        long = "d" * 80
        ids = {
            legal_track_id(long, "t", self.ODD, index, number) for index in range(-1, 5) for number in range(1, 5)
        } | {legal_header("a:b"), legal_header("a;b"), legal_header("a-b")}

        assert len(ids) == 6 * 4 + 3


class TestSecrets:
    @pytest.mark.parametrize("name", ["message", "code", "requestId", "error_description"])
    @pytest.mark.parametrize("secret", ["token-with=x", "hush-hush"])
    def test_what_zuora_repeats_of_a_call_is_not_quoted(self, name, secret):
        reply = Reply(400, {}, json.dumps({"success": False, name: f"{'x' * 60} Bearer {secret} is odd"}).encode())

        with pytest.raises(PermanentError) as caught:
            ask([reply] * 9, tokens=FakeTokens(token="token-with=x"))

        shown = repr([str(caught.value), vars(caught.value)])
        assert "***" in shown
        assert "token-with" not in shown
        assert "hush-hush" not in shown

    def test_a_secret_at_the_end_of_a_long_message_is_not_quoted_in_part(self):
        reply = Reply(400, {}, json.dumps({"message": f"{'x' * 494}token-0"}).encode())

        with pytest.raises(PermanentError) as caught:
            ask([reply] * 9)

        assert "xtok" not in str(caught.value)

    def test_the_address_of_a_redirect_is_quoted_without_the_token(self):
        with pytest.raises(TransientError, match=r"redirects to https://else/\*\*\*, which"):
            ask([Reply(302, {"location": "https://else/token-0?a=b"}, b"")] * 9)

    @pytest.mark.parametrize("answered", ["hush-hush", "hush%2Bhush"])
    def test_what_zuora_repeats_of_the_request_for_a_token_is_not_quoted(self, answered):
        peer = replace(PEER, client_secret="hush-hush" if "-" in answered else "hush+hush")
        refusal = Reply(401, {}, json.dumps({"error_description": f"{answered} is wrong"}).encode())

        with pytest.raises(MisconfigurationError) as caught:
            drive(obtain_token(peer, FakeTokens(token=None)), [refusal])

        assert "*** is wrong" in str(caught.value)

    @pytest.mark.parametrize("text", ["tok\nen", "tok en", "tökèn", "\x00", "t" * 8001])
    def test_a_token_that_no_header_can_contain_is_refused_and_not_quoted(self, text):
        with pytest.raises(TransientError, match="a token that no header can contain") as caught:
            ask([token(text)] * 9, tokens=FakeTokens(token=None))

        assert "tok" not in str(caught.value).replace("token", "")
