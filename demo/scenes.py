"""The demo's scenes, and the expected end of each run: written by hand, so that a wrong branch is detected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Row:
    """One meter in one Dag run, and its expected end; a line of the demo's table.

    :param meter: the meter
    :param status: the expected end of its newest session at Zuora; ``None``: no NORMAL session may have been started
    :param taken: the tasks of the branch that must have run, each with its state
    :param not_taken: the tasks that must have been skipped
    :param loaded: whether the usage of the session must be in the database, by a run of ``usage_batch``
    :param map_index: which instance of the tasks, if they are mapped
    """

    meter: str
    status: str | None
    taken: Mapping[str, str]
    not_taken: tuple[str, ...] = ()
    loaded: bool = False
    map_index: int = -1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One Dag run.

    :param dag_id: the Dag
    :param shows: what it shows, in short
    :param rows: the meters in it
    :param run: how the run must end
    :param conf: its configuration
    :param meters: meters to create before: settings of the simulator by meter id
    :param foreign: meter of which a session is started outside of Airflow, once this task waits for it
    :param scheduled_on: meter of which a session is started outside of Airflow, whose callout starts the run
    """

    dag_id: str
    shows: str
    rows: tuple[Row, ...]
    run: str = "success"
    conf: Mapping[str, Any] = field(default_factory=dict)
    meters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    foreign: tuple[str, str] | None = None
    scheduled_on: str | None = None


_QUICK = [["INITIALIZING", 2], ["RUNNING", 6], ["COMPLETED", 0]]
_SHORT = [["INITIALIZING", 1], ["RUNNING", 2], ["COMPLETED", 0]]
_REGIONS = ("1005", "1006", "1007", "1008", "1009")
# One region of the five fails, so that each must have taken its own branch.
_FAILING_REGION = "1007"

FAILURE_BRANCH = {"summary": "success", "alert": "failed"}

SCENES = (
    Scene(
        dag_id="run_and_branch",
        shows="COMPLETED",
        conf={"meter_id": "1001"},
        rows=(
            Row(
                meter="1001",
                status="COMPLETED",
                taken={"load_usage": "success"},
                not_taken=tuple(FAILURE_BRANCH),
                loaded=True,
            ),
        ),
    ),
    Scene(
        dag_id="run_and_branch",
        shows="FAILED",
        conf={"meter_id": "1002"},
        # The alert is a task that fails, so that the run is red.
        run="failed",
        rows=(Row(meter="1002", status="FAILED", taken=FAILURE_BRANCH, not_taken=("load_usage",)),),
    ),
    Scene(
        dag_id="run_and_branch",
        shows="CANCELED",
        conf={"meter_id": "1003"},
        rows=(Row(meter="1003", status="CANCELED", taken={}, not_taken=("load_usage", *FAILURE_BRANCH)),),
    ),
    Scene(
        dag_id="wait_for_session",
        shows="started elsewhere",
        meters={"1012": {"name": "Backups (started by Zuora's own schedule)", "script": _QUICK, "records": 70}},
        foreign=("wait", "1012"),
        rows=(Row(meter="1012", status="COMPLETED", taken={"load_usage": "success"}, loaded=True, map_index=0),),
    ),
    Scene(
        dag_id="debug_gate",
        shows="the test passes",
        conf={"meter_id": "1010"},
        rows=(
            Row(
                meter="1010",
                status="COMPLETED",
                taken={"test_run": "success", "live_run": "success", "load_usage": "success"},
                loaded=True,
            ),
        ),
    ),
    Scene(
        dag_id="debug_gate",
        shows="the test fails",
        conf={"meter_id": "1011"},
        run="failed",
        rows=(
            Row(
                meter="1011",
                status=None,
                taken={"test_run": "failed", "live_run": "upstream_failed", "load_usage": "upstream_failed"},
            ),
        ),
    ),
    Scene(
        dag_id="many_meters",
        shows="five at once",
        meters={_FAILING_REGION: {"script": [["INITIALIZING", 2], ["RUNNING", 6], ["FAILED", 0]], "errors": 9}},
        rows=tuple(
            Row(
                meter=meter,
                map_index=index,
                status="FAILED",
                taken={"one_meter.note_failure": "success"},
                not_taken=("one_meter.load_usage",),
            )
            if meter == _FAILING_REGION
            else Row(
                meter=meter,
                map_index=index,
                status="COMPLETED",
                taken={"one_meter.load_usage": "success"},
                not_taken=("one_meter.note_failure",),
                loaded=True,
            )
            for index, meter in enumerate(_REGIONS)
        ),
    ),
    Scene(
        dag_id="on_completed",
        shows="a callout starts it",
        scheduled_on="1013",
        meters={"1013": {"name": "Egress (started by Zuora's own schedule)", "script": _SHORT, "records": 30}},
        rows=(
            Row(meter="1013", status="COMPLETED", taken={"session": "success", "load_usage": "success"}, loaded=True),
        ),
    ),
    Scene(
        dag_id="on_failed",
        shows="a callout starts it",
        scheduled_on="1014",
        meters={"1014": {"name": "Ingress", "script": [*_SHORT[:2], ["FAILED", 0]], "records": 8, "errors": 3}},
        run="failed",
        rows=(Row(meter="1014", status="FAILED", taken={"session": "success", **FAILURE_BRANCH}),),
    ),
    Scene(
        dag_id="alert_any_meter",
        shows="a mail for any meter",
        scheduled_on="1019",
        meters={"1019": {"name": "Support", "script": [*_SHORT[:2], ["FAILED", 0]], "records": 8, "errors": 4}},
        rows=(Row(meter="1019", status="FAILED", taken={"mail": "success"}),),
    ),
    Scene(
        dag_id="on_either",
        shows="the second of two",
        scheduled_on="1016",
        meters={"1016": {"name": "Requests (started by Zuora's own schedule)", "script": _SHORT, "records": 20}},
        rows=(Row(meter="1016", status="COMPLETED", taken={"note": "success"}),),
    ),
    Scene(
        dag_id="load_session",
        shows="with an outlet",
        scheduled_on="1017",
        meters={"1017": {"name": "Storage (started by Zuora's own schedule)", "script": _SHORT, "records": 10}},
        rows=(Row(meter="1017", status="COMPLETED", taken={"load": "success"}),),
    ),
    Scene(
        dag_id="after_load",
        shows="follows that outlet",
        scheduled_on="1018",
        meters={"1018": {"name": "Archive (started by Zuora's own schedule)", "script": _SHORT, "records": 10}},
        rows=(Row(meter="1018", status="COMPLETED", taken={"report": "success"}),),
    ),
)
