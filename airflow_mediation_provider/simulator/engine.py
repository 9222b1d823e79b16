"""The simulated tenant: meters, sessions that follow their scripts, and Zuora's refusals.

Pure: time comes from a clock, and nothing happens between calls. ``run_due()`` makes every transition whose time has
come, in order, each with the instant at which it was due. The engine's driver calls it at ``next_due()``.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType, SessionStatus
from airflow_mediation_provider.simulator.config import (
    VERSION,
    MeterConfig,
    RunPlan,
    SimulatorConfig,
    Step,
    meter_fields,
    parse_script,
)
from airflow_mediation_provider.simulator.sessions import (
    METER_UNKNOWN,
    NOT_RUNNING,
    STOP_IN_PROGRESS,
    VERSION_UNKNOWN,
    Meter,
    Refusal,
    Session,
    SessionChange,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from airflow_mediation_provider.simulator.clock import Clock
    from airflow_mediation_provider.simulator.event_log import EventLog


class Engine:
    """A tenant's meters and sessions.

    :param config: the tenant; replace ``engine.config`` to change its settings while it runs
    :param clock: where the time comes from
    :param log: gets starts, transitions, stops and refusals
    """

    def __init__(self, config: SimulatorConfig, clock: Clock, log: EventLog) -> None:
        self.config = config
        self.clock = clock
        self.log = log
        self.observers: list[Callable[[SessionChange], None]] = []
        self.on_schedule: Callable[[], None] = lambda: None
        self.meters: dict[str, Meter] = {}
        self._ids = itertools.count(config.first_run_id)
        self._order = itertools.count(1)
        self._due: list[tuple[float, int, Session]] = []
        self.reset()

    def reset(self) -> None:
        """Delete all sessions and keys and restore the configured meters; ids go on."""
        self.meters = {meter.id: Meter(meter) for meter in self.config.meters}
        self._due.clear()

    # ---- meters

    def meter(self, meter_id: str, version: str = VERSION, *, status: int = 400) -> Meter:
        """Return a meter that has this version.

        :param status: HTTP status of the refusal of an unknown meter
        :raises Refusal: 70002103 unknown meter, 70002104 unknown version
        """
        if (meter := self.meters.get(meter_id)) is None:
            raise Refusal(f"Meter {meter_id} does not exist.", METER_UNKNOWN, status)
        if version not in meter.config.versions:
            raise Refusal(f"Version {version} of meter {meter_id} does not exist.", VERSION_UNKNOWN)
        return meter

    def set_meter(self, meter_id: str, settings: Mapping[str, Any]) -> MeterConfig:
        """Add a meter, or change settings of one; given ``runs`` (``script``) or ``stop_results`` start from the first.

        Its sessions stay as they are.

        :param settings: fields of ``MeterConfig``
        :raises ValueError: a setting is unknown or wrong
        """
        changes = meter_fields(settings)
        old = self.meters.get(str(meter_id))
        kept = {f.name: getattr(old.config, f.name) for f in fields(MeterConfig)} if old else {}
        config = MeterConfig.parse({**kept, **changes, "id": str(meter_id)})
        if old is None:
            self.meters[config.id] = Meter(config)
            return config
        old.config = config
        if "runs" in changes:
            old.started[RunType.NORMAL] = 0
        if "debug_runs" in changes:
            old.started[RunType.DEBUG] = 0
        if "stop_results" in changes:
            old.stops = 0
        return config

    # ---- starts

    def start(
        self,
        meter_id: str,
        version: str = VERSION,
        run_type: RunType = RunType.NORMAL,
        *,
        unique_key: str | None = None,
        plan: RunPlan | None = None,
        streaming: bool | None = None,
        foreign: bool = False,
    ) -> Session:
        """Start a session.

        :param unique_key: refuses a second start of this meter with the same key; a refused start does not use it up
        :param plan: what it does; by default the next one of the meter's sequence
        :param streaming: whether it streams, if this run's sources decide it
        :param foreign: whether something else than the product under test starts it (through the control API)
        :raises Refusal: unknown meter or version, a key that was used, or one run too many
        """
        self.run_due()
        now = self.clock.now()
        meter = self.meter(meter_id, version)
        if unique_key is not None and unique_key in meter.keys:
            self._refuse("duplicate_key", meter_id, f"The uniqueKey '{unique_key}' is a duplicate.", unique_key)
        if run_type is RunType.NORMAL:
            self._check_room(meter, version, unique_key)
        shown = self.run_status(meter_id, version)
        session = self._resumable(meter, version) if run_type is RunType.NORMAL else None
        chosen = plan or meter.next_plan(run_type)
        runs = meter.of(version)
        if resumed := session is not None:
            runs.remove(session)
            session.plan = replace(chosen, records=session.plan.records + chosen.records)
            session.unique_key = unique_key
        else:
            session = Session(
                run_id=str(next(self._ids)),
                meter_id=meter_id,
                version=version,
                revision=len(runs) + 1,
                run_type=run_type,
                plan=chosen,
                streaming=meter.config.streaming if streaming is None else streaming,
                started_at=now,
                unique_key=unique_key,
                foreign=foreign,
            )
        runs.append(session)
        if unique_key is not None:
            meter.keys[unique_key] = session
        if meter.config.stale_for and (meter.config.debug_visible or run_type is RunType.NORMAL):
            meter.stale[version] = (shown, now + self._real(meter.config.stale_for))
        self.log.add(
            "start",
            at=now,
            meter_id=meter_id,
            version=version,
            run_type=str(run_type),
            session_id=session.session_id,
            unique_key=unique_key,
            foreign=foreign,
            resumed=resumed,
        )
        self._follow(session, session.plan.script, now)
        return session

    def _check_room(self, meter: Meter, version: str, unique_key: str | None) -> None:
        running = {
            other.config.id
            for other in self.meters.values()
            for runs in other.sessions.values()
            for session in runs
            if session.live and session.run_type is RunType.NORMAL
        }
        if meter.config.id in running:
            if not meter.config.overlap:
                text = f"Meter {meter.config.id} version {version} is already running."
                self._refuse("already_running", meter.config.id, text, unique_key)
        elif len(running) >= self.config.max_running_meters:
            self._refuse("capacity", meter.config.id, "maximum running meter count exceeded", unique_key)

    def _refuse(self, reason: str, meter_id: str, message: str, unique_key: str | None) -> None:
        self.log.add("refused", reason=reason, meter_id=meter_id, unique_key=unique_key)
        raise Refusal(message, self.config.undocumented_code)

    def _resumable(self, meter: Meter, version: str) -> Session | None:
        if meter.config.resume == "new":
            return None
        paused = (session for session in reversed(meter.of(version)) if session.status == SessionStatus.PAUSED)
        return next(paused, None)

    # ---- stops

    def stop(self, meter_id: str, version: str = VERSION, *, force: bool = False) -> list[Session]:
        """Stop every live NORMAL run of a meter version, as Zuora does: no session can be named.

        Batch runs are canceled at once; streaming ones go through STOPPING unless forced.

        :return: the sessions that it stopped or is stopping
        :raises Refusal: unknown meter or version, 70002122 nothing runs, 70003043 a stop is under way
            (even where this one is forced)
        """
        self.run_due()
        now = self.clock.now()
        try:
            meter = self.meter(meter_id, version)
            types = set(RunType) if meter.config.stop_cancels_debug else {RunType.NORMAL}
            live = [session for session in meter.of(version) if session.live and session.run_type in types]
            if not live:
                raise Refusal(f"Version {version} of meter {meter_id} is not running.", NOT_RUNNING)
            if any(session.status == SessionStatus.STOPPING for session in live):
                raise Refusal(f"A stop of meter {meter_id} version {version} is in progress.", STOP_IN_PROGRESS)
        except Refusal as refusal:
            self.log.add(
                "stop", at=now, meter_id=meter_id, version=version, force=force, sessions=[], refused=refusal.code
            )
            raise
        ids = [session.session_id for session in live]
        self.log.add("stop", at=now, meter_id=meter_id, version=version, force=force, sessions=ids, refused=None)
        result = meter.next_stop_result() if not force and any(session.streaming for session in live) else ""
        for session in live:
            if not session.streaming:
                self._follow(session, (Step(SessionStatus.CANCELED, None),), now)
            elif force:
                self._follow(session, (Step(meter.config.force_result, None),), now)
            else:
                self._stop_gracefully(session, result, meter.config.stopping_for, now)
        return live

    def _stop_gracefully(self, session: Session, result: str, seconds: float, now: float) -> None:
        rest: tuple[Step, ...] = (Step(result, None),)
        if result == SessionStatus.RUNNING:  # the stop failed: the session goes on as before
            scale = self.config.time_scale
            left = None if session.due is None else (session.due - now) / scale if scale else 0.0
            rest = (Step(result, left), *session.pending)
        self._follow(session, (Step(SessionStatus.STOPPING, seconds), *rest), now)

    def steer(self, session_id: str, script: Iterable[Any]) -> Session:
        """Replace the rest of a session's script, from now on.

        :raises KeyError: there is no such session
        :raises ValueError: the script is wrong
        """
        steps = parse_script(script)
        self.run_due()
        session = self.session(session_id)
        self._follow(session, steps, self.clock.now())
        return session

    # ---- reading

    def session(self, session_id: str) -> Session:
        """Return a session by id.

        :raises KeyError: there is no such session
        """
        for session in self.sessions():
            if session.session_id == session_id:
                return session
        raise KeyError(session_id)

    def sessions(self, meter_id: str | None = None) -> list[Session]:
        """Return the sessions of a meter or of all, by start."""
        meters = self.meters.values() if meter_id is None else [m for i, m in self.meters.items() if i == meter_id]
        found = [session for meter in meters for runs in meter.sessions.values() for session in runs]
        return sorted(found, key=lambda session: int(session.run_id))

    def run_status(self, meter_id: str, version: str = VERSION) -> str:
        """Return the run status of a meter version: possibly a stale one, or a newer run's.

        :raises Refusal: 404 with 70002103 unknown meter, 70002104 unknown version
        """
        self.run_due()
        meter = self.meter(meter_id, version, status=404)
        status, until = meter.stale.get(version, ("", 0.0))
        return status if self.clock.now() < until else meter.actual_status(version)

    # ---- time

    def next_due(self) -> float | None:
        """Return when ``run_due()`` has to be called next, seconds since the epoch."""
        while self._due and self._due[0][2].due != self._due[0][0]:
            heapq.heappop(self._due)  # the session left that script in the meantime
        return self._due[0][0] if self._due else None

    def run_due(self) -> None:
        """Make every transition whose time has come, in order of time."""
        now = self.clock.now()
        while (due := self.next_due()) is not None and due <= now:
            session = heapq.heappop(self._due)[2]
            self._follow(session, tuple(session.pending), due)

    def _real(self, seconds: float) -> float:
        return seconds * self.config.time_scale

    def _follow(self, session: Session, steps: tuple[Step, ...], at: float) -> None:
        """Enter the first step now and plan the rest."""
        step, session.pending = steps[0], deque(steps[1:])
        session.due = None
        if session.pending and step.seconds is not None:
            session.due = at + self._real(step.seconds)
            heapq.heappush(self._due, (session.due, next(self._order), session))
            self.on_schedule()
        previous = session.status if session.changed else None
        if previous == step.status:
            return
        session.previous_status, session.status = previous, step.status
        session.changed = next(self._order)
        session.ended_at = at if step.status in ANY_TERMINAL else None
        entry = self.log.add(
            "transition",
            at=at,
            meter_id=session.meter_id,
            version=session.version,
            run_type=str(session.run_type),
            session_id=session.session_id,
            previous_status=previous,
            status=step.status,
        )
        change = SessionChange(session, previous, step.status, at, entry)
        for observer in self.observers:
            try:
                observer(change)
            except Exception as error:  # an observer's error must not affect the tenant: it is logged, sessions go on
                self.log.add("observer_failed", session_id=session.session_id, error=repr(error))
