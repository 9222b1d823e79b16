"""Start the session of a generation: check its sources, send the one call, and pause where that cannot work now.

Zuora documents ``uniqueKey`` as the cure for a lost reply: repeat the identical request, and *duplicate* means that the
first one did start a session. It does not name the session. A DEBUG run has no documented key, so its call is never
repeated after an answer that may have been lost.

Sources: https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter and
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/metering-apis/runtime-configuration-for-meter-runs
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import FIRST_STATUS, RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.wait_result import Outage, WaitEnd
from airflow_mediation_provider.protocol.zuora.errors import (
    CapacityError,
    DuplicateKeyError,
    MediationError,
    PermanentError,
    TransientError,
    details_of,
)
from airflow_mediation_provider.tasks.arguments import is_template
from airflow_mediation_provider.tasks.state import Tries
from airflow_mediation_provider.worker.run_state import KeptRun, RunPhase, RunState, derived_generation, unique_key
from airflow_mediation_provider.worker.waiting import RESCHEDULE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from airflow.sdk import Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.zuora.requests import MeterRun
    from airflow_mediation_provider.worker.waiting import SessionWaitMixin

# The key that carries the source's own settings, and those of its settings that Zuora requires. STREAMING_API is named
# by the documentation, but the object that would configure it is not.
SOURCE_TYPES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "LOCAL_FS": ("localFs", ("fileId",)),
    "S3": ("s3", ("paths", "fileFormat")),
    "SNOWFLAKE": ("snowflake", ()),
    "EVENT_STORE": ("eventStore", ("storeId",)),
    "STREAMING_API": ("", ()),
}
FILE_FORMATS: Final = ("CSV", "EXCEL", "PARQUET", "JSON", "XML", "AVRO")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")

_LONGEST_PAUSE: Final = 300.0
_MAY_RUN: Final = (
    "An earlier call of this run got no answer, so its session may have been started:"
    " check the meter's sessions in Zuora."
)


def validate_runtime_source_configs(value: object, argument: str = "runtime_source_configs") -> None:
    """Check ``runtimeSourceConfigs``: a list of objects with a known ``sourceType`` and its required settings.

    :raises ValueError: naming the item, the key, and what is allowed
    """
    for where, item in _items(value, argument):
        source_type = item.get("sourceType")
        if is_template(source_type):
            continue
        if source_type not in SOURCE_TYPES:
            raise ValueError(f"{where}['sourceType'] must be one of {', '.join(SOURCE_TYPES)}, not {source_type!r}")
        settings_key, required = SOURCE_TYPES[source_type]
        for other, _ in SOURCE_TYPES.values():
            if other and other in item and other != settings_key:
                raise ValueError(f"{where} has {other!r}, which does not belong to sourceType {source_type}")
        settings = item.get(settings_key, {})
        if is_template(settings):
            continue
        if not isinstance(settings, Mapping):
            raise ValueError(f"{where}[{settings_key!r}] must be an object, not {type(settings).__name__}")
        _require(f"{where}[{settings_key!r}]" if settings_key else where, settings, required)
        _check_settings(f"{where}[{settings_key!r}]", settings)


def validate_source_options(value: object, argument: str = "source_options", *, debug: bool = False) -> None:
    """Check ``sourceOptions``: a NORMAL run needs ``localFileId`` in each item; a DEBUG run, one source of its rows.

    :raises ValueError: naming the item and the key
    """
    rows = ("sampleFileId", "localFileId", "testData", "testDataId")
    for where, item in _items(value, argument):
        if not debug:
            _require(where, item, ("localFileId",))
        elif sum(item.get(key) is not None for key in rows) != 1:
            raise ValueError(f"{where} must have exactly one of {', '.join(rows)}")


def validate_event_store_source_options(value: object, argument: str = "event_store_source_options") -> None:
    """Check ``eventStoreSourceOptions``: ``processorId``, and dates as ``YYYY-MM-DD``.

    :raises ValueError: naming the item and the key
    """
    for where, item in _items(value, argument):
        _require(where, item, ("processorId",))
        _check_dates(where, item)


def _items(value: object, argument: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the items with their names; none where the value is unset or not known yet."""
    if value is None or is_template(value):
        return []
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ValueError(f"{argument} must be a list of objects, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{argument} is empty: leave it out to run the meter with its own sources")
    items = []
    for index, item in enumerate(value):
        if is_template(item):
            continue
        if not isinstance(item, Mapping):
            raise ValueError(f"{argument}[{index}] must be an object, not {type(item).__name__}")
        items.append((f"{argument}[{index}]", item))
    return items


