"""Arguments that the operators share: their types for type checkers, and their checks when the Dag is parsed.

A template passes the checks, and is checked again once it is rendered.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Required, TypeAlias, TypedDict

from airflow_mediation_provider.protocol.ids import connection_id_of, id_of
from airflow_mediation_provider.protocol.sessions.asset_uri import ANY_METER
from airflow_mediation_provider.protocol.sessions.window import check_window
from airflow_mediation_provider.protocol.status import RunType, run_types_of, status_name, stored_run_type
from airflow_mediation_provider.protocol.waits.condition import (
    DEFAULT_CONNECTION,
    SUBJECT_ARGUMENTS,
    Subject,
    subject_of,
)
from airflow_mediation_provider.protocol.zuora.requests import DEFAULT_VERSION, instant_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow.sdk import DAG, TaskGroup, XComArg

    from airflow_mediation_provider.protocol.status import RunTypeName, SessionStatus, StatusName

    # A template field accepts another task's output too.
    Id: TypeAlias = str | int | XComArg
    Session: TypeAlias = Mapping[str, Any] | str | XComArg
    Instant: TypeAlias = datetime | str | XComArg
    Sources: TypeAlias = Sequence[Mapping[str, Any]] | str | XComArg
    OneRunType: TypeAlias = RunType | RunTypeName
    Statuses: TypeAlias = SessionStatus | StatusName | Collection[SessionStatus | StatusName]

LONGEST: Final = timedelta(days=3650)
"""The longest duration of an argument."""


def is_template(value: object) -> bool:
    """Whether a value is known only when the task runs: a Jinja template, or another task's output."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    return hasattr(value, "resolve")


def has_template(value: object) -> bool:
    """Whether a value, or an item of a list, is known only when the task runs."""
    items = value if isinstance(value, list | tuple | set | frozenset) else [value]
    return any(map(is_template, items))


def check_text(name: str, value: object) -> None:
    """Check an argument that is a name or an id.

    :param name: the argument, for the error
    :raises ValueError: it is empty, or not a text
    """
    if is_template(value):
        return
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} must not be empty")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {value!r:.80}")


def check_one_meter(meter_id: object) -> None:
    """Check that an argument names one meter, and not several.

    :raises ValueError: it is a list, or any meter
    """
    if meter_id == ANY_METER or isinstance(meter_id, list | tuple | set | frozenset):
        raise ValueError(
            f"meter_id must be one meter here, not {meter_id!r:.80}: only a schedule takes several or ANY_METER "
            "(on_meter_session)"
        )


def check_meter(meter_id: object, version: object) -> None:
    """Check the two arguments that name a meter version; a meter's id may be a number.

    :raises ValueError: one of them is no valid id
    """
    check_one_meter(meter_id)
    if not is_template(meter_id):
        id_of("meter_id", meter_id)
    check_text("version", version)
    if not is_template(version):
        id_of("version", version)


def check_connection(mediation_conn_id: object) -> None:
    """Check the argument that names an Airflow connection.

    :raises ValueError: it is no valid connection id
    """
    if not is_template(mediation_conn_id):
        connection_id_of("mediation_conn_id", mediation_conn_id)


def check_flags(**flags: object) -> None:
    """Check arguments that are on or off: any text, even that of a template, would count as on.

    :raises ValueError: one of them is neither ``True`` nor ``False``
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False (it takes no template), not {value!r:.80}")


def refuse_templates(**arguments: object) -> None:
    """Check arguments that must be known when the Dag is parsed.

    :raises ValueError: one of them is a template, or a list that contains one
    """
    for name, value in arguments.items():
        if has_template(value):
            raise ValueError(f"{name} takes no template, and {value!r:.80} is one: give the value itself")


def status_names(name: str, value: object) -> tuple[str, ...] | None:
    """Return the names of the given statuses, one or several.

    :raises ValueError: it is neither a status nor a list of statuses
    """
    if value is None:
        return None
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{name} must be a status or a list of statuses (it takes no template), not {value!r:.80}")
    return tuple(status_name(name, item) for item in (items if isinstance(items, list | tuple) else sorted(items)))


def seconds(name: str, value: timedelta | float, *, least: float = 0.0, most: timedelta = LONGEST) -> float:
    """Return a duration in seconds.

    :param name: the argument, for the error
    :param value: seconds, or a timedelta
    :param least: the smallest value that is allowed
    :param most: the largest one
    :raises ValueError: it is no duration, or too short or too long
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    known = isinstance(number, int | float) and not isinstance(number, bool)
    longest = "ten years" if most == LONGEST else f"{most.days} days"
    if not known or not least <= number <= most.total_seconds():
        raise ValueError(
            f"{name} must be a timedelta or a number of seconds, from {least:g} s to {longest}, not {value!r:.80}"
        )
    return float(number)


