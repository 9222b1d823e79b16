"""The one flow of token, sending, waiting and repeating, driven by hand: no sockets, no clock."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol import api
from airflow_mediation_provider.protocol.errors import (
    DuplicateKeyError,
    MisconfigurationError,
    PermanentError,
    TransientError,
)
from airflow_mediation_provider.protocol.exchange import (
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
from airflow_mediation_provider.protocol.refusals import Reply

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
    """Tokens without threads: the asker always carries the fetch out itself."""

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
    """Leave out what is not counted."""


def ask(outcomes, call=None, tokens=None, attempts=5, jitter=lambda: 0.0, note=unnoted):
    options = {"attempts": attempts, "jitter": jitter, "note": note}
    return drive(exchange(call or api.run_status(5), PEER, tokens or FakeTokens(), **options), outcomes)


class TestSending:
    def test_a_plain_call(self):
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

    def test_body_and_query(self):
        _, [run], _ = ask([Reply(200, {}, b"{}")], api.run_meter(5, unique_key="k"))
        _, [stop], _ = ask([Reply(200, {}, b"{}")], api.stop_meter(5, force=True))

        assert json.loads(run.body) == {"uniqueKey": "k"}
        assert stop.url.endswith("/meters/stop/5/0.0.1?forceStop=true")

    def test_no_repr_shows_a_secret(self):
        request = Request("POST", "u", {"Authorization": "Bearer hush"}, b"hush")
        shown = repr([PEER, Send(request), Claim(token="hush"), Reply(200, {"a": "hush"}, b"hush")])

        assert "hush" not in shown


class TestToken:
    def test_fetched_as_documented(self):
        tokens = FakeTokens(token=None)

        result, [first, second], _ = ask([token(), RUNNING], tokens=tokens)

        assert result == "RUNNING"
        assert (first.method, first.url) == ("POST", "https://rest.zuora.com/oauth/token")
        assert first.headers["Content-Type"] == "application/x-www-form-urlencoded"
        assert "Authorization" not in first.headers
        assert first.body == b"client_id=id&client_secret=hush-hush&grant_type=client_credentials"
        assert second.headers["Authorization"] == "Bearer token-1"
        assert tokens.life == 3599

    @pytest.mark.parametrize("life", [None, "soon", {}])
    def test_a_life_that_cannot_be_read(self, life):
        tokens = FakeTokens(token=None)

        ask([token(expires_in=life), RUNNING], tokens=tokens)

        assert tokens.life == 3600

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_wrong_credentials_at_once(self, status):
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
    def test_trouble_passes(self, fault):
        result, requests, slept = ask([fault, token(), RUNNING], tokens=FakeTokens(token=None))

        assert (result, len(requests), len(slept)) == ("RUNNING", 3, 1)

    def test_even_for_a_run_without_a_key(self):
        _, requests, _ = ask([BUSY, token(), Reply(200, {}, b"{}")], api.run_meter(5), FakeTokens(token=None))

        assert [request.url.rsplit("/", 2)[0] for request in requests].count("https://rest.zuora.com/meters/run") == 1

    def test_given_up_by_whoever_stops_asking(self):
        tokens = FakeTokens(token=None)
        flow = exchange(api.run_status(5), PEER, tokens, attempts=1, note=unnoted)
        assert isinstance(next(flow), Send)

        flow.close()

        assert (tokens.ended, tokens.error) == (1, None)

    def test_who_waits_gets_the_error_of_who_fetches(self):
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


class TestUnauthorized:
    def test_renewed_once(self):
        tokens = FakeTokens()

        result, requests, slept = ask([UNAUTHORIZED, token("token-2"), RUNNING], tokens=tokens, attempts=1)

        assert (result, slept) == ("RUNNING", [])
        assert tokens.discarded == ["token-0"]
        assert requests[2].headers["Authorization"] == "Bearer token-2"

    def test_a_lasting_one_is_the_credentials(self):
        tokens = FakeTokens()

        with pytest.raises(MisconfigurationError, match="client id and secret") as caught:
            ask([UNAUTHORIZED, token("token-2"), UNAUTHORIZED], tokens=tokens)

        assert len(caught.value.requests) == 3
        assert tokens.token is None

    def test_a_start_may_be_sent_again_for_nothing_was_accepted(self):
        _, requests, _ = ask([UNAUTHORIZED, token(), Reply(200, {}, b"{}")], api.run_meter(5))

        assert len(requests) == 3

    def test_trouble_while_renewing_is_no_doubt_about_the_start(self):
        _, requests, _ = ask([UNAUTHORIZED, BUSY, token(), Reply(200, {}, b"{}")], api.run_meter(5))

        assert len(requests) == 4

    def test_permission_that_comes_as_401(self):
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


class TestRepeating:
    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
    def test_what_passes_is_asked_again(self, fault):
        result, requests, slept = ask([fault, fault, RUNNING])

        assert (result, len(requests)) == ("RUNNING", 3)
        assert slept == [0.5, 1.0]

    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
    def test_attempts_are_honoured(self, fault):
        for attempts in (1, 3):
            with pytest.raises(TransientError) as caught:
                ask([fault] * 9, attempts=attempts)
            assert len(caught.value.requests) == attempts
            assert len(caught.value.slept) == attempts - 1

    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
    def test_a_start_without_a_key_is_sent_once(self, fault):
        for call in (api.run_meter(5), api.debug_meter(5)):
            if fault is FAULTS["no status"]:
                continue  # for a run that is a success
            with pytest.raises(TransientError, match=r"not sent again.*may have been started") as caught:
                ask([fault] * 9, call)
            assert len(caught.value.requests) == 1

    def test_a_start_under_a_key_is_repeated_as_it_was(self):
        duplicate = Reply(400, {}, b'{"success": false, "error": {"code": "9", "message": "duplicate uniqueKey k"}}')

        with pytest.raises(DuplicateKeyError) as caught:
            ask([Failure("timeout"), duplicate], api.run_meter(5, unique_key="k"))

        first, second = caught.value.requests
        assert first == second

    def test_a_stop_is_repeated(self):
        _, requests, _ = ask([BUSY, Reply(200, {}, b'{"success": true}')], api.stop_meter(5))

        assert len(requests) == 2

    @pytest.mark.parametrize("status", [200, 400, 403, 404])
    def test_what_is_refused_for_good_is_not(self, status):
        refusal = Reply(status, {}, b'{"success": false, "error": {"code": "12345678", "message": "no"}}')

        with pytest.raises(PermanentError, match="no") as caught:
            ask([refusal])

        assert len(caught.value.requests) == 1

    def test_retry_after_is_honoured(self):
        _, _, slept = ask([Reply(429, {"retry-after": "17"}), Reply(503, {"ratelimit-reset": "90, 3"}), RUNNING])

        assert slept == [17, 90]

    def test_a_wait_that_is_too_long_goes_to_the_caller(self):
        with pytest.raises(TransientError) as caught:
            ask([Reply(429, {"ratelimit-reset": "40000"})])

        assert caught.value.retry_after == 40000
        assert caught.value.slept == []

    def test_the_log_line_says_what_and_when(self):
        flow = exchange(api.run_status(5), PEER, FakeTokens(), attempts=2, note=unnoted, jitter=lambda: 0.0)
        next(flow)

        step = flow.send(FAULTS["html"])

        assert step.reason == (
            "The run status of meter 5 was answered by rest.zuora.com with something else than the expected JSON "
            "(text/html, 24 bytes, HTTP 200): maintenance, a proxy, or not the REST base URL. "
            "Asking again in 0.5 s (attempt 2 of 2)."
        )


class TestNoting:
    def test_each_request_of_the_call_is_told_of_with_its_outcome_and_none_for_a_token(self):
        noted = []

        ask([token(), UNAUTHORIZED, token("token-2"), BUSY, RUNNING], tokens=FakeTokens(token=None), note=noted.append)

        assert noted == [UNAUTHORIZED, BUSY, RUNNING]

    def test_one_whose_answer_nobody_waited_for_is_told_of_too(self):
        noted = []
        flow = exchange(api.run_status(5), PEER, FakeTokens(), attempts=1, note=noted.append)
        next(flow)

        flow.close()

        assert noted == [None]


class TestBackoff:
    @given(st.integers(1, 60), st.floats(0, 1))
    def test_grows_to_a_limit_and_is_spread(self, failures, chance):
        wait = backoff(failures, None, lambda: chance)

        assert 0.5 <= wait <= 30
        assert backoff(failures, None, lambda: 0.0) * 2 == backoff(failures, None, lambda: 1.0)

    @given(st.floats(0, 300), st.floats(0, 1))
    def test_never_less_than_asked_for(self, asked, chance):
        assert asked <= backoff(1, asked, lambda: chance) <= asked * 1.1 + 1


class TestTrackId:
    ODD = "scheduled__2026-01-01T00:00:00+00:00"

    def test_readable_where_it_fits(self):
        assert legal_track_id("dag", "task", "run", 3, 2) == "dag.task.run.3.2"
        assert legal_track_id("dag", "task", "run") == "dag.task.run.1"

    @given(st.text(), st.text(), st.text(), st.integers(-1, 9999), st.integers(1, 99))
    def test_always_legal(self, dag, task, run, index, try_number):
        track = legal_track_id(dag, task, run, index, try_number)

        assert 0 < len(track) <= 64
        assert track.isascii()
        assert track.isprintable()
        assert not set(track) & set(":;\"' ")

    def test_different_where_cut_or_replaced(self):
        long = "d" * 80
        ids = {
            legal_track_id(long, "t", self.ODD, index, number) for index in range(-1, 5) for number in range(1, 5)
        } | {legal_header("a:b"), legal_header("a;b"), legal_header("a-b")}

        assert len(ids) == 6 * 4 + 3
