"""The settings of a simulated tenant, its meters, and the scripts that their sessions follow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from airflow_mediation_provider.protocol.status import SessionStatus, parse_status
from airflow_mediation_provider.simulator.callout_config import CalloutConfig, DeliverySettings
from airflow_mediation_provider.simulator.settings import from_mapping, not_negative, one_of

VERSION = "0.0.1"
ALL_PERMISSIONS = (
    "View Meters",
    "Run Meters",
    "Configure Meters and Events",
    "Events & Notifications View Access",
    "Events & Notifications Manage Access",
    "Events & Notifications Resend Access",
)


class Step(NamedTuple):
    """One step of a script: a status, and how long it lasts (seconds before ``time_scale``; ``None``: no end)."""

    status: str
    seconds: float | None


def parse_script(value: Iterable[Any], name: str = "script") -> tuple[Step, ...]:
    """Read a script: a list of ``[status, seconds]``; the last step has no end, regardless of its seconds.

    A status is one of Zuora's names, its code, or a code that Zuora does not document (which is reported unchanged).

    :param name: the name of the script in an error
    :raises ValueError: it is empty, a status has no known name, or the seconds are no number >= 0
    """
    steps = []
    for item in value:
        if isinstance(item, str) or not isinstance(item, Iterable) or len(pair := [*item]) != 2:
            raise ValueError(f"{name}: each step is [status, seconds], got {item!r}")
        status, seconds = parse_status(pair[0]), pair[1]
        if status not in SessionStatus.__members__ and not status.isdigit():
            raise ValueError(f"{name}: unknown status {pair[0]!r}; known: {', '.join(SessionStatus)}, or a code")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf")
        ):
            raise ValueError(f"{name}: seconds of {status} must be a number >= 0 or null, got {seconds!r}")
        steps.append(Step(status, seconds))
    if not steps:
        raise ValueError(f"{name}: a script has at least one step")
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What one run of a meter does.

    :param script: the statuses it goes through
    :param records: how many records it puts out
    :param errors: how many records it rejects
    """

    script: tuple[Step, ...]
    records: int = 100
    errors: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "script", parse_script(self.script))
        for name in ("records", "errors"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"{name} must be a whole number >= 0, got {number!r}")

    @classmethod
    def parse(cls, value: Any) -> RunPlan:
        """Read a plan: a ``RunPlan``, a script, or a mapping with ``script``, ``records``, ``errors``."""
        if isinstance(value, RunPlan):
            return value
        return from_mapping(cls, value, "run") if isinstance(value, Mapping) else cls(value)


def completes(seconds: float = 8, *, records: int = 100, errors: int = 0) -> RunPlan:
    """Return a plan that ends COMPLETED after about so many seconds, through the push statuses."""
    return RunPlan(
        parse_script(
            [
                ("INITIALIZING", seconds * 0.2),
                ("RUNNING", seconds * 0.5),
                ("USAGE_PUSHING", seconds * 0.2),
                ("PUSH_COMPLETED", seconds * 0.1),
                ("COMPLETED", None),
            ]
        ),
        records,
        errors,
    )


def ends(status: str, seconds: float = 6, *, records: int = 100, errors: int = 0) -> RunPlan:
    """Return a plan that goes through INITIALIZING and RUNNING and ends in a status after so many seconds."""
    steps = [("INITIALIZING", seconds * 0.25), ("RUNNING", seconds * 0.75), (status, None)]
    return RunPlan(parse_script(steps), records, errors)


def debug_ends(status: str = "TESTING_PASSED", seconds: float = 4, *, records: int = 20, errors: int = 0) -> RunPlan:
    """Return the plan of a DEBUG run that ends in a status after so many seconds."""
    return RunPlan(parse_script([("TESTING", seconds), (status, None)]), records, errors)


