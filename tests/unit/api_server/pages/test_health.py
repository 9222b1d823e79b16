"""The line of each connection: the text and the level of each sign."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import pendulum
import pytest
from airflow import settings
from airflow.sdk import Asset
from sqlalchemy import update
from sqlalchemy.orm import Session

from airflow_mediation_provider.api_server.connections import ConnectionsOfTeams, MediationConnection
from airflow_mediation_provider.api_server.pages import health
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal import meters
from airflow_mediation_provider.journal.health import Unreported
from airflow_mediation_provider.journal.meters import RunsOfMeter
from airflow_mediation_provider.journal.receipts import Seen, record_receipts
from airflow_mediation_provider.journal.tables import AnswersRow, CallsRow, HistoryRow, SessionRow
from airflow_mediation_provider.protocol.callouts.receipt import Receipt
from airflow_mediation_provider.protocol.times import in_words
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.signed import BODY, CHANGE, signature
from tests.unit.journal.old_rows import keep, session_of, told, wait_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_mediation_provider.api_server import LazyApp
    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager
    from tests.unit.journal.scheduling import Airflow

pytestmark = pytest.mark.usefixtures("journal")

BUDGET = "calls in 24 h"


def ago(**span: float) -> datetime:
    return now() - timedelta(**span)


async def lines(browser: Browser) -> dict[str, str]:
    """The text of each connection's line."""
    page = await browser.sees("/health")
    return {each.one("strong").text: each.text for each in page.one("ul").all("li")}


async def words(browser: Browser, conn_id: str = "zuora") -> list[tuple[str, str]]:
    """The signs of a connection with their levels, without its API usage if that is good."""
    page = await browser.sees("/health")
    [line] = [each for each in page.one("ul").all("li") if each.one("strong").text == conn_id]
    said = [
        (level, each.text) for each in line.all() for level in ("good", "warn", "bad") if f"w-{level}" in each.classes
    ]
    first = said[0][0]
    assert line.classes == {f"l-{first}"}
    assert line.all("span", class_="dot")[0].classes == {"dot", f"d-{first}"}
    levels = [level for level, _ in said]
    assert levels == sorted(levels, key=("bad", "warn", "good").index)
    return [(level, text) for level, text in said if not (level == "good" and BUDGET in text)]


async def test_without_connections_the_page_has_a_message(alice: Browser) -> None:
    page = await alice.sees("/health")
    assert page.one("li").text == "Nothing has been received over any connection yet."


async def test_a_good_line_names_the_last_callout(alice: Browser) -> None:
    received = ago(days=2, hours=3, minutes=30)
    keep(told("R-1", received))
    assert (await lines(alice))["zuora"].startswith(f"zuora last callout {in_words(received)}; 0 calls in 24 h")
    assert await words(alice) == []
    assert "l-good" in (await alice.sees("/health")).one("li").classes


async def test_without_a_callout_for_a_week_the_line_has_a_message(alice: Browser) -> None:
    keep(told("R-1", ago(days=8)))
    assert (await lines(alice))["zuora"].startswith("zuora no callout in the last 7 days")


async def test_each_sign_has_its_text_and_level(alice: Browser, directory: Directory) -> None:
    directory["unended"] = {"callout_hmac_secret": "s3cret"}
    live: dict[str, Any] = {"status": "RUNNING", "terminal": False}
    poll: dict[str, Any] = {"kind": "poll", "source": "poll", "status": "COMPLETED", "previous_status": "RUNNING"}
    keep(told(None, ago(days=7), conn_id="unended", **{**poll, "status": "RUNNING", "previous_status": None}))
    for name, row, level, sentence in [
        ("unread", told(None, ago(hours=1), kind="unparsed"), "bad", "1 unreadable callout in the last 24 h"),
        (
            "without_callouts",
            session_of("R-1", ago(hours=1), **live, source="run"),
            "bad",
            "1 session started by Airflow has had no callout",
        ),
        ("unended", told(None, ago(hours=1), **poll), "bad", "polls showed an end without a callout: meter 1001"),
        ("unseen", wait_of("w", seen_at=ago(minutes=4)), "bad", "no triggerer has reported 1 waiting task"),
        ("silent", session_of("R-1", ago(hours=7), **live), "warn", "1 session without an update for more than 6h"),
        ("waiting", wait_of("v", seen_at=ago(minutes=1)), "good", "1 task waiting, feed connected"),
    ]:  # fmt: skip
        row.conn_id = name
        directory[name] = {"callout_hmac_secret": "s3cret"}
        keep(row)
        (found, text), *_ = await words(alice, name)
        assert (found, text.startswith(sentence)) == (level, True), text


