"""The reader of the callout history in virtual time, against a journal in memory: each change is stored once."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.protocol.callouts.history import read_history
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import HistoryRequest, ReconcileRequest, missing
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from tests.unit.virtual import EPOCH
from tests.unit.virtual_history import ALONE, LOOP, World

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry

BESIDE = callout_settings("zuora", {"callout_token": "t"})


@pytest.mark.full
@pytest.mark.parametrize(("hours", "late"), [(5.5, 300), (-7, 0), (0, 300), (14, 0)])
def test_each_change_is_stored_once_in_an_unknown_zone(hours: float, late: float):
    world = World(offset=timedelta(hours=hours), late=late)
    for number in range(20):
        world.tenant.walk(f"R-{number}", 200 + number * 120, 90, LOOP)

    world.read_until(4800)

    for number in range(20):
        assert world.journal.changes(f"R-{number}") == LOOP
        state = world.journal.state(f"R-{number}")
        assert (state.status, state.ambiguous, state.conflict) == ("COMPLETED", False, False)
        # By our clock, though the zone was not known when the first ones were read.
        assert abs((state.first_observed_at - EPOCH).total_seconds() - (200 + number * 120)) < 1


@pytest.mark.parametrize("retries", [0, 2])
def test_times_of_events_in_another_zone_than_the_historys_lose_nothing(retries: int):
    """Merge fields are written in the locale of a user."""
    world = World(offset=timedelta(hours=-7))
    world.tenant.walk("R-1", 100, 300, LOOP, retries=retries)
    for at, _, record in world.tenant.records:
        happened = EPOCH + timedelta(seconds=at - 1800 * (record["attemptedNum"] - 1), hours=-5.5)
        record["eventContext"] = {**record["eventContext"], "<Event.Timestamp>": f"{happened:%Y-%m-%dT%H:%M:%S}"}

    world.read_until(2 * 3600)

    assert world.journal.changes("R-1") == LOOP
    assert world.journal.state("R-1").first_observed_at == EPOCH + timedelta(seconds=100)


def test_few_callouts_and_long_intervals_are_stored_at_once_where_the_zone_is_set_to_utc():
    world = World()
    world.tenant.walk("R-1", 5000, 60, LOOP)

    world.read_until(3 * 3600, world.reader(3600.0), callout_settings("zuora", {"callout_timezone": "UTC"}))

    assert world.journal.changes("R-1") == LOOP


def test_a_loop_with_retries_in_between_counts_each_round_once():
    world = World()
    world.tenant.walk("R-1", 100, 700, LOOP, retries=2)

    world.read_until(3 * 3600)

    assert world.journal.changes("R-1") == LOOP
    assert not world.journal.state("R-1").ambiguous


def test_a_record_that_appears_with_its_last_attempt_is_no_attempt_of_the_round_before():
    """The history may have one record of a callout, and show it only after the last attempt."""
    world = World(late=120)
    world.tenant.walk("R-1", 100, 300, LOOP)
    for _, _, record in world.tenant.records:
        record["attemptedNum"], record["responseCode"] = 3, -1

    world.read_until(3600, settings=callout_settings("zuora", {"callout_timezone": "Atlantic/Reykjavik"}))

    assert world.journal.changes("R-1") == LOOP
    assert not world.journal.state("R-1").ambiguous


def test_a_record_that_each_attempt_writes_anew_is_one_change():
    """The history may have one record of a callout, whose number and time are those of its last attempt."""
    world = World()
    world.tenant.walk("R-1", 100, 700, LOOP, retries=2)
    for number, (at, _, record) in enumerate(list(world.tenant.records)):
        later = [other for other, _, each in world.tenant.records if each["eventContext"] is record["eventContext"]]
        gone = min((other for other in later if other > at), default=None)
        world.tenant.records[number] = (at, at, record)
        if gone is not None:
            record["gone"] = gone
    whole = list(world.tenant.records)
    reader = world.reader()
    while world.clock.seconds < 3 * 3600:
        world.tenant.records = [each for each in whole if each[2].get("gone", 1e9) > world.clock.seconds]
        world.clock.sleep(world.read(reader))

    assert world.journal.changes("R-1") == LOOP


@pytest.mark.parametrize("killed_before", [ReconcileRequest, HistoryRequest])
def test_a_reader_that_is_killed_in_the_middle_loses_nothing_and_repeats_nothing(killed_before: type):
    world = World()
    world.tenant.walk("R-1", 100, 300, LOOP)
    reader = world.reader()
    while world.clock.seconds < 3600:
        if world.clock.seconds % 180 == 0:
            world.read(reader, killed_before=killed_before)
            reader = world.reader()
        world.clock.sleep(60)
        world.read(reader)

    assert world.journal.changes("R-1") == LOOP
    assert len(world.journal.rows) == len(LOOP)


def test_two_readers_at_once_store_each_change_once():
    world = World()
    world.tenant.walk("R-1", 100, 300, LOOP)
    chance = random.Random(1)
    readers = [world.reader(), world.reader(300.0)]
    while world.clock.seconds < 3600:
        world.read(chance.choice(readers))
        world.clock.sleep(chance.choice([1, 30, 60]))

    assert world.journal.changes("R-1") == LOOP


@pytest.mark.parametrize(
    ("interval", "answered", "wait"),
    [(60, 12.5, 12.5), (5, 59, 59), (5, 1e9, 60), (600, 1e9, 600), (600, float("inf"), 600)],
)
def test_a_reader_asks_for_its_turn_again_after_its_interval_at_the_latest(interval: int, answered: float, wait: float):
    world = World()
    world.journal.wait = answered

    assert world.read(world.reader(interval)) == wait
    assert world.tenant.asked == []


def test_a_pause_of_two_days_is_caught_up_a_day_at_a_time():
    world = World()
    world.tenant.walk("R-0", 30, 60, LOOP)
    world.read_until(600)
    for number in range(1, 50):
        world.tenant.walk(f"R-{number}", 600 + number * 3600, 60, LOOP)
    world.clock.sleep(50 * 3600)
    world.tenant.asked.clear()

    world.read(world.reader())

    assert all(world.journal.changes(f"R-{number}") == LOOP for number in range(50))
    starts = {query["startTime"] for query in world.tenant.asked}
    pages = sum(1 for query in world.tenant.asked if query["page"] != "1")
    assert len(starts) == 3
    assert pages <= len(world.tenant.records) / 40
    assert world.journal.cursor.read_to == world.clock.now()


def test_one_request_is_made_an_interval_and_one_more_for_forty_further_records():
    world = World()
    for number in range(100):
        world.tenant.callout(100 + number, f"R-{number}", None, "INITIALIZING")
    world.read_until(50)
    assert len(world.tenant.asked) == 1
    world.read_until(600)
    for _ in range(3):
        before = len(world.tenant.asked)
        world.clock.sleep(world.read(world.reader()))
        assert len(world.tenant.asked) - before == 3


def test_what_is_stored_is_not_compared_again_by_the_same_reader():
    world = World()
    world.tenant.walk("R-1", 100, 60, LOOP)
    reader = world.reader()
    world.read_until(1200, reader)
    compared = len(world.journal.compared)
    world.read_until(2400, reader)
    assert len(world.journal.compared) == compared > 0


def test_the_category_of_the_connection_is_asked_for():
    world = World()
    world.read(world.reader(), callout_settings("zuora", {"callout_event_category": 1210}))
    assert [query.get("eventCategory") for query in world.tenant.asked] == ["1210"]
    assert world.tenant.asked[0]["failedOnly"] == "false"


@pytest.mark.full
class TestBesideCallouts:
    def test_only_what_is_older_than_the_retries_is_stored(self):
        world = World()
        world.tenant.walk("R-1", 600, 60, LOOP)

        world.read_until(600 + 3600, settings=BESIDE)
        assert world.journal.rows == []
        world.read_until(600 + 3 * 3600, settings=BESIDE)

        assert world.journal.changes("R-1") == LOOP

    # Rounds within what one read reaches back, and rounds that no two reads have in common.
    @pytest.mark.parametrize("step", [1200, 6000])
    def test_what_came_by_callout_is_not_stored_again_and_a_lost_round_is_found(self, step: int):
        world = World()
        world.tenant.walk("R-1", 600, step, LOOP)
        lost = {3, 4}
        calls = [(600 + number * step, number) for number in range(len(LOOP)) if number not in lost]

        def arrive(number: int) -> None:
            [template] = missing(_entries(world, number), [])
            world.journal.rows.append(
                replace(
                    template,
                    source="callout",  # type: ignore[arg-type]
                    notification_id=f"n-{number}",
                    transition=replace(template.transition, notification_id=f"n-{number}", source="callout"),  # type: ignore[type-var]
                )
            )

        reader = world.reader()
        while world.clock.seconds < 8 * step + 4 * 3600:
            while calls and calls[0][0] <= world.clock.seconds:
                arrive(calls.pop(0)[1])
            world.clock.sleep(world.read(reader, BESIDE))

        assert world.journal.changes("R-1") == LOOP
        found = [row.transition.status for row in world.journal.rows if str(row.notification_id).startswith("history")]
        assert found == ["RUNNING", "PAUSED"]
        assert not world.journal.state("R-1").ambiguous

    def test_two_rounds_beside_one_callout_are_two_though_their_retries_interleave(self):
        world = World()
        statuses = ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED"]
        times = [4000, 4051, 4251, 4451, 4651]
        for number, at in enumerate(times):
            before = statuses[number - 1] if number else None
            world.tenant.callout(at, "R-1", before, statuses[number], retries=2)
        [template] = missing(
            read_history(ALONE, [world.tenant.records[-3][2]], world.clock.now(), zone=UTC).entries, []
        )
        transition = replace(
            template.transition,  # type: ignore[type-var]
            notification_id="n",
            source="callout",
            observed_at=EPOCH + timedelta(seconds=6471),
        )
        row = replace(template, source="callout", notification_id="n", transition=transition)  # type: ignore[arg-type]
        reader = world.reader()
        while world.clock.seconds < 5 * 3600:
            if world.clock.seconds >= 6471 and row not in world.journal.rows:
                world.journal.rows.append(row)
            world.clock.sleep(world.read(reader, BESIDE))

        found = [each.transition.status for each in world.journal.rows]
        assert sorted(found) == sorted(statuses)


def _entries(world: World, number: int) -> list[JournalEntry]:
    at, _, record = world.tenant.records[number]
    return read_history(ALONE, [record], EPOCH + timedelta(seconds=at + 1), zone=UTC).entries


class TestTrouble:
    def test_a_missing_permission_is_reported_as_lasting_and_the_next_read_goes_on(self):
        world = World()
        world.tenant.refuses = MisconfigurationError("The user lacks 'Events & Notifications View Access'.")
        reader = world.reader()
        with pytest.raises(MisconfigurationError):
            world.read(reader)
        world.tenant.refuses = None
        world.read(reader)

        assert world.journal.trouble == [("The user lacks 'Events & Notifications View Access'.", True), ("", False)]

    def test_an_outage_is_reported_as_passing(self):
        world = World()
        world.tenant.refuses = TransientError("Zuora gave no answer.")
        with pytest.raises(TransientError):
            world.read(world.reader())
        assert world.journal.trouble == [("Zuora gave no answer.", False)]

    def test_records_without_the_change_are_reported(self):
        world = World()
        world.tenant.walk("R-1", 100, 60, LOOP)
        for _, _, record in world.tenant.records:
            record["eventContext"] = {"<Session.Id>": "R-1"}
        world.read_until(600)
        assert "7 of 7 records of the callout history concern sessions, but lack" in world.journal.trouble[-1][0]