def streams(*, records: int = 500, errors: int = 5) -> RunPlan:
    """Return the plan of a streaming run: RUNNING until it is stopped."""
    return RunPlan(parse_script([("INITIALIZING", 2), ("RUNNING", None)]), records, errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterConfig:
    """A meter of the simulated tenant. All seconds are before ``time_scale``.

    :param id: meter id, digits
    :param name: its name
    :param versions: its versions; Zuora documents ``0.0.1`` alone
    :param streaming: whether stopping it is graceful and asynchronous (batch runs are canceled at once)
    :param runs: what its NORMAL runs do, one after the other; the last one repeats
    :param debug_runs: the same for its DEBUG runs
    :param overlap: whether a NORMAL run may start while another is live (what Zuora does is not documented)
    :param stale_for: for so many seconds after a start, runStatus still returns the previous status
    :param status_of: whose status runStatus returns: the ``newest`` start, ``oldest_live``, or ``latest_change``
    :param debug_visible: whether a DEBUG run changes the runStatus
    :param initial_status: runStatus before any run
    :param stopping_for: how long a graceful stop takes, seconds
    :param stop_results: where each graceful stop ends, one after the other; the last one repeats
    :param force_result: where a forced stop ends
    :param stop_cancels_debug: whether a stop cancels DEBUG runs too
    :param resume: whether running a PAUSED meter starts a ``new`` session or continues the ``same`` one
    """

    id: str
    name: str = ""
    versions: tuple[str, ...] = (VERSION,)
    streaming: bool = False
    runs: tuple[RunPlan, ...] = (completes(),)
    debug_runs: tuple[RunPlan, ...] = (debug_ends(),)
    overlap: bool = True
    stale_for: float = 0.0
    status_of: Literal["newest", "oldest_live", "latest_change"] = "newest"
    debug_visible: bool = True
    initial_status: str = "NEVER_RUN"
    stopping_for: float = 2.0
    stop_results: tuple[str, ...] = ("PAUSED",)
    force_result: str = "CANCELED"
    stop_cancels_debug: bool = False
    resume: Literal["new", "same"] = "new"

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "id", str(self.id))
        if not (self.id.isascii() and self.id.isdigit()):
            raise ValueError(f"meter: id must be digits, got {self.id!r}")
        put(self, "name", self.name or f"meter-{self.id}")
        put(self, "versions", tuple(str(version) for version in self.versions))
        for name in ("runs", "debug_runs"):
            plans = tuple(RunPlan.parse(plan) for plan in getattr(self, name))
            if not plans:
                raise ValueError(f"meter {self.id}: {name} needs at least one run")
            put(self, name, plans)
        results = [self.stop_results] if isinstance(self.stop_results, str) else self.stop_results
        put(self, "stop_results", tuple(step.status for step in parse_script((r, None) for r in results)))
        for name in ("initial_status", "force_result"):
            put(self, name, parse_script([(getattr(self, name), None)], name)[0].status)
        one_of(self, "status_of", ("newest", "oldest_live", "latest_change"))
        one_of(self, "resume", ("new", "same"))
        not_negative(self, "stale_for", "stopping_for")

    @classmethod
    def parse(cls, value: Mapping[str, Any] | MeterConfig) -> MeterConfig:
        """Read a meter from a mapping of its fields; ``script`` is short for ``runs`` with a single run.

        :raises ValueError: a field is unknown or wrong
        """
        return value if isinstance(value, MeterConfig) else from_mapping(cls, meter_fields(value), "meter")


def meter_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a meter's fields from a file or a control call, with ``script`` and ``debug_script`` expanded."""
    fields = dict(value)
    for short, long in (("script", "runs"), ("debug_script", "debug_runs")):
        if short in fields:
            plan = {"script": fields.pop(short)}
            if short == "script":
                plan |= {key: fields.pop(key) for key in ("records", "errors") if key in fields}
            fields[long] = [plan]
    return fields


