"""What unauthenticated clients can make the secrets backends do, and what a failing backend does to the API server."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from airflow_mediation_provider.api_server import connections as module
from airflow_mediation_provider.api_server.connections import (
    Connections,
    ConnectionsOfTeams,
    IdsInUse,
    LookupFailedError,
    MediationConnection,
    OtherIdError,
    SeveralTeamsError,
    UnknownConnectionError,
    find_connection,
)
from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from tests.unit.api_server.signed import until


class Ticks:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Backends:
    """Stands in for Airflow's look-up: `known` by id, `down` while it raises, `hold` while it hangs."""

    def __init__(self):
        self.known: dict[str, MediationConnection] = {}
        self.asked: list[str] = []
        self.down = False
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, conn_id):
        self.asked.append(conn_id)
        assert self.hold.wait(10)
        if self.down:
            raise LookupFailedError("vault raised ConnectionError")
        return self.known.get(conn_id)


@pytest.fixture
def ticks():
    return Ticks()


@pytest.fixture
def backends():
    made = Backends()
    made.known["zuora"] = MediationConnection("zuora", extra={"callout_token": "old"})
    yield made
    made.hold.set()


@pytest.fixture
def connections(backends, ticks):
    return Connections(backends, ticks)


async def test_a_known_connection_is_looked_up_every_few_seconds(connections, backends, ticks):
    assert (await connections.get("zuora")).extra["callout_token"] == "old"
    backends.known["zuora"] = MediationConnection("zuora", extra={"callout_token": "new"})
    ticks.now += module.KNOWN_SECONDS - 0.1
    assert (await connections.get("zuora")).extra["callout_token"] == "old"
    ticks.now += 0.1
    assert (await connections.get("zuora")).extra["callout_token"] == "new"
    assert backends.asked == ["zuora"] * 2


async def test_a_connection_in_use_is_looked_up_before_a_request_has_to_wait(connections, backends, ticks):
    await connections.get("zuora")
    backends.hold.clear()
    ticks.now += module.AHEAD_SECONDS + 0.1
    for _ in range(3):
        assert (await connections.get("zuora")).extra["callout_token"] == "old"
    backends.known["zuora"] = MediationConnection("zuora", extra={"callout_token": "new"})
    backends.hold.set()
    ticks.now += module.KNOWN_SECONDS - module.AHEAD_SECONDS
    assert (await connections.get("zuora")).extra["callout_token"] == "new"
    assert backends.asked == ["zuora"] * 2


async def test_an_unknown_id_reaches_the_backends_once_within_minutes(connections, backends, ticks):
    for _ in range(3):
        with pytest.raises(UnknownConnectionError):
            await connections.get("invented")
        ticks.now += module.UNKNOWN_SECONDS / 4
    assert backends.asked == ["invented"]

    ticks.now += module.UNKNOWN_SECONDS
    backends.known["invented"] = MediationConnection("invented")
    assert await connections.get("invented")


async def test_a_deleted_connection_is_not_used_and_is_unknown_at_the_next_look_up(connections, backends, ticks):
    await connections.get("zuora")
    del backends.known["zuora"]
    ticks.now += module.KNOWN_SECONDS

    with pytest.raises(LookupFailedError, match="does not now"):
        await connections.get("zuora")
    ticks.now += module.FAILED_SECONDS
    with pytest.raises(UnknownConnectionError):
        await connections.get("zuora")


async def test_a_connection_that_is_deleted_and_created_again_is_never_unknown(connections, backends, ticks):
    await connections.get("zuora")
    made = backends.known.pop("zuora")
    ticks.now += module.KNOWN_SECONDS
    with pytest.raises(LookupFailedError):
        await connections.get("zuora")

    backends.known["zuora"] = made
    ticks.now += module.FAILED_SECONDS
    assert await connections.get("zuora")


@pytest.mark.parametrize(
    "conn_id",
    [
        "",
        "a b",
        "a\n",
        "x" * 251,
        "%s",
        "a\0",
        "a'b",
        "{}",
        "\ufffd",
        "a?b",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "a\\..\\b",
        "a\\",
    ],
)
async def test_an_id_that_airflow_does_not_allow_is_unknown_without_a_look_up(connections, backends, conn_id):
    with pytest.raises(UnknownConnectionError):
        await connections.get(conn_id)

    assert backends.asked == []


