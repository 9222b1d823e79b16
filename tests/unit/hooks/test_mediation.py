"""Both hooks against a server: the same calls, the same errors, the same patience."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from airflow_mediation_provider.hooks import mediation
from airflow_mediation_provider.hooks.mediation import MediationAsyncHook, MediationHook
from airflow_mediation_provider.protocol.errors import (
    DuplicateKeyError,
    MisconfigurationError,
    PermanentError,
    TransientError,
)

from .conftest import CLIENT_SECRET, TOKEN, Answer

STATUS = "/meters/5/0.0.1/runStatus"
RUN = "/meters/run/5/0.0.1"
SPAN = {"run_type": "NORMAL", "query_from": "2026-01-01T00:00:00Z", "query_to": "2026-01-02T00:00:00Z"}
STARTED = Answer({"success": True, "data": {"id": "1", "sessionId": "R-1", "status": 10}})


def test_a_certificate_file_that_is_not_there_is_a_misconfiguration(ask, zuora, connect):
    for extra in ({"verify": "/no/ca.pem"}, {"cert": ["/no/client.pem", "/no/client.key"]}):
        connect(extra)
        with pytest.raises(MisconfigurationError, match=r"certificate file of the connection's extra.*/no/c"):
            ask("run_status", 5)
    assert zuora.seen == []


class TestCalls:
    def test_run(self, ask, zuora, connect):
        connect({"entity_id": "e-1", "org_ids": ["o-1", "o-2"], "data_center": "SBX", "unknown": "must not travel"})
        zuora.on(RUN, STARTED)

        run = ask("run_meter", 5, unique_key="k", hook={"track_id": "dag:task"})

        assert (run.session_id, run.status) == ("R-1", "INITIALIZING")
        sent = zuora.seen[-1]
        assert sent.body == b'{"uniqueKey": "k"}'
        assert sent.headers["zuora-entity-ids"] == "e-1"
        assert sent.headers["zuora-org-ids"] == "o-1,o-2"
        assert sent.headers["zuora-track-id"].startswith("dag-task-")
        assert sent.headers["content-type"] == "application/json"
        assert "must not travel" not in str(zuora.seen)
        assert "data_center" not in str(zuora.seen)

    def test_headers_only_when_set(self, ask, zuora):
        ask("run_status", 5)

        assert not [name for name in zuora.seen[-1].headers if name.startswith("zuora-")]
        assert zuora.seen[-1].headers["content-type"] == "application/json"  # required on a GET too

    def test_the_secret_travels_in_the_form_alone(self, ask, zuora):
        ask("run_status", 5)

        token, status = zuora.seen
        assert CLIENT_SECRET.encode() in token.body
        assert "authorization" not in token.headers
        assert CLIENT_SECRET not in str(status)

    def test_every_other_call(self, ask, zuora):
        zuora.on("/meters/debug/5/0.0.1", Answer({"sessionId": "T-1", "runStatus": "TESTING"}))
        zuora.on("/meters/stop/5/0.0.1", Answer({"success": True}))
        zuora.on("/meters/5/summary", Answer({"success": True, "data": {"output": []}}))
        zuora.on("/meters/5/auditTrail/export", Answer({"data": {"requestId": "q", "jobs": [{"requestId": "q"}]}}))
        zuora.on("/meters/auditTrail/presignedUrl", Answer({"data": "https://files/1"}))

        assert ask("run_status", 5) == "RUNNING"
        assert ask("debug_meter", 5).session_id == "T-1"
        assert ask("stop_meter", 5, force=True) is None
        assert ask("meter_summary", 5, **SPAN) == {"output": []}
        assert ask("create_export_job", 5, export_type="ERROR", **SPAN) == "q"
        assert ask("list_export_jobs", 5) == [{"requestId": "q"}]
        assert ask("export_download_url", "f") == "https://files/1"
        assert zuora.tokens["issued"] == 1

    def test_pages(self, ask, zuora):
        path = "/meters/5/auditTrail/entries"
        zuora.on(
            path,
            Answer({"data": [{"eventId": "1"}, {"eventId": "2"}], "nextPage": "c+/="}),
            Answer({"data": [], "nextPage": "d"}),
            Answer({"data": [{"eventId": "3"}], "nextPage": None}),
        )

        entries = ask("audit_trail_entries", 5, export_type="ERROR", **SPAN)

        assert [entry["eventId"] for entry in entries] == ["1", "2", "3"]
        first, second, third = [seen.query for seen in zuora.seen if seen.path == path]
        assert "queryFromTime=2026-01-01T00%3A00%3A00%2B0000" in first
        assert second.endswith("&cursor=c%2B%2F%3D")
        assert third.endswith("&cursor=d")

    def test_pages_of_the_callout_history(self, ask, zuora):
        path = "/v1/notification-history/callout"
        zuora.on(
            path,
            Answer({"calloutHistories": [{"attemptedNum": 1}], "nextPage": "https://elsewhere/next", "success": True}),
            Answer({"calloutHistories": [{"attemptedNum": 2}], "success": True}),
        )

        records = ask("callout_history", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))

        assert [record["attemptedNum"] for record in records] == [1, 2]
        first, second = [seen.query for seen in zuora.seen if seen.path == path]
        assert "failedOnly=false" in first
        assert "startTime=2026-01-01T00%3A00%3A00" in first
        assert second == first.replace("page=1", "page=2")

    def test_pages_that_go_round(self, ask, zuora):
        zuora.on("/meters/5/auditTrail/entries", Answer({"data": [{}], "nextPage": "same"}))

        with pytest.raises(PermanentError, match="same next page twice"):
            ask("audit_trail_entries", 5, export_type="ERROR", **SPAN)

        assert zuora.paths().count("/meters/5/auditTrail/entries") == 2

    def test_only_as_many_pages_as_are_looked_at(self, zuora, connect):
        zuora.on("/meters/5/auditTrail/entries", Answer({"data": [{}], "nextPage": "c"}))

        next(MediationHook("mediation_test").audit_trail_entries(5, export_type="ERROR", **SPAN))

        assert zuora.paths().count("/meters/5/auditTrail/entries") == 1

    def test_session_url(self, ask, connect):
        assert ask("session_url", "5", "R-1") is None
        connect({"data_center": "SBX_EU", "ui_link_template": "{ui_base}/m/{meter_id}?s={session_id}"})
        assert ask("session_url", "5/6", "R-1") == "https://sandbox.eu.zuora.com/m/5%2F6?s=R-1"
        assert ask("session_url", "5", None) is None

    def test_arguments_are_checked_before_anything_is_sent(self, ask, zuora):
        with pytest.raises(ValueError, match="meter_id"):
            ask("run_status", "")
        for hook in (MediationHook("mediation_test"), MediationAsyncHook("mediation_test")):
            with pytest.raises(ValueError, match="export_type"):
                hook.audit_trail_entries(5, export_type="ALL", **SPAN)  # at the call, not at the first entry
        assert zuora.seen == []

    def test_attempts(self):
        with pytest.raises(ValueError, match="attempts must be at least 1"):
            MediationHook(attempts=0)

    def test_both_hooks_have_the_same_methods(self):
        def public(hook):
            methods = {name: method for name, method in vars(hook).items() if callable(method) and name[0] != "_"}
            return {name: list(inspect.signature(method).parameters) for name, method in methods.items()}

        sync, async_ = public(MediationHook), public(MediationAsyncHook)
        only_sync = {name: sync.pop(name) for name in ("get_conn", "test_connection")}
        async_.pop("settings")  # a property of the synchronous one

        assert sync == async_
        assert len(sync) == 13
        assert only_sync

    def test_signatures_help(self):
        signature = inspect.signature(MediationHook.run_meter)

        assert list(signature.parameters)[:4] == ["self", "meter_id", "version", "unique_key"]
        assert signature.return_annotation == "MeterRun"
        assert MediationHook.run_meter.__doc__.startswith("Start a NORMAL run")
        assert inspect.iscoroutinefunction(MediationAsyncHook.run_meter)

    def test_the_track_id_is_that_of_the_task(self, ask, zuora, monkeypatch):
        ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=3, try_number=2)
        monkeypatch.setattr("airflow.sdk.get_current_context", lambda: {"ti": ti})

        ask("run_status", 5)
        ask("run_status", 5, hook={"track_id": "mine"})

        assert [seen.headers["zuora-track-id"] for seen in zuora.seen[1:]] == ["d.t.r.3.2", "mine"]


class TestTrouble:
    @pytest.mark.parametrize(
        "fault",
        [
            Answer(status=503, body=b"<html>"),
            Answer(status=429, headers={"Retry-After": "0"}),
            Answer(b"<html>maintenance</html>", headers={"Content-Type": "text/html"}),
            Answer(b'{"success": tr'),
            Answer(how="reset"),
            Answer(status=302, headers={"Location": "/elsewhere"}),
            Answer({"success": False, "error": {"code": "70002005", "message": "slow down"}}),
        ],
        ids=["503", "429", "html", "badjson", "reset", "redirect", "rate"],
    )
    def test_passes(self, ask, zuora, slept, fault):
        zuora.on(STATUS, fault, fault, Answer({"data": {"runStatus": 7}}))

        assert ask("run_status", 5) == "COMPLETED"
        assert zuora.paths().count(STATUS) == 3
        assert "/elsewhere" not in zuora.paths()

    @pytest.mark.parametrize("how", ["reset", "plain"])
    def test_one_attempt_is_one_request(self, ask, zuora, how):
        zuora.on(STATUS, Answer(status=503, how=how))
        ask("stop_meter", 5)  # so that the token is there

        with pytest.raises(TransientError):
            ask("run_status", 5, hook={"attempts": 1})

        assert zuora.paths().count(STATUS) == 1

    def test_retry_after_is_slept(self, ask, zuora, slept):
        zuora.on(
            STATUS, Answer(status=429, headers={"RateLimit-Reset": "20, 40;w=60"}), Answer({"data": {"runStatus": 7}})
        )

        ask("run_status", 5)

        [seconds] = slept
        assert 20 <= seconds <= 22

    @pytest.mark.parametrize("how", ["hang", "stall", "drip"])
    def test_a_hang_is_limited(self, ask, zuora, connect, how):
        connect({"timeout": 0.4})
        zuora.on(STATUS, Answer({}, how=how))
        before = time.monotonic()

        with pytest.raises(TransientError, match=r"no complete answer within 0.4 s"):
            ask("run_status", 5, hook={"attempts": 1})

        assert time.monotonic() - before < 3

    def test_nobody_listens(self, ask, connect):
        connect(host="http://127.0.0.1:9")

        with pytest.raises(TransientError, match=r"did not reach 127\.0\.0\.1:9.*[Rr]efused"):
            ask("run_status", 5, hook={"attempts": 2})

    def test_unknown_host(self, ask, connect):
        connect(host="https://rest.zuora.invalid")

        with pytest.raises(TransientError, match=r"did not reach rest\.zuora\.invalid"):
            ask("run_status", 5, hook={"attempts": 1})

    def test_a_run_without_a_key_is_sent_once(self, ask, zuora):
        zuora.on(RUN, Answer(how="reset"), STARTED)

        with pytest.raises(TransientError, match="may have been started"):
            ask("run_meter", 5)

        assert zuora.paths().count(RUN) == 1

    def test_under_a_key_the_same_is_sent_again(self, ask, zuora):
        taken = Answer({"success": False, "error": {"code": "70002999", "message": "uniqueKey k is a duplicate"}}, 400)
        zuora.on(RUN, Answer(how="reset"), taken)

        with pytest.raises(DuplicateKeyError):
            ask("run_meter", 5, unique_key="k")

        first, second = [seen.body for seen in zuora.seen if seen.path == RUN]
        assert first == second

    def test_permanent_at_once(self, ask, zuora):
        zuora.on(STATUS, Answer({"success": False, "error": {"code": "70002103", "message": "No meter"}}, 404))

        with pytest.raises(MisconfigurationError, match=r"meter does not exist.*No meter.*70002103"):
            ask("run_status", 5)

        assert zuora.paths().count(STATUS) == 1

    def test_a_lasting_401(self, ask, zuora):
        zuora.valid = False

        with pytest.raises(MisconfigurationError, match="client id and secret"):
            ask("run_status", 5)

        assert zuora.paths() == ["/oauth/token", STATUS, "/oauth/token", STATUS]

    def test_wrong_secret(self, ask, zuora):
        zuora.token_answers = [Answer({"error": "invalid_client"}, 401)]

        with pytest.raises(MisconfigurationError, match="does not accept the client id and secret"):
            ask("run_status", 5)

        assert zuora.paths() == ["/oauth/token"]

    def test_missing_connection(self, ask, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_MEDIATION_TEST")

        with pytest.raises(MisconfigurationError, match="'mediation_test' was not found"):
            ask("run_status", 5)

    @pytest.mark.parametrize(
        ("trouble", "kind", "says"),
        [
            (PermissionError("no"), MisconfigurationError, "may not be read"),
            (RuntimeError("PERMISSION_DENIED: no"), MisconfigurationError, "may not be read"),
            (ValueError("no JSON"), MisconfigurationError, "cannot be read"),
            (RuntimeError("API_SERVER_ERROR: down"), TransientError, "could not be looked up"),
        ],
    )
    def test_a_connection_that_cannot_be_looked_up(self, ask, monkeypatch, trouble, kind, says):
        def fail(*args, **kwargs):
            raise trouble

        monkeypatch.setattr(MediationHook, "get_connection", fail)
        monkeypatch.setattr("airflow.providers.common.compat.connection.get_async_connection", fail)

        with pytest.raises(kind, match=f"'mediation_test' {says}"):
            ask("run_status", 5)

    def test_nothing_secret_in_any_log(self, ask, zuora, caplog, capfd, slept):
        caplog.set_level(logging.DEBUG)
        zuora.on(STATUS, Answer(status=503), Answer({"data": {"runStatus": 7}}))

        ask("run_status", 5)
        zuora.valid = False
        with pytest.raises(MisconfigurationError) as caught:
            ask("run_status", 5)

        logged = caplog.text + "".join(capfd.readouterr())  # Airflow's own log goes to standard output
        assert "Asking again" in logged
        for secret in (CLIENT_SECRET, TOKEN):
            assert secret not in logged
            assert secret not in repr(caught.value)


class TestLives:
    def test_a_connection_put_right_is_read_again(self, zuora, connect):
        hook = MediationHook("mediation_test")
        connect(password="")
        with pytest.raises(MisconfigurationError, match="secret"):
            hook.run_status(5)

        connect()
        assert hook.run_status(5) == "RUNNING"
        zuora.token_answers = [Answer({}, 401)]
        connect(password="another")
        assert hook.run_status(5) == "RUNNING"  # read once, while all is well
        hook.close()
        with pytest.raises(MisconfigurationError):
            hook.run_status(5)
        connect({"timeout": 4})
        assert hook.run_status(5) == "RUNNING"
        assert hook.settings.http.timeout == 4

    async def test_the_same_of_the_asynchronous_one(self, zuora, connect):
        async with MediationAsyncHook("mediation_test") as hook:
            zuora.token_answers = [Answer({}, 401)]
            with pytest.raises(MisconfigurationError):
                await hook.run_status(5)
            connect({"timeout": 4})
            assert await hook.run_status(5) == "RUNNING"
            assert (await hook.settings()).http.timeout == 4

    async def test_one_session_and_at_most_four_connections(self, zuora, connect):
        zuora.on(STATUS, Answer({"data": {"runStatus": 5}}, after=0.02))
        async with MediationAsyncHook("mediation_test") as hook:
            assert await asyncio.gather(*(hook.run_status(5) for _ in range(40))) == ["RUNNING"] * 40

        assert zuora.connections <= 4
        assert zuora.tokens["issued"] == 1

    def test_a_hook_survives_its_loop(self, zuora, connect):
        hook = MediationAsyncHook("mediation_test")

        async def ask():
            return await hook.run_status(5)

        assert asyncio.run(ask()) == "RUNNING"
        assert asyncio.run(ask()) == "RUNNING"
        asyncio.run(hook.close())

    async def test_closing_twice_or_unused(self, connect):
        hook = MediationAsyncHook("mediation_test")
        await hook.close()
        await hook.run_status(5)
        await hook.close()
        await hook.close()
        assert await hook.run_status(5) == "RUNNING"
        await hook.close()

    async def test_a_cancelled_call_leaves_the_hook_well(self, zuora, connect):
        async with MediationAsyncHook("mediation_test") as hook:
            zuora.on(STATUS, Answer({}, how="hang"), Answer({"data": {"runStatus": 5}}))
            calling = asyncio.create_task(hook.run_status(5))
            assert await asyncio.to_thread(zuora.hung.wait, 10)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert await hook.run_status(5) == "RUNNING"

    def test_one_hook_in_many_threads(self, zuora, connect):
        with MediationHook("mediation_test") as hook, ThreadPoolExecutor(8) as pool:
            assert list(pool.map(hook.run_status, [5] * 40)) == ["RUNNING"] * 40


class TestConnectionTest:
    PROBE = "/meters/0/0.0.1/runStatus"

    @pytest.mark.parametrize(
        ("answer", "works", "says"),
        [
            (Answer({"success": False, "error": {"code": "70002103"}}, 404), True, "Not proven"),
            (Answer({"success": False, "error": {"code": "70002004"}}, 400), False, "not enabled"),
            (Answer({"success": False, "error": {"code": "70002006"}}, 401), False, "permission is missing"),
            (Answer(b"<html>", 404), False, "check the host"),
            (Answer(b"<html>", 200), False, "not the REST base URL"),
        ],
    )
    def test_after_the_token(self, zuora, connect, answer, works, says, slept):
        zuora.on(self.PROBE, answer)

        ok, sentence = MediationHook("mediation_test").test_connection()

        assert ok is works
        assert says in sentence

    def test_the_token(self, zuora, connect):
        zuora.token_answers = [Answer({"error": "invalid_client"}, 400)]

        assert MediationHook("mediation_test").test_connection() == (
            False,
            f"{zuora.url[7:]} does not accept the client id and secret: check both, and the data center, for a client "
            "id is known in its own tenant only (HTTP 400, Zuora says: invalid_client).",
        )

    def test_a_token_that_is_there_proves_nothing(self, zuora, connect):
        hook = MediationHook("mediation_test")
        hook.run_status(5)
        zuora.token_answers = [Answer({}, 401)]

        assert not hook.test_connection()[0]

    def test_the_host(self, connect):
        connect(host="http://127.0.0.1:9")

        ok, sentence = MediationHook("mediation_test").test_connection()

        assert not ok
        assert "127.0.0.1:9" in sentence

    def test_the_fields(self, connect):
        connect(login=None)

        assert MediationHook("mediation_test").test_connection() == (
            False,
            "The client ID (login) is missing.",
        )


def test_module_is_all_there_is_to_patch():
    assert mediation.MediationHook.conn_type == "mediation"
    assert mediation.MediationHook.conn_name_attr == "mediation_conn_id"
    assert MediationHook().mediation_conn_id == "mediation_default"
