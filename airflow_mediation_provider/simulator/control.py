"""The control API under /_simulator/: how tests and demos control the simulator while it runs; no I/O."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.simulator import callout_events
from airflow_mediation_provider.simulator.api import ZuoraApi
from airflow_mediation_provider.simulator.callouts import Callouts
from airflow_mediation_provider.simulator.clock import Clock, ManualClock, RealClock
from airflow_mediation_provider.simulator.config import VERSION, MeterConfig, RunPlan, SimulatorConfig
from airflow_mediation_provider.simulator.engine import Engine
from airflow_mediation_provider.simulator.event_log import EventLog
from airflow_mediation_provider.simulator.faults import Fault, FaultKind, Faults
from airflow_mediation_provider.simulator.messages import Call, Reply
from airflow_mediation_provider.simulator.sessions import Refusal, Session
from airflow_mediation_provider.simulator.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "/_simulator"
# These define the server, the clock or the meters; every other setting may be changed while the simulator runs.
FIXED = frozenset({"host", "port", "meters", "first_run_id", "clock", "log_file"})
CHANGEABLE = frozenset(field.name for field in dataclasses.fields(SimulatorConfig)) - FIXED


class Carrier(Protocol):
    """The methods of a server that a tenant needs."""

    def release(self) -> None:
        """Close the connections of requests that hang."""

    def statistics(self) -> dict[str, int]:
        """Return counts of connections and requests."""

    def reset_statistics(self) -> None:
        """Restart the counts."""


class Tenant:
    """A whole simulated tenant without its server: what the control API and the Python API act on.

    :param config: its configuration
    :raises ValueError: the configuration is wrong
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._initial = config
        self.clock: Clock = ManualClock() if config.clock == "manual" else RealClock()
        self.log = EventLog(self.clock, config.log_file)
        self.engine = Engine(config, self.clock, self.log)
        self.callouts = Callouts(self.engine, self.clock, self.log)
        self.tokens = Tokens(self.clock, self.log)
        self.faults = Faults(self.clock)
        self.api = ZuoraApi(self.engine, self.tokens, self.callouts)
        self.carrier: Carrier | None = None

    def reset(self) -> None:
        """Return to the configuration of the start: no sessions, keys, tokens, faults, exports and no log."""
        self.engine.config = self._initial
        self.engine.reset()
        self.callouts.reset()
        self.tokens.expire()
        self.api.audit.reset()
        self.clear_faults()
        self.log.clear()
        if self.carrier is not None:
            self.carrier.reset_statistics()

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Change settings of the tenant.

        :raises ValueError: a setting is unknown, wrong, or fixed once the simulator runs
        """
        if fixed := sorted(set(settings) - CHANGEABLE):
            raise ValueError(f"cannot be changed: {', '.join(fixed)}; can: {', '.join(sorted(CHANGEABLE))}")
        self.engine.config = dataclasses.replace(self.engine.config, **settings)
        self.callouts.on_schedule()
        self.log.add("control", action="config", settings=sorted(settings))

    def set_delivery(self, settings: Mapping[str, Any]) -> None:
        """Change how callouts are delivered; settings that are not given stay.

        :raises ValueError: a setting is unknown or wrong
        """
        self.configure({"delivery": {**dataclasses.asdict(self.engine.config.delivery), **settings}})

    def publish(self, kind: str, session_id: str | None = None, values: Mapping[str, Any] | None = None) -> int:
        """Publish an event that no change of a session causes, and return how many callouts it has.

        :param kind: ``periodic`` (of a session's operators) or ``event_store_query``
        :param session_id: the session, for ``periodic``
        :param values: merge fields of the query, for ``event_store_query``
        :raises KeyError: there is no such session
        :raises ValueError: there is no such event or field
        """
        now = self.clock.now()
        if kind == "event_store_query":
            return self.callouts.publish(callout_events.event_store_query(values or {}, now))
        if kind != "periodic":
            raise ValueError(f"event must be periodic or event_store_query, got {kind!r}")
        session = self.engine.session(str(session_id))
        name = self.engine.meters[session.meter_id].config.name
        return sum(map(self.callouts.publish, callout_events.periodic(session, name, now)))

    def callout_state(self) -> dict[str, Any]:
        """Return the notifications, how they are delivered, and the callout history with its ids."""
        config = self.engine.config
        return {
            "callouts": [callout.to_dict() for callout in config.callouts],
            "delivery": dataclasses.asdict(config.delivery),
            "pending": self.callouts.pending,
            "history": [record.to_dict() for record in self.callouts.history],
        }

    def fault(self, fault: Fault) -> int:
        """Activate a fault and return its id; ``expire_tokens`` happens at once and has the id 0."""
        if fault.kind is FaultKind.EXPIRE_TOKENS:
            self.log.add("control", action="expire_tokens", tokens=self.tokens.expire())
            return 0
        self.faults.add(fault)
        self.log.add("control", action="fault", fault=fault.id, fault_kind=str(fault.kind))
        return fault.id

    def clear_faults(self, fault_id: int | None = None) -> int:
        """Remove one fault or all, close the connections that hang, and return how many faults were removed."""
        removed = self.faults.remove(fault_id)
        if self.carrier is not None:
            self.carrier.release()
        self.log.add("control", action="clear_faults", faults=removed)
        return removed

    def start_session(
        self,
        meter_id: str,
        version: str = VERSION,
        *,
        run_type: str = "NORMAL",
        script: Any = None,
        records: int | None = None,
        errors: int | None = None,
        unique_key: str | None = None,
    ) -> Session:
        """Start a session without the product under test.

        :raises Refusal: Zuora would refuse it too
        :raises ValueError: an argument is wrong
        """
        kind = RunType(run_type)
        plan = None
        if script is not None or records is not None or errors is not None:
            meter = self.engine.meter(str(meter_id), version)
            first = (meter.config.runs if kind is RunType.NORMAL else meter.config.debug_runs)[0]
            plan = RunPlan(
                first.script if script is None else script,
                first.records if records is None else records,
                first.errors if errors is None else errors,
            )
        return self.engine.start(str(meter_id), version, kind, unique_key=unique_key, plan=plan, foreign=True)

    def set_meter(self, meter_id: str, settings: Mapping[str, Any]) -> MeterConfig:
        """Add a meter or change one; see ``Engine.set_meter``."""
        meter = self.engine.set_meter(meter_id, settings)
        self.log.add("control", action="meter", meter_id=meter.id)
        return meter

    def steer(self, session_id: str, script: Any) -> Session:
        """Replace the rest of a session's script; see ``Engine.steer``."""
        self.log.add("control", action="steer", session_id=session_id)
        return self.engine.steer(session_id, script)

    def advance(self, seconds: float) -> None:
        """Move the manual clock forward and make the transitions that fall due.

        :raises ValueError: the clock is the real one, or ``seconds`` is negative
        """
        if not isinstance(self.clock, ManualClock):
            raise ValueError("advance: the clock is the real one; configure clock: manual")
        self.clock.advance(seconds)
        self.engine.run_due()
        self.callouts.on_schedule()

    def statistics(self) -> dict[str, int]:
        """Return counts of connections and requests, nothing if the tenant has no server."""
        return self.carrier.statistics() if self.carrier is not None else {}

    def health(self) -> dict[str, Any]:
        """Return that it runs, its meters with their run status, and its counts."""
        self.engine.run_due()
        meters = [
            {
                "id": meter.config.id,
                "name": meter.config.name,
                "versions": meter.config.versions,
                "status": self.engine.run_status(meter.config.id, meter.config.versions[0]),
                "live_sessions": sum(session.live for session in self.engine.sessions(meter.config.id)),
            }
            for meter in self.engine.meters.values()
        ]
        log = {"log": self.log.counts(), "last": self.log.last, "callouts_pending": self.callouts.pending}
        return {"ok": True, "meters": meters, **log, **self.statistics()}


def answer(tenant: Tenant, call: Call) -> Reply:
    """Answer a call of the control API; errors are 400 with ``{"error": text}``."""
    name = f"{call.method} {call.path.removeprefix(PREFIX).rstrip('/')}"
    try:
        if name == "GET /health":
            return Reply(body=tenant.health())
        if name == "GET /log":
            return Reply(body=_log(tenant, call))
        if name == "GET /faults":
            return Reply(body={"faults": [fault.to_dict() for fault in tenant.faults.active()]})
        if name == "POST /faults":
            return Reply(201, {"id": tenant.fault(Fault.parse(call.json()))})
        if name == "DELETE /faults":
            which = call.one("id")
            return Reply(body={"removed": tenant.clear_faults(int(which) if which else None)})
        if name == "GET /sessions":
            tenant.engine.run_due()
            return Reply(body={"sessions": [s.to_dict() for s in tenant.engine.sessions(call.one("meter"))]})
        if name == "POST /sessions":
            return Reply(201, _start(tenant, call.json()).to_dict())
        if call.method == "POST" and name.startswith("POST /sessions/"):
            steered = tenant.steer(name.removeprefix("POST /sessions/"), call.json().get("script", ()))
            return Reply(body=steered.to_dict())
        if name.startswith("POST /meters/"):
            meter = tenant.set_meter(name.removeprefix("POST /meters/"), call.json())
            return Reply(body={"id": meter.id, "name": meter.name})
        if name == "POST /config":
            tenant.configure(call.json())
            return Reply(body={"ok": True})
        if name == "GET /callouts":
            return Reply(body=tenant.callout_state())
        if name == "POST /delivery":
            tenant.set_delivery(call.json())
            return Reply(body={"ok": True})
        if name == "POST /events":
            body = call.json()
            sent = tenant.publish(body.get("event", ""), body.get("session_id"), body.get("values"))
            return Reply(201, {"callouts": sent})
        if name == "POST /advance":
            tenant.advance(call.json().get("seconds", 0))
            return Reply(body={"now": tenant.clock.now()})
        if name == "POST /reset":
            tenant.reset()
            return Reply(body={"ok": True})
    except Refusal as refusal:
        return Reply(400, {"error": refusal.message, "code": refusal.code})
    except KeyError as error:
        return Reply(404, {"error": f"unknown: {error}"})
    except (TypeError, ValueError) as error:
        return Reply(400, {"error": str(error)})
    return Reply(
        404, {"error": f"no control operation {name}; see python -m airflow_mediation_provider.simulator --help"}
    )


def _start(tenant: Tenant, body: dict[str, Any]) -> Session:
    fields = dict(body)
    meter = fields.pop("meter", None) or fields.pop("meter_id", None)
    if not meter:
        raise ValueError("meter is missing")
    return tenant.start_session(str(meter), **fields)


def _log(tenant: Tenant, call: Call) -> dict[str, Any]:
    tenant.engine.run_due()
    fields = {"meter_id": meter} if (meter := call.one("meter")) else {}
    since = int(call.one("since", "0") or 0)
    entries = tenant.log.read(kind=call.many("kind") or None, since=since, **fields)
    return {"entries": entries, "last": tenant.log.last, "counts": tenant.log.counts(), **tenant.statistics()}