@pytest.mark.parametrize("conn_id", ["team/zuora", "a.b-c_d", "x" * 250, "zuora:eu", "a#(!)\\b"])
async def test_an_id_that_airflow_allows_is_looked_up(connections, backends, conn_id):
    backends.known[conn_id] = MediationConnection(conn_id)

    assert (await connections.get(conn_id)).conn_id == conn_id


async def test_many_concurrent_requests_share_one_look_up(connections, backends):
    backends.hold.clear()
    asking = [asyncio.create_task(connections.get("zuora")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    backends.hold.set()

    found = await asyncio.gather(*asking[1:])

    assert {each.conn_id for each in found} == {"zuora"}
    assert backends.asked == ["zuora"]


async def test_a_failed_look_up_raises_and_is_not_repeated_at_once(connections, backends, ticks):
    backends.down = True
    for _ in range(3):
        with pytest.raises(LookupFailedError, match="vault"):
            await connections.get("zuora")
    assert backends.asked == ["zuora"]

    backends.down = False
    ticks.now += module.FAILED_SECONDS
    assert await connections.get("zuora")


async def test_a_connection_in_use_outlives_a_short_outage_of_the_backends(connections, backends, ticks):
    await connections.get("zuora")
    backends.down = True
    ticks.now += module.STALE_SECONDS - 1
    assert await connections.get("zuora")
    ticks.now += 1
    with pytest.raises(LookupFailedError):
        await connections.get("zuora")


async def test_a_look_up_that_hangs_goes_on_after_the_request_gave_up(connections, backends, ticks, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    backends.hold.clear()
    with pytest.raises(LookupFailedError, match="too long"):
        await connections.get("zuora")
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 10)
    waiting = asyncio.create_task(connections.get("zuora"))
    await asyncio.sleep(0)
    backends.hold.set()

    assert await waiting
    assert backends.asked == ["zuora"]


def test_a_thread_waits_for_the_look_up_that_a_request_started(connections, backends, monkeypatch):
    backends.hold.clear()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(connections.get_in_thread, "zuora") for _ in range(2)]
        backends.hold.set()
        assert {each.result(10).conn_id for each in waiting} == {"zuora"}
    assert backends.asked == ["zuora"]
    backends.hold.clear()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(LookupFailedError, match="take too long"):
        connections.get_in_thread("other")


async def test_any_number_of_invented_ids_costs_bounded_memory_and_delays_no_first_look_up(
    backends, ticks, monkeypatch
):
    monkeypatch.setattr(module, "UNKNOWN_LIMIT", 10)
    connections = Connections(backends, ticks)
    for number in range(100):
        with pytest.raises(UnknownConnectionError):
            await connections.get(f"invented-{number}")
    assert len(connections._unknown) == 10

    assert await connections.get("zuora")  # which nothing named before


async def test_an_invented_id_is_not_looked_up_while_too_many_wait_for_it(backends, ticks, monkeypatch):
    monkeypatch.setattr(module, "WAITING_LIMIT", 10)
    connections = Connections(backends, ticks)
    backends.hold.clear()
    waiting = [asyncio.create_task(connections.get(f"invented-{number}")) for number in range(10)]
    await until(lambda: len(connections._asking) == 10)

    # Not "unknown": that would end the callout without another attempt.
    with pytest.raises(LookupFailedError, match="too many"):
        await connections.get("invented-10")
    backends.hold.set()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in ended} == {UnknownConnectionError}
    with pytest.raises(UnknownConnectionError):
        await connections.get("invented-10")


