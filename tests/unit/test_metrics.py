"""Metrics in each of Airflow's formats; errors in them have no effect; and the document lists all of them."""

from __future__ import annotations

import logging
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider import metrics
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from tests.unit.fast_lane import modes
from tests.unit.statsd import StatsdServer, statsd_server
from tests.unit.test_outcomes import HEALTHY, MODES, sensor
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.task_stage import Stage

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"
ALL = [each for each in vars(metrics).values() if isinstance(each, metrics.Metric)]


def test_the_document_lists_exactly_the_metrics_with_their_types_and_tags() -> None:
    rows = re.findall(r"^\| `(mediation\.[a-z_.]+)` \| (\w+) \| ([^|]*) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = [(name, kind, tuple(re.findall(r"`(\w+)`", tags))) for name, kind, tags in rows]
    assert documented == [(each.name, type(each).__name__.lower(), each.tags) for each in ALL]


def test_each_metric_is_emitted_with_its_declared_tags() -> None:
    package = Path(metrics.__file__).parent
    calls: dict[str, list[str]] = {}
    for path in package.rglob("*.py"):
        for name, arguments in re.findall(r"\b([A-Z_]+)\.(?:add|show|took)\((.*?)\)\n", path.read_text(), re.DOTALL):
            calls.setdefault(name, []).append(arguments)
    names = {name: each for name, each in vars(metrics).items() if isinstance(each, metrics.Metric)}
    assert calls.keys() == names.keys()
    for name, each in names.items():
        for arguments in calls[name]:
            assert tuple(re.findall(r"(\w+)=(?!=)", arguments)) == each.tags, name


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("zuora_prod-1.eu", "zuora_prod-1.eu"),
        ("請求 prod", "___prod"),
        ("a,b=c|d:e\n#", "a_b_c_d_e__"),
        ("x" * 200, "x" * 60),
        ("", "unknown"),
        (401, "401"),
    ],
)
def test_a_tag_has_only_characters_that_every_metrics_server_accepts(
    statsd: StatsdServer, value: object, tag: str
) -> None:
    metrics.CALLOUTS_ACCEPTED.add(conn_id=value)
    metrics.POLLS.add(conn_id=value)
    assert [(each.name, each.tags, each.value) for each in statsd.ours()] == [
        ("mediation.callouts.accepted", {"conn_id": tag}, 1),
        ("mediation.polls", {"conn_id": tag}, 1),
    ]


@pytest.mark.services
def test_plain_statsd_gets_names_without_tags() -> None:
    with statsd_server(statsd_influxdb_enabled="False", statsd_prefix="prod") as server:
        metrics.CALLOUTS_REFUSED.add(conn_id="zuora", status=401)
        metrics.LAG.took(0.25, conn_id="zuora")
        metrics.WAITS_OPEN.show(7, conn_id="zuora", hostname="here")
        ours = [line for line in server.lines() if "mediation" in line]
    assert ours == [
        "prod.mediation.callouts.refused:1|c",
        "prod.mediation.lag:250.000000|ms",
        "prod.mediation.waits.open:7|g",
    ]


@pytest.mark.services
def test_a_blocked_metric_is_not_sent() -> None:
    with statsd_server(metrics_block_list="mediation.polls") as server:
        metrics.polled("zuora", TransientError("overloaded", status_code=503))
        metrics.LAG.took(0.25, conn_id="zuora")
        assert [each.name for each in server.ours()] == ["mediation.lag"]


@pytest.fixture
def otel() -> Iterator[Callable[[], dict[str, Any]]]:
    """Airflow's OpenTelemetry loggers, in both of its sets of metrics, and a reader of their values."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])

    def initialize(package: str, factory: Callable[[], Any]) -> None:
        options = {"export_legacy_names": True} if AIRFLOW_V_3_3_PLUS else {}
        import_module(f"{package}observability.stats").Stats.initialize(factory=factory, **options)

    def read() -> dict[str, Any]:
        data = reader.get_metrics_data()
        found = [each for r in data.resource_metrics for s in r.scope_metrics for each in s.metrics]
        return {each.name: each for each in found}

    packages = {"airflow.": "airflow._shared.", "airflow.sdk.": "airflow.sdk._shared."}
    for package, shared in packages.items():
        logger = import_module(f"{shared}observability.metrics.otel_logger").SafeOtelLogger
        initialize(package, lambda logger=logger: logger(provider, "airflow"))
    yield read
    for package, shared in packages.items():
        initialize(package, import_module(f"{shared}observability.metrics.base_stats_logger").NoStatsLogger)
    provider.shutdown()


def test_opentelemetry_gets_counters_timers_and_gauges_with_their_attributes(
    otel: Callable[[], dict[str, Any]],
) -> None:
    for _ in range(3):
        metrics.CALLOUTS_REFUSED.add(conn_id="zuora", status=401)
    metrics.CALLOUTS_REFUSED.add(conn_id="zuora", status=503)
    metrics.polled("zuora")
    metrics.LAG.took(0.25, conn_id="zuora")
    metrics.WAITS_OPEN.show(7, conn_id="zuora", hostname="here")

    found = otel()

    refused = found["airflow.mediation.callouts.refused"].data
    assert refused.is_monotonic
    assert {
        (point.attributes["conn_id"], point.attributes["status"]): point.value for point in refused.data_points
    } == {
        ("zuora", "401"): 3,
        ("zuora", "503"): 1,
    }
    assert [point.value for point in found["airflow.mediation.polls"].data.data_points] == [1]
    (lag,) = found["airflow.mediation.lag"].data.data_points
    assert (lag.sum if AIRFLOW_V_3_3_PLUS else lag.value) == 250
    (shown,) = found["airflow.mediation.waits.open"].data.data_points
    assert (shown.value, dict(shown.attributes)) == (7, {"conn_id": "zuora", "hostname": "here"})


def test_an_error_in_a_metric_is_logged_once_and_has_no_effect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stats = import_module("airflow.sdk.observability.stats").Stats

    def explode(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(stats, "incr", explode, raising=False)
    monkeypatch.setattr(metrics, "_failed", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            metrics.POLLS.add(conn_id="zuora")
            metrics.FEED_LOST.add(conn_id="zuora")
    said = [record.getMessage() for record in caplog.records if record.name == metrics.__name__]
    assert [message.partition(" could")[0] for message in said] == [
        "The metric mediation.polls",
        "The metric mediation.feed.lost",
    ]


def test_the_metrics_client_is_not_built_by_a_callout(statsd: StatsdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first metric of a process makes the client, and reads Airflow's list of names."""
    if not AIRFLOW_V_3_3_PLUS:
        pytest.skip("Airflow 3.2 reads no list")
    stats = import_module("airflow._shared.observability.metrics.stats")
    monkeypatch.setattr(stats, "_registry", None)
    metrics.in_api_server()
    assert stats._backend is not None
    assert stats._registry is not None
    assert statsd.lines() == []


