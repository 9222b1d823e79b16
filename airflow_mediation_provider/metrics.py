"""Metrics that the provider emits through Airflow's own (StatsD, DogStatsD, OpenTelemetry), under ``mediation.*``.

Airflow has two sets of metrics: one for the processes with access to its database, one for those that run users' code.
Each metric below is emitted in one kind of process only. An error in a metric never fails what is measured.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import RunType, SessionStatus

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitResult
    from airflow_mediation_provider.protocol.zuora.errors import MediationError

log = logging.getLogger(__name__)

_SERVER: Final = "airflow.observability.stats"
_TASKS: Final = "airflow.sdk.observability.stats"
# Airflow's StatsD client refuses a metric with any other character, because tags may be part of its name.
_NOT_IN_TAGS: Final = re.compile(r"[^a-zA-Z0-9_.-]")
LONGEST_TAG: Final = 60
_STATUSES: Final = frozenset(SessionStatus)
_RUN_TYPES: Final = frozenset(RunType)
_failed: Final[set[str]] = set()


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    :param name: without the prefix that Airflow puts before all of its own
    :param tags: the names of its tags; each has few values, because a metrics server keeps a series for each value
    :param server: whether the API server and commands emit it; otherwise triggerers and workers do
    """

    name: str
    tags: tuple[str, ...]
    server: bool = False

    def _emit(self, how: str, value: Any, tags: dict[str, object]) -> None:
        try:
            stats = import_module(_SERVER if self.server else _TASKS).Stats
            getattr(stats, how)(self.name, value, tags={name: _tag(tag) for name, tag in tags.items()})
        except Exception:
            _log_once(self.name)


class Counter(Metric):
    """A counter of events."""

    def add(self, count: int = 1, **tags: object) -> None:
        """Add to the counter."""
        self._emit("incr", count, tags)


class Gauge(Metric):
    """A current value."""

    def show(self, value: float, **tags: object) -> None:
        """Replace the value that was shown before."""
        self._emit("gauge", value, tags)


class Timer(Metric):
    """A duration; Airflow passes it on in milliseconds."""

    def took(self, seconds: float, **tags: object) -> None:
        """Emit one duration."""
        self._emit("timing", timedelta(seconds=seconds), tags)


CALLOUTS_ACCEPTED: Final = Counter("mediation.callouts.accepted", ("conn_id",), server=True)
CALLOUTS_REFUSED: Final = Counter("mediation.callouts.refused", ("conn_id", "status"), server=True)
CALLOUTS_UNPARSED: Final = Counter("mediation.callouts.unparsed", ("conn_id",), server=True)
CALLOUTS_DURATION: Final = Timer("mediation.callouts.duration", ("conn_id",), server=True)
TRANSITIONS: Final = Counter("mediation.transitions", ("conn_id", "evidence", "run_type", "status"), server=True)
ASSET_EVENTS: Final = Counter("mediation.asset_events", ("conn_id", "status"), server=True)
WAITS_OPEN: Final = Gauge("mediation.waits.open", ("conn_id", "hostname"))
WAITS_ENDED: Final = Counter("mediation.waits.ended", ("conn_id", "outcome"))
LAG: Final = Timer("mediation.lag", ("conn_id",))
POLLS: Final = Counter("mediation.polls", ("conn_id",))
POLLS_FAILED: Final = Counter("mediation.polls.failed", ("conn_id", "status"))
FEED_LOST: Final = Counter("mediation.feed.lost", ("conn_id",))


def polled(conn_id: str, error: MediationError | None = None) -> None:
    """Count a poll of a meter's status, and whether it failed.

    :param conn_id: the connection
    :param error: why there was no good answer
    """
    POLLS.add(conn_id=conn_id)
    if error is not None:
        POLLS_FAILED.add(conn_id=conn_id, status=error.status_code or "no_answer")


def wait_ended(conn_id: str, wait: SessionWait | None, result: WaitResult) -> None:
    """Count the end of a wait for a session; the wait of a stop is not counted.

    :param conn_id: the connection
    :param wait: the wait, where it is known
    :param result: how it ended
    """
    if wait is None or not wait.polls_only:
        WAITS_ENDED.add(conn_id=conn_id, outcome=result.end)


def status_tag(status: str) -> str:
    """Return a session's status as a tag: all statuses that Zuora does not document share one value."""
    return str(status) if status in _STATUSES else "OTHER"


def run_type_tag(run_type: str) -> str:
    """Return a session's run type as a tag: ``OTHER`` for a type that Zuora does not document."""
    return str(run_type) if run_type in _RUN_TYPES else "OTHER"


def in_api_server() -> None:
    """Prepare for the first callout; run it in a thread: it takes 0.2 s where Airflow has not set up metrics."""
    from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

    if not AIRFLOW_V_3_3_PLUS:
        # The API server of Airflow 3.2 emits nothing: metrics are set up neither for it nor for its plugins.
        set_up()
    try:
        # Reads Airflow's list of metrics and resolves the host; it sends nothing.
        import_module(_SERVER).Stats.timer(CALLOUTS_DURATION.name)
    except Exception:
        _log_once(CALLOUTS_DURATION.name)


def set_up() -> None:
    """Set up Airflow's metrics, as configured, in a process in which Airflow itself does not."""
    from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

    try:
        stats = import_module(_SERVER).Stats
        get_factory = import_module("airflow.observability.metrics.stats_utils").get_stats_factory
        if AIRFLOW_V_3_3_PLUS:
            legacy = import_module("airflow.configuration").conf.getboolean("metrics", "legacy_names_on")
            stats.initialize(factory=get_factory(), export_legacy_names=legacy)
        else:
            stats.initialize(factory=get_factory(stats))
    except Exception:
        _log_once("mediation.*")


def _tag(value: object) -> str:
    """Return a tag's value in a form that every metrics server accepts."""
    return _NOT_IN_TAGS.sub("_", str(value))[:LONGEST_TAG] or "unknown"


def _log_once(name: str) -> None:
    """Log the current exception, once in a process for each metric: what is measured may happen often."""
    if name not in _failed:
        _failed.add(name)
        log.warning("The metric %s could not be emitted; this is logged once.", name, exc_info=True)