async def test_invented_ids_that_hang_do_not_delay_a_connection_in_use(connections, backends, ticks):
    await connections.get("zuora")
    ticks.now += module.KNOWN_SECONDS
    backends.hold.clear()
    invented = [asyncio.create_task(connections.get(f"invented-{number}")) for number in range(20)]
    await asyncio.sleep(0)
    refreshing = asyncio.create_task(connections.get("zuora"))
    await until(lambda: "zuora" in backends.asked[1:])
    backends.hold.set()

    assert await refreshing
    assert all(
        isinstance(each, UnknownConnectionError) for each in await asyncio.gather(*invented, return_exceptions=True)
    )


async def test_an_unexpected_error_in_a_look_up_is_a_failed_look_up(ticks, caplog):
    def find(_conn_id):
        raise RuntimeError("bug")

    with pytest.raises(LookupFailedError):
        await Connections(find, ticks).get("zuora")
    assert "bug" in caplog.text


def test_a_connection_shows_no_secret():
    shown = repr(MediationConnection("zuora", client_secret="hush", extra={"callout_token": "hush"}))

    assert "hush" not in shown


# ---- one id for each connection ----


class Environment(Backends):
    """Finds a connection by each spelling of its id, as environment variables do; `in_use` is what the journal has."""

    def __init__(self):
        super().__init__()
        self.in_use = IdsInUse()
        self.reads = 0

    def __call__(self, conn_id):
        found = super().__call__(conn_id.upper())
        return found and module._renamed(found, conn_id)

    def read_in_use(self):
        self.reads += 1
        if isinstance(self.in_use, Exception):
            raise self.in_use
        return self.in_use


@pytest.fixture
def environment():
    made = Environment()
    made.known["ZUORA_EU"] = MediationConnection("ZUORA_EU", extra={"callout_token": "t"})
    yield made
    made.hold.set()


@pytest.fixture
def of_environment(environment, ticks):
    return Connections(environment, ticks, environment.read_in_use)


async def the_id(connections, conn_id):
    """Return the id under which a connection is found."""
    try:
        return (await connections.get(conn_id)).conn_id
    except OtherIdError as error:
        return error.conn_id


SPELLINGS = ("zuora_eu", "Zuora_EU", "ZUORA_EU", "ZuOrA_eU")


@pytest.mark.parametrize(
    ("by_dags", "elsewhere", "ids"),
    [
        ((), (), ["zuora_eu"] * 4),
        (("other",), ("zuora_us",), ["zuora_eu"] * 4),
        ((), ("Zuora_EU",), ["Zuora_EU"] * 4),
        (("Zuora_EU",), ("zuora_eu",), ["Zuora_EU"] * 4),
        (("zuora_eu",), ("Zuora_EU",), ["zuora_eu"] * 4),
        (("zuora_eu", "Zuora_EU"), (), ["zuora_eu", "Zuora_EU", "zuora_eu", "zuora_eu"]),
    ],
)
async def test_a_connection_that_is_found_by_each_spelling_has_the_id_that_dags_use_or_the_journal_or_lower_case(
    of_environment, environment, by_dags, elsewhere, ids
):
    environment.in_use = IdsInUse(frozenset(by_dags), frozenset(elsewhere))

    assert [await the_id(of_environment, each) for each in SPELLINGS] == ids


async def test_the_dotless_i_is_a_spelling_too(of_environment, environment):
    environment.known["MEDIATION"] = MediationConnection("MEDIATION")

    assert await the_id(of_environment, "med\u0131ation") == "mediation"


async def test_two_connections_whose_ids_differ_in_case_alone_stay_two(connections, backends):
    backends.known["Zuora"] = MediationConnection("Zuora", extra={"callout_token": "another"})

    assert (await connections.get("zuora")).extra["callout_token"] == "old"
    assert (await connections.get("Zuora")).extra["callout_token"] == "another"
    assert await the_id(connections, "zuora") == "zuora"


async def test_an_id_with_capitals_in_a_backend_with_case_needs_no_other_spelling(connections, backends):
    backends.known["Mediation"] = MediationConnection("Mediation")

    assert await the_id(connections, "Mediation") == "Mediation"


