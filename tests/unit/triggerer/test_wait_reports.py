"""What a hub reports of its waits: each once, again where its session is new, and all where the server lost them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.feed.reports import WaitingTask
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from tests.unit.triggerer.test_hub import stage, wait_for
from tests.unit.virtual import Clock
from tests.unit.virtual_feed import AsyncFeed, Journal

if TYPE_CHECKING:
    from airflow_mediation_provider.feed.long_poll import FeedListener
    from airflow_mediation_provider.triggerer.meter import WaitSubscription


class Held(AsyncFeed):
    """A feed that makes no request by itself."""

    view: FeedListener

    async def follow(self, view: FeedListener) -> None:
        self.view = view
        await asyncio.Event().wait()


@pytest.fixture
def feed(clock: Clock) -> Held:
    return Held(Journal(clock))


def ids(feed: Held, most: int = 100, *, again: bool = False) -> list[str]:
    return [each.task_id for each in feed.view.reports(most, again=again)]


def play(clock, zuora, feed: Held, main) -> None:
    async def then_leave(hub, _watch):
        def add(wait: SessionWait, name: str) -> WaitSubscription:
            return hub.subscribe(wait, poll_interval=60, task=WaitingTask("d", "r", name, -1, 1))

        waiters = [add(wait_for(clock, "m", f"S-{n}"), f"t{n}") for n in range(5)]
        await asyncio.sleep(0)
        try:
            await main(hub, add, waiters)
        finally:
            for waiter in [waiter for meter in list(hub._meters.values()) for waiter in list(meter.waiters)]:
                waiter.close()

    stage(clock, zuora, then_leave, feed=feed)


def test_a_wait_is_reported_until_it_is_stored_and_then_no_more(clock, zuora, feed):
    async def main(_hub, add, waiters):
        assert ids(feed, 2) == ["t0", "t1"]
        feed.view.reported(kept=True)
        assert ids(feed, 2) == ["t2", "t3"]
        assert ids(feed, 2) == ["t2", "t3"]  # the request before was interrupted
        feed.view.reported(kept=False)
        assert ids(feed) == ["t4"]  # what could not be stored is repeated in a minute
        add(wait_for(clock, "n", "S-9"), "t9")
        feed.view.reported(kept=True)
        assert ids(feed) == ["t9"]
        waiters[2].close()
        assert ids(feed, again=True) == ["t9", "t3"]
        feed.view.reported(kept=True)
        assert ids(feed, again=True) == []
        assert feed.view.reporter

    play(clock, zuora, feed, main)


def test_a_report_is_made_once_and_again_when_the_session_gets_its_name(clock, zuora, feed):
    feed.journal.say(0, "S-1", "RUNNING", started=0)

    async def main(_hub, add, waiters):
        add(SessionWait(SessionCondition(meter_id="m", since=clock.now()), created_at=clock.now()), "unnamed")
        [*_, first] = feed.view.reports(100, again=False)
        assert (first.task_id, first.session_id, first.begins) == ("unnamed", None, True)
        assert feed.view.reports(100, again=False)[-1] is first
        feed.view.reported(kept=True)
        feed.view.connected(callouts=True, history=None)
        await feed.view.receive(feed.journal.known(feed.view.questions()), ())
        [named] = feed.view.reports(100, again=False)
        assert (named.id, named.session_id, named.begins) == (first.id, "S-1", False)

    play(clock, zuora, feed, main)


def test_waits_that_the_server_has_lost_are_reported_in_turn(clock, zuora, feed):
    """An older server needs a report of each of them each time."""

    async def main(_hub, _add, _waiters):
        asked = []
        for _ in range(4):
            asked.append(ids(feed, 2, again=True))
            feed.view.report_again()
            feed.view.reported(kept=True)
            assert ids(feed) == [f"t{number}" for number in range(2 * len(asked), 5)]
        assert asked == [["t0", "t1"], ["t2", "t3"], ["t4", "t0"], ["t1", "t2"]]

    play(clock, zuora, feed, main)


def test_a_new_wait_asks_for_its_own_session_and_names_what_the_hub_has(clock, zuora, feed):
    for number in range(5):
        feed.journal.say(0, f"S-{number}", "RUNNING", started=0)
    feed.journal.say(0, "S-5", "COMPLETED", started=0)

    async def main(_hub, add, _waiters):
        view = feed.view
        assert view.take_new_questions()["m"].sessions == {f"S-{n}" for n in range(5)}
        whole = view.questions()
        states = feed.journal.known(whole)
        assert len(states) == 6
        await view.receive(states, range(1, 7))
        assert view.questions()["m"].known == {state.session_id: at for at, state in enumerate(states, start=1)}
        assert view.take_new_questions() == {}

        add(wait_for(clock, "m", "S-9"), "named")
        [question] = view.take_new_questions().values()
        running = {f"S-{n}" for n in range(5)}
        assert (question.sessions, question.since, set(question.known)) == ({"S-9"}, set(), running)
        assert view.questions()["m"].sessions == {*running, "S-9"}

        add(SessionWait(SessionCondition(meter_id="m", since=clock.now()), created_at=clock.now()), "unnamed")
        assert view.take_new_questions()["m"].since == set()  # as the named ones ask
        earlier = Clock(-100).now()
        add(SessionWait(SessionCondition(meter_id="m", since=earlier), created_at=clock.now()), "earlier")
        [question] = view.take_new_questions().values()
        assert (question.sessions, question.since, len(question.known)) == (set(), {earlier}, 6)
        assert view.meters() == {"m"}

    play(clock, zuora, feed, main)


def test_without_revisions_nothing_is_known(clock, zuora, feed):
    """An older server sends none."""
    feed.journal.say(0, "S-1", "RUNNING", started=0)

    async def main(_hub, _add, _waiters):
        states = feed.journal.known(feed.view.questions())
        await feed.view.receive(states, [7])
        assert feed.view.questions()["m"].known == {"S-1": 7}
        await feed.view.receive(states)
        assert feed.view.questions()["m"].known == {}

    play(clock, zuora, feed, main)
