"""The line of each connection: what it says of each sign, and how grave that is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.journal.tables import CallsRow
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.signed import BODY, signature
from tests.unit.journal.old_rows import keep, session_of, told, wait_of

if TYPE_CHECKING:
    from datetime import datetime

    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager

pytestmark = pytest.mark.usefixtures("journal")

BUDGET = "calls in 24 h"


def ago(**span: float) -> datetime:
    return now() - timedelta(**span)


async def lines(browser: Browser) -> dict[str, str]:
    """What is said of each connection."""
    page = await browser.sees("/health")
    return {each.one("strong").text: each.text for each in page.one("ul").all("li")}


async def words(browser: Browser, conn_id: str = "zuora") -> list[tuple[str, str]]:
    """The signs of a connection with their levels, but for its budget where that is good."""
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


async def test_of_nobody_it_says_so(alice: Browser) -> None:
    page = await alice.sees("/health")
    assert page.one("li").text == "No connection has told the journal anything yet."


async def test_a_good_line_names_the_last_callout(alice: Browser) -> None:
    keep(told("R-1", ago(days=2, hours=3, minutes=30)))
    assert (await lines(alice))["zuora"].startswith("zuora last callout 2d 3h ago; 0 calls in 24 h")
    assert await words(alice) == []
    assert "l-good" in (await alice.sees("/health")).one("li").classes


async def test_without_a_callout_for_a_week_it_says_that(alice: Browser) -> None:
    keep(told("R-1", ago(days=8)))
    assert (await lines(alice))["zuora"].startswith("zuora last callout never in a week")


async def test_each_sign_and_how_grave_it_is(alice: Browser, directory: Directory) -> None:
    directory["unended"] = {"callout_hmac_secret": "s3cret"}
    live: dict[str, Any] = {"status": "RUNNING", "terminal": False}
    poll: dict[str, Any] = {"kind": "poll", "source": "poll", "status": "COMPLETED", "previous_status": "RUNNING"}
    keep(told(None, ago(days=7), conn_id="unended", **{**poll, "status": "RUNNING", "previous_status": None}))
    for name, row, level, sentence in [
        ("unread", told(None, ago(hours=1), kind="unparsed"), "bad", "1 callout of a day could not be read"),
        ("unheard", session_of("R-1", ago(hours=1), **live, source="run"), "bad", "no callout came of 1 session that"),
        ("unended", told(None, ago(hours=1), **poll), "bad", "polls saw an end that no callout told, of meter 1001"),
        ("unseen", wait_of("w", seen_at=ago(minutes=4)), "bad", "no triggerer has asked the feed for 1 waiting task"),
        ("silent", session_of("R-1", ago(hours=7), **live), "warn", "1 session went silent more than 6h ago"),
        ("waiting", wait_of("v", seen_at=ago(minutes=1)), "good", "1 task waiting, the feed is read"),
    ]:  # fmt: skip
        row.conn_id = name
        directory[name] = {"callout_hmac_secret": "s3cret"}
        keep(row)
        (found, text), *_ = await words(alice, name)
        assert (found, text.startswith(sentence)) == (level, True), text


async def test_several_are_counted_and_the_worst_comes_first(alice: Browser) -> None:
    keep(
        *(wait_of(f"w{number}", seen_at=now()) for number in range(3)),
        *(session_of(f"R-{number}", ago(hours=7), status="RUNNING", terminal=False) for number in range(2)),
        *(told(None, ago(hours=1), kind="unparsed", notification_id=f"n{number}") for number in range(101)),
    )
    assert await words(alice) == [
        ("bad", "100 callouts of a day could not be read"),
        ("warn", "2 sessions went silent more than 6h ago"),
        ("good", "3 tasks waiting, the feed is read"),
    ]
    assert (await alice.sees("/health")).links()["100 callouts of a day could not be read"] == "/mediation/unread"


async def test_the_connection_itself(alice: Browser, directory: Directory) -> None:
    directory["silent"] = {}
    directory["wrong"] = {"callout_hmac_secret": "s3cret", "callout_timezone": "Mars/Base"}
    for conn_id in ("gone", "silent", "wrong", "zuora"):
        keep(told("R-1", ago(minutes=1), conn_id=conn_id))
    assert await words(alice, "zuora") == []
    assert await words(alice, "gone") == [("warn", "is no connection any more")]
    assert await words(alice, "silent") == [("warn", "takes no callouts: what is known of its sessions rests on polls")]
    [(level, text)] = await words(alice, "wrong")
    assert (level, text.startswith("cannot take callouts: ")) == ("bad", True)
    assert list(await lines(alice)) == ["wrong", "gone", "silent", "zuora"]  # the worst first


async def test_what_is_wrong_with_its_settings_is_for_who_may_read_it(
    alice: Browser, directory: Directory, manager: Manager
) -> None:
    """A secret in the wrong field is quoted as what is wrong there."""
    directory["zuora"] = {"callout_token": "X-Zuora-Token", "callout_token_header": "s3cret/=of-zuora"}
    keep(told("R-1", ago(minutes=1)))
    [(_, text)] = await words(alice)
    assert "s3cret/=of-zuora" in text
    manager.deny("connection", "GET", "zuora")
    assert await words(alice) == [("bad", "cannot take callouts: its settings are wrong")]


async def test_callouts_that_were_refused_since_the_last_good_one(alice: Browser) -> None:
    keep(told("R-0", ago(minutes=1)))

    async def call(headers: dict[str, str]) -> int:
        path = f"{alice.base}/mediation/callouts/zuora"
        return (await alice.client.post(path, content=BODY, headers=headers)).status_code

    refused = [await call(signature(BODY, "yesterdays-secret")) for _ in range(2)]
    assert refused == [401, 401]
    [(level, text)] = await words(alice)
    assert (level, text.partition(":")[0]) == ("warn", "2 callouts refused since the last good one")
    assert await call(signature(BODY)) == 200
    assert await words(alice) == []


async def test_while_the_secrets_backends_fail_it_says_what_that_does(alice: Browser, directory: Directory) -> None:
    keep(told("R-1", ago(minutes=1)))
    directory.down = True
    [(level, text)] = await words(alice)
    assert (level, text) == ("bad", "cannot be looked up now: its callouts are answered 503")


async def test_where_no_callouts_are_to_come_none_is_missed(alice: Browser, directory: Directory) -> None:
    directory["zuora"] = {}
    keep(
        session_of("R-1", ago(hours=1), status="RUNNING", terminal=False, source="run"),
        told(None, ago(hours=2), kind="poll", source="poll", status="RUNNING", previous_status=None),
        told(None, ago(hours=1), kind="poll", source="poll", status="COMPLETED", previous_status="RUNNING"),
    )
    assert await words(alice) == [("warn", "takes no callouts: what is known of its sessions rests on polls")]


async def test_the_budget_of_calls(alice: Browser, directory: Directory) -> None:
    hour = now().replace(minute=0, second=0, microsecond=0)
    directory["sandbox"] = {"data_center": "SBX", "callout_hmac_secret": "s3cret"}
    directory["unnamed"] = {"callout_hmac_secret": "s3cret"}
    for conn_id, calls, limited, level, sentence in [
        ("sandbox", 6_000, 0, "good", "6,000 calls in 24 h of the 10,000 that an API Sandbox has a day"),
        ("tight", 7_500, 0, "warn", "7,500 calls in 24 h of the 10,000 that"),
        ("spent", 9_500, 0, "bad", "9,500 calls in 24 h of the 10,000 that"),
        ("refused", 10, 3, "warn", "3 refused as too many"),
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