async def test_hundreds_of_spellings_leave_nothing_behind(of_environment, environment, ticks):
    environment.known["MEDIATION"] = MediationConnection("MEDIATION")
    spellings = ["".join(letters) for letters in product(*((a, a.upper()) for a in "mediation"))]
    assert len(spellings) == 512
    for each in spellings:
        assert await the_id(of_environment, each) == "mediation"

    assert list(of_environment._known) == ["mediation"]
    assert [each for each in spellings if of_environment.knows(each)] == ["mediation"]
    ticks.now += module.UNKNOWN_SECONDS
    assert (len(of_environment._unknown), of_environment._asking) == (0, {})


async def test_a_spelling_counts_a_minute_after_a_dag_uses_it_and_the_other_one_no_longer(
    of_environment, environment, ticks
):
    assert await the_id(of_environment, "zuora_eu") == "zuora_eu"
    environment.in_use = IdsInUse(frozenset({"Zuora_EU"}))
    ticks.now += module.IN_USE_SECONDS

    assert await the_id(of_environment, "Zuora_EU") == "Zuora_EU"
    assert await the_id(of_environment, "zuora_eu") == "Zuora_EU"
    assert environment.reads == 2


async def test_while_it_cannot_be_read_which_ids_are_in_use_no_spelling_is_refused_permanently(
    of_environment, environment, ticks
):
    environment.in_use = JournalUnavailable("the database is away")
    for conn_id in SPELLINGS:
        with pytest.raises(LookupFailedError, match=r"which ids are in use .* the database is away"):
            await of_environment.get(conn_id)
    assert environment.reads == 1

    environment.in_use = IdsInUse(frozenset({"Zuora_EU"}))
    ticks.now += module.FAILED_SECONDS
    assert await the_id(of_environment, "zuora_eu") == "Zuora_EU"
    environment.in_use = JournalUnavailable("the database is away")
    ticks.now += module.UNKNOWN_SECONDS
    assert await the_id(of_environment, "zuora_eu") == "Zuora_EU"


async def test_a_known_connection_is_looked_up_before_invented_ones_after_a_start(environment, ticks):
    environment.in_use = IdsInUse(elsewhere=frozenset({"zuora_eu"}))
    connections = Connections(environment, ticks, environment.read_in_use)
    environment.hold.clear()
    invented = [asyncio.create_task(connections.get(f"invented-{number}")) for number in range(100)]
    await until(lambda: len(environment.asked) == 2)
    real = asyncio.create_task(connections.get("zuora_eu"))
    await until(lambda: environment.asked[2:] == ["ZUORA_EU"])
    environment.hold.set()

    assert (await real).conn_id == "zuora_eu"
    assert {type(each) for each in await asyncio.gather(*invented, return_exceptions=True)} == {UnknownConnectionError}


async def test_invented_ids_that_wait_for_a_look_up_do_not_shut_out_a_known_connection(environment, ticks, monkeypatch):
    monkeypatch.setattr(module, "WAITING_LIMIT", 3)
    environment.in_use = IdsInUse(elsewhere=frozenset({"zuora_eu"}))
    connections = Connections(environment, ticks, environment.read_in_use)
    environment.hold.clear()
    invented = [asyncio.create_task(connections.get(f"invented-{number}")) for number in range(4)]
    await until(lambda: len(environment.asked) == 2)
    real = asyncio.create_task(connections.get("zuora_eu"))
    await until(lambda: environment.asked[2:] == ["ZUORA_EU"])
    environment.hold.set()

    assert (await real).conn_id == "zuora_eu"
    ended = [type(each) for each in await asyncio.gather(*invented, return_exceptions=True)]
    assert sorted(each.__name__ for each in ended) == ["LookupFailedError", *3 * ["UnknownConnectionError"]]


async def test_so_many_connections_are_kept_at_most(ticks, monkeypatch):
    monkeypatch.setattr(module, "KNOWN_LIMIT", 3)
    connections = Connections(MediationConnection, ticks)
    for conn_id in ("a", "b", "c", "d"):
        await connections.get(conn_id)
    ticks.now += module.KNOWN_SECONDS
    for conn_id in ("b", "e"):
        await connections.get(conn_id)

    assert list(connections._known) == ["d", "b", "e"]


# ---- an id that several teams have ----