@pytest.mark.parametrize(
    ("extra", "level", "said"),
    [
        (
            {"callout_hmac_secret": "s3cret"},
            "bad",
            "no triggerer has reported 3 waiting tasks for 3m: check that a triggerer runs, and that its log "
            "shows no error for this API server",
        ),
        ({}, "warn", "callouts are not set up: statuses come from polls alone"),
    ],
)
async def test_a_feed_that_was_never_reached_is_shown(
    alice: Browser, directory: Directory, monkeypatch: pytest.MonkeyPatch, extra: Any, level: str, said: str
) -> None:
    directory["fresh"] = extra
    monkeypatch.setattr(health, "unreported", lambda *_: Unreported(Counter(fresh=3), more=False))
    assert await words(alice, "fresh") == [(level, said)]


async def test_more_unreported_tasks_than_are_counted_are_at_least_so_many(
    alice: Browser, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory["fresh"] = {"callout_hmac_secret": "s3cret"}
    keep(wait_of("w", seen_at=now()))
    monkeypatch.setattr(health, "unreported", lambda *_: Unreported(Counter(fresh=3), more=True))
    ((level, said),) = await words(alice, "fresh")
    assert (level, said.split(":")[0]) == ("bad", "no triggerer has reported at least 3 waiting tasks for 3m")
    # Those that were not counted may be of this connection.
    assert await words(alice) == [("good", "1 task waiting")]


async def test_several_signs_are_counted_and_the_worst_comes_first(alice: Browser) -> None:
    keep(
        *(wait_of(f"w{number}", seen_at=now()) for number in range(3)),
        *(session_of(f"R-{number}", ago(hours=7), status="RUNNING", terminal=False) for number in range(2)),
        *(told(None, ago(hours=1), kind="unparsed", notification_id=f"n{number}") for number in range(101)),
    )
    assert await words(alice) == [
        ("bad", "100 unreadable callouts in the last 24 h"),
        ("warn", "2 sessions without an update for more than 6h"),
        ("good", "3 tasks waiting, feed connected"),
    ]
    assert (await alice.sees("/health")).links()[
        "100 unreadable callouts in the last 24 h"
    ] == "/mediation/callouts?conn=zuora&kind=unreadable&acknowledged=no&since=24h"


async def test_the_line_shows_problems_of_the_connection_itself(alice: Browser, directory: Directory) -> None:
    directory["silent"] = {}
    directory["wrong"] = {"callout_hmac_secret": "s3cret", "callout_timezone": "Mars/Base"}
    for conn_id in ("gone", "silent", "wrong", "zuora"):
        keep(told("R-1", ago(minutes=1), conn_id=conn_id))
    # Without callouts, Zuora reports no end of any session.
    keep(session_of("R-2", ago(days=9), status="RUNNING", terminal=False, source="run", conn_id="silent"))
    assert await words(alice, "zuora") == []
    assert await words(alice, "gone") == [("warn", "the connection was deleted")]
    assert await words(alice, "silent") == [("warn", "callouts are not set up: statuses come from polls alone")]
    [(level, text)] = await words(alice, "wrong")
    assert (level, text.startswith("callouts cannot be received: ")) == ("bad", True)
    assert list(await lines(alice)) == ["wrong", "gone", "silent", "zuora"]  # the worst first


async def test_wrong_settings_are_red_before_the_first_report(
    alice: Browser, directory: Directory, pages: LazyApp
) -> None:
    directory["wrong"] = {"callout_hmac_secret": "s3cret", "callout_timezone": "Mars/Base"}
    path = f"{alice.base}/mediation/callouts/wrong"
    assert (await alice.client.post(path, content=BODY, headers=signature(BODY))).status_code == 503
    await pages._built().state.receipts.flush()
    [(level, text)] = await words(alice, "wrong")
    assert (level, text.startswith("callouts cannot be received: ")) == ("bad", True)


async def test_wrong_settings_are_quoted_only_to_users_who_may_read_the_connection(
    alice: Browser, directory: Directory, manager: Manager
) -> None:
    """The error quotes a secret in the wrong field."""
    directory["zuora"] = {"callout_token": "X-Zuora-Token", "callout_token_header": "s3cret/=of-zuora"}
    keep(told("R-1", ago(minutes=1)))
    [(_, text)] = await words(alice)
    assert "s3cret/=of-zuora" in text
    manager.deny("connection", "GET", "zuora")
    assert await words(alice) == [("bad", "callouts cannot be received: its settings are wrong")]


class TestTheCalloutHistory:
    """Of a connection without callouts, unless the test gives it callouts."""

    @pytest.fixture
    def reads(self, directory: Directory) -> Callable[..., None]:
        directory["cut_off"] = {}

        def keep_row(cursor: dict[str, Any] | None = None, **values: Any) -> None:
            state = {"read_to": ago(seconds=20).isoformat(), "newest": None, **(cursor or {})}
            row = {"conn_id": "cut_off", "revision": 1, "seconds": 60.0, "claimed_at": ago(seconds=20), "open": False}
            keep(HistoryRow(**{**row, "cursor": state, "read_at": ago(seconds=20), "lasting": False, **values}))

        return keep_row

    KNOWN: ClassVar[dict[str, Any]] = {"newest": "2026-03-31T02:00:00", "low": -25_300.0, "high": -24_900.0}

    async def test_while_it_is_read_the_line_is_good(self, alice: Browser, reads: Callable[..., None]) -> None:
        reads(self.KNOWN)
        [(level, text)] = await words(alice, "cut_off")
        assert level == "good"
        assert re.fullmatch(r"callout history read \S+ \S+ UTC, every 1m", text)

    async def test_a_first_read_under_way_is_no_fault(self, alice: Browser, reads: Callable[..., None]) -> None:
        reads(read_at=None, open=True)
        assert await words(alice, "cut_off") == [("good", "callout history is being read, every 1m, no record yet")]

    async def test_when_nothing_reads_it_the_line_is_red(self, alice: Browser, reads: Callable[..., None]) -> None:
        reads(self.KNOWN, read_at=ago(hours=3), claimed_at=ago(hours=3))
        [(level, text)] = await words(alice, "cut_off")
        assert level == "bad"
        assert re.match(r"the callout history has not been read since \S+ \S+ UTC: ", text)
        assert "is not paused" in text
        assert "--queues" in text

    @pytest.mark.parametrize(("lasting", "level"), [(True, "bad"), (False, "warn")])
    async def test_a_missing_permission_is_red_and_an_outage_yellow(
        self, alice: Browser, reads: Callable[..., None], lasting: bool, level: str
    ) -> None:
        reads(self.KNOWN, trouble="The user lacks a permission.", lasting=lasting)
        assert await words(alice, "cut_off") == [(level, "callout history: The user lacks a permission.")]

    async def test_an_unknown_zone_is_yellow(self, alice: Browser, reads: Callable[..., None]) -> None:
        reads({"newest": "2026-03-31T02:00:00", "low": -25_300.0})
        (level, text), _ = await words(alice, "cut_off")
        assert (level, text.partition(" is not known")[0]) == ("warn", "the zone of the times in the callout history")

    @pytest.mark.parametrize(
        ("zone", "setting"),
        [
            ("", "if they are rare, set callout_timezone, also to UTC"),
            ("Pacific/Honolulu", "callout_timezone is Pacific/Honolulu, which the records contradict"),
        ],
    )
    async def test_beside_an_unknown_zone_the_setting_is_shown(
        self, alice: Browser, reads: Callable[..., None], directory: Directory, zone: str, setting: str
    ) -> None:
        directory["cut_off"] = {"callout_timezone": zone}
        reads({"newest": "2026-03-31T02:00:00", "low": -25_300.0})
        level, text = (await words(alice, "cut_off"))[0]
        assert (level, text.partition("show it: ")[2]) == ("warn", setting)

    async def test_utc_that_is_set_is_a_known_zone(
        self, alice: Browser, reads: Callable[..., None], directory: Directory
    ) -> None:
        directory["cut_off"] = {"callout_timezone": "UTC"}
        reads({"newest": "2026-03-31T02:00:00", "low": -25_300.0})
        assert [level for level, _ in await words(alice, "cut_off")] == ["good"]

    @pytest.mark.parametrize(
        ("zone", "level", "text"),
        [
            ("America/Phoenix", "good", "callout history read"),
            ("Europe/Berlin", "warn", "callout_timezone is Europe/Berlin, and the callout history is written in UTC"),
        ],
    )
    async def test_a_zone_that_the_records_contradict_is_yellow(
        self, alice: Browser, reads: Callable[..., None], directory: Directory, zone: str, level: str, text: str
    ) -> None:
        directory["cut_off"] = {"callout_timezone": zone}
        reads(self.KNOWN)
        found = (await words(alice, "cut_off"))[0]
        assert (found[0], found[1].startswith(text)) == (level, True)

    async def test_beside_callouts_both_are_shown(
        self, alice: Browser, reads: Callable[..., None], directory: Directory
    ) -> None:
        directory["cut_off"] = {"callout_hmac_secret": "s3cret"}
        reads(self.KNOWN, read_at=ago(hours=3), claimed_at=ago(hours=3))
        keep(told(None, ago(hours=1), kind="unparsed", conn_id="cut_off"))
        assert [level for level, _ in await words(alice, "cut_off")] == ["bad", "bad"]


async def test_callouts_refused_since_the_last_accepted_one_are_counted(alice: Browser, pages: LazyApp) -> None:
    body = json.dumps({**CHANGE, "endTime": "2026-06-01T00:00:00Z"}).encode()

    async def call(headers: dict[str, str]) -> int:
        path = f"{alice.base}/mediation/callouts/zuora"
        status = (await alice.client.post(path, content=body, headers=headers)).status_code
        await pages._built().state.receipts.flush()
        return status

    refused = [await call(signature(body, "yesterdays-secret")) for _ in range(2)]
    assert refused == [401, 401]
    [(level, text)] = await words(alice)
    assert (level, text.partition(":")[0]) == ("warn", "2 callouts refused since the last accepted one")
    assert await call(signature(body)) == 200
    assert await words(alice) == []


async def test_what_zuora_never_sends_again_is_shown_with_what_to_change(
    alice: Browser, directory: Directory, pages: LazyApp
) -> None:
    directory["without"] = {}
    keep(told("R-0", ago(minutes=1)), told("R-1", ago(minutes=1), conn_id="without"))

    async def call(method: str, conn_id: str) -> int:
        path = f"{alice.base}/mediation/callouts/{conn_id}"
        return (await alice.client.request(method, path, content=BODY, headers=signature(BODY))).status_code

    assert [await call("GET", "zuora"), await call("POST", "without"), await call("POST", "zoura")] == [405, 404, 404]
    await pages._built().state.receipts.flush()
    assert await words(alice) == [
        ("warn", "1 callout refused since the last accepted one: choose the method POST in Zuora's callout template")
    ]
    assert "1 callout refused since the last accepted one: the connection has no callout authentication" in [
        text for _, text in await words(alice, "without")
    ]
    [(level, text)] = await words(alice, "no connection")
    assert level == "warn"
    assert text.startswith("1 callout in the last 24 h to an address that names no connection: ")
    assert (await lines(alice))["no connection"].startswith("no connection ; 1 callout in the last 24 h to an address")


async def test_an_id_of_several_teams_is_red_once_a_callout_names_no_team(
    alice: Browser, pages: LazyApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"callout_hmac_secret": "s3cret-of-zuora"}
    both = ConnectionsOfTeams("zuora", {each: MediationConnection("zuora", each, "p", secret) for each in ("a", "b")})
    monkeypatch.setattr(pages._built().state.connections, "_find", {"zuora": both}.get)
    url = f"{alice.base}/mediation/callouts/zuora"

    async def call(query: str) -> int:
        status = (await alice.client.post(url + query, content=BODY, headers=signature(BODY))).status_code
        await pages._built().state.receipts.flush()
        return status

    assert await call("") == 503
    [(level, text)] = await words(alice)
    assert (level, text[:56]) == ("bad", "several teams have a connection of this id (a, b), and t")
    assert await call("?team=b") == 200
    assert [level for level, _ in await words(alice)] == ["warn"]


async def test_what_came_under_another_spelling_names_the_connections_id(
    alice: Browser, pages: LazyApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = pages._built().state.connections._find
    monkeypatch.setattr(pages._built().state.connections, "_find", lambda conn_id: find(conn_id) or find("zuora"))
    keep(told("R-1", ago(minutes=1), conn_id="Zuora"))

    [(level, text)] = await words(alice, "Zuora")
    assert (level, text[:71]) == ("warn", "not an id of a connection: the connection is found under the id 'zuora'")


async def test_a_callout_to_no_connection_is_shown_for_a_day(alice: Browser, pages: LazyApp) -> None:
    keep(told("R-0", ago(minutes=1)))

    async def shown() -> bool:
        return "no connection" in await lines(alice)

    def age(**span: float) -> None:
        with settings.NonScopedSession() as session:
            session.execute(update(AnswersRow).values(last_at=ago(**span)))
            session.commit()

    await alice.client.get(f"{alice.base}/mediation/callouts/scanned")
    await pages._built().state.receipts.flush()
    age(hours=23, minutes=59)
    assert await shown()
    age(hours=24)
    assert not await shown()


async def test_what_another_api_server_refused_is_shown_without_any_session(alice: Browser) -> None:
    seen = Seen()
    for status in (401, 401, 503):
        seen.add(Receipt(conn_id="zuora", received_at=ago(minutes=1), status=status))
    record_receipts(seen)
    assert await words(alice) == [
        ("warn", "2 callouts refused since the last accepted one: perhaps the secrets differ")
    ]


async def test_a_wrong_zone_is_shown_after_two_sessions(alice: Browser) -> None:
    def report(number: int) -> None:
        came = ago(hours=9 - number)
        start = came.astimezone(pendulum.timezone("Asia/Kolkata")) - timedelta(seconds=4)
        body = {
            "meterId": "7",
            "sessionId": f"R-{number}",
            "status": "RUNNING",
            "startTime": f"{start:%d-%b-%Y %H:%M:%S}",
        }
        keep(told(f"R-{number}", came, meter_id="7", body=body, notification_id=f"n{number}"))

    report(1)
    assert await words(alice) == []
    report(2)
    [(level, text)] = await words(alice)
    assert level == "warn"
    assert text.endswith(
        "set callout_timezone to the tenant's zone, which is now UTC+05:30, such as Asia/Kolkata, and not UTC"
    )


async def test_failing_secrets_backends_are_shown_with_their_effect(alice: Browser, directory: Directory) -> None:
    keep(told("R-1", ago(minutes=1)))
    directory.down = True
    [(level, text)] = await words(alice)
    assert (level, text) == ("bad", "the connection cannot be looked up now: its callouts are answered 503")


async def test_without_callout_settings_no_callout_is_missing(alice: Browser, directory: Directory) -> None:
    directory["zuora"] = {}
    keep(
        session_of("R-1", ago(hours=1), status="RUNNING", terminal=False, source="run"),
        told(None, ago(hours=2), kind="poll", source="poll", status="RUNNING", previous_status=None),
        told(None, ago(hours=1), kind="poll", source="poll", status="COMPLETED", previous_status="RUNNING"),
    )
    assert await words(alice) == [("warn", "callouts are not set up: statuses come from polls alone")]


async def test_the_budget_of_calls(alice: Browser, directory: Directory) -> None:
    hour = now().replace(minute=0, second=0, microsecond=0)
    directory["sandbox"] = {"data_center": "SBX", "callout_hmac_secret": "s3cret"}
    directory["unnamed"] = {"callout_hmac_secret": "s3cret"}
    for conn_id, calls, limited, level, sentence in [
        ("sandbox", 6_000, 0, "good", "6,000 calls in 24 h of the 10,000 that an API Sandbox has a day"),
        ("tight", 7_500, 0, "warn", "7,500 calls in 24 h of the 10,000 that"),
        ("spent", 9_500, 0, "bad", "9,500 calls in 24 h of the 10,000 that"),
        ("refused", 10, 3, "warn", "3 refused by the limit"),
    ]:
        directory[conn_id] = directory["sandbox"]
        keep(CallsRow(conn_id=conn_id, hour=hour, calls=calls, limited=limited))
        page = await alice.sees("/health")
        [line] = [each for each in page.one("ul").all("li") if each.one("strong").text == conn_id]
        assert line.classes == {f"l-{level}"}
        assert sentence in line.text


async def test_the_list_shows_the_lines_and_fetches_them_again(alice: Browser) -> None:
    place = (await alice.sees("/sessions")).one("div", id="health")
    assert place.attributes["data-src"] == "/mediation/health"
    assert int(place.attributes["data-every"]) <= 60
    keep(told("R-1", ago(minutes=1)))
    assert (await alice.sees("/health")).one("ul", data_part="").attributes["aria-label"] == "Health of the connections"


async def test_a_dag_that_sessions_never_start_is_named_to_users_who_may_see_it(
    alice: Browser, airflow: Airflow, manager: Manager
) -> None:
    manager.deny("dag", "GET", "RUN", "secret")
    for dag_id in ("plain", "secret"):
        airflow.know(dag_id, [Asset("mediation://zuora/meters/1/COMPLETED")])
    airflow.know("load", on_meter_session("1", "COMPLETED", mediation_conn_id="zuora"))

    assert await words(alice) == [
        ("warn", "sessions never start the Dag plain: write schedule=on_meter_session(...) instead of an asset"),
        ("warn", "sessions never start 1 Dag that you may not see"),
    ]


# ---- what is not usual of meters


def each_hour(*, meter_id: str, count: int = 10, last: float) -> None:
    """Sessions that took ten minutes, one each hour; the last one began so many hours ago."""
    for number in range(count):
        begun = ago(hours=last + number)
        row = session_of(
            f"R-{number}", begun, meter_id=meter_id, started_at=begun, ended_at=begun + timedelta(minutes=10)
        )
        row.last_observed_at = begun + timedelta(minutes=10)
        row.updated_at = now()
        keep(row)


async def test_late_meters_are_counted_and_lead_to_what_is_late(alice: Browser) -> None:
    each_hour(meter_id="1001", last=3)
    each_hour(meter_id="1002", last=0.5)
    page = await alice.sees("/health")
    assert ("warn", "1 meter is late: 1001") in await words(alice)
    assert page.links()["1 meter is late: 1001"] == "/mediation/meter?conn=zuora&meter=1001"

    each_hour(meter_id="1003", last=3)
    page = await alice.sees("/health")
    assert page.links()["2 meters are late: 1001, 1003"] == "/mediation/sessions?conn=zuora"


async def test_a_late_meter_is_late_no_more_once_a_session_starts(alice: Browser) -> None:
    each_hour(meter_id="1001", last=3)
    assert ("warn", "1 meter is late: 1001") in await words(alice)
    keep(session_of("R-new", now(), status="RUNNING", terminal=False))
    assert await words(alice) == []


async def test_a_session_that_takes_long_is_named_by_its_meter_unless_it_is_silent(alice: Browser) -> None:
    each_hour(meter_id="1001", last=1)
    live = session_of("R-live", ago(minutes=40), status="RUNNING", terminal=False)
    live.last_observed_at = live.updated_at = now()
    keep(live)
    said = "1 meter has a session that takes longer than usual: 1001"
    assert await words(alice) == [("warn", said)]
    with Session(settings.get_engine()) as session:
        session.execute(
            update(SessionRow).where(SessionRow.session_id == "R-live").values(last_observed_at=ago(hours=7))
        )
        session.commit()
    assert said not in [text for _, text in await words(alice)]


async def test_what_is_usual_of_a_meter_is_read_once(alice: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(session_of("R-1", ago(hours=1)))
    asked: list[RunsOfMeter] = []
    real = meters.tempos
    monkeypatch.setattr(meters, "tempos", lambda session, runs: asked.extend(runs) or real(session, runs))
    for path in ("/health", "/sessions", "/health"):
        await alice.sees(path)
    assert asked == [RunsOfMeter("zuora", "1001", "NORMAL")]
