"""Both hooks against a server: the same calls, the same errors, the same time limits."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import pytest

from airflow_mediation_provider.hooks import mediation
from airflow_mediation_provider.hooks.mediation import MediationAsyncHook, MediationHook
from airflow_mediation_provider.hooks.settings import log_cautions
from airflow_mediation_provider.hooks.transport import AsyncTransport
from airflow_mediation_provider.protocol.zuora.errors import (
    DuplicateKeyError,
    MisconfigurationError,
    PermanentError,
    TransientError,
    UnusableAddressError,
)
from airflow_mediation_provider.protocol.zuora.flow import Failure

from .conftest import CLIENT_SECRET, TOKEN, Answer

STATUS = "/meters/5/0.0.1/runStatus"
RUN = "/meters/run/5/0.0.1"
SPAN = {"run_type": "NORMAL", "query_from": "2026-01-01T00:00:00Z", "query_to": "2026-01-02T00:00:00Z"}
STARTED = Answer({"success": True, "data": {"id": "1", "sessionId": "R-1", "status": 10}})


def test_a_missing_certificate_file_is_a_misconfiguration(ask, connect):
    for extra in ({"verify": "/no/ca.pem"}, {"cert": ["/no/client.pem", "/no/client.key"]}):
        connect(extra, host="https://127.0.0.1:9")
        with pytest.raises(MisconfigurationError, match=r"certificates of the connection's (verify|cert) \(/no/c"):
            ask("run_status", 5)


class TestCalls:
    def test_a_run_is_sent_as_zuora_documents_it(self, ask, zuora, connect):
        connect({"entity_id": "e-1", "org_ids": ["o-1", "o-2"], "data_center": "SBX", "unknown": "must not be sent"})
        zuora.on(RUN, STARTED)

        run = ask("run_meter", 5, unique_key="k", hook={"track_id": "dag:task"})

        assert (run.session_id, run.status) == ("R-1", "INITIALIZING")
        sent = zuora.seen[-1]
        assert sent.body == b'{"uniqueKey": "k"}'
        assert sent.headers["zuora-entity-ids"] == "e-1"
        assert sent.headers["zuora-org-ids"] == "o-1,o-2"
        assert sent.headers["zuora-track-id"].startswith("dag-task-")
        assert sent.headers["content-type"] == "application/json"
        assert "must not be sent" not in str(zuora.seen)
        assert "data_center" not in str(zuora.seen)

    def test_headers_are_sent_only_when_set(self, ask, zuora):
        ask("run_status", 5)

        assert not [name for name in zuora.seen[-1].headers if name.startswith("zuora-")]
        assert zuora.seen[-1].headers["content-type"] == "application/json"  # required on a GET too

    def test_the_secret_is_sent_only_in_the_form(self, ask, zuora):
        ask("run_status", 5)

        token, status = zuora.seen
        assert CLIENT_SECRET.encode() in token.body
        assert "authorization" not in token.headers
        assert CLIENT_SECRET not in str(status)

    def test_every_other_call_is_sent_as_zuora_documents_it(self, ask, zuora):
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

    def test_the_entries_of_all_pages_are_returned(self, ask, zuora):
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

    def test_all_pages_of_the_callout_history_are_returned(self, ask, zuora):
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

    def test_repeated_pages_are_an_error(self, ask, zuora):
        zuora.on("/meters/5/auditTrail/entries", Answer({"data": [{}], "nextPage": "same"}))

        with pytest.raises(PermanentError, match="same next page twice"):
            ask("audit_trail_entries", 5, export_type="ERROR", **SPAN)

        assert zuora.paths().count("/meters/5/auditTrail/entries") == 2

    def test_a_page_is_requested_only_when_it_is_read(self, zuora, connect):
        zuora.on("/meters/5/auditTrail/entries", Answer({"data": [{}], "nextPage": "c"}))

        next(MediationHook("mediation_test").audit_trail_entries(5, export_type="ERROR", **SPAN))

        assert zuora.paths().count("/meters/5/auditTrail/entries") == 1

    def test_the_session_url_is_made_by_the_template(self, ask, connect):
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

    def test_fewer_than_one_attempt_is_refused(self):
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

    def test_the_methods_have_docstring_and_signature_of_their_call(self):
        signature = inspect.signature(MediationHook.run_meter)

        assert list(signature.parameters)[:4] == ["self", "meter_id", "version", "unique_key"]
        assert signature.return_annotation == MediationHook.run_meter.__annotations__["return"] == "MeterRun"
        assert MediationHook.run_meter.__doc__.startswith("Start a NORMAL run")
        assert inspect.iscoroutinefunction(MediationAsyncHook.run_meter)

    def test_the_track_id_names_the_task(self, ask, zuora, monkeypatch):
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
    def test_a_temporary_error_is_retried(self, ask, zuora, slept, fault):
        zuora.on(STATUS, fault, fault, Answer({"data": {"runStatus": 7}}))

        assert ask("run_status", 5) == "COMPLETED"
        assert zuora.paths().count(STATUS) == 3
        assert "/elsewhere" not in zuora.paths()

    @pytest.mark.parametrize("how", ["reset", "plain"])
    def test_one_attempt_is_one_request(self, ask, zuora, how):
        zuora.on(STATUS, Answer(status=503, how=how))
        ask("stop_meter", 5)  # to fetch the token

        with pytest.raises(TransientError):
            ask("run_status", 5, hook={"attempts": 1})

        assert zuora.paths().count(STATUS) == 1

    def test_retry_after_sets_the_pause(self, ask, zuora, slept):
        zuora.on(
            STATUS, Answer(status=429, headers={"RateLimit-Reset": "20, 40;w=60"}), Answer({"data": {"runStatus": 7}})
        )

        ask("run_status", 5)

        [seconds] = slept
        assert 20 <= seconds <= 22

    @pytest.mark.parametrize("how", ["hang", "stall", "drip"])
    def test_a_request_that_hangs_ends_at_the_time_limit(self, ask, zuora, connect, how):
        connect({"timeout": 0.4})
        zuora.on(STATUS, Answer({}, how=how))
        before = time.monotonic()

        with pytest.raises(TransientError, match=r"no complete answer within 0.4 s"):
            ask("run_status", 5, hook={"attempts": 1})

        assert time.monotonic() - before < 3

    def test_a_refused_connection_is_temporary(self, ask, connect):
        connect(host="http://127.0.0.1:9")

        with pytest.raises(TransientError, match=r"did not reach 127\.0\.0\.1:9.*[Rr]efused"):
            ask("run_status", 5, hook={"attempts": 2})

    def test_an_unknown_host_is_an_address_that_cannot_work(self, ask, connect):
        connect(host="https://rest.zuora.invalid")

        with pytest.raises(UnusableAddressError, match=r"rest\.zuora\.invalid: there is no such host name"):
            ask("run_status", 5, hook={"attempts": 1})

    def test_a_run_without_a_key_is_sent_once(self, ask, zuora):
        zuora.on(RUN, Answer(how="reset"), STARTED)

        with pytest.raises(TransientError, match="may have been started"):
            ask("run_meter", 5)

        assert zuora.paths().count(RUN) == 1

    def test_a_run_with_a_key_is_sent_again_unchanged(self, ask, zuora):
        taken = Answer({"success": False, "error": {"code": "70002999", "message": "uniqueKey k is a duplicate"}}, 400)
        zuora.on(RUN, Answer(how="reset"), taken)

        with pytest.raises(DuplicateKeyError):
            ask("run_meter", 5, unique_key="k")

        first, second = [seen.body for seen in zuora.seen if seen.path == RUN]
        assert first == second

    def test_a_permanent_error_is_raised_at_once(self, ask, zuora):
        zuora.on(STATUS, Answer({"success": False, "error": {"code": "70002103", "message": "No meter"}}, 404))

        with pytest.raises(MisconfigurationError, match=r"meter does not exist.*No meter.*70002103"):
            ask("run_status", 5)

        assert zuora.paths().count(STATUS) == 1

    def test_a_repeated_401_is_a_misconfiguration(self, ask, zuora):
        zuora.valid = False

        with pytest.raises(MisconfigurationError, match="client id and secret"):
            ask("run_status", 5)

        assert zuora.paths() == ["/oauth/token", STATUS, "/oauth/token", STATUS]

    def test_a_wrong_secret_is_a_misconfiguration(self, ask, zuora):
        zuora.token_answers = [Answer({"error": "invalid_client"}, 401)]

        with pytest.raises(MisconfigurationError, match="does not accept the client id and secret"):
            ask("run_status", 5)

        assert zuora.paths() == ["/oauth/token"]

    def test_a_missing_connection_is_a_misconfiguration(self, ask, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_MEDIATION_TEST")

        with pytest.raises(MisconfigurationError, match="'mediation_test' was not found"):
            ask("run_status", 5)

    @pytest.mark.parametrize(
        ("trouble", "kind", "says"),
        [
            (PermissionError("no"), MisconfigurationError, "may not be read"),
            (RuntimeError("PERMISSION_DENIED: no"), MisconfigurationError, "may not be read"),
            (ValueError("no JSON"), MisconfigurationError, "cannot be read"),
            (RuntimeError("API_SERVER_ERROR: down"), TransientError, "could not be read"),
        ],
    )
    def test_the_error_of_an_unreadable_connection(self, ask, monkeypatch, trouble, kind, says):
        def fail(*args, **kwargs):
            raise trouble

        monkeypatch.setattr(MediationHook, "get_connection", fail)
        monkeypatch.setattr("airflow.providers.common.compat.connection.get_async_connection", fail)

        with pytest.raises(kind, match=f"'mediation_test' {says}"):
            ask("run_status", 5)

    async def test_a_canceled_call_does_not_cancel_the_look_up_of_the_connection(self, monkeypatch):
        """A triggerer of Airflow 3.2 would die of it."""
        asked, answer, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def look_up(conn_id):
            asked.set()
            await answer.wait()
            ended.set()

        monkeypatch.setattr("airflow.providers.common.compat.connection.get_async_connection", look_up)
        call = asyncio.create_task(MediationAsyncHook("mediation_test").run_status(5))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        answer.set()
        async with asyncio.timeout(10):
            await ended.wait()

    def test_no_log_contains_a_secret(self, ask, zuora, caplog, capfd, slept):
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
    def test_a_corrected_connection_is_read_again(self, zuora, connect):
        hook = MediationHook("mediation_test")
        connect(password="")
        with pytest.raises(MisconfigurationError, match="secret"):
            hook.run_status(5)

        connect()
        assert hook.run_status(5) == "RUNNING"
        zuora.token_answers = [Answer({}, 401)]
        connect(password="another")
        assert hook.run_status(5) == "RUNNING"  # read once, while there is no error
        hook.close()
        with pytest.raises(MisconfigurationError):
            hook.run_status(5)
        connect({"timeout": 4})
        assert hook.run_status(5) == "RUNNING"
        assert hook.settings.http.timeout == 4

    async def test_the_asynchronous_hook_reads_a_corrected_connection_again(self, zuora, connect):
        async with MediationAsyncHook("mediation_test") as hook:
            zuora.token_answers = [Answer({}, 401)]
            with pytest.raises(MisconfigurationError):
                await hook.run_status(5)
            connect({"timeout": 4})
            assert await hook.run_status(5) == "RUNNING"
            assert (await hook.settings()).http.timeout == 4

    def test_a_corrected_host_is_read_again(self, connect):
        connect(host="https://rest.zuora.invalid")
        with MediationHook("mediation_test") as hook:
            with pytest.raises(UnusableAddressError):
                hook.run_status(5)
            connect()
            assert hook.run_status(5) == "RUNNING"

    async def test_the_asynchronous_hook_reads_a_corrected_host_again(self, connect):
        connect(host="https://rest.zuora.invalid")
        async with MediationAsyncHook("mediation_test") as hook:
            outcomes = await asyncio.gather(*(hook.run_status(5) for _ in range(3)), return_exceptions=True)
            assert [type(each) for each in outcomes] == [UnusableAddressError] * 3
            connect()
            assert await hook.run_status(5) == "RUNNING"

    async def test_the_asynchronous_hook_reads_replaced_certificates_again(self, connect, monkeypatch):
        opened = []
        real = AsyncTransport.open.__func__

        async def opening(cls, settings):
            opened.append(settings.base_url)
            return await real(cls, settings)

        monkeypatch.setattr(AsyncTransport, "open", classmethod(opening))
        connect(host="https://rest.zuora.invalid")
        async with MediationAsyncHook("mediation_test") as hook:
            for _ in range(2):
                with pytest.raises(UnusableAddressError):
                    await hook.run_status(5)

        assert len(opened) == 2

    async def test_the_asynchronous_hook_has_one_session_and_at_most_four_connections(self, zuora, connect):
        zuora.token_seconds = 0.05
        zuora.on(STATUS, Answer({"data": {"runStatus": 5}}, after=0.02))
        async with MediationAsyncHook("mediation_test") as hook:
            assert await asyncio.gather(*(hook.run_status(5) for _ in range(40))) == ["RUNNING"] * 40

        assert zuora.connections <= 4
        assert zuora.tokens["issued"] == 1

    def test_a_hook_works_after_its_loop_has_ended(self, zuora, connect):
        hook = MediationAsyncHook("mediation_test")

        async def ask():
            return await hook.run_status(5)

        assert asyncio.run(ask()) == "RUNNING"
        assert asyncio.run(ask()) == "RUNNING"
        asyncio.run(hook.close())

    async def test_close_works_twice_and_without_use(self, connect):
        hook = MediationAsyncHook("mediation_test")
        await hook.close()
        await hook.run_status(5)
        await hook.close()
        await hook.close()
        assert await hook.run_status(5) == "RUNNING"
        await hook.close()

    async def test_a_hook_works_after_a_cancelled_call(self, zuora, connect):
        async with MediationAsyncHook("mediation_test") as hook:
            zuora.on(STATUS, Answer({}, how="hang"), Answer({"data": {"runStatus": 5}}))
            calling = asyncio.create_task(hook.run_status(5))
            assert await asyncio.to_thread(zuora.hung.wait, 10)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert await hook.run_status(5) == "RUNNING"

    def test_one_hook_works_in_many_threads(self, zuora, connect):
        zuora.token_seconds = 0.05
        with MediationHook("mediation_test") as hook, ThreadPoolExecutor(8) as pool:
            assert list(pool.map(hook.run_status, [5] * 40)) == ["RUNNING"] * 40


def test_a_connection_that_was_read_already_is_not_looked_up(zuora, connect, monkeypatch):
    settings = MediationHook("mediation_test").settings
    monkeypatch.delenv("AIRFLOW_CONN_MEDIATION_TEST")

    async def status():
        async with MediationAsyncHook("mediation_test", settings=settings) as hook:
            return await hook.run_status(5)

    assert MediationHook("mediation_test", settings=settings).run_status(5) == "RUNNING"
    assert asyncio.run(status()) == "RUNNING"


class TestConnectionTest:
    PROBE = "/meters/0/0.0.1/runStatus"

    @pytest.mark.parametrize(
        ("answer", "works", "says"),
        [
            (Answer({"success": False, "error": {"code": "70002103"}}, 404), True, "Not tested"),
            (Answer({"success": False, "error": {"code": "70002004"}}, 400), False, "not enabled"),
            (Answer({"success": False, "error": {"code": "70002006"}}, 401), False, "permission is missing"),
            (Answer(b"<html>", 404), False, "check the host"),
            (Answer(b"<html>", 200), False, "not the REST base URL"),
        ],
    )
    def test_the_refusal_after_the_token_is_explained(self, zuora, connect, answer, works, says, slept):
        zuora.on(self.PROBE, answer)

        ok, sentence = MediationHook("mediation_test").test_connection()

        assert ok is works
        assert says in sentence

    def test_refused_credentials_are_explained(self, zuora, connect):
        zuora.token_answers = [Answer({"error": "invalid_client"}, 400)]

        assert MediationHook("mediation_test").test_connection() == (
            False,
            f"{zuora.url[7:]} does not accept the client id and secret: check both, and the data center, for a client "
            "id is known in its own tenant only (HTTP 400, Zuora says: invalid_client).",
        )

    def test_the_test_does_not_use_a_cached_token(self, zuora, connect):
        hook = MediationHook("mediation_test")
        hook.run_status(5)
        zuora.token_answers = [Answer({}, 401)]

        assert not hook.test_connection()[0]

    def test_an_unreachable_host_is_explained(self, connect):
        connect(host="http://127.0.0.1:9")

        ok, sentence = MediationHook("mediation_test").test_connection()

        assert not ok
        assert "127.0.0.1:9" in sentence

    @pytest.mark.parametrize(
        ("stack", "says"),
        [
            ("AsyncTransport", "Tasks on workers would reach 127.0.0.1:{port}, deferred tasks would not: The run"),
            (
                "SyncTransport",
                "From this machine, the client of triggerers reaches the host, that of workers does not: ",
            ),
        ],
    )
    @pytest.mark.parametrize("in_loop", [False, True])
    def test_the_stack_that_fails_alone_is_named(self, zuora, connect, monkeypatch, stack, says, in_loop):
        failure = Failure("no way")
        fail = AsyncMock(return_value=failure) if stack == "AsyncTransport" else Mock(return_value=failure)
        monkeypatch.setattr(getattr(mediation, stack), "send", fail)

        async def test():
            return MediationHook("mediation_test").test_connection()

        ok, sentence = asyncio.run(test()) if in_loop else MediationHook("mediation_test").test_connection()

        assert not ok
        assert sentence.startswith(says.format(port=zuora.url.rpartition(":")[2]))
        assert "no way" in sentence

    @pytest.mark.parametrize(
        ("extra", "says"),
        [
            ({"callout_hmac_secret": "s", "callout_hmac_algorithm": "MD5"}, "callout_hmac_algorithm MD5 is too weak"),
            ({"callout_date_format": "dd.MM.yyyy"}, "callout_date_format 'dd.MM.yyyy' "),
            ({"ui_link_template": "zuora.example"}, "ui_link_template 'zuora.example' is no address"),
        ],
    )
    def test_settings_that_callouts_and_pages_need_are_checked(self, connect, extra, says):
        connect(extra)

        ok, sentence = MediationHook("mediation_test").test_connection()

        assert not ok
        assert sentence.startswith(says)

    def test_what_is_not_safe_is_named_and_logged(self, zuora, connect, caplog, slept):
        zuora.on(self.PROBE, Answer({"success": False, "error": {"code": "70002103"}}, 404))
        connect({"callout_token": "short"})
        log_cautions.cache_clear()

        ok, sentence = MediationHook("mediation_test").test_connection()

        assert ok
        said = "callout_token has fewer than 16 characters: choose a longer one here and in Zuora."
        assert f"Caution: {said}" in sentence
        assert f"Connection 'mediation_test': {said}" in caplog.messages

    def test_a_missing_field_is_explained(self, connect):
        connect(login=None)

        assert MediationHook("mediation_test").test_connection() == (
            False,
            "The client ID (login) is missing.",
        )


def test_the_hook_has_the_attributes_that_airflow_reads():
    assert mediation.MediationHook.conn_type == "mediation"
    assert mediation.MediationHook.conn_name_attr == "mediation_conn_id"
    assert MediationHook().mediation_conn_id == "mediation_default"