@pytest.fixture
def of_teams(backends, connections):
    backends.known["both"] = ConnectionsOfTeams(
        "both", {team: MediationConnection("both", team, team) for team in ("blue", "red")}
    )
    backends.known["red"] = MediationConnection("red", "red")
    return connections


async def test_a_team_that_is_named_gets_its_own_connection(of_teams):
    assert (await of_teams.get("both", "red")).client_secret == "red"
    assert (await of_teams.get("both", "blue")).client_secret == "blue"
    assert (await of_teams.get("red", "red")).team == "red"
    assert (await of_teams.get("zuora", "red")).team is None


async def test_without_a_team_it_is_open_which_one_is_meant(of_teams):
    with pytest.raises(SeveralTeamsError, match=r"several teams have a connection of this id \(blue, red\)") as caught:
        await of_teams.get("both")
    assert caught.value.teams == ("blue", "red")


@pytest.mark.parametrize(("conn_id", "team"), [("both", "green"), ("both", ""), ("red", "blue")])
async def test_the_connection_of_another_team_is_unknown(of_teams, backends, conn_id, team):
    for _ in range(2):
        with pytest.raises(UnknownConnectionError, match="the team that the address names"):
            await of_teams.get(conn_id, team)
    assert backends.asked == [conn_id]


async def test_each_spelling_of_an_id_that_several_teams_have_is_another_spelling(of_environment, environment):
    environment.known["ZUORA_EU"] = ConnectionsOfTeams(
        "ZUORA_EU", {team: MediationConnection("ZUORA_EU", team, team) for team in ("blue", "red")}
    )

    with pytest.raises(OtherIdError):
        await of_environment.get("Zuora_EU")


# ---- Airflow's backends ----


class Backend:
    """A secrets backend: its answer by (team, id), or the exception that it raises; `older` ones have no teams."""

    def __init__(self, answers=None, error=None):
        self.answers, self.error, self.asked = answers or {}, error, []

    def get_connection(self, conn_id, team_name=None):
        self.asked.append((team_name, conn_id))
        if self.error:
            raise self.error
        return self.answers.get((team_name, conn_id))


class OldBackend(Backend):
    def get_connection(self, conn_id):
        return super().get_connection(conn_id)


def connection(**fields):
    from airflow.models.connection import Connection

    extra = fields.pop("extra", {})
    return Connection(conn_id="zuora", **{"conn_type": "mediation", "password": "hush", "extra": extra} | fields)


@pytest.fixture
def backends_of_airflow(monkeypatch):
    def use(*backends):
        monkeypatch.setattr("airflow.configuration.ensure_secrets_loaded", lambda: list(backends))

    return use


@pytest.fixture
def teams(monkeypatch):
    def use(*names):
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        monkeypatch.setattr("airflow.models.team.Team.get_all_team_names", lambda: set(names))

    return use


def test_the_environment_is_a_backend_like_any_other(monkeypatch):
    value = {"conn_type": "mediation", "password": "hush", "extra": {"callout_token": "t"}}
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps(value))

    found = find_connection("zuora")

    assert (found.client_secret, found.extra, found.team) == ("hush", {"callout_token": "t"}, None)


def test_the_settings_of_calls_are_read_too_and_callouts_do_not_need_them(backends_of_airflow):
    good = {"data_center": "SBX", "callout_token": "t"}
    backends_of_airflow(Backend({(None, "zuora"): connection(login="client", extra=json.dumps(good))}))
    found = find_connection("zuora")
    assert found.settings.base_url == "https://rest.apisandbox.zuora.com"
    assert "hush" not in repr(found)

    endless = {"data_center": "SBX", "max_redirects": float("inf")}
    for wrong in ({"data_center": "Mars"}, {"data_center": "SBX", "ui_link_template": "{nothing}"}, endless, {}):
        extra = json.dumps({**wrong, "callout_token": "t"})
        backends_of_airflow(Backend({(None, "zuora"): connection(login="client", extra=extra)}))
        found = find_connection("zuora")
        assert found.settings is None
        assert found.callouts.enabled


