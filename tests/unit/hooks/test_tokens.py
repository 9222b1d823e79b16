"""One token per tenant and process: fetched once, renewed in time, never bound to a loop or thread that has ended."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_mediation_provider import version_compat
from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.hooks.mediation import MediationAsyncHook, MediationHook
from airflow_mediation_provider.hooks.tokens import LONGEST_FLIGHT, TenantTokens, TokenFlight, tokens_of
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError

from .conftest import Answer

STATUS = "/meters/5/0.0.1/runStatus"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def landed(store, text="t", life=3600.0):
    flight = store.claim().carry_out
    flight.land(text, life)
    flight.fail(None)
    return flight


class TestOneTenant:
    @pytest.mark.parametrize(("life", "renewed_after"), [(3600, 3480), (600, 540), (10, 9)])
    def test_a_token_is_renewed_before_its_end(self, life, renewed_after):
        clock = Clock()
        store = TenantTokens(clock)
        landed(store, life=life)

        clock.now += renewed_after - 0.1
        assert store.claim().token == "t"
        clock.now += 0.2
        assert store.claim().carry_out is not None

    def test_the_life_of_a_token_counts_from_the_request(self):
        clock = Clock()
        store = TenantTokens(clock)
        flight = store.claim().carry_out
        clock.now += 30
        flight.land("t", 100)

        clock.now += 61
        assert store.claim().token is None

    def test_others_wait_for_the_fetch_in_progress(self):
        store = TenantTokens()
        flight = store.claim().carry_out

        assert store.claim().wait_for is flight
        flight.land("t", 60)
        assert store.claim().token == "t"
        assert flight.error is None

    def test_a_failed_fetch_raises_in_its_waiters_and_the_next_one_tries(self):
        store = TenantTokens()
        flight = store.claim().carry_out
        error = TransientError("busy")

        flight.fail(error)

        flight.wait()
        assert flight.error is error
        assert store.claim().carry_out is not None

    def test_a_lost_fetch_is_taken_over(self):
        clock = Clock()
        store = TenantTokens(clock)
        lost = store.claim().carry_out
        clock.now += LONGEST_FLIGHT

        lost.wait()  # returns at once
        second = store.claim().carry_out
        assert second is not None
        lost.fail(None)  # late: does not end the second
        assert store.claim().wait_for is second
        lost.land("late but valid", 3600)
        assert store.claim().token == "late but valid"

    def test_only_the_given_token_is_discarded(self):
        store = TenantTokens()
        landed(store, "new")

        store.discard("old")
        assert store.claim().token == "new"
        store.discard("new")
        assert store.claim().token is None

    def test_no_repr_shows_the_token(self):
        store = TenantTokens()
        landed(store, "hush")

        assert "hush" not in repr([store, vars(store), store.claim()])


class TestTenants:
    def test_a_tenant_is_address_client_and_secret(self):
        one = tokens_of("u", "c", "s")

        assert tokens_of("u", "c", "s") is one
        assert (
            len({id(tokens_of(*key)) for key in (("u", "c", "s"), ("v", "c", "s"), ("u", "d", "s"), ("u", "c", "r"))})
            == 4
        )

    def test_no_secret_is_kept(self):
        tokens_of("u", "c", "hush")

        assert "hush" not in repr(tokens._tenants)

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    @pytest.mark.services
    def test_a_forked_process_has_its_own_tokens(self):
        flight = tokens_of("u", "c", "s").claim().carry_out
        read, write = os.pipe()
        with tokens._tenants_lock:  # held by a thread of the parent at the worst moment
            child = os.fork()
            if child == 0:
                os.write(write, b"own" if tokens_of("u", "c", "s").claim().carry_out else b"parent's")
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write)

        assert os.read(read, 10) == b"own"
        os.close(read)
        flight.fail(None)


class TestSingleFlight:
    @pytest.fixture(autouse=True)
    def _issued_slowly(self, zuora):
        """All callers ask before there is a token."""
        zuora.token_seconds = 0.05

    @pytest.fixture
    def until_waiting(self, monkeypatch):
        """`until_waiting(threads)` is an event that is set once so many threads wait for a fetch."""

        def make(threads):
            waiting, numbers, wait = threading.Event(), itertools.count(1), TokenFlight.wait

            def counted(flight):
                if next(numbers) == threads:
                    waiting.set()
                wait(flight)

            monkeypatch.setattr(TokenFlight, "wait", counted)
            return waiting

        return make

    def test_fifty_threads_share_one_fetch(self, zuora, connect):
        barrier = threading.Barrier(50)

        def ask(_):
            barrier.wait()
            with MediationHook("mediation_test") as hook:
                return hook.run_status(5)

        with ThreadPoolExecutor(50) as pool:
            assert list(pool.map(ask, range(50))) == ["RUNNING"] * 50

        assert zuora.tokens["issued"] == 1

    async def test_fifty_coroutines_share_one_fetch(self, zuora, connect):
        hooks = [MediationAsyncHook("mediation_test") for _ in range(50)]

        assert await asyncio.gather(*(hook.run_status(5) for hook in hooks)) == ["RUNNING"] * 50

        assert zuora.tokens["issued"] == 1
        await asyncio.gather(*(hook.close() for hook in hooks))

    def test_threads_and_loops_share_one_fetch(self, zuora, connect):
        def in_a_loop():
            async def ask():
                async with MediationAsyncHook("mediation_test") as hook:
                    return await asyncio.gather(*(hook.run_status(5) for _ in range(10)))

            return set(asyncio.run(ask()))

        def in_a_thread():
            with MediationHook("mediation_test") as hook:
                return {hook.run_status(5)}

        with ThreadPoolExecutor(10) as pool:
            waits = [pool.submit(work) for work in [in_a_loop, in_a_thread] * 5]
            assert [wait.result() for wait in waits] == [{"RUNNING"}] * 10

        assert zuora.tokens["issued"] == 1

    def test_a_401_renews_the_token_once_for_all(self, zuora, connect):
        with MediationHook("mediation_test") as hook:
            hook.run_status(5)
        zuora.tokens["issued"] += 1  # earlier tokens are no longer valid

        with ThreadPoolExecutor(20) as pool:
            hooks = [MediationHook("mediation_test") for _ in range(20)]
            assert list(pool.map(lambda hook: hook.run_status(5), hooks)) == ["RUNNING"] * 20

        assert zuora.paths().count("/oauth/token") == 2

    def test_an_error_of_the_fetch_is_raised_in_all_waiters(self, zuora, connect, until_waiting):
        zuora.token_answers = [Answer(status=503, until=until_waiting(19))]

        def ask(_):
            try:
                return MediationHook("mediation_test", attempts=1).run_status(5)
            except TransientError:
                return "put off"

        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(ask, range(20))) == {"put off"}

        assert zuora.paths() == ["/oauth/token"]

    def test_another_waiter_takes_over_a_cancelled_fetch(self, zuora, connect):
        async def both():
            first, second = MediationAsyncHook("mediation_test"), MediationAsyncHook("mediation_test")
            zuora.token_answers = [Answer({"access_token": "never arrives"}, after=0.5)]
            fetching = asyncio.create_task(first.run_status(5))
            await asyncio.sleep(0.1)
            waiting = asyncio.create_task(second.run_status(5))
            await asyncio.sleep(0.05)
            fetching.cancel()
            try:
                return await asyncio.wait_for(waiting, 5)
            finally:
                await asyncio.gather(first.close(), second.close())

        assert asyncio.run(both()) == "RUNNING"

    def test_a_cancelled_wait_does_not_affect_the_others(self, zuora, connect):
        async def three():
            hooks = [MediationAsyncHook("mediation_test") for _ in range(3)]
            tasks = [asyncio.create_task(hook.run_status(5)) for hook in hooks]
            await asyncio.sleep(0.02)
            tasks[1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(hook.close() for hook in hooks))
            return results

        first, second, third = asyncio.run(three())
        assert (first, third) == ("RUNNING", "RUNNING")
        assert isinstance(second, asyncio.CancelledError)
        assert zuora.tokens["issued"] == 1

    def test_the_fetch_of_an_ended_loop_is_taken_over(self, zuora, connect):
        zuora.token_answers = [Answer({"access_token": "never arrives"}, after=0.5)]
        loop = asyncio.new_event_loop()
        hook = MediationAsyncHook("mediation_test")
        fetching = loop.create_task(hook.run_status(5))
        loop.call_later(0.2, loop.stop)
        loop.run_forever()
        assert zuora.paths() == ["/oauth/token"]
        fetching.cancel()  # what asyncio.run does at its end; a loop that is just dropped ends by LONGEST_FLIGHT
        loop.run_until_complete(asyncio.gather(fetching, return_exceptions=True))
        loop.run_until_complete(hook.close())
        loop.close()
        gc.collect()

        with MediationHook("mediation_test") as another:
            assert another.run_status(5) == "RUNNING"

    def test_refused_credentials_are_raised_in_all_waiters(self, zuora, connect, until_waiting):
        zuora.token_answers = [Answer({"error": "invalid_client"}, 401, until=until_waiting(9))]

        def ask(_):
            with pytest.raises(MisconfigurationError, match="client id and secret"):
                MediationHook("mediation_test").run_status(5)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(ask, range(10)))

        assert zuora.paths() == ["/oauth/token"]


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_airflows_logs_never_show_a_token(in_a_loop):
    from airflow.sdk._shared.secrets_masker import redact

    token = f"token-{in_a_loop}-9f2c"
    flight = TenantTokens().claim().carry_out

    async def land():
        flight.land(token, 3600.0)
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(land()) if in_a_loop else flight.land(token, 3600.0)

    assert redact(f"Bearer {token}") == "Bearer ***"


@pytest.mark.parametrize("airflow_3_3", [True, False])
def test_another_thread_sends_a_token_to_the_supervisor_from_airflow_3_3_on_only(monkeypatch, airflow_3_3):
    """A triggerer of Airflow 3.2 dies of a message from another thread."""
    monkeypatch.setattr(version_compat, "AIRFLOW_V_3_3_PLUS", airflow_3_3)
    threads: list[int] = []
    monkeypatch.setattr("airflow.sdk.log.mask_secret", lambda _: threads.append(threading.get_ident()))

    async def land():
        TenantTokens().claim().carry_out.land("token", 3600.0)
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(land())
    (thread,) = threads
    assert (thread == threading.get_ident()) is not airflow_3_3