@pytest.mark.parametrize("mode", modes(MODES))
class TestWaits:
    """Each wait ends once, in any of its processes."""

    def ended(self, statsd: StatsdServer) -> dict[str, float]:
        name = "mediation.waits.ended,conn_id=mediation_default,outcome="
        return {key.removeprefix(name): n for key, n in statsd.counted().items() if key.startswith(name)}

    @pytest.mark.parametrize(
        ("end", "outcome"), [((854, "COMPLETED"), "MET"), ((854, "FAILED"), "FAILED"), ((0, "RUNNING"), "TIMED_OUT")]
    )
    def test_a_wait_is_counted_by_its_outcome(
        self, stage: Stage, statsd: StatsdServer, mode: str, end: tuple[float, str], outcome: str
    ) -> None:
        stage.zuora.script("m", *(HEALTHY if end[0] else []), end)
        stage.play(sensor(mode))
        assert self.ended(statsd) == {outcome: 1}

    def test_a_wait_is_counted_once_for_each_try(self, stage: Stage, statsd: StatsdServer, mode: str) -> None:
        stage.zuora.script("m", *HEALTHY, (200, TransientError("connection refused")))
        assert stage.play(sensor(mode)).state == "up_for_retry"
        assert self.ended(statsd) == {"UNREACHABLE": 1}
        # A wait that starts in the triggerer has lost the session, and waits for another.
        stage.zuora.script("m", (0, "PAUSED"), (9500, "RUNNING"), (9900, "COMPLETED"))
        assert stage.play(sensor(mode)).state == "success"
        assert self.ended(statsd) == {"MET": 1}

    def test_a_wait_without_any_triggerer_is_counted(self, stage: Stage, statsd: StatsdServer, mode: str) -> None:
        stage.zuora.script("m", *HEALTHY)
        stage.triggerer_is_down = True
        assert stage.play(sensor(mode)).state == "failed"
        assert self.ended(statsd) == {"TIMED_OUT": 1}

    def test_a_wait_whose_trigger_crashed_is_counted(self, stage: Stage, statsd: StatsdServer, mode: str) -> None:
        stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
        stage.trigger_crashes = 2
        assert stage.play(sensor(mode)).state == "success"
        assert self.ended(statsd) == {"MET": 1}

    def test_the_counted_polls_are_those_that_zuora_received(
        self, stage: Stage, statsd: StatsdServer, mode: str
    ) -> None:
        stage.zuora.script("m", *HEALTHY, (300, TransientError("connection refused")), (500, "COMPLETED"))
        stage.play(sensor(mode))
        counted = statsd.counted()
        assert counted["mediation.polls,conn_id=mediation_default"] == len(stage.zuora.asked)
        failed = sum(300 <= at < 500 for at, _ in stage.zuora.asked)
        assert counted["mediation.polls.failed,conn_id=mediation_default,status=no_answer"] == failed > 0


@pytest.mark.parametrize("mode", modes(["poke", "deferrable"]))
def test_each_outage_of_the_feed_is_counted_once(stage: Stage, statsd: StatsdServer, mode: str) -> None:
    stage.journal = Journal(stage.clock, down=[(1000, 2000), (3000, 4000)])
    stage.journal.session("S-1", (10, "RUNNING"), (5000, "COMPLETED"))
    stage.zuora.script("m", (0, "RUNNING"))
    assert stage.play(sensor(mode)).xcom["evidence"] == "callout"
    assert statsd.counted()["mediation.feed.lost,conn_id=mediation_default"] == 2