def test_a_failing_backend_is_skipped_as_airflow_does(backends_of_airflow):
    backends_of_airflow(Backend(error=ConnectionError()), OldBackend({(None, "zuora"): connection()}))

    assert find_connection("zuora").client_secret == "hush"


def test_a_connection_is_unknown_only_if_no_backend_failed(backends_of_airflow):
    backends_of_airflow(Backend(), Backend())
    assert find_connection("zuora") is None

    backends_of_airflow(Backend(error=ConnectionError("password=hush")), Backend())
    with pytest.raises(LookupFailedError, match=r"^Backend raised ConnectionError$"):
        find_connection("zuora")


@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="no backend of Airflow 3.2 can deny a connection")
def test_a_connection_that_one_backend_denies_comes_from_no_other(backends_of_airflow):
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

    second = Backend({(None, "zuora"): connection()})
    backends_of_airflow(Backend(error=AirflowSecretsBackendAccessDenied()), second)

    with pytest.raises(LookupFailedError, match="AccessDenied"):
        find_connection("zuora")
    assert second.asked == []


def test_another_type_of_connection_is_unknown(backends_of_airflow):
    backends_of_airflow(Backend({(None, "zuora"): connection(conn_type="http")}))

    assert find_connection("zuora") is None


@pytest.mark.parametrize("extra", ["{", "[1]"])
def test_an_invalid_extra_is_an_error_and_not_an_empty_one(backends_of_airflow, extra):
    found = connection(extra={})
    found._extra = extra
    backends_of_airflow(Backend({(None, "zuora"): found}))

    with pytest.raises(LookupFailedError, match="cannot be read"):
        find_connection("zuora")


def test_the_metastore_returns_the_team_and_a_wrong_key_is_an_error(airflow_database, monkeypatch):
    from airflow.models.crypto import get_fernet
    from airflow.utils.session import create_session
    from cryptography.fernet import Fernet

    def use_key():
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
        get_fernet.cache_clear()

    use_key()
    with create_session() as session:
        session.add(connection(extra={"callout_token": "t"}))
    assert find_connection("zuora").extra == {"callout_token": "t"}
    assert find_connection("another") is None

    use_key()
    with pytest.raises(LookupFailedError, match="MetastoreBackend raised InvalidToken"):
        find_connection("zuora")
    monkeypatch.undo()
    get_fernet.cache_clear()


def test_a_database_that_is_down_is_an_error(airflow_on, tmp_path):
    airflow_on(f"sqlite:///{tmp_path / 'nothing' / 'airflow.db'}")

    with pytest.raises(LookupFailedError, match="MetastoreBackend raised OperationalError"):
        find_connection("zuora")


def test_a_teams_connection_is_found_with_its_team(backends_of_airflow, teams):
    teams("blue", "red")
    backends_of_airflow(OldBackend(), Backend({("red", "zuora"): connection()}))

    assert find_connection("another") is None
    assert find_connection("zuora").team == "red"


def test_a_connection_for_all_teams_comes_first(backends_of_airflow, teams):
    teams("blue", "red")
    backends_of_airflow(Backend({("red", "zuora"): connection(), (None, "zuora"): connection(password="all")}))

    found = find_connection("zuora")

    assert (found.team, found.client_secret) == (None, "all")


def test_an_id_that_several_teams_have_is_found_for_each(backends_of_airflow, teams):
    teams("blue", "red", "green")
    backends_of_airflow(
        Backend(
            {
                ("red", "zuora"): connection(password="r"),
                ("blue", "zuora"): connection(password="b"),
                ("green", "zuora"): connection(conn_type="http"),
            }
        )
    )

    found = find_connection("zuora")

    assert {team: each.client_secret for team, each in found.of_team.items()} == {"blue": "b", "red": "r"}


def test_teams_that_cannot_be_read_are_an_error(backends_of_airflow, teams, monkeypatch):
    teams()
    backends_of_airflow(Backend())
    monkeypatch.setattr("airflow.models.team.Team.get_all_team_names", lambda: 1 / 0)

    with pytest.raises(LookupFailedError, match="ZeroDivisionError"):
        find_connection("zuora")