def loaded(name: str, value: Any) -> Any:
    """Return a rendered argument that is an object or a list; a template renders to text, which is read as JSON.

    :raises ValueError: it is text, but not JSON
    """
    if not isinstance(value, str):
        return value
    if not value.strip() or value.strip() in ("None", "null"):
        return None
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"{name} is a text that is not JSON: {value[:60]!r}") from None


def instant(name: str, value: Any) -> datetime | None:
    """Return a rendered argument that is a time: a datetime, ISO 8601 text, or ``None``.

    :raises ValueError: it is no time, or has no zone
    """
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    return instant_of(name, value)


def check_instant(name: str, value: Any) -> None:
    """Check an argument that is a time or ``None``.

    :raises ValueError: it is empty, no time, or has no zone
    """
    if value is not None and not is_template(value) and instant(name, value) is None:
        raise ValueError(f"{name} must be a time with a zone, not {value!r}")


def check_order(**bounds: Any) -> None:
    """Check two arguments that bound a span, in the given order; one that is not known yet is not compared.

    :raises ValueError: the second is not after the first
    """
    (first, begin), (last, end) = bounds.items()
    if is_template(begin) or is_template(end):
        return
    begin, end = instant(first, begin), instant(last, end)
    if begin is not None and end is not None and end <= begin:
        raise ValueError(f"{last} ({end.isoformat()}) must be after {first} ({begin.isoformat()})")


def latest_start(value: Any) -> datetime | timedelta | None:
    """Return a rendered ``before``: the latest start of a session, or its distance from ``since``, or ``None``.

    :raises ValueError: it is neither a time with a zone nor a timedelta
    """
    try:
        if isinstance(value, timedelta):
            seconds("before", value, least=1)
            return value
        return instant("before", value)
    except ValueError:
        raise ValueError(
            f"before must be a time with a zone, or a timedelta of a second to ten years after since, not {value!r:.80}"
        ) from None


def check_bounds(since: Any, before: Any, *, given: Collection[str]) -> None:
    """Check the arguments that bound the start of a session which is found by its start.

    :param given: the given arguments that select the session or meter
    :raises ValueError: a session is given as well, one of them is invalid, or no session can start in between
    """
    for session in sorted({"session", "session_id"}.intersection(given)):
        for name, value in (("since", since), ("before", before)):
            if value is not None:
                raise ValueError(
                    f"{session} and {name} exclude each other: a session is either given or found by its start"
                )
    check_instant("since", since)
    latest = None if is_template(before) else latest_start(before)
    if isinstance(latest, datetime) and since is not None and not is_template(since):
        check_window(instant("since", since) or latest, latest)


class OperatorArguments(TypedDict, total=False):
    """The arguments of each of Airflow's operators: a type checker refuses any other name."""

    task_id: Required[str]
    owner: str
    email: str | Sequence[str] | None
    email_on_retry: bool
    email_on_failure: bool
    retries: int | None
    retry_delay: timedelta | float
    retry_exponential_backoff: float
    max_retry_delay: timedelta | float | None
    retry_policy: Any
    start_date: datetime | None
    end_date: datetime | None
    depends_on_past: bool
    ignore_first_depends_on_past: bool
    wait_for_past_depends_before_skipping: bool
    wait_for_downstream: bool
    dag: DAG | None
    params: Any
    default_args: dict[str, Any] | None
    priority_weight: int
    weight_rule: Any
    queue: str
    pool: str | None
    pool_slots: int
    sla: timedelta | None
    execution_timeout: timedelta | None
    on_execute_callback: Any
    on_failure_callback: Any
    on_success_callback: Any
    on_retry_callback: Any
    on_skipped_callback: Any
    pre_execute: Any
    post_execute: Any
    trigger_rule: str
    resources: dict[str, Any] | None
    run_as_user: str | None
    map_index_template: str | None
    max_active_tis_per_dag: int | None
    max_active_tis_per_dagrun: int | None
    executor: str | None
    executor_config: dict[str, Any] | None
    do_xcom_push: bool
    multiple_outputs: bool
    inlets: Any
    outlets: Any
    task_group: TaskGroup | None
    doc: str | None
    doc_md: str | None
    doc_json: str | None
    doc_yaml: str | None
    doc_rst: str | None
    task_display_name: str | None
    logger_name: str | None
    allow_nested_operators: bool
    render_template_as_native_obj: bool | None


