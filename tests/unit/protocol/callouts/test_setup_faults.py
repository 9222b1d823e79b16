"""The newest callouts show a wrong zone, an empty field and a time that is not read; and nothing where all is right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pendulum
import pytest

from airflow_mediation_provider.protocol.callouts.parse import read_fields
from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings, callout_settings
from airflow_mediation_provider.protocol.callouts.setup import CALLOUTS, ReceivedCallout, setup_faults
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.tracker import SessionTracker

SINCE = datetime(2026, 4, 25, 15, tzinfo=UTC)
UTC_SETTINGS = callout_settings("zuora", {})
ISO = "%Y-%m-%d %H:%M:%S"
LATE = timedelta(seconds=5)


def session(
    number: int, start: datetime, zone: str = "UTC", form: str = ISO, late: timedelta = LATE, **more: Any
) -> list[ReceivedCallout]:
    """The callouts of one session of twelve minutes, the oldest first; all times in a zone."""

    def written(at: datetime) -> str:
        return at.astimezone(pendulum.timezone(zone)).strftime(form)

    end = start + timedelta(minutes=12)
    fields = {"meterId": "7", "sessionId": f"R-{number}", "startTime": written(start)}
    steps: list[tuple[str, str, datetime, dict[str, str]]] = [
        ("INITIALIZING", "", start, {}),
        ("RUNNING", "INITIALIZING", start + timedelta(seconds=40), {}),
        ("COMPLETED", "RUNNING", end, {"endTime": written(end)}),
    ]
    return [
        ReceivedCallout({**fields, "status": status, "previousStatus": before, **extra, **more}, at + late)
        for status, before, at, extra in steps
    ]


def faults(settings: CalloutSettings, *sessions: list[ReceivedCallout]) -> list[str]:
    return setup_faults(settings, [each for callouts in reversed(sessions) for each in reversed(callouts)])


def daily(count: int, zone: str, **more: Any) -> list[list[ReceivedCallout]]:
    return [session(number, SINCE + timedelta(days=number, minutes=4), zone, **more) for number in range(count)]


TENANTS = {
    "America/Los_Angeles": "UTC-07:00, such as America/Los_Angeles",
    "America/New_York": "UTC-04:00, such as America/New_York",
    "America/St_Johns": "UTC-02:30, such as America/St_Johns",
    "Europe/Berlin": "UTC+02:00, such as Europe/Berlin",
    "Asia/Kolkata": "UTC+05:30, such as Asia/Kolkata",
    "Pacific/Auckland": "UTC+12:00, such as Pacific/Auckland",
}


@pytest.mark.parametrize("zone", TENANTS)
@pytest.mark.parametrize("setting", ["absent", "wrong", "right"])
def test_two_sessions_show_a_wrong_zone(zone: str, setting: str) -> None:
    names = {"absent": {}, "wrong": {"callout_timezone": "Asia/Tokyo"}, "right": {"callout_timezone": zone}}
    settings = callout_settings("zuora", names[setting])

    assert faults(settings, *daily(1, zone)) == []
    found = faults(settings, *daily(2, zone))

    if setting == "right":
        assert found == []
        return
    [fault] = found
    assert f"set callout_timezone to the tenant's zone, which is now {TENANTS[zone]}, and not " in fault
    assert fault.endswith(settings.timezone)
    # The corrected setting ends the fault without another callout.
    assert faults(callout_settings("zuora", {"callout_timezone": zone}), *daily(2, zone)) == []


def test_the_side_and_the_size_of_the_difference_are_named() -> None:
    assert faults(UTC_SETTINGS, *daily(2, "America/Los_Angeles"))[0].startswith(
        "the times in callouts are 7h before their arrival"
    )
    assert faults(UTC_SETTINGS, *daily(2, "Asia/Kolkata"))[0].startswith(
        "the times in callouts are 5h 30m after their arrival"
    )


@pytest.mark.parametrize(
    ("what", "sessions"),
    [
        ("late by a queue", daily(5, "UTC", late=timedelta(minutes=7))),
        ("late by one retry", daily(5, "UTC", late=timedelta(minutes=30, seconds=3))),
        ("of which the newest was late", [*daily(4, "UTC"), session(9, SINCE, "UTC", late=timedelta(hours=1))]),
        ("of which the newest two were late", [*daily(3, "UTC"), *daily(2, "UTC", late=timedelta(hours=1))]),
        ("of hours that differ", [session(1, SINCE, "Asia/Tokyo"), session(2, SINCE, "Asia/Kolkata")]),
        ("without times", daily(5, "UTC", startTime="", endTime="")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_late_callout_is_no_wrong_zone(what: str, sessions: list[list[ReceivedCallout]]) -> None:
    assert [fault for fault in faults(UTC_SETTINGS, *sessions) if "zone" in fault] == [], what


def test_sessions_that_last_an_hour_are_no_evidence() -> None:
    ends = [
        ReceivedCallout(
            {"meterId": "7", "sessionId": f"R-{day}", "status": "COMPLETED", "previousStatus": "RUNNING",
             "startTime": (SINCE + timedelta(days=day)).isoformat()},
            SINCE + timedelta(days=day, hours=1),
        )
        for day in range(5)
    ]  # fmt: skip
    assert [fault for fault in faults(UTC_SETTINGS, ends) if "zone" in fault] == []


def test_a_zone_in_the_text_is_not_mended_by_a_setting() -> None:
    [fault] = faults(UTC_SETTINGS, *daily(2, "America/Los_Angeles", form=f"{ISO} UTC"))

    assert "name a zone that is not theirs" in fault
    assert "callout_timezone" not in fault


def test_an_offset_of_no_usual_zone_has_a_name_too() -> None:
    [fault] = faults(UTC_SETTINGS, *daily(2, "Etc/GMT+12"))

    assert fault.endswith("UTC-12:00, such as Etc/GMT+12, and not UTC")
    callout_settings("zuora", {"callout_timezone": "Etc/GMT+12"})


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"previousStatus": ""}, "no previous status in the last 10 callouts: compare {{MeterSession.PreviousStatus}}"),
        (
            {"startTime": "{{x}}"},
            "no start time in the last 10 callouts: compare {{MeterSession.StartTime}}",
        ),
        ({"meterName": ""}, "no meter name in the last 10 callouts: compare {{Meter.Name}}"),
        (
            {"startTime": "04/05/2026 09:17"},
            "the start time cannot be read in 10 of the last 10 callouts that have one: set callout_date_format",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_field_without_a_value_is_named_with_its_merge_field(fields: dict[str, str], fault: str) -> None:
    found = faults(UTC_SETTINGS, *daily(CALLOUTS, "UTC", **fields))

    assert len(found) == 1
    assert found[0].startswith(fault)


def test_a_few_callouts_without_a_value_are_no_fault() -> None:
    assert faults(UTC_SETTINGS, *daily(3, "UTC", previousStatus="", startTime="")) == []
    mixed = [*daily(3, "UTC"), *daily(3, "UTC", previousStatus="", startTime="", meterName="")]
    assert faults(UTC_SETTINGS, *mixed) == []


def test_the_first_callouts_of_sessions_need_no_previous_status() -> None:
    assert faults(UTC_SETTINGS, *([callouts[0]] for callouts in daily(12, "UTC"))) == []


def state(callouts: list[ReceivedCallout], settings: CalloutSettings) -> SessionState:
    entries = [
        read_fields(settings, each.body, observed_at=each.received_at, source=Source.CALLOUT, notification_id=None)
        for each in callouts
    ]
    return fold(entry.transition for entry in entries if entry.transition is not None)


@pytest.mark.parametrize("zone", ["UTC", *TENANTS])
@pytest.mark.parametrize("setting", ["absent", "wrong", "right"])
def test_the_right_session_is_bound_or_the_log_has_the_reason(zone: str, setting: str) -> None:
    """One session before the interval, one in it; the wait is from the beginning of the interval on."""
    names = {"absent": {}, "wrong": {"callout_timezone": "Australia/Adelaide"}, "right": {"callout_timezone": zone}}
    settings = callout_settings("zuora", names[setting])
    condition = SessionCondition(
        meter_id="7", session_id=None, statuses=("COMPLETED",), fail_on=(), since=SINCE, until=None
    )
    tracker = SessionTracker(
        condition, created_at=SINCE, started_at=None, exclusive=False, settle=timedelta(minutes=1),
        longest_pause=timedelta(minutes=5), polls_only=False,
    )  # fmt: skip
    before, meant = session(1, SINCE - timedelta(minutes=20), zone), session(2, SINCE + timedelta(minutes=4), zone)

    lines = tracker.bind([state(before, settings)]) + tracker.bind([state(meant, settings)])

    assert tracker.session_id in ("R-2", None)
    if setting == "right" or (setting, zone) == ("absent", "UTC"):
        assert tracker.session_id == "R-2"
    if tracker.session_id is None:
        assert any("callout_timezone is wrong" in line and "R-2" in line for line in lines)
        assert any("callout_timezone" in fault for fault in faults(settings, before, meant))


def without_end(callouts: list[ReceivedCallout]) -> list[ReceivedCallout]:
    """The callouts of a template that lacks the end time."""
    bodies = [{name: text for name, text in each.body.items() if name != "endTime"} for each in callouts]
    return [ReceivedCallout(body, each.received_at) for body, each in zip(bodies, callouts, strict=True)]


class TestTheEndTime:
    def test_one_session_that_ended_shows_that_the_template_lacks_it(self) -> None:
        first, second = daily(2, "UTC")
        [fault] = faults(UTC_SETTINGS, without_end(first))
        assert fault.startswith('the callout template has no end time: add "endTime": "{{MeterSession.EndTime}}"')
        assert faults(UTC_SETTINGS, first, without_end(second)) == [fault]

    def test_it_ends_with_the_next_callout_of_a_corrected_template(self) -> None:
        first, second = daily(2, "UTC")
        assert (
            faults(UTC_SETTINGS, without_end(first), [ReceivedCallout({**second[0].body, "endTime": ""}, SINCE)]) == []
        )
        assert faults(UTC_SETTINGS, without_end(first), second) == []

    def test_a_session_that_still_runs_shows_nothing(self) -> None:
        assert faults(UTC_SETTINGS, without_end(daily(1, "UTC")[0])[:2]) == []

    def test_an_empty_one_is_a_fault_of_three_completed_sessions_and_not_of_failed_ones(self) -> None:
        assert faults(UTC_SETTINGS, *daily(2, "UTC", endTime="")) == []
        [fault] = faults(UTC_SETTINGS, *daily(3, "UTC", endTime=""))
        assert fault.startswith("no end time in the last 3 callouts of COMPLETED: compare {{MeterSession.EndTime}}")
        assert faults(UTC_SETTINGS, *daily(3, "UTC", endTime="", status="FAILED")) == []
        assert faults(UTC_SETTINGS, *daily(2, "UTC", endTime=""), *daily(1, "UTC")) == []