def _require(where: str, settings: Mapping[str, Any], required: Sequence[str]) -> None:
    missing = [key for key in required if settings.get(key) in (None, "", [])]
    if missing:
        raise ValueError(f"{where} needs {' and '.join(repr(key) for key in missing)}")


def _check_settings(where: str, settings: Mapping[str, Any]) -> None:
    file_format = settings.get("fileFormat", settings.get("unloadFileFormat"))
    if file_format is not None and not is_template(file_format) and file_format not in FILE_FORMATS:
        raise ValueError(f"{where} has the file format {file_format!r}: allowed are {', '.join(FILE_FORMATS)}")
    paths = settings.get("paths")
    if paths is not None and not is_template(paths) and (isinstance(paths, str) or not isinstance(paths, Sequence)):
        raise ValueError(f"{where}['paths'] must be a list of texts, not {type(paths).__name__}")
    if settings.get("query") and (settings.get("startDate") or settings.get("endDate")):
        raise ValueError(f"{where} has both 'query' and a date range: Zuora takes one of them")
    _check_dates(where, settings)


def _check_dates(where: str, settings: Mapping[str, Any]) -> None:
    for key in ("startDate", "endDate"):
        date = settings.get(key)
        if date is not None and not is_template(date) and not (isinstance(date, str) and _DATE.fullmatch(date)):
            raise ValueError(f"{where}[{key!r}] must be a date as YYYY-MM-DD, not {date!r}")


class RunCall:
    """The call of one generation, repeated until its answer is known.

    :param hook: sends each request once; the caller pauses between two, which it can do without a worker
    :param state: the generation, in phase ``CALLING``
    :param memory: keeps the state before the call and after it
    :param now: the clock
    """

    def __init__(self, hook: MediationHook, state: RunState, memory: KeptRun, now: Callable[[], datetime]) -> None:
        self._hook = hook
        self._memory = memory
        self._now = now
        self._first = False
        self.state = state

    def read_baseline(self) -> None:
        """Read the status before the first call of the generation.

        :raises MediationError: it could not be read; nothing was called
        """
        self._first = self.state.called_at is None
        if self._first:
            baseline = self._hook.run_status(self.state.request["meter_id"], self.state.request["version"])
            self._keep(baseline=baseline, called_at=self._now())

    def once(self) -> RunState:
        """Call once, after ``read_baseline``, and return the state after it: ``STARTED`` or ``UNNAMED``.

        :raises CapacityError: five meters run already; this call started nothing
        :raises PermanentError: Zuora refused
        :raises TransientError: the answer is not known; calling again is safe
        """
        if not self._first and self.state.unique_key is None:
            return self._keep(phase=RunPhase.UNNAMED)
        try:
            run = self._send()
        except DuplicateKeyError:
            return self._keep(phase=RunPhase.UNNAMED)
        except TransientError as error:
            if error.nothing_done:
                self._refused()
            elif self.state.unique_key is None:
                return self._keep(phase=RunPhase.UNNAMED)
            raise
        except PermanentError as error:
            if not self._first:
                raise type(error)(f"{error} {_MAY_RUN}", **details_of(error)) from None
            self._refused()
            raise
        # A session was started in any case; a reply that does not name it is treated as a lost one.
        phase = RunPhase.STARTED if run.session_id else RunPhase.UNNAMED
        return self._keep(phase=phase, session=_transition(run, self._now()).to_dict(), run_id=run.run_id)

    def _send(self) -> MeterRun:
        request = dict(self.state.request)
        if request.pop("run_type") == RunType.DEBUG:
            return self._hook.debug_meter(**request)
        return self._hook.run_meter(**request, unique_key=self.state.unique_key)

    def _refused(self) -> None:
        """Have the status read again before the next call: this one started nothing."""
        if self._first:
            self._keep(called_at=None, baseline=None)

    def _keep(self, **changes: Any) -> RunState:
        self.state = self._memory.save(replace(self.state, **changes))
        return self.state


def _transition(run: MeterRun, observed_at: datetime) -> SessionTransition:
    return SessionTransition(
        meter_id=str(run.meter_id),
        session_id=run.session_id,
        run_type=RunType(run.run_type),
        status=str(run.status or FIRST_STATUS[RunType(run.run_type)]),
        started_at=run.started_at,
        observed_at=observed_at,
        source=Source.RUN,
    )