class SensorArguments(OperatorArguments, total=False):
    """The arguments of Airflow's sensors that ours take."""

    poke_interval: timedelta | float
    timeout: timedelta | float | None
    soft_fail: bool
    mode: Literal["poke", "reschedule"]


class StandsForValue:
    """Base of the operators, for type checkers alone: ``output`` is accepted in place of its value."""

    if TYPE_CHECKING:

        @property
        def output(self) -> Any:
            """The task's output, to pass to other tasks in place of the value."""


class SessionArguments(StandsForValue):
    """The arguments of every operator that takes a session as an object, or a meter with or without a session id.

    A subclass calls ``take_given`` in its ``__init__``, and ``take_arguments`` in each process of the task.
    """

    session: Any
    session_id: Any
    meter_id: Any
    version: str
    run_type: Any
    mediation_conn_id: str
    given: list[str]
    """The given ones of these arguments."""

    def take_given(
        self,
        *,
        session: Any,
        session_id: Any,
        meter_id: Any,
        run_type: Any,
        mediation_conn_id: str | None,
        version: str | None = None,
    ) -> None:
        """Store the arguments that select the session or meter, and refuse those that can never work.

        :raises ValueError: one of them is invalid, the meter is missing, or two of them differ
        """
        check_one_meter(meter_id)
        values = (session, session_id, meter_id, version, run_type, mediation_conn_id)
        # A template may be rendered to None: a given argument stays given.
        self.given = [name for name, value in zip(SUBJECT_ARGUMENTS, values, strict=True) if value is not None]
        self.session = session
        self.session_id = session_id
        self.meter_id = meter_id
        self.version = DEFAULT_VERSION if version is None else version
        self.run_type = RunType.NORMAL if run_type is None else run_type
        self.mediation_conn_id = DEFAULT_CONNECTION if mediation_conn_id is None else mediation_conn_id
        known = {name: value for name, value in self._rendered().items() if not is_template(value)}
        if has_template(self.run_type):
            known.pop("run_type", None)
        if "version" in known:
            check_text("version", version)
        subject_of(known, unknown=set(self.given) - set(known))

    @property
    def may_be_object(self) -> bool:
        """Whether a session is given as an object, or may be rendered to one."""
        if self.session is not None or not isinstance(self.session_id, str):
            return self.session is not None or self.session_id is not None
        return is_template(self.session_id) or self.session_id.strip()[:1] == "{"

    @property
    def possible_run_types(self) -> list[tuple[RunType, ...]]:
        """What may be awaited, as far as the arguments show before they are rendered: each alone, or both together."""
        either: list[tuple[RunType, ...]] = [(each,) for each in RunType]
        if has_template(self.run_type):
            return either
        given = run_types_of(self.run_type)
        # The run type of an object counts, and no argument may differ from it.
        return either if self.may_be_object and ("run_type" not in self.given or len(given) > 1) else [given]

    @property
    def named_session(self) -> str | None:
        """The session's id, if the rendered arguments contain one."""
        with suppress(ValueError):
            return subject_of(self._rendered()).session_id
        return None

    def take_arguments(self) -> Subject:
        """Return the subject by the rendered arguments, and store the parts of it that were not given.

        :raises ValueError: an argument was rendered to an invalid value, or two of them differ; one sentence
        """
        subject = subject_of(self._rendered())
        self.meter_id, self.version = subject.meter_id, subject.version
        self.run_type, self.mediation_conn_id = stored_run_type(subject.run_types), subject.mediation_conn_id
        return subject

    def _rendered(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.given}