def demo_meters() -> tuple[MeterConfig, ...]:
    """Return the built-in meters, one for each case that the examples show."""
    mapped = tuple(
        MeterConfig(
            id=str(1005 + index),
            name=f"Usage region {index + 1}",
            runs=(completes(4 + 2 * index, records=40 + 10 * index),),
        )
        for index in range(5)
    )
    return (
        MeterConfig(id="1001", name="API calls", runs=(completes(8, records=120),)),
        MeterConfig(id="1002", name="Storage", runs=(ends("FAILED", 6, records=80, errors=12),)),
        MeterConfig(id="1003", name="Messages", runs=(ends("CANCELED", 6, records=30),)),
        MeterConfig(id="1004", name="Network traffic (streaming)", streaming=True, runs=(streams(),)),
        *mapped,
        MeterConfig(id="1010", name="Compute (passes its test)", runs=(completes(6, records=60),)),
        MeterConfig(
            id="1011",
            name="Licences (fails its test)",
            debug_runs=(debug_ends("TESTING_FAILED", 3, records=5, errors=15),),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """A simulated tenant and its server.

    :param host: address to listen on
    :param port: port to listen on; 0 chooses a free one
    :param client_id: OAuth client id that is accepted
    :param client_secret: its secret
    :param token_life: life of a token, seconds (real, not scaled)
    :param time_scale: real seconds per second of a script: 0.1 is ten times as fast
    :param meters: the tenant's meters; the demo set by default
    :param max_running_meters: how many meters may run at once
    :param mediation_enabled: whether the tenant has Mediation at all (else 400, 70002004)
    :param permissions: what the client may do (else ``permission_status``, 70002006)
    :param permission_status: HTTP status of a missing permission, which Zuora does not document
    :param required_entity: an entity id that each call must have in ``Zuora-Entity-Ids`` (else 400, 70002001)
    :param require_content_type: whether /meters calls need ``Content-Type: application/json``, as documented
    :param strict_track_id: whether an illegal ``Zuora-Track-Id`` is refused
    :param rate_limit: calls of /meters per window; also turns the ``RateLimit-*`` headers on
    :param rate_limit_window: length of that window, seconds (real)
    :param error_shape: the shape of errors, of the documented ones: ``error``, ``errors``, ``reasons`` or ``message``
    :param undocumented_code: code of errors for which Zuora documents none (duplicate key, too many running meters)
    :param null_page: the value for "no page" in replies: ``documented`` as in Zuora's examples, the string ``"null"``
        where a session is started and JSON's null elsewhere; or one of the two everywhere: ``"null"`` or ``None``
    :param debug_enveloped: whether the reply of a DEBUG run is wrapped in ``data`` (documented flat)
    :param stopping_code: integer code of STOPPING, for which Zuora documents none
    :param export_seconds: how long an export job takes, seconds before ``time_scale``
    :param sample_limit: how many SAMPLE entries the audit trail has of one session at most
    :param callouts: notifications on events, each with its callout template
    :param delivery: the tenant's settings of callouts: attempts, interval, timeouts
    :param first_run_id: ``id`` of the first session
    :param clock: ``real``, or ``manual``: time stands still until ``advance()``
    :param log_file: file to which the log is written as lines of JSON
    """

    host: str = "127.0.0.1"
    port: int = 0
    client_id: str = "simulator-client"
    client_secret: str = "simulator-secret"  # noqa: S105 - a simulator's, public on purpose
    token_life: float = 3599.0
    time_scale: float = 1.0
    meters: tuple[MeterConfig, ...] = field(default_factory=demo_meters)
    max_running_meters: int = 5
    mediation_enabled: bool = True
    permissions: tuple[str, ...] = ALL_PERMISSIONS
    permission_status: int = 400
    required_entity: str | None = None
    require_content_type: bool = True
    strict_track_id: bool = True
    rate_limit: int | None = None
    rate_limit_window: float = 60.0
    error_shape: Literal["error", "errors", "reasons", "message"] = "error"
    undocumented_code: str | None = None
    null_page: str | None = "documented"
    debug_enveloped: bool = False
    stopping_code: int = 14
    export_seconds: float = 2.0
    sample_limit: int = 1000
    callouts: tuple[CalloutConfig, ...] = ()
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    first_run_id: int = 5468
    clock: Literal["real", "manual"] = "real"
    log_file: Path | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "meters", tuple(MeterConfig.parse(meter) for meter in self.meters))
        if len({meter.id for meter in self.meters}) != len(self.meters):
            raise ValueError("meters: two of them have the same id")
        put(self, "callouts", tuple(CalloutConfig.parse(callout) for callout in self.callouts))
        put(self, "delivery", DeliverySettings.parse(self.delivery))
        put(self, "permissions", tuple(self.permissions))
        if unknown := set(self.permissions) - set(ALL_PERMISSIONS):
            raise ValueError(f"permissions: unknown {sorted(unknown)}; known: {', '.join(ALL_PERMISSIONS)}")
        put(self, "log_file", Path(self.log_file) if self.log_file else None)
        one_of(self, "error_shape", ("error", "errors", "reasons", "message"))
        one_of(self, "clock", ("real", "manual"))
        not_negative(self, "token_life", "time_scale", "rate_limit_window", "export_seconds", "max_running_meters")

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> SimulatorConfig:
        """Read a configuration from a mapping of its fields.

        :raises ValueError: a field is unknown or wrong
        """
        return from_mapping(cls, value, "simulator")

    @classmethod
    def load(cls, path: Path) -> SimulatorConfig:
        """Read a configuration from a YAML or JSON file.

        :raises OSError: the file cannot be read
        :raises ValueError: it is neither YAML nor JSON, or a field is unknown or wrong
        """
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            import yaml  # type: ignore[import-untyped]  # only where a file is given

            try:
                data = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"{path}: not YAML: {error}") from error
        if not isinstance(data, Mapping):
            raise ValueError(f"{path}: expected a mapping of settings, got {type(data).__name__}")
        return cls.parse(data)