def only_session_since(hook: MediationHook, request: dict[str, Any], since: datetime, until: datetime) -> str | None:
    """Name the only session that wrote records of the meter in a window; a hint: sessions without records are missing.

    The summary is the one documented call that names sessions at all, and only once they have records:
    https://developer.zuora.com/v1-api-reference/api/audit-trail/ (summary, grouped by ``sessionId``).

    :return: the session's id; ``None`` where there is none, several, or no answer
    """
    try:
        summary = hook.meter_summary(
            request["meter_id"],
            run_type=request["run_type"],
            group_by=["sessionId"],
            query_from=since - timedelta(seconds=1),
            query_to=until,
        )
    except MediationError:
        return None
    rows = summary.get("output") or []
    named = {str((row.get("dimensions") or {}).get("sessionId") or "") for row in rows} - {""}
    return named.pop() if len(named) == 1 else None


def _began(kept: str | dict[str, Any]) -> datetime:
    """Return when a kind of pause began; earlier forms have nothing but this time."""
    return datetime.fromisoformat(kept if isinstance(kept, str) else kept["since"])


class RunStarter:
    """Starts the session of a generation: sends the call, and pauses while Zuora cannot carry it out.

    A pause in the triggerer is a plain timer that resumes ``start_again`` on a worker: nothing is ever started from a
    trigger, which Airflow may run twice.

    :param task: the operator that runs the meter
    :param context: of the running task
    :param memory: keeps the generation's state
    :param capacity_timeout: seconds to try again while the tenant has no free place; 0: fail at once
    :param failures: the statuses in which an earlier session is dead, so that a retry starts a new one
    """

    def __init__(
        self,
        task: SessionWaitMixin,
        context: Context,
        memory: KeptRun,
        *,
        capacity_timeout: float,
        failures: Collection[str],
    ) -> None:
        self._task = task
        self._ti = context["ti"]
        self._memory = memory
        self._capacity_timeout = capacity_timeout
        self._failures = failures

    def begin(self, request: dict[str, Any], *, advanced: int = 0) -> RunState:
        """Return a new generation that has not been called for yet.

        :param request: the arguments of the call
        :param advanced: without a store: how many generations of this try are known to be dead
        """
        ti, task = self._ti, self._task
        tries = Tries.of(ti, task.retries)
        generation = str(ti.id) if self._memory.lasting else derived_generation(tries, advanced=advanced)
        key = None
        if request["run_type"] == RunType.NORMAL:
            key = unique_key(
                mediation_conn_id=task.mediation_conn_id,
                request=request,
                instance=(ti.dag_id, ti.run_id, ti.task_id, ti.map_index),
                generation=generation,
            )
        return RunState(
            generation=generation,
            max_tries=ti.max_tries,
            retries=task.retries or 0,
            mediation_conn_id=task.mediation_conn_id,
            request=request,
            unique_key=key,
        )

    def start(self, state: RunState, since: dict[str, Any]) -> RunState:
        """Call until Zuora's answer is known; pause on the worker, or in the triggerer, between two calls.

        :param state: the generation
        :param since: when which kind of pause began; updated in place
        :raises CapacityError: the tenant had no free place for ``capacity_timeout``
        :raises MediationMisconfigured: Zuora refused the call
        :raises MediationUnreachable: there was no answer for ``max_unreachable``
        :raises TaskDeferred: the pause is spent in the triggerer
        """
        from airflow_mediation_provider.exceptions import fail_permanently

        caller = RunCall(self._task._make_hook(attempts=1), state, self._memory, lambda: datetime.now(UTC))
        pauses = 0
        while True:
            answered = caller.state.called_at is not None or "capacity" in since or "call" in since
            try:
                caller.read_baseline()
                since.pop("outage", None)
            except MediationError as error:
                retry_after = self._allow_outage(since, "outage", error, answered=answered)
                pauses += 1
                self._pause_before_call(caller.state, since, max(self._spread(pauses), retry_after))
                continue
            retry_after = 0.0
            try:
                with fail_permanently():
                    state = caller.once()
            except CapacityError as error:
                since.pop("call", None)
                self._allow_full_tenant(since, error)
            except TransientError as error:
                retry_after = self._allow_outage(since, "call", error, answered=True)
                pauses += 1
            else:
                if state.phase is RunPhase.UNNAMED and not self._memory.lasting and self._earlier_run_failed():
                    advanced = int(state.generation.rpartition(".")[2]) + 1
                    caller.state = self.begin(state.request, advanced=advanced)
                    continue
                return state
            self._pause_before_call(caller.state, since, max(self._spread(pauses), retry_after))

    def report(self, state: RunState) -> None:
        """Report to the journal which session was started, where that is known: its first callout may come later.

        Best effort; each try reports it again, and the journal stores it once.
        """
        if state.session is None or state.session_id is None:
            return
        from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry

        transition = SessionTransition.from_dict(state.session)
        entry = JournalEntry(
            kind=EntryKind.STATUS_CHANGE,
            observed_at=transition.observed_at,
            source=Source.RUN,
            transition=transition,
            notification_id=f"run:{state.session_id}",
        )
        self._task._feed_caller().observe([entry])

    def _allow_full_tenant(self, since: dict[str, Any], error: CapacityError) -> None:
        """Log once that the tenant has no free place, and end the try when that lasts too long."""
        now = datetime.now(UTC)
        began = datetime.fromisoformat(since.setdefault("capacity", now.isoformat()))
        if (now - began).total_seconds() >= self._capacity_timeout:
            raise error
        if began == now:
            self._log_pause(error, self._capacity_timeout)

    def _allow_outage(self, since: dict[str, Any], kind: str, error: MediationError, *, answered: bool) -> float:
        """Log an outage once, and end the try when it lasts too long.

        :param kind: ``outage`` of the reads before the call, or of the ``call`` itself
        :param answered: Zuora gave this try a good answer
        :return: the seconds that Zuora asked to wait
        """
        from airflow_mediation_provider.exceptions import MediationMisconfigured, MediationUnreachable

        now, limit = datetime.now(UTC), self._task.max_unreachable
        kept = since.get(kind) or {}
        if isinstance(kept, str):  # an earlier form
            kept = {"since": kept}
        outage = Outage.from_dict({**kept, "max_unreachable": limit, "answered": answered})
        outage.fault(error, now)
        match outage.end(error, now):
            case WaitEnd.MISCONFIGURED, _:
                raise MediationMisconfigured.of(error) from None
            case _, sentence:
                raise MediationUnreachable(f"Meter {self._task.meter_id} could not be started: {sentence}") from None
        if kind not in since:
            self._log_pause(error, limit)
        since[kind] = outage.to_dict()
        return getattr(error, "retry_after", None) or 0.0

    def _log_pause(self, error: MediationError, limit: float) -> None:
        self._task.log.warning(
            "Meter %s is not started yet, trying again for up to %g s: %s", self._task.meter_id, limit, error
        )

    def _spread(self, pauses: int) -> float:
        """Return the seconds to the next call: many tasks may wait for one free place, so they do not call at once."""
        longest = max(_LONGEST_PAUSE, self._task.poke_interval)
        pause = min(self._task.poke_interval * float(2 ** min(pauses, 10)), longest)
        return random.uniform(0.75, 1.5) * pause  # noqa: S311

    def _pause_before_call(self, state: RunState, since: dict[str, Any], pause: float) -> None:
        pause = max(min(pause, self._time_left(since)), 0.1)
        if not self._task.deferrable:
            time.sleep(pause)
            return
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        kept = {} if self._memory.lasting else {"state": state.to_dict()}
        self._task._feed_caller().report_calls()
        self._task.defer(
            trigger=DateTimeTrigger(moment=datetime.now(UTC) + timedelta(seconds=max(pause, RESCHEDULE_SECONDS))),
            method_name="start_again",
            kwargs={"since": since, **kept},
        )

    def _time_left(self, since: dict[str, Any]) -> float:
        """Return the seconds until one of the present kinds of pause ends the try."""
        limits = {"capacity": self._capacity_timeout, "outage": self._task.max_unreachable}
        limits["call"] = limits["outage"]
        now = datetime.now(UTC)
        return min(limits[kind] - (now - _began(kept)).total_seconds() for kind, kept in since.items())

    def _earlier_run_failed(self) -> bool:
        """Return, without a store, whether the session of an earlier try is dead, so that this try starts a new one.

        Two readings, some time apart: one alone may show the session before that one.
        """
        task = self._task
        hook = task._make_hook()
        tries = Tries.of(self._ti, task.retries)
        if tries.number <= tries.before_clear + 1:
            return False
        for pause in (0, task.settle):
            time.sleep(pause)
            if hook.run_status(str(task.meter_id), task.version) not in self._failures:
                return False
        return True
